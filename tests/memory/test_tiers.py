"""Which copies go to disk, and what a plan says of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from handmade import KIB, OFFLOADED, SMALL, SecondPerKiB, op, plan, tape
from networks import FATES, NETWORKS, chain, tape_of

import vdnn
from vdnn.memory.contention import Contention
from vdnn.memory.cost import measured, roofline
from vdnn.memory.decisions import OFFLOAD, DecisionError, Decisions, resolve
from vdnn.memory.order import order
from vdnn.memory.passes import make_plan
from vdnn.memory.plan import Plan, PlanError, Step
from vdnn.memory.simulate import simulate
from vdnn.memory.tiers import sectors, stays_of, tiers_of
from vdnn.memory.trial import sketch
from vdnn.memory.verify import verify
from vdnn.micro_batches import without_round
from vdnn.network import Role
from vdnn.units import UnitError


def nested(sizes=(2, 4, 8)):
    """f1, f2, ... and back: y1 is away longest; sizes in KiB, the input takes one more."""
    count = len(sizes)
    names = ["x", *(f"y{i}" for i in range(1, count + 1))]
    ops = [op(f"f{i}", [names[i - 1]], [names[i]]) for i in range(1, count + 1)]
    ops.append(op("f0", [names[-1]], ["y0"]))
    gradient = ["y0"]
    for i in range(count, 0, -1):
        ops.append(op(f"b{i}", [names[i], *gradient], [f"g{i}"]))
        gradient = [f"g{i}"]
    nbytes = {"x": KIB, "y0": KIB, **{f"y{i}": size * KIB for i, size in enumerate(sizes, 1)}}
    return tape(ops, nbytes | {f"g{i}": KIB for i in range(1, count + 1)})


def planned(made, host_budget, **decisions):
    fates = {t.name: OFFLOAD for t in made.saved if t.name != "y0"}
    return make_plan(made, resolve(Decisions(fates, host_budget=host_budget, **decisions), made, {}))


# ---- the rule


def test_without_a_budget_nothing_goes_to_disk():
    made = planned(nested(), None)
    assert (made.host_bytes, made.disk_bytes, made.spilled) == (15 * KIB, 0, ())


@pytest.mark.parametrize(
    ("budget", "spilled"),
    [(15, ""), (14, "y1"), (13, "y1"), (12, "y1 y2"), (9, "y1 y2"), (8, "y1 y2 y3"), (1, "y1 y2 y3")],
)
def test_what_is_away_longest_goes_first_and_as_little_as_needed(budget, spilled):
    made = planned(nested(), budget * KIB)
    assert list(made.spilled) == spilled.split()
    assert made.host_bytes <= budget * KIB
    verify(made)


@pytest.mark.parametrize("sizes", [(8, 1), (1, 8)])
def test_what_is_away_longest_goes_whatever_its_size(sizes):
    assert planned(nested(sizes), 9 * KIB).spilled == ("y1",)


def test_of_each_round_as_much_goes_as_that_round_needs():
    made = tape_of(chain(), micro_batches=2)
    fates = FATES["offload"](made)
    whole = make_plan(made, resolve(Decisions(fates), made, {}))
    tight = make_plan(made, resolve(Decisions(fates, host_budget=whole.host_bytes - 2048), made, {}))
    spilled = Counter(without_round(name) for name in tight.spilled)
    assert spilled
    assert set(spilled.values()) == {2}
    verify(tight)


def test_undo_copies_go_before_all_others():
    made = tape_of(chain())
    fates = FATES["offload"](made)
    whole, small = (
        make_plan(made, resolve(Decisions(fates, host_budget=n), made, {}), undo=True) for n in (None, 8 << 10)
    )
    assert whole.spilled == ()
    resident = [name for name in small.spilled if name in made.resident]
    assert resident
    least = make_plan(made, resolve(Decisions(fates, host_budget=whole.host_bytes - 512), made, {}), undo=True)
    assert set(least.spilled) <= set(made.resident)
    verify(least)


@pytest.mark.parametrize("make", NETWORKS)
def test_with_a_budget_of_nothing_inputs_and_results_alone_are_in_host_memory(make):
    made = tape_of(make())
    found = make_plan(made, resolve(Decisions(FATES["offload"](made), host_budget=0), made, {}), undo=True)
    verify(found)
    inputs = {name for name, buffer in made.buffers.items() if buffer.role is Role.INPUT}
    staying = {s.name for s in found.steps if s.kind in ("offload", "prefetch") and not s.tier}
    assert staying == inputs | {made.buffer_of[name] for name in made.results}
    assert found.is_within_host


def test_the_budget_holds_for_the_slab_as_it_is_laid_out():
    made = tape_of(chain())
    least = make_plan(made, resolve(Decisions(FATES["offload"](made), host_budget=0), made, {})).host_bytes
    for budget in range(least, 20 << 10, 1536):
        found = make_plan(made, resolve(Decisions(FATES["offload"](made), host_budget=budget), made, {}))
        assert found.host_bytes <= budget
        verify(found)


def test_a_policy_may_name_tiers_and_the_rule_decides_the_rest():
    made = planned(nested(), 9 * KIB, tiers={"y1": "host", "y3": "disk"})
    assert made.spilled == ("y3",)
    made = planned(nested(), 5 * KIB, tiers={"y1": "host", "y3": "disk"})
    assert made.spilled == ("y2", "y3")
    assert planned(nested(), None, tiers={"y2": "disk"}).spilled == ("y2",)


def test_places_on_disk_are_whole_sectors_that_are_used_again():
    made = planned(nested((5, 1, 3)), 0)
    at = {s.name: s.offset for s in made.steps if s.kind == "offload"}
    assert all(offset % 4096 == 0 for offset in at.values())
    assert made.disk_bytes == sectors(5 * KIB) + 2 * 4096
    assert [sectors(n) for n in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]


def test_tiers_are_known_before_a_plan_is_laid_out():
    made = nested()
    for budget in (None, 13 * KIB, 9 * KIB, 0):
        decisions = resolve(Decisions({t.name: OFFLOAD for t in made.saved}, host_budget=budget), made, {})
        assert tuple(tiers_of(sketch(made, decisions))) == make_plan(made, decisions).spilled


def test_a_stay_lasts_from_the_copy_that_leaves_to_the_one_that_returns():
    made = planned(nested(), None)
    stays = {stay.name: stay for stay in stays_of(made.steps, made)}
    assert [stays[name].away for name in ("y1", "y2", "y3")] == [4, 2, 1]
    assert stays["x"].life.start == 0
    assert stays["x"].life.stop == len(made.steps)


# ---- what is refused


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        ({"y9": "disk"}, "y9"),
        ({"y1": "tape"}, "'tape' is no tier for y1; tiers are host, disk"),
        ({"x": "disk"}, "x has no tier: its role is input"),
        ({"g1": "disk"}, "g1 has no tier: its role is gradient map"),
        ({7: "disk"}, "tiers are keyed by tensors or their names, not 7"),
        ("disk", "tiers is a mapping, not 'disk'"),
    ],
)
def test_a_tier_that_cannot_be_is_refused(tiers, message):
    with pytest.raises(DecisionError, match=message):
        resolve(Decisions(tiers=tiers), nested(), {})


def test_a_result_has_no_tier():
    made = tape_of(chain())
    with pytest.raises(DecisionError, match=r"loss1\.y has no tier: it is a result"):
        resolve(Decisions(tiers={"loss1.y": "disk"}), made, {})


@pytest.mark.parametrize("budget", [-1, True, 1.5, "1GiB"])
def test_a_host_budget_that_is_no_number_of_bytes_is_refused(budget):
    with pytest.raises(DecisionError, match="host_budget counts bytes, so it is an integer of at least 0"):
        resolve(Decisions(host_budget=budget), nested(), {})


def test_a_host_budget_below_inputs_and_results_is_refused_with_the_numbers():
    with pytest.raises(vdnn.HostBudgetError) as caught:
        vdnn.plan(chain(), "vdnn_all", hardware="host", threads=1, host_budget=1024)
    needed = caught.value.needed_bytes
    assert needed == vdnn.plan(chain(), "vdnn_all", hardware="host", threads=1, host_budget=0).host_bytes
    message = str(caught.value)
    assert f"needed     {needed / 1024:.2f} KiB ({needed} bytes): inputs of " in message
    assert "available  1.00 KiB (1024 bytes)" in message
    assert f"host_budget={needed}, or 0" in message
    assert vdnn.plan(chain(), "vdnn_all", hardware="host", threads=1, host_budget=needed).host_bytes == needed


def test_a_host_budget_is_read_like_other_amounts_but_may_be_nothing():
    made = vdnn.plan(chain(), "vdnn_all", hardware="host", threads=1, host_budget="8KiB")
    assert made.decisions.host_budget == 8192
    with pytest.raises(UnitError, match="memory is no less than 0 bytes"):
        vdnn.plan(chain(), hardware="host", host_budget=-1)
    with pytest.raises(UnitError, match="a percentage needs"):
        vdnn.plan(chain(), hardware="host", host_budget="50%")


# ---- text and JSON


def test_a_plan_with_a_disk_reads_back_from_its_text_and_from_json():
    made = planned(nested(), 9 * KIB, tiers={"y3": "host"})
    for again in (Plan.parse(str(made), made.tape), Plan.from_json(made.to_json())):
        assert again.steps == made.steps
        assert (again.host_bytes, again.disk_bytes) == (made.host_bytes, made.disk_bytes)
        assert again.decisions == made.decisions
    assert f"disk {made.disk_bytes} bytes" in repr(made)


def test_a_copy_on_disk_prints_its_tier_and_others_print_as_before():
    step = Step("offload", "y", "offload", 4096, waits=(3,), tier="disk")
    assert str(step) == "offload  offload  y on disk @4096 after 3"
    assert Step.parse(str(step)) == step
    assert str(replace(step, tier="")) == "offload  offload  y @4096 after 3"
    with pytest.raises(PlanError, match="no such kind of step, stream or tier"):
        Step.parse("offload offload y on tape @0")


def test_a_plan_from_before_there_were_tiers_reads_as_one_without_a_disk():
    made = planned(nested(), None)
    data = json.loads(made.to_json())
    del data["header"]["disk_bytes"], data["header"]["decisions"]["tiers"], data["header"]["decisions"]["host_budget"]
    again = Plan.from_json(json.dumps(data))
    assert again.steps == made.steps
    assert again.disk_bytes == 0
    assert all(len(step) == 6 for step in data["steps"])


def test_the_table_and_the_summary_say_what_is_on_disk():
    made = vdnn.plan(chain(), "vdnn_all", hardware="host", threads=1, host_budget=0)
    lines = made.table().splitlines()
    assert f"disk {made.disk_bytes / 1024:.1f} KiB" in lines[1]
    assert any("tier" in line for line in lines)
    assert any(line.startswith(" relu1.y") and " offload" in line and " disk" in line for line in lines)
    assert any(line.startswith(" input") and " host" in line for line in lines)
    figures = vdnn.planning.summary(made, roofline("host"))
    assert figures["disk_bytes"] == made.disk_bytes
    assert figures["host_budget_bytes"] == 0
    assert "relu1.y" in figures["spilled"]
    assert "tier" not in vdnn.plan(chain(), "vdnn_all", hardware="host", threads=1).table()


def test_an_explanation_names_the_tier():
    cost = roofline("host")
    made = vdnn.plan(chain(), "vdnn_all", cost=cost, threads=1, host_budget=0)
    rows = {row.tensor: row for row in vdnn.explain(made, cost).rows}
    assert rows["relu1.y"].tier == "disk"
    assert rows["input"].tier == "host"
    assert "of copies to disk and back" in rows["relu1.y"].reason
    assert "tier" in vdnn.explain(made, cost).table()


# ---- waits


def test_waits_follow_bytes_on_disk():
    """z takes the place on disk that y had: its copy out waits for y's copy back, which is on another stream."""
    made = plan(SMALL, OFFLOADED.replace(" y @1024 after", " y on disk @0 after"))
    steps = tuple(replace(s, tier="disk", offset=0) if s.name == "y" and s.kind != "alloc" else s for s in made.steps)
    steps = [replace(s, waits=()) for s in steps if s.kind != "free"]
    again = Step("offload", "y2", "offload", 0, tier="disk")
    made = replace(made, steps=(*steps, again), disk_bytes=4096)
    found = order(made)
    back = next(i for i, s in enumerate(found) if s.kind == "prefetch" and s.name == "y")
    assert back in found[-1].waits
    elsewhere = order(replace(made, steps=(*steps, replace(again, offset=4096)), disk_bytes=8192))
    assert back not in elsewhere[-1].waits


# ---- time


class SlowDisk(SecondPerKiB):
    """A link of 1 KiB/s; a disk that writes half as fast, reads twice as fast, and takes half a second to begin."""

    def copy_seconds(self, nbytes, kind, tier="host"):
        if tier == "disk":
            return 0.5 + nbytes / KIB * (2 if kind == "offload" else 0.5)
        return super().copy_seconds(nbytes, kind)


ON_DISK = OFFLOADED.replace("offload y @1024", "offload y on disk @0").replace(
    "prefetch y @1024", "prefetch y on disk @0"
)
DISK_COST = measured({"f1": 3, "f2": 2, "b2": 1}, SlowDisk())


def test_a_simulated_copy_takes_the_time_of_its_tier():
    made = replace(plan(SMALL, ON_DISK), disk_bytes=4096)
    verify(made)
    trace = simulate(made, DISK_COST)
    times = {e.step.name: (e.start, e.finish) for e in trace.events if e.step.kind == "offload"}
    assert times == {"y": (4, 12.5)}  # 4 KiB at half a KiB a second, and half a second
    back = next(e for e in trace.events if e.step.kind == "prefetch" and e.step.name == "y")
    assert (back.start, back.finish) == (12.5, 15)
    assert trace.step_seconds == 16


def test_copies_to_disk_neither_slow_compute_nor_are_slowed():
    made = replace(plan(SMALL, ON_DISK), disk_bytes=4096)
    slowing = Contention(compute_slowdown=0.5, copy_slowdown=0.5, duplex=False)
    alone, beside = simulate(made, DISK_COST), simulate(made, DISK_COST, slowing)
    assert beside.step_seconds == alone.step_seconds == 16
    on_link = simulate(plan(SMALL, OFFLOADED), DISK_COST, slowing)
    assert on_link.step_seconds > simulate(plan(SMALL, OFFLOADED), DISK_COST).step_seconds


def test_jitter_disturbs_copies_to_disk_by_their_own_times():
    made = replace(plan(SMALL, ON_DISK), disk_bytes=4096)
    assert vdnn.jittered(made, DISK_COST, 0.0, samples=2).seconds.tolist() == [16, 16]


def test_a_policy_times_copies_by_their_tier():
    """Were copies to disk thought to be as quick as others, more of them would be waited for."""
    net = vdnn.models.get("vgg11", batch=4)
    slow = roofline("host", disk_read_bytes_per_second=1e9, disk_write_bytes_per_second=6e8)
    host, disk = (vdnn.plan(net, "vdnn_all", cost=slow, threads=2, host_budget=n) for n in (None, 0))
    blind = make_plan(disk.tape, replace(host.decisions, host_budget=0))
    seconds = [simulate(made, slow).step_seconds for made in (host, disk, blind)]
    assert seconds[1] < 1.01 * seconds[0]
    assert seconds[2] > 1.02 * seconds[0]
    assert disk.arena_bytes <= 1.01 * host.arena_bytes


def test_a_search_knows_which_copies_are_slow():
    """With a slow disk behind little host memory it moves less than with host memory for all."""
    net = vdnn.models.get("digits_vgg", batch=32)
    slow = roofline("host", disk_write_bytes_per_second=2e7, disk_read_bytes_per_second=2e7)
    quick = vdnn.searching(seconds=0.3, cache=False, others=False)
    budget = vdnn.plan(net, "vdnn_all", cost=slow, threads=1).arena_bytes
    rich, poor = (
        vdnn.plan(net, quick, cost=slow, threads=1, budget=budget, host_budget=n, rewrites="standard", micro_batches=1)
        for n in (None, 0)
    )
    assert poor.arena_bytes <= budget
    assert poor.decisions.host_budget == 0
    assert poor.offloaded_bytes < rich.offloaded_bytes
    blind = make_plan(rich.tape, replace(rich.decisions, host_budget=0))
    assert simulate(poor, slow).step_seconds < simulate(blind, slow).step_seconds
    assert poor.bound_seconds <= simulate(poor, slow).step_seconds * (1 + 1e-9)

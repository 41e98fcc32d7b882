from __future__ import annotations

from dataclasses import replace

import pytest

from vdnn.layers.base import Algorithm
from vdnn.memory.decisions import resolve
from vdnn.memory.plan import Plan, PlanError, Step
from vdnn.memory.verify import verify
from vdnn.network import Role, Tensor
from vdnn.tape import Op, Tape

PLAIN = (Algorithm("plain", 0), Algorithm("roomy", 600))


def op(name, phase, reads, writes, target=""):
    arguments = {n: n for n in (*reads, *writes)}
    return Op(name, "", phase, arguments, tuple(reads), tuple(writes), PLAIN, 0, target)


def tape(ops, tensors, *, alias=None, resident=(), results=()):
    tensors = {name: Tensor(name, (nbytes // 4,), "float32", role) for name, (nbytes, role) in tensors.items()}
    return Tape("net", 1, "step", "", "k", "nhwc", 1, tensors, alias or {}, tuple(ops), resident, results)


def plan_of(tape, text, arena=4096, host=4096, algorithms=None):
    steps = tuple(Step.parse(line) for line in text.strip().splitlines())
    return Plan(tape, resolve({}, tape, algorithms or {}), steps, arena, host)


# ---- one forward op, one update: y = f(x, w), w = u(w, y)

SMALL = tape(
    [op("f", "forward", "xw", "y"), op("u", "update", "wy", "w", target="w")],
    {"w": (400, Role.WEIGHT), "x": (512, Role.INPUT), "y": (1000, Role.FEATURE)},
    resident=("w",),
    results=("y",),
)
GOOD = """
compute alloc w @0
compute alloc x @512
prefetch prefetch x @0
compute alloc y @1024
compute compute f by plain after 2
compute free x
offload offload y @512 after 4
offload offload w @2048
compute compute u by plain after 7
"""


def test_a_safe_plan_is_accepted():
    verify(plan_of(SMALL, GOOD))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("offload y @512", "offload y @0"),  # over x, which was fetched before f ran: nobody needs it any more
        ("offload offload w @2048\n", ""),  # undo is a choice
        ("offload offload w", "prefetch offload w"),  # either copy stream may copy either way
        ("after 2", "after 0 2 8"),  # waits for what does not run, or comes later, do no harm
        ("alloc y @1024", "alloc y @1100"),  # alignment is not a matter of safety
        ("compute free x\n", "compute free x\ncompute alloc x @512\n"),  # a second life in the same place
        (
            "compute compute f by plain after 2",
            "compute compute f by plain after 2\ncompute compute f by plain",
        ),  # a rerun that reads and writes the same
        ("compute alloc w @0\ncompute alloc x @512", "compute alloc x @512\ncompute alloc w @0"),
    ],
)
def test_what_is_safe_is_accepted_however_odd(old, new):
    verify(plan_of(SMALL, edited(old, new)))


def edited(old, new):
    """GOOD with `old` made `new`; waits mean the steps that they mean in GOOD, wherever those are now."""
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    if new.count("\n") == old.count("\n") == 0:
        return text
    lines = text.strip().splitlines()
    place = {line.split(" after")[0]: i for i, line in enumerate(lines)}
    originals = [line.split(" after")[0] for line in GOOD.strip().splitlines()]
    out = []
    for line in lines:
        head, _, waits = line.partition(" after ")
        kept = [str(place[originals[int(w)]]) for w in waits.split() if originals[int(w)] in place]
        out.append(f"{head} after {' '.join(kept)}" if kept else head)
    return "\n".join(out)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        # ownership
        ("alloc y @1024", "alloc y @512", r"step 3: y at 512 to 1536 overlaps x at 512 to 1024"),
        ("alloc x @512", "alloc x @0", r"step 1: x at 0 to 512 overlaps w at 0 to 512"),
        ("alloc y @1024", "alloc y @3584", r"y at 3584 to 4608 leaves the arena of 4096 bytes"),
        ("alloc y @1024", "alloc x @1024", r"step 3: x is allocated already, at 512"),
        ("compute free x", "compute free y\ncompute free y", r"step 6: y is freed, but is not allocated"),
        ("compute free x", "compute free w", r"w stays on the device from step to step and may not be freed"),
        ("compute alloc w @0\n", "", r"w stays on the device from step to step, but is not allocated"),
        ("compute alloc x @512\n", "", r"x writes x, which is not allocated"),
        ("compute free x", "compute free y", r"step 6: y reads y, which is not allocated"),
        ("alloc y @1024", "alloc z @1024", r"'z' is no buffer or workspace of net"),
        ("offload y @512", "offload y @3584", r"y at host bytes 3584 to 4584 leaves the slab of 4096 bytes"),
        # contents
        (
            "prefetch prefetch x @0\n",
            "",
            r"f reads x, which holds nothing defined; it needs x as it is before the step",
        ),
        (
            "compute compute f by plain after 2\n",
            "",
            r"u reads y, which holds nothing defined; it needs y as f writes it",
        ),
        (
            "compute compute u by plain after 7",
            "",
            r"at the end w holds w as it is before the step; it must hold w as u",
        ),
        (
            "compute compute u by plain after 7",
            "compute compute u by plain after 7\ncompute compute u by plain",
            r"step 9: u reads w, which holds w as u writes it; it needs w as it is before the step",
        ),
        ("offload offload y @512 after 4\n", "", r"y is a result, and no step offloads it"),
        (
            "compute compute f by plain after 2",
            "offload offload y @512\ncompute compute f by plain after 2",
            r"f writes device bytes 1024 to 2024 and does not wait for step 4, offload y",
        ),
        ("offload w @2048", "offload w @1024", r"step 6: at the end host bytes 512 to 1512 hold nothing defined"),
        (
            "offload offload w @2048\ncompute compute u by plain after 7",
            "compute compute u by plain\noffload offload w @2048 after 8",
            r"host bytes 2048 to 2448 hold w as u writes it; they must hold w as it is before the step",
        ),
        (
            "compute compute f by plain after 2",
            "compute compute f by plain after 2\nprefetch prefetch x @512",
            r"step 5: x is prefetched from host byte 512, but before from 0",
        ),
        # order
        ("by plain after 2", "by plain", r"f reads device bytes 512 to 1024 and does not wait for step 2, prefetch x"),
        ("y @512 after 4", "y @512", r"y reads device bytes 1024 to 2024 and does not wait for step 4, compute f"),
        ("by plain after 7", "by plain", r"u writes device bytes 0 to 400 and does not wait for step 7, offload w"),
        ("by plain after 2", "by plain after 6", r"does not wait for step 2"),
        ("by plain after 2", "by plain after 1", r"does not wait for step 2"),
        ("by plain after 2", "by plain after 99", r"f waits for step 99, and there is none"),
        (
            "compute compute f by plain after 2",
            "offload offload w @0\ncompute compute f by plain after 2",
            r"offload w writes host bytes 0 to 400 and does not wait for step 2, prefetch x",
        ),
        # names and streams
        ("compute f", "compute h", r"'h' is no op of net"),
        ("f by plain", "f by magic", r"f runs by 'magic'; decided is 'plain'"),
        ("f by plain", "f", r"f runs by ''; decided is 'plain'"),
        ("compute compute f", "offload compute f", r"compute f cannot run on stream 'offload'"),
        ("offload offload y", "compute offload y", r"offload y cannot run on stream 'compute'"),
    ],
)
def test_a_fault_is_refused_with_its_reason(old, new, reason):
    with pytest.raises(PlanError, match=reason) as error:
        verify(plan_of(SMALL, edited(old, new)))
    assert "<-- HERE" in str(error.value)


def test_the_message_shows_the_plan_around_the_fault():
    text = """
    compute alloc w @0
    compute alloc x @0
    """
    with pytest.raises(PlanError) as error:
        verify(plan_of(replace_results(SMALL), text))
    assert str(error.value) == (
        "step 1: x at 0 to 512 overlaps w at 0 to 512\n"
        "    0 compute  alloc    w @0\n"
        "    1 compute  alloc    x @0   <-- HERE"
    )


def replace_results(tape):
    return replace(tape, results=())


def test_a_stranger_on_a_residents_bytes_is_refused_even_before_its_alloc():
    text = "compute alloc y @0\ncompute free y\ncompute alloc w @0"
    with pytest.raises(PlanError, match="step 0: y at 0 to 1024 overlaps w at 0 to 512"):
        verify(plan_of(SMALL, text))


def test_an_alloc_without_an_offset_is_refused():
    plan = plan_of(SMALL, GOOD)
    steps = [replace(s, offset=-1) if s == Step("alloc", "y", offset=1024) else s for s in plan.steps]
    with pytest.raises(PlanError, match="step 3: y at -1 to 1023 leaves the arena of 4096 bytes"):
        verify(replace(plan, steps=tuple(steps)))


def test_a_wait_for_a_later_step_is_worth_nothing():
    again = GOOD.strip() + "\ncompute alloc x @512\nprefetch prefetch x @0 after 4"
    verify(plan_of(SMALL, again))
    with pytest.raises(PlanError, match="f reads device bytes 512 to 1024 and does not wait for step 2, prefetch x"):
        verify(plan_of(SMALL, again.replace("f by plain after 2", "f by plain after 10")))


def test_what_comes_back_as_another_buffer_is_refused():
    text = """
    compute alloc y @0
    compute compute f by plain
    offload offload y @0 after 1
    compute alloc d @512
    prefetch prefetch d @0 after 2
    compute compute b by plain after 4
    compute compute e by plain after 4
    """
    ops = [op("f", "forward", "", "y"), op("b", "backward", "y", "d"), op("e", "backward", "d", "y")]
    sized = {"y": (512, Role.FEATURE), "d": (512, Role.GRADIENT)}
    verify(plan_of(tape(ops, sized), text))
    with pytest.raises(PlanError, match="e reads d, which holds y as f writes it; it needs d as b writes it"):
        verify(plan_of(tape(ops, sized), text.replace("    compute compute b by plain after 4\n", "").strip()))


def test_a_result_is_where_its_last_offload_put_it():
    ops = [op("f", "forward", "", "y"), op("g", "forward", "", "z")]
    two = tape(ops, {"y": (512, Role.FEATURE), "z": (512, Role.FEATURE)}, results=("y",))
    text = """
    compute alloc y @0
    compute compute f by plain
    offload offload y @0 after 1
    offload offload y @512
    compute alloc z @512
    compute compute g by plain
    offload offload z @0 after 5
    """
    verify(plan_of(two, text))  # z goes over the first copy
    with pytest.raises(PlanError, match="step 3: at the end host bytes 512 to 1024 hold z as g writes it"):
        verify(plan_of(two, text.replace("offload z @0", "offload z @512")))


def test_a_result_that_no_op_makes_is_refused():
    idle = tape([], {"y": (512, Role.FEATURE)}, results=("y",))
    with pytest.raises(PlanError, match="at the end host bytes 0 to 512 hold nothing defined"):
        verify(plan_of(idle, "compute alloc y @0\noffload offload y @0"))


def test_an_unknown_kind_of_step_is_refused():
    plan = plan_of(SMALL, GOOD)
    with pytest.raises(PlanError, match="step 0: 'before' is no kind of step"):
        verify(replace(plan, steps=(Step("before", "w"), *plan.steps)))


def test_an_op_without_a_decided_algorithm_is_refused():
    plan = plan_of(SMALL, GOOD)
    undecided = replace(plan.decisions, algorithms={"f": "plain"})
    with pytest.raises(PlanError, match="no algorithm of u is decided, but None"):
        verify(replace(plan, decisions=undecided))


def test_inputs_may_not_share_host_bytes():
    two = tape([], {"a": (512, Role.INPUT), "b": (512, Role.INPUT)})
    text = """
    compute alloc a @0
    compute alloc b @512
    prefetch prefetch a @0
    prefetch prefetch b @{}
    """
    verify(plan_of(two, text.format(512)))
    with pytest.raises(PlanError, match="step 3: b lies on host bytes 256 to 768 before the step, and so does a"):
        verify(plan_of(two, text.format(256)))


def test_bytes_are_reused_only_when_the_copy_that_reads_them_is_done():
    two = tape(
        [op("f", "forward", "", "y"), op("g", "forward", "", "z")],
        {"y": (512, Role.FEATURE), "z": (512, Role.FEATURE)},
    )
    text = """
    compute alloc y @0
    compute compute f by plain
    offload offload y @0 after 1
    compute free y
    compute alloc z @0
    compute compute g by plain after 2
    """
    verify(plan_of(two, text))
    with pytest.raises(PlanError, match="g writes device bytes 0 to 512 and does not wait for step 2, offload y"):
        verify(plan_of(two, text.replace("plain after 2", "plain")))


# ---- disk

# y = f(x), z = g(y), and h reads y and z; y leaves in between
AWAY = tape(
    [
        op("f", "forward", "x", "y"),
        op("g", "forward", "y", "z"),
        op("h", "backward", "yz", "r"),
    ],
    {"x": (512, Role.INPUT), "y": (5000, Role.FEATURE), "z": (512, Role.FEATURE), "r": (512, Role.GRADIENT)},
    results=("r",),
)
ON_DISK = """
compute alloc x @0
prefetch prefetch x @0
compute alloc y @512
compute compute f by plain after 1
compute alloc z @5632
compute compute g by plain
offload offload y on disk @4096 after 3
compute free y
compute alloc y @512
prefetch prefetch y on disk @4096 after 5 6
compute alloc r @6144
compute compute h by plain after 9
offload offload r @512 after 11
"""


def on_disk(text=ON_DISK, disk=4096 + 8192):
    return replace(plan_of(AWAY, text, arena=8192, host=8192), disk_bytes=disk)


def test_a_safe_plan_with_a_disk_is_accepted():
    verify(on_disk())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("offload y on disk @4096", "offload y @512", "h reads y, which holds nothing defined"),
        ("prefetch y on disk @4096", "prefetch y @512", "h reads y, which holds nothing defined"),
        ("prefetch y on disk @4096", "prefetch y on disk @0", "h reads y, which holds nothing defined"),
        (
            "offload y on disk @4096",
            "offload y on disk @8192",
            "leaves its 12288 bytes, or is not at a multiple of 4096",
        ),
        ("offload y on disk @4096", "offload y on disk @512", "at bytes 512 to 8704 .* is not at a multiple of 4096"),
        ("prefetch x @0", "prefetch x on disk @0", "x lies in host memory before the step, and not on disk"),
        ("offload r @512", "offload r on disk @0", "r is a result, which must reach host memory"),
        ("alloc z @5632", "alloc z on disk @5632", "alloc z has the tier 'disk', as only copies may"),
        ("compute f by plain", "compute f by plain on disk", "compute f has the tier 'disk', as only copies may"),
        ("@4096 after 5 6", "@4096 after 5", "prefetch y reads disk bytes 4096 to 12288 and does not wait for step 6"),
        ("disk @4096 after 3", "disk @4096", "offload y reads device bytes .* does not wait for step 3, compute f"),
    ],
)
def test_what_is_wrong_with_a_disk_is_refused(old, new, message):
    assert old in ON_DISK
    with pytest.raises(PlanError, match=message):
        verify(on_disk(ON_DISK.replace(old, new)))


def test_a_file_smaller_than_the_plan_needs_and_an_unknown_tier_are_refused():
    with pytest.raises(PlanError, match="y at bytes 4096 to 12288 of the spill file leaves its 8192 bytes"):
        verify(on_disk(disk=8192))
    made = on_disk()
    steps = tuple(replace(s, tier="tape") if s.kind == "offload" and s.name == "y" else s for s in made.steps)
    with pytest.raises(PlanError, match="offload y is on 'tape', and that is no tier"):
        verify(replace(made, steps=steps))


def test_a_later_copy_over_the_same_bytes_on_disk_destroys_the_first():
    text = ON_DISK.replace("compute free y\n", "offload offload z on disk @8192 after 5\ncompute free y\n")
    text = text.replace("after 5 6", "after 5 7").replace("after 9", "after 10").replace("after 11", "after 12")
    with pytest.raises(PlanError, match="h reads y, which holds nothing defined"):
        verify(on_disk(text))


def test_copies_to_disk_touch_whole_granules_of_the_arena():
    """y has 5000 bytes, and its place 5120: what lies there is written by the copy that brings y back."""
    text = ON_DISK.replace("alloc z @5632", "alloc z @5512")
    with pytest.raises(PlanError, match="z at 5512 to 6024 overlaps y at 512 to 5632"):
        verify(on_disk(text))


# ---- workspaces


def test_scratch_must_be_allocated_and_may_not_be_shared_with_a_copy():
    one = tape([op("f", "forward", "", "y")], {"y": (512, Role.FEATURE), "x": (512, Role.INPUT)})
    text = """
    compute alloc x @0
    prefetch prefetch x @0
    compute free x
    compute alloc y @1024
    compute alloc f.workspace @0
    compute compute f by roomy after 1
    """
    verify(plan_of(one, text, algorithms={"f": "roomy"}))
    with pytest.raises(PlanError, match=r"f writes f.workspace, which is not allocated"):
        verify(plan_of(one, text.replace("compute alloc f.workspace @0\n", ""), algorithms={"f": "roomy"}))
    with pytest.raises(PlanError, match="f writes device bytes 0 to 600 and does not wait for step 1, prefetch x"):
        verify(plan_of(one, text.replace(" after 1", ""), algorithms={"f": "roomy"}))


# ---- reruns: y = a(x), z = r(y) in y's place, b reads z, then c reads x's successor

RERUN = tape(
    [
        op("a", "forward", "x", "y"),
        op("r", "forward", "y", "z"),
        op("n", "forward", "z", "t"),
        op("b", "backward", "zt", "g"),
    ],
    {"x": (512, Role.INPUT), **dict.fromkeys("yzt", (512, Role.FEATURE)), "g": (512, Role.GRADIENT)},
    alias={"z": "y"},
)
START = """
compute alloc x @0
prefetch prefetch x @0
compute alloc y @512
compute compute a by plain after 1
compute compute r by plain
compute alloc t @1024
compute compute n by plain
compute free y
compute alloc y @512
"""
BACK = "compute alloc g @1536\ncompute compute b by plain"


def test_a_rerun_restores_an_in_place_buffer_by_all_its_ops():
    verify(plan_of(RERUN, START + "compute compute a by plain\ncompute compute r by plain\n" + BACK))


def test_a_half_restored_in_place_buffer_is_refused():
    with pytest.raises(PlanError, match="b reads y, which holds y as a writes it; it needs y as r writes it"):
        verify(plan_of(RERUN, START + "compute compute a by plain\n" + BACK))


def test_an_in_place_op_run_twice_over_is_refused():
    twice = "compute compute a by plain\n" + "compute compute r by plain\n" * 2
    with pytest.raises(PlanError, match="r reads y, which holds y as r writes it; it needs y as a writes it"):
        verify(plan_of(RERUN, START + twice + BACK))


def test_memory_that_was_freed_holds_nothing():
    with pytest.raises(PlanError, match="b reads y, which holds nothing defined"):
        verify(plan_of(RERUN, START + BACK))


def test_a_rerun_after_the_update_of_its_weight_is_refused():
    late = GOOD.strip() + "\ncompute alloc x @512\nprefetch prefetch x @0 after 4\ncompute compute f by plain after 10"
    with pytest.raises(PlanError, match="f reads w, which holds w as u writes it; it needs w as it is before the step"):
        verify(plan_of(SMALL, late))


def test_a_tape_that_reads_what_nothing_made_is_refused():
    bad = tape([op("f", "forward", "y", "z")], {"y": (512, Role.FEATURE), "z": (512, Role.FEATURE)})
    with pytest.raises(PlanError, match="f reads y, which holds nothing defined"):
        verify(plan_of(bad, "compute alloc y @0\ncompute alloc z @512\ncompute compute f by plain"))


# ---- copies to the host and back


TRAVEL = tape(
    [op("f", "forward", "", "y"), op("g", "forward", "", "z"), op("b", "backward", "y", "d")],
    {"y": (512, Role.FEATURE), "z": (1024, Role.FEATURE), "d": (512, Role.GRADIENT)},
)
TRIP = """
compute alloc y @0
compute compute f by plain
offload offload y @0 after 1
compute free y
compute alloc z @0
compute compute g by plain after 2
compute free z
compute alloc y @512
prefetch prefetch y @0 after 5
compute alloc d @0
compute compute b by plain after 8
"""


def test_a_buffer_may_come_back_to_another_place():
    verify(plan_of(TRAVEL, TRIP))


def test_a_prefetch_brings_back_only_what_was_put_there():
    with pytest.raises(PlanError, match="b reads y, which holds nothing defined; it needs y as f writes it"):
        verify(plan_of(TRAVEL, TRIP.replace("prefetch y @0", "prefetch y @512")))


def test_a_later_copy_over_the_same_host_bytes_destroys_the_first():
    over = TRIP.replace("compute free z", "offload offload z @256 after 5\ncompute free z")
    over = over.replace("prefetch y @0 after 5", "prefetch y @0 after 6").replace("after 8", "after 9")
    with pytest.raises(PlanError, match="b reads y, which holds nothing defined"):
        verify(plan_of(TRAVEL, over))


def test_a_prefetch_waits_for_its_offload():
    unordered = TRIP.replace("after 5", "").replace("g by plain after 2", "g by plain")
    with pytest.raises(PlanError, match="g writes device bytes 0 to 1024 and does not wait for step 2"):
        verify(plan_of(TRAVEL, unordered))

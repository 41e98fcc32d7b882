from __future__ import annotations

from math import inf, nan

import pytest
from handmade import SMALL

import vdnn
from vdnn import models
from vdnn.memory.cost import roofline
from vdnn.memory.decisions import Decisions, resolve
from vdnn.memory.jitter import expected_seconds
from vdnn.memory.passes import make_plan
from vdnn.memory.policy import POLICIES, decide, get, rewrites_of
from vdnn.memory.search import Found, find
from vdnn.memory.searching import MOST_OTHERS, SearchError, Searching, searching
from vdnn.memory.simulate import simulate
from vdnn.memory.trial import fastest
from vdnn.rewrites import ALL
from vdnn.setting import choose_algorithms, make_setting

COST = roofline("host")
SHORT = {"seconds": 0.2, "cache": False}


@pytest.fixture(scope="module")
def setting():
    """A network whose budget keeps about half of what keeping all takes above the floor."""
    made = make_setting(models.get("digits_vgg", batch=32), hardware="host", threads=1)
    kept = make_plan(made.tape, resolve(Decisions(), made.tape, {})).arena_bytes
    return made.with_budget((made.tape.floor_bytes + kept) // 2)


def found_by(policy, setting, **options):
    chosen = choose_algorithms(setting.tape, setting.cost, "performance")
    return policy(setting.tape, setting.budget, setting.cost, chosen, **options)


def test_it_is_a_policy_of_the_name_search_with_its_rewrites():
    assert get(searching(seconds=2)) == ("search", searching(seconds=2))
    assert rewrites_of(searching(seconds=2)) == ALL
    assert POLICIES["search"] == searching() == Searching(10.0, 0, 0.0, 20, True, None, True)
    assert vdnn.searching is searching


def test_a_plan_is_made_under_it_with_its_bound(setting):
    options = {"hardware": "host", "threads": 1, "budget": setting.budget, "rewrites": "standard"}
    plan = vdnn.plan(models.get("digits_vgg", batch=32), searching(**SHORT), **options)
    assert plan.policy == "search"
    assert plan.arena_bytes <= setting.budget
    assert 0 < plan.bound_seconds <= simulate(plan, setting.cost).step_seconds * (1 + 1e-9)


def test_it_is_never_slower_than_another_policy_that_fits(setting):
    found = found_by(searching(**SHORT), setting)
    for name in POLICIES:
        if name != "search":
            said = decide(name, setting.tape, setting.budget, setting.cost, fastest(setting.tape, setting.cost))
            plan = make_plan(said.tape, said.decisions)
            fits = plan.arena_bytes <= setting.budget
            assert not fits or found.step_seconds <= simulate(plan, setting.cost).step_seconds * (1 + 1e-9), name


def test_by_itself_it_asks_no_other_policy(setting, monkeypatch):
    def asked(*_):
        raise AssertionError("a policy was asked")

    monkeypatch.setattr("vdnn.memory.policy.decide", asked)
    assert found_by(searching(**SHORT, others=False), setting).fits
    with pytest.raises(AssertionError, match="a policy was asked"):
        found_by(searching(**SHORT), setting)


def test_with_jitter_plans_are_compared_by_their_expected_step(setting):
    found = found_by(searching(**SHORT, jitter=0.2, samples=7, seed=3), setting)
    expected = expected_seconds(found.plan, setting.cost, 0.2, 7, 3)
    assert found.step_seconds == expected != simulate(found.plan, setting.cost).step_seconds


def test_progress_is_told_of_every_better_plan(setting):
    notes = []
    found = found_by(searching(**SHORT, progress=notes.append), setting)
    assert len(notes) == len(found.history) > 0


def test_its_settings_reach_the_search(setting, monkeypatch):
    given = {}

    def record(*arguments, **options):
        given.update(options)
        return find(*arguments, **options)

    monkeypatch.setattr("vdnn.memory.searching.find", record)
    found_by(searching(seconds=0.1, seed=4, cache=False), setting)
    assert (given["seconds"], given["seed"], given["evaluate"]) == (0.1, 4, None)


def test_of_the_other_policies_it_knows_the_fastest_that_fit_and_is_no_slower_than_any(setting, monkeypatch):
    given = {}

    def record(*arguments, **options):
        given.update(options)
        return find(*arguments, **options)

    monkeypatch.setattr("vdnn.memory.searching.find", record)
    found = found_by(searching(seconds=0.1, cache=False), setting)
    chosen = fastest(setting.tape, setting.cost)
    plans = {name: setting.make(name, chosen) for name in POLICIES if name not in ("search", "baseline")}
    steps = {n: simulate(p, setting.cost).step_seconds for n, p in plans.items() if p.arena_bytes <= setting.budget}
    assert len(steps) > MOST_OTHERS
    assert sorted(steps[name] for name, *_ in given["known"]) == sorted(steps.values())[:MOST_OTHERS]
    assert found.step_seconds <= min(steps.values())


def test_if_none_of_the_others_fits_it_knows_the_smallest(setting, monkeypatch):
    known = []

    def record(*arguments, **options):
        known.extend(options["known"])
        return find(*arguments, **options)

    monkeypatch.setattr("vdnn.memory.searching.find", record)
    tight = setting.with_budget(setting.tape.floor_bytes - 512)
    found_by(searching(seconds=0.1, cache=False), tight)
    chosen = fastest(tight.tape, tight.cost)
    sizes = {n: tight.make(n, chosen).arena_bytes for n in POLICIES if n not in ("search", "baseline")}
    assert [sizes[name] for name, *_ in known] == [min(sizes.values())]


def test_if_nothing_fits_it_gives_the_smallest_plan(setting):
    found = found_by(searching(**SHORT), setting.with_budget(1024))
    assert isinstance(found, Found)
    assert not found.fits
    assert found.plan.arena_bytes >= setting.tape.floor_bytes


def test_what_it_advises_as_the_least_budget_fits(setting):
    with pytest.raises(vdnn.BudgetError) as caught:
        vdnn.plan(models.get("digits_vgg", batch=32), searching(**SHORT), hardware="host", threads=1, budget=1024)
    least = caught.value.advice.least_bytes
    assert f"({caught.value.needed_bytes} bytes)" in str(caught.value)
    assert "the least for search" in str(caught.value)
    net = models.get("digits_vgg", batch=32)
    assert vdnn.plan(net, searching(**SHORT), hardware="host", threads=1, budget=least).arena_bytes <= least


def test_the_advice_searches_for_no_other_batch(setting, monkeypatch):
    with pytest.raises(vdnn.BudgetError) as caught:
        vdnn.plan(models.get("digits_vgg", batch=32), searching(**SHORT), hardware="host", threads=1, budget=1024)

    def searched(*_, **__):
        raise AssertionError("a search began")

    monkeypatch.setattr("vdnn.memory.searching.find", searched)
    assert "what would fit" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "seconds=0: a search has a number of seconds above 0"),
        ({"seconds": -1.5}, "seconds=-1.5"),
        ({"seconds": nan}, "seconds=nan"),
        ({"seconds": inf}, "seconds=inf"),
        ({"seconds": "10"}, "seconds='10'"),
        ({"jitter": 1.0}, "jitter=1.0: a share of each duration, at least 0 and below 1"),
        ({"jitter": -0.1}, "jitter=-0.1"),
        ({"jitter": nan}, "jitter=nan"),
        ({"samples": 0}, "samples=0: an integer of at least 1"),
        ({"seed": -1}, "seed=-1: an integer of at least 0"),
        ({"seed": True}, "seed=True"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(SearchError, match=message.replace("(", r"\(")):
        searching(**options)


def test_a_tape_by_itself_is_searched(tmp_path):
    from handmade import COST as SLOW

    found = searching(**SHORT)(SMALL, SMALL.floor_bytes + 4096, SLOW, fastest(SMALL, SLOW))
    assert found.fits

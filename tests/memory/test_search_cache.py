from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from vdnn import models
from vdnn.layers import Conv2d, Flatten, Linear, ReLU, SoftmaxCrossEntropy
from vdnn.memory import search_cache
from vdnn.memory.cost import measured, roofline
from vdnn.memory.decisions import Decisions, resolve
from vdnn.memory.hardware import Roofline
from vdnn.memory.passes import make_plan
from vdnn.memory.search import Found, find
from vdnn.memory.search_cache import NotDescribedError, described, digest, home
from vdnn.memory.searching import searching
from vdnn.network import Network
from vdnn.setting import choose_algorithms, make_setting

POLICY = searching(seconds=0.2, others=False)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VDNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def searches(monkeypatch):
    """The budgets of all searches that are made, with what was known to each."""
    made = []

    def record(tape, budget, *arguments, **options):
        made.append((budget, [name for name, *_ in options["known"]]))
        return find(tape, budget, *arguments, **options)

    monkeypatch.setattr("vdnn.memory.searching.find", record)
    return made


@pytest.fixture(scope="module")
def setting():
    made = make_setting(models.get("digits_vgg", batch=32), hardware="host", threads=1)
    kept = make_plan(made.tape, resolve(Decisions(), made.tape, {})).arena_bytes
    return made.with_budget((made.tape.floor_bytes + kept) // 2)


def run(setting, policy=POLICY, **options):
    chosen = choose_algorithms(setting.tape, setting.cost, "performance")
    return policy(setting.tape, setting.budget, setting.cost, chosen, **options)


def files(folder):
    return sorted(folder.rglob("*.json"))


def same(one, other):
    figures = [(f.step_seconds, f.bound_seconds, f.origin, f.history, f.budget) for f in (one, other)]
    return figures[0] == figures[1] and str(one.plan) == str(other.plan)


# ---- hits


def test_a_search_that_was_done_is_not_done_again(setting, searches):
    assert same(run(setting), run(setting))
    assert len(searches) == 1


@pytest.mark.parametrize(
    "other",
    [
        replace(POLICY, seconds=0.15),
        replace(POLICY, seed=1),
        replace(POLICY, jitter=0.1),
        replace(POLICY, jitter=0.1, samples=3),
        replace(POLICY, others=True),
    ],
)
def test_other_settings_are_another_search(other, setting, searches):
    run(setting, replace(POLICY, jitter=0.1) if other.samples == 3 else POLICY)
    run(setting, other)
    assert len(searches) == 2


def test_samples_count_only_where_there_is_jitter(setting, searches):
    run(setting, replace(POLICY, jitter=0.1))
    run(setting, replace(POLICY, jitter=0.1, samples=3))
    assert len(searches) == 2


def test_another_step_other_costs_and_other_sub_batches_are_another_search(setting, searches):
    run(setting)
    other = make_setting(models.get("digits_vgg", batch=32), hardware="host", threads=1, optimizer="sgd")
    run(other.with_budget(setting.budget))
    run(replace(setting, cost=roofline("host", launch_seconds=1e-5)))
    run(setting, variant=setting.in_parts)
    assert len(searches) == 4


def test_another_version_of_the_planner_searches_anew(setting, searches, monkeypatch):
    run(setting)
    monkeypatch.setattr(search_cache, "planner", lambda: "another")
    run(setting)
    assert len(searches) == 2


def test_without_scipy_a_result_with_a_bound_is_not_used(setting, searches, monkeypatch):
    run(setting)
    monkeypatch.setattr(search_cache, "find_spec", lambda name: None)
    run(setting)
    assert len(searches) == 2


def test_without_cache_nothing_is_read_or_written(setting, searches, folder):
    policy = replace(POLICY, cache=False)
    assert run(setting, policy).fits
    assert run(setting, policy).fits
    assert len(searches) == 2
    assert not folder.exists()


def test_a_plan_in_sub_batches_is_found_again(searches):
    net = Network((16, 8, 16, 16), name="maps")
    x = net.add(ReLU(), net.add(Conv2d(8, 3, padding=1), net.input))
    net.add(SoftmaxCrossEntropy(), net.add(Linear(4), net.add(Flatten(), x)))
    setting = make_setting(net, hardware="host", kernels="cudnn4", rewrites="all")
    setting = setting.with_budget(int(setting.tape.floor_bytes * 0.8))  # only parts of the batch fit
    first = run(setting, variant=setting.in_parts)
    assert first.fits
    assert first.plan.tape.micro_batches > 1
    assert same(first, run(setting, variant=setting.in_parts))
    assert len(searches) == 1


# ---- larger and smaller budgets


def test_what_was_found_in_less_memory_is_known_in_more(setting, searches):
    small = run(setting)
    large = run(setting.with_budget(setting.budget + 512))
    assert searches[1] == (setting.budget + 512, [small.origin])
    assert large.step_seconds <= small.step_seconds


def test_a_result_that_was_kept_is_no_slower_than_a_later_one_in_less_memory(setting, searches, folder):
    large = setting.with_budget(setting.budget + 512)
    slow = run(large)
    (path,) = files(folder)
    everything = {t.name: "offload" for t in setting.tape.saved}
    plan = make_plan(setting.tape, resolve(Decisions(everything, ahead=0), setting.tape, {}))
    assert plan.arena_bytes <= large.budget
    seconds = POLICY._evaluate(setting.cost)(plan)
    assert seconds > slow.step_seconds
    objective = json.loads(path.read_text())["objective"]
    kept = search_cache.SearchCache(path.parent, path.stem.rpartition("-")[2], objective)
    kept.put(Found(plan, large.budget, seconds, 0.0, "slow", ()))
    assert run(large).origin == "slow"
    small = run(setting)
    assert run(large).step_seconds == small.step_seconds < seconds


def test_the_smallest_plan_is_known_where_it_fits_but_is_no_result(setting, searches):
    nothing = run(setting.with_budget(1024))
    assert not nothing.fits
    found = run(setting.with_budget(nothing.plan.arena_bytes))
    assert found.fits
    assert searches[1] == (nothing.plan.arena_bytes, [nothing.origin])
    run(setting.with_budget(1024))
    assert len(searches) == 3


def test_the_expected_step_of_one_search_is_not_held_against_the_step_of_another(setting, searches):
    run(setting)
    run(setting.with_budget(setting.budget + 512), replace(POLICY, jitter=0.1))
    assert searches[1][1] == []


# ---- files that are not what they were


def damages():
    def change(**values):
        return lambda text: json.dumps(json.loads(text) | values)

    def worse(text):
        data = json.loads(text)
        data["decisions"]["fates"] = {"nobody": "keep"}
        return json.dumps(data)

    return {
        "empty": lambda text: "",
        "half": lambda text: text[: len(text) // 2],
        "binary": lambda text: "\udcff\udcfe",
        "a list": lambda text: "[]",
        "foreign": lambda text: '{"format": "vdnn plan 1"}',
        "another step": change(step="other"),
        "no such tensor": worse,
        "no decisions": change(decisions=None),
        "unknown decisions": change(decisions={"colour": "red"}),
        "another time": change(step_seconds=1e-9),
        "no time": change(step_seconds=None),
        "no finite time": change(step_seconds=float("nan")),
        "another arena": change(arena_bytes=512),
        "parts that cannot be": change(micro_batches=7),
        "another budget": change(budget=512),
    }


@pytest.mark.parametrize("damage", damages())
def test_a_file_that_is_not_what_it_should_be_is_replaced(damage, setting, searches, folder):
    first = run(setting)
    (path,) = files(folder)
    good = path.read_text()
    path.write_text(damages()[damage](good), errors="surrogateescape")
    again = run(setting)
    assert len(searches) == 2
    assert again.fits
    assert again.bound_seconds == first.bound_seconds
    assert same(again, run(setting))
    assert len(searches) == 2
    assert json.loads(path.read_text())["arena_bytes"] == again.plan.arena_bytes


def test_a_folder_that_cannot_be_written_is_as_good_as_none(setting, searches, folder):
    folder.write_text("a file")
    assert run(setting).fits
    assert run(setting).fits
    assert len(searches) == 2


def test_a_failure_while_writing_leaves_nothing_behind(setting, folder, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert run(setting).fits
    assert [path for path in folder.rglob("*") if path.is_file()] == []


# ---- where it is


def test_the_folder_is_that_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("VDNN_CACHE", "here")
    assert home() == Path("here")
    monkeypatch.setenv("VDNN_CACHE", "")
    assert home() is None
    monkeypatch.delenv("VDNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home() == tmp_path / "vdnn"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the standard
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".cache" / "vdnn"


def test_an_empty_variable_switches_it_off(setting, searches, monkeypatch, tmp_path):
    monkeypatch.setenv("VDNN_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert run(setting).fits
    assert run(setting).fits
    assert len(searches) == 2
    assert not (tmp_path / "shared").exists()


# ---- what a result depends on


def test_values_that_differ_are_described_differently():
    values = [1, 1.0, True, "1", None, [], {}, [1], [[1]], {"a": 1}, {"a": 2}, 0.1, 0.1 + 1e-16]
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"a": 1, "b": (2.5,)}) == digest({"a": 1, "b": [2.5]})


def test_a_cost_model_is_described_with_all_its_fields():
    cost = roofline("titan-x")
    assert digest(cost) == digest(roofline("titan-x"))
    assert digest(cost) != digest(roofline("titan-x", memory_bytes=1))
    assert digest(measured({"f1": 1.0}, cost)) != digest(measured({"f1": 2.0}, cost))


@dataclass(frozen=True)
class Mine(Roofline):
    """A cost model of one's own."""

    def op_seconds(self, tape, op, algorithm):
        return 1e-3


def test_what_one_wrote_oneself_is_not_described_and_not_kept(setting, searches, folder):
    given = roofline("host")
    mine = Mine(**{name: getattr(given, name) for name in Roofline.__dataclass_fields__})
    for value in (mine, object(), lambda: 1, {1, 2}):
        with pytest.raises(NotDescribedError, match="nothing says exactly what"):
            described(value)
    assert run(replace(setting, cost=mine)).fits
    assert not folder.exists()

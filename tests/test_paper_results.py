"""The committed results are what the scripts find: every number, every note, and the document made of them."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

PAPER = Path(__file__).resolve().parent.parent / "experiments" / "paper"
sys.path.insert(0, str(PAPER))

import everything  # noqa: E402
import published  # noqa: E402
from reporting import Result, read_csv, read_results  # noqa: E402

PRECISION = 1e-9  # relative, of what is simulated: order of additions
COMMAND = "run: python experiments/paper/everything.py"
FURTHER = [name for name in everything.MODULES if name in everything.FURTHER]


@pytest.mark.parametrize("name", everything.FIGURES)
def test_the_committed_numbers_are_what_the_script_finds(name):
    committed = {_key(each): each for each in read_results(everything.FOLDER / f"{name}.csv")}
    fresh = everything.module(name).results()
    assert [_key(each) for each in fresh] == list(committed), COMMAND
    for each in fresh:
        _compare(each, committed[_key(each)])


def _key(result):
    return result.figure, result.network, result.batch, result.quantity


def _compare(fresh, committed):
    rel = 0 if fresh.kind == "exact" else PRECISION
    assert fresh.ours == pytest.approx(committed.ours, rel=rel, abs=0), f"{_key(fresh)}: {COMMAND}"
    for name in ("paper", "allowed"):
        assert getattr(fresh, name) == getattr(committed, name), f"{_key(fresh)}, {name}: {COMMAND}"
    for name in ("unit", "kind", "tolerance", "note"):
        assert getattr(fresh, name) == getattr(committed, name), f"{_key(fresh)}, {name}: {COMMAND}"


def test_results_md_is_what_the_committed_numbers_give():
    written = (PAPER / "RESULTS.md").read_text(encoding="utf-8")
    assert written == everything.text(everything.FOLDER), COMMAND


@pytest.mark.parametrize("name", everything.FIGURES)
def test_no_quantity_of_a_figure_is_there_twice(name):
    keys = [_key(each) for each in read_results(everything.FOLDER / f"{name}.csv")]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", FURTHER)
def test_what_goes_beyond_the_paper_has_its_numbers_committed(name):
    assert read_csv(everything.FOLDER / f"{name}.csv")


def test_every_script_of_a_figure_is_one_of_the_modules():
    assert {path.stem for path in PAPER.glob("fig*.py")} <= set(everything.MODULES)


# ---- nothing of the paper is left out


def published_numbers():
    """(figure, network, batch, number) of every number that a figure of the paper has."""
    for pair, each in published.FIGURE_1.items():
        yield from (("Fig. 1", *pair, number) for number in (each.total_mib, each.largest_share))
    for pair, each in published.FIGURE_4.items():
        yield from (("Fig. 4", *pair, number) for number in (*each.parts, each.feature_map_share))
    for each in published.FIGURE_5:
        yield from (("Fig. 5", *published.FIGURE_5_NETWORK, number) for number in (each.maps_mib, each.workspace_mib))
    for each in published.FIGURE_6:
        for number in (each.forward_ms, each.backward_ms, each.reuse_ms):
            yield "Fig. 6", *published.FIGURE_6_NETWORK, number
    for pair, bars in published.FIGURE_11.items():
        for each in bars:
            used = (each.average_mib, each.maximum_mib, each.average_saving, each.maximum_saving)
            # the baseline is static: its average is its maximum, and stands once
            yield from (("Fig. 11", *pair, number) for number in dict.fromkeys(used) if number)
            yield "Fig. 14", *pair, each.performance
    for pair, each in published.FIGURE_12.items():
        yield from (("Fig. 12", *pair, number) for number in (each.conv_mib, each.all_mib))
    for pair, each in published.FIGURE_15.items():
        yield from (("Fig. 15", *pair, number) for number in (each.gpu_mib, each.cpu_mib, each.base_mib))


def test_every_number_of_the_papers_figures_is_in_the_results():
    there = Counter(
        (each.figure, each.network, each.batch, each.paper)
        for name in everything.FIGURES
        for each in read_results(everything.FOLDER / f"{name}.csv")
    )
    wanted = Counter(published_numbers())
    assert wanted.total() > 300
    assert wanted - there == Counter()


# ---- the document


def result(paper, ours, unit="MiB", figure="Fig. 0", **more):
    return Result(figure, "vgg19", 64, "a size", unit, paper, ours, "exact", **more)


def test_a_result_within_its_tolerance_counts_as_such():
    assert everything.verdicts([result(100, 101, allowed=1.0)])["within"]
    assert everything.verdicts([result(100, 102, allowed=1.0)])["out"]


def test_a_result_without_tolerance_is_near_within_5_per_cent():
    assert everything.verdicts([result(1000, 1050)])["near"]
    assert everything.verdicts([result(1000, 1051)])["far"]


def test_a_share_without_tolerance_is_near_within_5_points():
    assert everything.verdicts([result(0.1, 0.14, "share")])["near"]
    assert everything.verdicts([result(0.1, 0.16, "share")])["far"]


def test_what_fig_11_cannot_be_read_to_is_near():
    assert everything.verdicts([result(100, 139, figure="Fig. 11")])["near"]
    assert everything.verdicts([result(100, 140, figure="Fig. 11")])["far"]


def test_what_is_undecided_is_neither_within_nor_out():
    found = everything.verdicts([result(1, 0, "yes/no", tolerance="undecided")])
    assert [name for name, results in found.items() if results] == ["undecided"]


def test_what_the_paper_does_not_have_is_not_compared():
    assert not any(everything.verdicts([result(None, 5.0)]).values())

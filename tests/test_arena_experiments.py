"""The arena's cells, checks, summary and pictures, and the studies beside it, on one small network."""

from __future__ import annotations

import sys
from math import inf, isnan
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments"))

import arena
import arena_cells
import arena_picture
import arena_report
import click
import monotone
import record
import search_speed
import vgg_e
from arena_cells import COLUMNS, SEARCH, Row

from vdnn import models
from vdnn.memory.cost import roofline

CONTESTANTS = {name: arena_cells.POLICIES[name] for name in ("keep_all", "least", "vdnn_dyn", "superneurons")}
SMALL = models.get("digits_vgg", batch=64)


def row(policy, step, percent=50, fits=True, bound=0.9, hardware="titan-x"):
    """A row of a cell with an oracle of 1 s and a budget of 100 bytes."""
    arena = 90 if fits else 110
    return Row("net", 1, hardware, percent, 100, 80, policy, fits, arena, arena, step, 1.0, bound, 0.0)


@pytest.fixture(scope="module")
def rows():
    """A contest on a small network."""
    tape = arena_cells.build_with_rewrites(SMALL)
    return arena_cells.contest(tape, roofline("titan-x"), ("digits", 64, "titan-x"), (50, 0), 0.1, CONTESTANTS)


# ---- cells


def test_every_policy_but_search_takes_part():
    assert SEARCH not in arena_cells.POLICIES
    assert {"keep_all", "vdnn_dyn", "capuchin", "superneurons"} <= set(arena_cells.POLICIES)


def test_the_networks_are_the_papers_ten_and_five_wider_ones():
    assert len(arena_cells.NETWORKS) == 15
    assert {("vgg19", 256), ("vgg416", 32), ("resnet50", 64), ("unet", 16)} <= set(arena_cells.NETWORKS)


def test_a_policy_looks_at_the_budget_if_it_asks_for_it():
    looks = {name: arena_cells.looks_at_budget(policy) for name, policy in CONTESTANTS.items()}
    assert looks == {"keep_all": False, "least": False, "vdnn_dyn": True, "superneurons": True}


def test_budgets_lie_between_the_floor_and_the_arena_of_keep_all(rows):
    keep_all = next(r for r in rows if r.policy == "keep_all")
    half = keep_all.floor + (keep_all.arena - keep_all.floor) // 2
    assert {r.percent: r.budget for r in rows} == {0: keep_all.floor, 50: half}


def test_every_cell_has_a_row_for_every_policy_and_for_search_last(rows):
    cells = arena_report.by_cell(rows)
    assert list(cells) == [("digits", 64, "titan-x", 0), ("digits", 64, "titan-x", 50)]
    assert all(list(cell) == [*CONTESTANTS, SEARCH] for cell in cells.values())


def test_search_is_never_slower_than_a_policy_that_fits(rows):
    assert any(r.fits and r.policy != SEARCH for r in rows)
    assert not [reason for cell in arena_report.by_cell(rows).values() for reason in arena_report._wrong_in(cell)]


def test_least_memory_needs_no_more_than_the_floor_of_a_small_network():
    tape = arena_cells.build_with_rewrites(models.get("alexnet", batch=8))
    entry = arena_cells.enter("least", arena_cells.least_memory, tape, roofline("titan-x"), 0)
    assert entry.arena == tape.floor_bytes


def test_a_failing_policy_is_named(monkeypatch):
    def broken(tape, budget):
        raise RuntimeError("no")

    tape = arena_cells.build_with_rewrites(SMALL)
    with pytest.raises(RuntimeError, match="no") as caught:
        arena_cells.contest(tape, roofline("titan-x"), ("digits", 64, "titan-x"), (50,), 0.0, {"broken": broken})
    assert "in policy broken" in caught.value.__notes__


def test_without_any_plan_in_the_budget_the_gap_is_no_number():
    assert isnan(row(SEARCH, 1.0, fits=False, bound=inf).gap)
    assert row(SEARCH, 1.0, bound=0.0).gap == inf


# ---- checks and summary


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([row("least", 1.2), row(SEARCH, 1.3)], "search takes 1.3 s, least 1.2 s"),
        ([row("least", 1.2), row(SEARCH, 1.3, fits=False)], "least fits in 90 bytes, search needs 110 of 100"),
        ([row("least", 0.8, bound=0.85), row(SEARCH, 0.7, bound=0.6)], "the bound is 0.85 s, least takes 0.8 s"),
        ([row("least", 1.2)], "search is missing"),
        ([row(SEARCH, 1.0)._replace(arena=200)], "search has 200 bytes of 100, and fits=True"),
        ([row(SEARCH, 1.0, percent=75, bound=0.9)], "75 %: the median gap to the bound is 11.11%, at most 2% wanted"),
    ],
)
def test_a_check_finds(found, reason):
    assert any(reason in wrong for wrong in arena_report.check(found))


def test_checks_pass_where_search_is_the_fastest_and_near_its_bound():
    found = [row("least", 1.2, bound=1.0), row("keep_all", 0.9, fits=False, bound=1.0), row(SEARCH, 1.01, bound=1.0)]
    assert arena_report.check(found) == []


def test_no_rows_are_no_proof():
    with pytest.raises(ValueError, match="no rows"):
        arena_report.check([])


def test_a_summary_counts_the_cells_that_fit_and_compares_with_search_in_them():
    found = [
        *(row("least", 1.5, hardware="v100"), row(SEARCH, 1.0, hardware="v100", bound=1.0)),
        *(row("least", 9.0, fits=False), row(SEARCH, 1.2, bound=1.0)),
    ]
    least, search = arena_report.summary(found)
    assert (least.cells, least.fits, least.median, least.worst, least.median_over_search) == (2, 1, 1.5, 1.5, 1.5)
    assert (search.cells, search.fits, search.worst) == (2, 2, 1.2)
    assert search.median == pytest.approx(1.1)
    assert search.median_gap == pytest.approx(0.1)


# ---- files


def test_rows_are_read_as_they_were_written(rows, tmp_path):
    record.write(tmp_path / "arena.csv", COLUMNS, (r.cells() for r in rows))
    again = arena_report.read(tmp_path / "arena.csv")
    assert [r.cells() for r in again] == [r.cells() for r in rows]


def test_a_file_of_something_else_is_refused(tmp_path):
    record.write(tmp_path / "other.csv", ("a", "b"), [(1, 2)])
    with pytest.raises(ValueError, match=r"other\.csv is no file of the arena"):
        arena_report.read(tmp_path / "other.csv")


def test_a_report_writes_summary_and_pictures_beside_the_rows(rows, tmp_path, capsys):
    arena_report.report(rows, tmp_path / "arena.csv")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"arena_summary.csv", "arena.png", "arena_fronts.png"}
    assert "as published" in capsys.readouterr().out


def test_a_line_ends_where_less_than_half_of_the_networks_fit():
    found = [
        row("a", 1.1, 75),
        row("a", 1.2, 75),
        row("a", 1.3, 10),
        row("a", 1.0, 10, False),
        row("a", 1.0, 10, False),
    ]
    assert arena_picture._medians(found) == [(75, pytest.approx(1.15))]


# ---- parts


def test_a_pattern_names_parts_with_and_without_the_batch():
    assert [arena.label(p) for p in arena.wanted(["vgg19/v100"])] == [f"vgg19-{n}/v100" for n in (64, 128, 256)]
    assert [arena.label(p) for p in arena.wanted(["vgg19-64/a*"])] == ["vgg19-64/a100"]
    assert len(arena.wanted([])) == 60


def test_a_pattern_that_names_nothing_is_refused():
    with pytest.raises(click.BadParameter, match="'lenet/v100' names no part"):
        arena.wanted(["lenet/v100"])


def test_a_part_that_is_there_is_not_planned_again_and_failures_do_not_stop_the_others(monkeypatch, tmp_path):
    parts = [(("a", 1), "x"), (("b", 1), "x"), (("c", 1), "x")]
    record.write(arena.path_of(parts[0], tmp_path), COLUMNS, [row(SEARCH, 1.0).cells()])
    planned = []

    def part(pair, hardware, seconds):
        planned.append(pair[0])
        if pair[0] == "b":
            raise RuntimeError("broken")
        return [row(SEARCH, 1.0)]

    monkeypatch.setattr(arena_cells, "part", part)
    failed = arena.plan_parts(parts, 1.0, tmp_path, 1)
    assert planned == ["b", "c"]
    assert failed == ["b-1/x: RuntimeError('broken'), "]
    assert len(arena.merged(parts, tmp_path)) == 2


# ---- the studies beside it


def test_a_case_of_vgg_is_searched_and_certified():
    case = vgg_e.Case(64, "400MiB", "indices", "standard", 0.5)
    found = vgg_e.measure(case, "sgd", 0.1, "digits_vgg")
    assert found.fits
    assert found.certificate >= found.ratio > 0
    assert found.wrong() == ""
    assert len(found.cells()) == len(vgg_e.COLUMNS)


@pytest.mark.parametrize(
    ("target", "optimizer", "bound", "reason"),
    [
        (0.9, "sgd", 0.9, "a ratio of 0.8000, at least 0.9 wanted"),
        (0.9, "momentum", 0.9, ""),
        (0.5, "sgd", 1.5, "above its certificate"),
    ],
)
def test_a_case_of_vgg_misses_its_target_or_passes_its_certificate(target, optimizer, bound, reason):
    case = vgg_e.Case(1, "1KiB", "indices", "all", target)
    found = vgg_e.Row(case, optimizer, 100, 80, 90, 1.25, 1.0, bound, 0.0, "")
    assert reason in found.wrong()
    assert bool(found.wrong()) == bool(reason)


def test_a_front_is_monotone_and_within_its_budgets(monkeypatch):
    monkeypatch.setattr(monotone, "network", models.get)
    run = monotone.measure(("digits_vgg", 64), 0.05, 3)
    assert [p.budget for p in run.front] == sorted((p.budget for p in run.alone), reverse=True)
    assert monotone.unmonotone(run.front) == []
    assert len(run.rows()) == 6
    assert all(len(cells) == len(monotone.COLUMNS) for cells in run.rows())


def test_less_memory_that_does_better_is_counted():
    points = [
        monotone.Point(300, True, 250, 2.0, 1.0, ""),
        monotone.Point(200, True, 200, 1.5, 1.0, ""),
        monotone.Point(100, False, 150, 1.0, 1.0, ""),
        monotone.Point(50, False, 150, 1.0, inf, ""),
    ]
    assert monotone.unmonotone(points) == ["1.5 s in 200 bytes, 2 s in 300"]
    assert monotone.unfitting(points) == ["an arena of 150 bytes in 100"]
    assert monotone.unmonotone([points[2], points[1]]) == ["a plan fits in 200 bytes and none in 100"]


def test_a_search_is_timed_and_its_history_told(monkeypatch):
    monkeypatch.setattr(search_speed, "network", models.get)
    found = search_speed.search(("digits_vgg", 64, 50), 0.1)
    assert found.fits
    assert found.ratio >= 1
    assert found.story.endswith(f": {found.ratio:.4f}")
    assert len(found.cells()) == len(search_speed.COLUMNS)


def test_short_searches_are_held_against_long_ones_cell_by_cell():
    def found(cell, limit, step, fits=True):
        return search_speed.Row((cell, 1, 50), "find", limit, limit, fits, step, 1.0, None, ())

    rows = [found("a", 1.0, 1.2), found("a", 10.0, 1.0), found("b", 1.0, 1.0, False), found("b", 10.0, 1.0)]
    assert search_speed.shares(rows) == [1.2, inf]

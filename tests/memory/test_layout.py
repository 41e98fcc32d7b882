"""Layouts: valid always, at the optimum on small cases, at or near the peak on the steps of known networks."""

import random
import runpy
import statistics
from itertools import islice, pairwise
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdnn.memory.layout import Lifetime, extent, peak, place
from vdnn.tape import GRANULE

BENCH = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "layout_bench.py"))

LIFETIMES = st.lists(
    st.builds(
        lambda start, span, size: Lifetime(start, start + span, GRANULE * size),
        st.integers(-3, 12), st.integers(0, 8), st.integers(0, 9),
    ),
    max_size=30,
)  # fmt: skip


def lives(*rows):
    """Lifetimes from (start, stop, granules)."""
    return [Lifetime(start, stop, GRANULE * size) for start, stop, size in rows]


def assert_valid(lifetimes, offsets):
    """At each position the live ranges, by offset, follow one another."""
    assert len(offsets) == len(lifetimes)
    assert all(offset >= 0 and offset % GRANULE == 0 for offset in offsets)
    placed = [(life, offset) for life, offset in zip(lifetimes, offsets, strict=True) if life.size]
    for position in {life.start for life, _ in placed}:
        live = sorted((o, o + life.size) for life, o in placed if life.start <= position < life.stop)
        assert all(a[1] <= b[0] for a, b in pairwise(live)), position


def test_peak_is_the_most_bytes_live_at_once():
    assert peak(lives((0, 2, 3), (1, 3, 4), (2, 4, 5))) == 9 * GRANULE
    assert peak([]) == 0


def test_extent_is_the_highest_end():
    assert extent(lives((0, 2, 3), (1, 3, 4)), [0, 3 * GRANULE]) == 7 * GRANULE
    assert extent([], []) == 0


def test_nothing_to_place():
    assert place([]) == []


def test_lifetimes_that_only_touch_share_bytes():
    assert place(lives((0, 1, 4), (1, 2, 4), (2, 3, 4))) == [0, 0, 0]


def test_gaps_in_time_under_a_long_lifetime_are_used():
    lifetimes = lives((0, 2, 4), (1, 3, 2), (2, 4, 4))
    assert extent(lifetimes, place(lifetimes)) == peak(lifetimes) == 6 * GRANULE


def test_what_is_live_throughout_lies_at_the_bottom():
    offsets = place(lives((0, 2, 9), (0, 4, 1), (2, 4, 8), (0, 4, 2)))
    assert sorted((offsets[1], offsets[3]))[0] == 0
    assert offsets[0] == offsets[2] == 3 * GRANULE


def test_empty_lifetimes_take_no_room():
    lifetimes = lives((0, 3, 2), (1, 1, 50), (1, 2, 0))
    assert extent(lifetimes[:1], place(lifetimes)[:1]) == peak(lifetimes) == 2 * GRANULE


def test_a_size_off_the_granule_is_refused():
    with pytest.raises(ValueError, match="multiples of 512"):
        place([Lifetime(0, 1, 100)])


@given(LIFETIMES)
def test_layouts_are_valid(lifetimes):
    offsets = place(lifetimes, effort=20_000)
    assert_valid(lifetimes, offsets)
    assert all(offset == 0 for life, offset in zip(lifetimes, offsets, strict=True) if life.start >= life.stop)


@given(LIFETIMES, st.randoms(use_true_random=False))
def test_the_order_of_lifetimes_does_not_matter(lifetimes, lot):
    shuffled = lot.sample(lifetimes, len(lifetimes))
    there, here = place(shuffled, effort=2_000), place(lifetimes, effort=2_000)
    rows = [sorted(zip(v, o, strict=True), key=repr) for v, o in ((lifetimes, here), (shuffled, there))]
    assert rows[0] == rows[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_small_cases_match_brute_force(seed):
    lifetimes = BENCH["small"](seed)
    offsets = place(lifetimes, effort=200_000)
    assert_valid(lifetimes, offsets)
    assert extent(lifetimes, offsets) == BENCH["optimum"](lifetimes)


def test_brute_force_by_hand():
    assert BENCH["optimum"](lives((0, 2, 1), (1, 3, 2), (2, 4, 1))) == 3 * GRANULE


@pytest.mark.parametrize("policy", ["keep all", "offload all", "offload conv", "checkpoint", "mixed"])
def test_steps_of_known_networks_are_tight(policy):
    for name, net in BENCH["networks"](quick=True).items():
        for label, workspace in BENCH["workspaces"](1).items():
            lifetimes = BENCH["lifetimes"](net, BENCH["fixed_fates"](net)[policy], workspace)
            offsets = place(lifetimes, target=1.002)
            assert_valid(lifetimes, offsets)
            assert extent(lifetimes, offsets) <= 1.005 * peak(lifetimes), (name, label)


def test_random_mixed_decisions_are_tight():
    ratios = []
    for lifetimes in BENCH["mixed"](quick=True):
        offsets = place(lifetimes, target=1.005)
        assert_valid(lifetimes, offsets)
        ratios.append(extent(lifetimes, offsets) / peak(lifetimes))
    assert statistics.median(ratios) <= 1.005
    assert max(ratios) <= 1.02


def test_a_deep_chain_is_laid_at_its_peak_without_search():
    net = BENCH["vgg"](82, 82, 83, 83, 83)
    for policy in ("keep all", "mixed"):
        lifetimes = BENCH["lifetimes"](net, BENCH["fixed_fates"](net)[policy], BENCH["workspaces"](1)["1 MiB"])
        offsets = place(lifetimes, effort=0)
        assert_valid(lifetimes, offsets)
        assert extent(lifetimes, offsets) == peak(lifetimes)


def test_thousands_at_once_are_stacked():
    draw = random.Random(0)
    lifetimes = lives(*((0, 2 + k % 3, draw.randrange(1, 9)) for k in range(1500)))
    offsets = place(lifetimes)
    assert_valid(lifetimes, offsets)
    assert extent(lifetimes, offsets) == peak(lifetimes)


@pytest.mark.parametrize("pairs", [0, 400_000])  # the stack stays, or is laid again with the rest
@settings(max_examples=40)
@given(lifetimes=LIFETIMES)
def test_layouts_around_a_fixed_stack_are_valid(pairs, lifetimes):
    with mock.patch.multiple("vdnn.memory.layout", _SPAN=2, _PAIRS=pairs):
        assert_valid(lifetimes, place(lifetimes, effort=5_000))


def test_a_target_stops_the_search_early():
    lifetimes = next(islice(BENCH["mixed"](quick=False), 154, None))
    assert extent(lifetimes, place(lifetimes, effort=0)) > peak(lifetimes)
    assert place(lifetimes, target=2.0) == place(lifetimes, target=2.0, effort=0)

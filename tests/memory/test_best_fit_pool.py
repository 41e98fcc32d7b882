from __future__ import annotations

from dataclasses import replace

import handmade
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import FATES, NETWORKS, plan_of

from vdnn import models
from vdnn.memory.decisions import Decisions, resolve
from vdnn.memory.order import order
from vdnn.memory.plan import Plan, Step
from vdnn.memory.pool import Pool, PoolError, fits, replay
from vdnn.memory.rules import offload_inputs
from vdnn.memory.verify import verify
from vdnn.setting import choose_algorithms, make_setting

G = 512  # bytes of a granule


def pool_after(size, text):
    """A pool of `size` granules after "a3" (allocate three granules for a) and "-a" (free a), and so on."""
    pool = Pool(size * G)
    for word in text.split():
        if word[0] == "-":
            pool.free(word[1:])
        else:
            pool.allocate(word[0], int(word[1:]) * G)
    return pool


def plan_for(text):
    """A plan of nothing but the allocs and frees of `text`."""
    words = text.split()
    sizes = {f"y{w[0]}": int(w[1:]) * G for w in words if w[0] != "-"}
    tape = handmade.tape([], sizes)
    steps = [Step("free", f"y{w[1:]}") if w[0] == "-" else Step("alloc", f"y{w[0]}", offset=0) for w in words]
    return Plan(tape, resolve({}, tape, {}), tuple(steps), sum(sizes.values()), 0)


# ---- one request at a time, worked by hand


def test_the_smallest_hole_that_is_large_enough_is_taken():
    pool = pool_after(12, "a3 b1 c2 d1 -a -c")  # free: 3 at 0, 2 at 4, 5 at 7
    assert pool.allocate("e", 2 * G) == 4 * G


def test_of_holes_of_one_size_the_lowest_is_taken():
    pool = pool_after(8, "a2 b1 c2 d1 -c -a")  # free: 2 at 0, 2 at 3, 2 at 6
    assert pool.allocate("e", 2 * G) == 0


def test_what_a_request_leaves_of_a_hole_stays_free_above_it():
    pool = pool_after(4, "a3 b1 -a c1")
    assert pool.allocate("d", 2 * G) == 1 * G


def test_a_freed_block_joins_its_neighbours_on_both_sides():
    pool = pool_after(4, "a1 b1 c1 d1 -a -c")
    assert pool.largest_free_bytes == G
    pool.free("b")
    assert pool.largest_free_bytes == 3 * G
    assert pool.allocate("e", 3 * G) == 0


def test_a_request_fails_although_all_free_blocks_together_would_do():
    pool = pool_after(4, "a1 b1 c1 d1 -a -c")
    with pytest.raises(
        PoolError, match=r"e needs 1024 bytes; the largest .* 512, all 2 .* have 1024 of .* 2048"
    ) as caught:
        pool.allocate("e", 2 * G)
    error = caught.value
    assert (error.needed_bytes, error.largest_free_bytes, error.free_bytes) == (1024, 512, 1024)


def test_a_request_that_failed_changes_nothing():
    pool = pool_after(4, "a1 b1 c1 d1 -a -c")
    with pytest.raises(PoolError):
        pool.allocate("e", 2 * G)
    assert pool.used_bytes == 2 * G
    assert [pool.allocate(name, G) for name in "ef"] == [0, 2 * G]


def test_sizes_are_rounded_up_to_the_alignment():
    pool = Pool(256, alignment=64)
    assert [pool.allocate("a", 1), pool.allocate("b", 65), pool.allocate("c", 64)] == [0, 64, 192]
    assert pool.used_bytes == 256


def test_nothing_takes_no_block():
    pool = pool_after(2, "a2")
    pool.allocate("b", 0)
    pool.free("b")
    assert pool.used_bytes == 2 * G
    assert pool.largest_free_bytes == 0


def test_the_high_water_stays_when_blocks_are_freed():
    pool = pool_after(8, "a3 b2 -b -a c1")
    assert pool.high_water_bytes == 5 * G
    assert pool.used_bytes == G


def test_freeing_twice_is_an_error_that_says_so():
    with pytest.raises(PoolError, match="a is already free"):
        pool_after(4, "a1 -a").free("a")


def test_freeing_an_unknown_name_is_an_error_that_says_so():
    with pytest.raises(PoolError, match="b was never allocated"):
        pool_after(4, "a1").free("b")


def test_a_name_has_one_block_at_a_time():
    with pytest.raises(PoolError, match="b already has 1024 bytes at 512"):
        pool_after(4, "a1 b2").allocate("b", G)


def test_a_freed_name_may_be_allocated_again():
    assert pool_after(4, "a1 b1 -a a2").used_bytes == 3 * G


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="nbytes=-1"):
        Pool(G).allocate("a", -1)


@pytest.mark.parametrize(("size", "alignment"), [(0, 512), (-512, 512), (1000, 512), (512, 0)])
def test_a_slab_that_is_no_multiple_of_the_alignment_is_refused(size, alignment):
    with pytest.raises(ValueError, match=f"size_bytes={size} .* alignment={alignment}"):
        Pool(size, alignment)


# ---- against a slab that notes the owner of every granule

WORDS = st.lists(st.tuples(st.integers(0, 7), st.integers(1, 6)), max_size=40)  # (whose turn, granules if it has none)


def naive_holes(slab):
    """(granules, first granule) of every run of None, ascending."""
    runs, start = [], None
    for i, owner in enumerate([*slab, "end"]):
        if owner is None and start is None:
            start = i
        if owner is not None and start is not None:
            runs.append((i - start, start))
            start = None
    return sorted(runs)


@given(granules=st.integers(1, 24), words=WORDS)
def test_a_pool_does_what_a_search_over_every_granule_does(granules, words):
    pool, slab = Pool(granules * G), [None] * granules
    for who, size in words:
        if who in slab:
            pool.free(str(who))
            slab = [None if owner == who else owner for owner in slab]
            continue
        start = next((first for room, first in naive_holes(slab) if room >= size), None)
        if start is None:
            with pytest.raises(PoolError):
                pool.allocate(str(who), size * G)
            continue
        assert pool.allocate(str(who), size * G) == start * G
        assert slab[start : start + size] == [None] * size
        slab[start : start + size] = [who] * size
        assert pool.largest_free_bytes == max(naive_holes(slab), default=(0, 0))[0] * G
        assert pool.used_bytes == sum(owner is not None for owner in slab) * G


@given(granules=st.integers(1, 24), words=WORDS)
def test_freeing_everything_leaves_one_block(granules, words):
    pool, held = Pool(granules * G), []
    for i, (_, size) in enumerate(words):
        if size * G <= pool.largest_free_bytes:
            pool.allocate(str(i), size * G)
            held.append(str(i))
    for name in sorted(held, key=lambda name: words[int(name)]):
        pool.free(name)
    assert pool.allocate("all", granules * G) == 0


# ---- pools of every size


@pytest.mark.parametrize(
    ("size", "text", "request_", "turn"),
    [
        (8, "a2 b4 -a", 3, 9),  # holes 2, top 2 at 6: fails until the top has 3
        (7, "a2 b4 -a", 1, 8),  # the top of 1 fits best until it is as large as the hole of 2, which lies lower
        (7, "a3 b3 -a", 2, 8),  # the hole of 3 is taken until the top has 2 and fits better
        (7, "a3 b3 -a", 3, None),  # nothing fits better than the hole of 3
        (9, "a3 b3 -a", 2, None),  # the top of 3 is already no better than the hole
        (6, "a3 b3 -a", 2, 8),  # no top at all, as yet
        (6, "a3 b3 -a", 0, None),
    ],
)
def test_the_next_size_at_which_a_request_goes_otherwise(size, text, request_, turn):
    assert pool_after(size, text).turns_at(request_ * G) == (None if turn is None else turn * G)


def test_a_larger_pool_may_fail_where_a_smaller_one_does_not():
    # a 0-3, b 3-4, c 4-6, then the top.  With 1 or 2 granules at the top, d goes there and e into the hole 0-4 that a
    # and b leave.  With 3, d goes to 0, for a's hole is as small and lower: then e finds 3 at 1 and 3 at the top.
    plan = plan_for("a3 b1 c2 -a d1 -b e4")
    assert [fits(plan, size * G) for size in (6, 7, 8, 9, 10, 11)] == [False, True, True, False, True, True]
    report = replay(plan)
    assert (report.peak_bytes, report.needed_bytes, report.secure_bytes) == (7 * G, 7 * G, 10 * G)
    assert report.high_water_bytes == 10 * G
    assert report.offsets == (0, 3 * G, 4 * G, 6 * G, 0)
    assert (report.arena_ratio, report.pool_ratio) == (11 / 7, 1.0)
    assert report.is_least


@st.composite
def plans(draw):
    words, live = [], []
    for name in "abcdefghij"[: draw(st.integers(1, 10))]:
        while live and draw(st.booleans()):
            words.append("-" + live.pop(draw(st.integers(0, len(live) - 1))))
        words.append(f"{name}{draw(st.integers(1, 6))}")
        live.append(name)
    return plan_for(" ".join(words))


@settings(max_examples=200)
@given(plan=plans())
def test_the_least_and_the_secure_pool_are_those_of_trying_every_size(plan):
    peak, total = plan.peak_bytes, sum(plan.size(s.name) for s in plan.steps if s.kind == "alloc")
    sizes = range(peak, 2 * total + G, G)  # with twice all there is, the top is larger than every hole
    good = [fits(plan, size) for size in sizes]
    report = replay(plan)
    assert report.needed_bytes == sizes[good.index(True)]
    bad = [size for size, fitted in zip(sizes, good, strict=True) if not fitted]
    assert report.secure_bytes == max(bad, default=peak - G) + G


@given(plan=plans(), extra=st.integers(1, 30))
def test_a_grown_pool_is_as_one_that_was_large_from_the_start_unless_a_request_turns(plan, extra):
    small, large = Pool(plan.arena_bytes), Pool(plan.arena_bytes + extra * G)
    for step in plan.steps:
        if step.kind == "free":
            small.free(step.name)
            large.free(step.name)
            continue
        turn = small.turns_at(plan.size(step.name))
        before = small.grown(large.size_bytes)
        offset = large.allocate(step.name, plan.size(step.name))
        assert before.allocate(step.name, plan.size(step.name)) == offset
        if turn is not None and turn <= large.size_bytes:
            break
        assert small.allocate(step.name, plan.size(step.name)) == offset


# ---- plans of networks


@pytest.mark.parametrize("fates", FATES)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_plan_laid_out_by_the_pool_verifies(network, fates):
    plan = plan_of(network(), FATES[fates])
    report = replay(plan, effort=20_000)
    offsets = iter(report.offsets)
    steps = tuple(replace(s, offset=next(offsets)) if s.kind == "alloc" else s for s in plan.steps)
    pooled = replace(plan, steps=steps, arena_bytes=report.needed_bytes)
    verify(replace(pooled, steps=tuple(order(pooled))))
    assert report.needed_bytes >= report.peak_bytes == plan.peak_bytes
    assert fits(plan, report.needed_bytes)


@pytest.fixture(scope="module")
def vgg16_under_vdnn_conv():
    setting = make_setting(models.get("vgg16", batch=32))
    decisions = Decisions(offload_inputs(setting.tape, ("conv",), "paper").fates, ahead=4)
    return setting.make(decisions, choose_algorithms(setting.tape, setting.cost, "performance"))


def test_a_pool_as_large_as_the_unbounded_one_ever_gets_may_fail(vgg16_under_vdnn_conv):
    report = replay(vgg16_under_vdnn_conv)
    assert not fits(vgg16_under_vdnn_conv, report.high_water_bytes)
    assert report.high_water_bytes < report.needed_bytes
    assert not fits(vgg16_under_vdnn_conv, report.needed_bytes - G)


def test_a_search_that_ends_early_finds_a_pool_that_serves_and_claims_no_more(vgg16_under_vdnn_conv):
    full, short = replay(vgg16_under_vdnn_conv), replay(vgg16_under_vdnn_conv, effort=1)
    assert full.is_least
    assert not short.is_least
    assert short.secure_bytes is None
    assert full.needed_bytes <= short.needed_bytes
    assert fits(vgg16_under_vdnn_conv, short.needed_bytes)


def test_network_wide_lifetimes_are_refused():
    with pytest.raises(ValueError, match="network-wide lifetimes"):
        replay(plan_of(NETWORKS[0](), Decisions(lifetimes="network")))


def test_a_plan_without_bytes_is_refused():
    with pytest.raises(ValueError, match="0 steps that allocates no bytes"):
        replay(plan_for(""))


def test_a_plan_that_frees_twice_is_refused():
    with pytest.raises(PoolError, match="ya is already free"):
        replay(plan_for("a1 b1 -a -a"))

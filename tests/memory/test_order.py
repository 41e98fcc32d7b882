"""Waits worked out by hand; in the comments A < B says that B follows A."""

from __future__ import annotations

from dataclasses import replace

import pytest
from networks import FATES, NETWORKS, plan_of
from stubs import decided, squares, tape_of

from vdnn.memory.order import SegmentMap, order
from vdnn.memory.plan import Plan, PlanError, Step
from vdnn.memory.verify import verify


def waits(*steps):
    """{index: waits} of the steps that wait, in a plan of conv1 and square1 with an arena and a host slab of 4096."""
    tape = tape_of(squares(1))
    plan = Plan(tape, decided(tape), tuple(Step.parse(s) for s in steps), 4096, 4096)
    return {i: step.waits for i, step in enumerate(order(plan)) if step.waits}


RESIDENT = ("compute alloc conv1.w @0", "compute alloc conv1.w.v @512")  # steps 0 and 1
FORWARD = "compute compute conv1.forward by plain"  # reads input and conv1.w, writes conv1.y
SQUARE = "compute compute square1.forward by default"  # reads conv1.y, writes square1.y


def test_an_op_waits_for_the_prefetch_of_what_it_reads():
    assert waits(
        *RESIDENT,
        "compute alloc input @1024",
        "prefetch prefetch input @0",
        "compute alloc conv1.y @1536",
        FORWARD,
    ) == {5: (3,)}


def test_a_copy_waits_for_the_op_that_wrote_its_source_and_the_next_writer_of_these_bytes_for_the_copy():
    assert waits(
        *RESIDENT,
        "compute alloc input @1024",
        "compute alloc conv1.y @1536",
        FORWARD,
        "offload offload conv1.y @0",  # 5: after 4
        "compute alloc square1.y @2048",
        SQUARE,  # 7: reads what 5 reads
        "compute free conv1.y",
        "compute alloc loss1.y @1536",
        "compute alloc loss1.p @2560",
        "compute alloc labels @3072",
        "compute compute loss1.forward by default",  # 12: writes loss1.y over conv1.y
    ) == {5: (4,), 12: (5,)}


def test_ops_on_one_stream_never_wait_for_each_other():
    steps = [
        *RESIDENT,
        "compute alloc input @1024",
        "compute alloc conv1.y @1536",
        FORWARD,
        "compute alloc square1.y @2048",
    ]
    assert waits(*steps, SQUARE, SQUARE, FORWARD) == {}


def test_two_readers_do_not_wait_for_each_other():
    steps = [*RESIDENT, "compute alloc conv1.y @1536", "compute alloc square1.y @2048", "offload offload conv1.y @0"]
    assert waits(*steps, SQUARE) == {}


def test_a_prefetch_waits_for_its_offload_through_the_bytes_of_the_host():
    assert waits(
        "compute alloc conv1.y @0",
        "offload offload conv1.y @512",
        "compute free conv1.y",
        "compute alloc conv1.y @1024",
        "prefetch prefetch conv1.y @512",
    ) == {4: (1,)}


def test_an_offload_over_bytes_of_the_host_that_a_prefetch_reads_waits_for_it():
    assert waits(
        "compute alloc conv1.y @0",
        "prefetch prefetch conv1.y @0",
        "compute alloc square1.y @512",
        "offload offload square1.y @0",
        "offload offload square1.y @512",
    ) == {3: (1,)}


def test_a_wait_that_another_implies_is_left_out():
    assert waits(
        *RESIDENT,
        "compute alloc input @1024",
        "prefetch prefetch input @0",
        "compute alloc conv1.y @1536",
        FORWARD,  # 5: after 3
        "offload offload conv1.y @512",  # 6: after 5, and so after 3
        "compute free input",
        "compute free conv1.y",
        "compute alloc conv1.y @1024",  # half of the bytes are input's: 3 < 5 < 6
        "prefetch prefetch conv1.y @512",  # 10: after 6, which is after 5, the reader of input
    ) == {5: (3,), 6: (5,), 10: (6,)}


def test_a_stream_does_not_wait_twice_for_the_same_step():
    assert waits(
        *RESIDENT,
        "compute alloc input @1024",
        "prefetch prefetch input @0",
        "compute alloc conv1.y @1536",
        FORWARD,
        FORWARD,
        "compute alloc square1.y @2048",
        SQUARE,
    ) == {5: (3,)}


def test_scratch_is_written_so_it_waits_for_who_reads_these_bytes():
    tape = tape_of(squares(1))
    steps = [
        *RESIDENT,
        "compute alloc input @1024",
        "compute alloc conv1.y @1536",
        "compute alloc square1.y @2048",
        "offload offload square1.y @0",
        "compute free square1.y",
        "compute alloc conv1.forward.workspace @2048",
        "compute compute conv1.forward by roomy",
    ]
    decisions = decided(tape, **{"conv1.forward": "roomy"})
    plan = Plan(tape, decisions, tuple(Step.parse(s) for s in steps), 4096, 4096)
    assert order(plan)[-1].waits == (5,)


# ---- segments


def test_segments_split_where_accesses_begin_and_end():
    segments = SegmentMap(100)
    assert segments.access(0, 40, True, 1, 0) == set()
    assert segments.access(60, 100, True, 2, 0) == set()
    assert segments.access(30, 70, False, 3, 1) == {1, 2}
    assert segments.access(35, 36, False, 4, 2) == {1}
    assert segments.access(40, 60, True, 5, 0) == {3}
    assert segments.access(0, 100, True, 6, 0) == {1, 2, 3, 4, 5}
    assert segments.access(10, 20, False, 7, 1) == {6}


def test_of_the_readers_on_one_stream_the_last_is_remembered():
    segments = SegmentMap(10)
    for step in (1, 2):
        segments.access(0, 10, False, step, 0)
    segments.access(0, 10, False, 3, 1)
    assert segments.access(0, 10, True, 4, 2) == {2, 3}


# ---- whole plans


@pytest.mark.parametrize("fates", FATES)
@pytest.mark.parametrize("make", NETWORKS)
def test_every_wait_is_for_another_stream_and_without_any_of_them_the_plan_is_unsafe(make, fates):
    plan = plan_of(make(), FATES[fates], undo=False)
    verify(plan)
    found = [(i, w) for i, step in enumerate(plan.steps) for w in step.waits]
    assert found
    for i, wait in found:
        step = plan.steps[i]
        assert wait < i
        assert plan.steps[wait].stream != step.stream
        less = replace(step, waits=tuple(w for w in step.waits if w != wait))
        with pytest.raises(PlanError, match="does not wait for"):
            verify(replace(plan, steps=(*plan.steps[:i], less, *plan.steps[i + 1 :])))

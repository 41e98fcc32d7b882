"""The measured peak, worked out by hand; G is a granule of 512 bytes."""

from __future__ import annotations

from dataclasses import replace

from networks import FATES, chain, device_for, plan_of

from vdnn.memory.measure import Access, measured_peak

G = 512


def read(first, count=1):
    return Access(first * G, (first + count) * G, True, False)


def write(first, count=1):
    return Access(first * G, (first + count) * G, False, True)


def change(first, count=1):
    return Access(first * G, (first + count) * G, True, True)


def test_nothing_touched_is_nothing_used():
    assert measured_peak([]) == measured_peak([[], []]) == 0


def test_bytes_count_from_their_writing_to_their_last_reading():
    steps = [
        [write(0)],  # 1
        [read(0), write(1, 2)],  # 3
        [read(1, 2), write(3)],  # 3: granule 0 is free
        [read(3)],
    ]
    assert measured_peak(steps) == 3 * G


def test_bytes_that_nobody_reads_count_while_they_are_written():
    assert measured_peak([[write(0), write(1)], [write(2)]]) == 2 * G


def test_a_second_writing_begins_a_new_life_and_the_gap_counts_not():
    steps = [[write(0)], [read(0)], [write(1, 3)], [read(1, 3)], [write(0)], [read(0)]]
    assert measured_peak(steps) == 3 * G


def test_bytes_changed_in_place_live_on():
    steps = [[write(0)], [change(0)], [write(1)], [read(0), read(1)]]
    assert measured_peak(steps) == 2 * G


def test_what_is_read_before_it_is_written_is_held_from_step_to_step():
    steps = [[write(1, 2)], [read(1, 2)], [change(0)]]  # granule 0 is a weight
    assert measured_peak(steps) == 3 * G


def test_what_is_held_from_step_to_step_counts_after_its_last_use_too():
    assert measured_peak([[change(0)], [write(1)], [read(1)]]) == 2 * G


def test_what_is_held_counts_whether_touched_or_not():
    assert measured_peak([[write(0)], [read(0)]], [(4 * G, 6 * G)]) == 3 * G
    assert measured_peak([[read(4)], [write(0)]], [(4 * G, 6 * G)]) == 3 * G


def test_ranges_that_overlap_in_part_are_cut():
    steps = [[write(0, 4)], [read(0, 2)], [write(2, 4)], [read(1, 3)]]
    # granules 0 1: steps 0 to 1; 1 to 3 for granule 1; 2 and 3 are written again; 4 and 5 live at step 2 alone
    assert measured_peak(steps) == 5 * G


def test_ranges_are_rounded_to_whole_granules():
    assert measured_peak([[Access(10, 20, False, True), Access(600, 1025, False, True)]]) == 3 * G
    assert measured_peak([[]], [(1, 2)]) == G


def test_an_op_that_reads_and_writes_through_two_arrays_does_both():
    """dx in the place of dy: the bytes are read first, so their life goes on."""
    steps = [[write(0)], [write(1)], [read(0), write(0), read(1)]]
    assert measured_peak(steps) == 2 * G


# ---- it contradicts a plan that is wrong


def measured_and_predicted(plan):
    with device_for(chain(), plan, poison=False, checked=False) as device:
        return device.measured_peak_bytes(plan), plan.peak_bytes


def test_the_right_plan_agrees():
    measured, predicted = measured_and_predicted(plan_of(chain(), FATES["offload"]))
    assert measured == predicted


def test_frees_that_come_too_late_are_contradicted():
    plan = plan_of(chain(), FATES["offload"])
    late = [s for s in plan.steps if s.kind != "free"] + [s for s in plan.steps if s.kind == "free"]
    moved = replace(plan, steps=tuple(replace(s, waits=()) for s in late))
    measured, predicted = measured_and_predicted(moved)
    assert measured == plan.peak_bytes < predicted


def test_a_free_that_comes_too_early_is_contradicted():
    plan = plan_of(chain())
    steps = [replace(s, waits=()) for s in plan.steps]
    for step in [s for s in steps if s.kind == "free"]:
        steps.remove(step)
        steps.insert(1 + max(i for i, s in enumerate(steps) if s.kind == "alloc" and s.name == step.name), step)
    measured, predicted = measured_and_predicted(replace(plan, steps=tuple(steps)))
    assert measured == plan.peak_bytes > predicted


def test_buffers_that_are_placed_over_each_other_are_contradicted():
    """Everything that is not resident in one place holds less than the plan says."""
    plan = plan_of(chain())
    base = plan.tape.resident_bytes
    over = [replace(s, offset=min(s.offset, base)) if s.kind == "alloc" else s for s in plan.steps]
    measured, predicted = measured_and_predicted(replace(plan, steps=tuple(over)))
    assert measured == base + max(plan.size(s.name) for s in plan.steps if s.kind == "alloc" and s.offset >= base)
    assert measured < predicted == plan.peak_bytes

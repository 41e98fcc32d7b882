from __future__ import annotations

import math

import pytest

from vdnn.schedules import Constant, Cosine, StepDecay, Warmup, as_schedule


def rates(schedule, steps):
    return pytest.approx([schedule(step) for step in steps])


def test_a_constant_rate_stays():
    assert rates(Constant(0.3), (0, 1, 1000)) == [0.3, 0.3, 0.3]


def test_step_decay_multiplies_after_every_so_many_steps():
    assert rates(StepDecay(0.4, every=3, factor=0.5), range(7)) == [0.4, 0.4, 0.4, 0.2, 0.2, 0.2, 0.1]
    assert rates(StepDecay(1.0, every=1), (0, 1, 2)) == [1.0, 0.1, 0.01]


def test_cosine_falls_from_the_rate_to_the_final_one_and_stays_there():
    # cos(pi / 4) = sqrt(1 / 2): the share left after a quarter is (1 + sqrt(1 / 2)) / 2
    quarter = 0.1 + 0.8 * (1 + math.sqrt(0.5)) / 2
    assert rates(Cosine(0.9, steps=4, final=0.1), (0, 1, 2, 4, 5, 100)) == [0.9, quarter, 0.5, 0.1, 0.1, 0.1]


def test_warmup_rises_in_equal_steps_and_hands_over_at_the_beginning_of_what_follows():
    assert rates(Warmup(4, StepDecay(0.8, every=2, factor=0.5)), range(8)) == [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.4, 0.4]


def test_warmup_over_no_steps_is_what_follows():
    assert Warmup(0, Constant(0.5))(0) == 0.5


def test_a_number_is_a_constant_schedule_and_a_schedule_is_itself():
    assert as_schedule(1) == Constant(1.0)
    schedule = Cosine(0.1, 10)
    assert as_schedule(schedule) is schedule


def test_schedules_are_values():
    assert Warmup(3, StepDecay(0.1, 5)) == Warmup(3, StepDecay(0.1, 5))
    assert eval(repr(Warmup(3, StepDecay(0.1, 5)))) == Warmup(3, StepDecay(0.1, 5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepDecay(0.1, every=0), "every=0 counts steps; it is at least 1"),
        (lambda: Cosine(0.1, steps=0), "steps=0 counts steps; it is at least 1"),
        (lambda: Warmup(-1, Constant(0.1)), "steps=-1 counts steps; it is at least 0"),
        (lambda: Warmup(5, 0.1), r"then=0\.1 is no schedule; a constant rate is Constant\(0\.1\)"),
    ],
)
def test_a_schedule_that_could_not_be_followed_is_refused_when_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Stacks of long lifetimes, worked out by hand; rows are (start, stop, granules)."""

from __future__ import annotations

import numpy as np

from vdnn.memory.stack import edges_of, stack, stack_back


def columns(*rows):
    return np.array(rows, dtype=np.int64).T


def test_what_nests_piles_up_in_order_of_start():
    assert stack(*columns((0, 9, 4), (1, 8, 2), (2, 7, 1))).tolist() == [0, 4, 6]


def test_the_lowest_gap_that_is_large_enough_is_taken_and_gaps_that_touch_are_one():
    rows = (0, 2, 2), (0, 3, 3), (0, 9, 1), (4, 9, 5)
    assert stack(*columns(*rows)).tolist() == [4, 1, 0, 1]


def test_what_outlives_the_others_lies_at_the_bottom_of_a_stack_from_the_end():
    rows = columns((0, 5, 4), (1, 4, 4), (2, 9, 1), (6, 8, 8))
    assert stack(*rows).tolist() == [0, 4, 8, 0]
    assert stack_back(*rows).tolist() == [1, 5, 0, 1]


def test_edges_are_those_of_the_union_at_each_moment():
    found = edges_of(*columns((0, 3, 0, 4), (1, 2, 4, 6), (2, 4, 8, 9)), 4)
    assert found == [(0, 4), (0, 6), (0, 4, 8, 9), (8, 9), ()]

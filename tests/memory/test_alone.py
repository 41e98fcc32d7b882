"""Ops timed by themselves: which, with what in their arrays, and in what order."""

from __future__ import annotations

import numpy as np
import pytest

import vdnn
from vdnn.layers import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, SoftmaxCrossEntropy
from vdnn.memory.alone import Alone, questions, timed_alone
from vdnn.memory.host import HostDevice


def network(channels=4):
    net = vdnn.Network((2, channels, 8, 8), name="net")
    x = net.input
    for _ in range(2):
        x = net.add(ReLU(), net.add(BatchNorm2d(), net.add(Conv2d(channels, 3, 1, 1), x)))
    x = net.add(Dropout(0.5), net.add(Flatten(), net.add(MaxPool2d(2), x)))
    net.add(SoftmaxCrossEntropy(), net.add(Linear(4), x))
    return net


@pytest.fixture(scope="module")
def device():
    made = HostDevice(network(), vdnn.Adam(0.0), threads=1)
    yield made
    made.close()


def test_each_shape_is_asked_once(device):
    names = [q.op.name for q in questions(device)]
    assert "conv1.forward" in names
    assert "conv2.forward" not in names  # the same shapes
    assert "conv2.backward_data" in names  # conv1 has none
    assert len({q.key for q in questions(device)}) == len(names)


def test_every_op_runs_by_every_algorithm_and_stays_finite(device):
    for question in questions(device):
        op = Alone(question.tape, question.op, device)
        with np.errstate(all="raise"):
            op.prepare()
            for algorithm in question.algorithms * 3:
                assert op.run(algorithm) >= 0
        for name in question.op.writes:
            if op.views[name].dtype.kind == "f":
                assert np.isfinite(op.views[name]).all(), (question.op.name, name)


def test_algorithms_take_turns_and_the_first_round_does_not_count(monkeypatch):
    device = HostDevice(network(48), vdnn.Adam(0.0), threads=1)
    question = next(q for q in questions(device) if len(q.algorithms) > 1)
    ran = []

    def run(self, algorithm):
        ran.append(algorithm)
        return 100.0 if len(ran) <= len(question.algorithms) else len(ran)

    monkeypatch.setattr(Alone, "run", run)
    seconds = timed_alone(question, device, 3, lambda: False)
    assert ran == [*question.algorithms] * 4
    n = len(question.algorithms)
    assert [*seconds.values()] == [2 * n + k for k in range(1, n + 1)]  # the middle one of three


def test_nothing_comes_of_an_op_that_was_stopped(device):
    asked = iter([False, True])
    assert timed_alone(questions(device)[0], device, 3, lambda: next(asked)) == {}

"""The table of times on disk: what is kept, for whom, and what of it is believed."""

from __future__ import annotations

import json
import threading

import pytest

import vdnn
from vdnn.building import build
from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers import Conv2d, Flatten, Linear, ReLU, SoftmaxCrossEntropy
from vdnn.memory import op_times
from vdnn.memory.op_times import Names, OpTimes, key_of, machine

KERNELS = NumpyKernels(1)
SGD = vdnn.SGD(0.1, momentum=0.9)


class Own(ReLU):
    """A layer that is not vdnn's."""


def network(channels=8, batch=2, stride=1, name="c", relu=None):
    net = vdnn.Network((batch, 3, 8, 8), name="net")
    x = net.add(Conv2d(channels, 3, stride, 1, name=name), net.input)
    net.add(SoftmaxCrossEntropy(), net.add(Linear(4), net.add(Flatten(), net.add(relu or ReLU(), x))))
    return net


def keys(net, optimizer=SGD, **options):
    tape, names = build(net, KERNELS, optimizer, **options), Names.of(net, optimizer)
    return {op.name: key_of(tape, op, names) for op in tape.ops}


@pytest.fixture
def table(tmp_path):
    return OpTimes.of(KERNELS, tmp_path)


KEY = json.dumps(["vdnn.layers.x", "forward", "nhwc", [["x", [1, 2], "float32", ""]]])


# ---- what an op is


def test_names_of_layers_do_not_matter():
    assert keys(network(name="c"))["c.forward"] == keys(network(name="d"))["d.forward"]


@pytest.mark.parametrize("other", [{"channels": 9}, {"batch": 3}, {"stride": 2}])
def test_shapes_and_settings_matter(other):
    assert keys(network())["c.forward"] != keys(network(**other))["c.forward"]


def test_phases_differ():
    found = keys(network())
    assert len({found["c.forward"], found["c.backward_weights"], found["linear1.backward_weights"]}) == 3


def test_working_in_place_is_another_op():
    in_place, beside = keys(network()), keys(network(), rewrites="none")
    assert in_place["relu1.forward"] != beside["relu1.forward"]


def test_the_learning_rate_does_not_matter_and_momentum_does():
    def update(optimizer):
        return keys(network(), optimizer)["c.w.update"]

    assert update(vdnn.SGD(0.1, momentum=0.9)) == update(vdnn.SGD(0.2, momentum=0.9))
    assert update(vdnn.SGD(0.1, momentum=0.9)) != update(vdnn.SGD(0.1))


def test_a_layer_that_is_not_vdnns_own_has_no_times():
    assert keys(network(relu=Own()))["own1.forward"] == ""


# ---- the table


def test_times_come_back_as_they_were_kept(table):
    table.save(KEY, {"direct": 0.25, "pack": 1e-5})
    assert table.load(["vdnn.layers.x"]) == {KEY: {"direct": 0.25, "pack": 1e-5}}
    assert table.load(["vdnn.layers.y"]) == {}


def test_later_times_replace_earlier_ones_of_the_same_algorithm_alone(table):
    table.save(KEY, {"direct": 0.25, "pack": 1e-5})
    table.save(KEY, {"direct": 0.5})
    assert table.load(["vdnn.layers.x"]) == {KEY: {"direct": 0.5, "pack": 1e-5}}


@pytest.mark.parametrize("fact", ["processor", "threads", "kernels", "code", "numpy", "blas", "fast"])
def test_another_machine_or_version_has_another_table(tmp_path, monkeypatch, fact):
    OpTimes.of(KERNELS, tmp_path).save(KEY, {"direct": 0.25})
    facts = machine(KERNELS)
    assert fact in facts
    monkeypatch.setattr(op_times, "machine", lambda kernels: {**facts, fact: "another"})
    assert OpTimes.of(KERNELS, tmp_path).load(["vdnn.layers.x"]) == {}


def test_the_number_of_threads_and_compiled_kernels_are_part_of_the_machine():
    plain = NumpyKernels(2, fast=False)
    assert machine(plain)["threads"] == 2
    assert machine(NumpyKernels(1, fast=False)) != machine(plain)
    assert machine(NumpyKernels(2, fast=True)) != machine(plain)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: "{",
        lambda data: "[1]",
        lambda data: json.dumps({**data, "format": "another"}),
        lambda data: json.dumps({**data, "machine": {}}),
        lambda data: json.dumps({**data, "op": data["op"] + " "}),
        lambda data: json.dumps({**data, "op": 1}),
        lambda data: json.dumps({**data, "seconds": {"direct": -1.0}}),
        lambda data: json.dumps({**data, "seconds": {"direct": True}}),
        lambda data: json.dumps({**data, "seconds": {"direct": float("nan")}}),
        lambda data: json.dumps({**data, "seconds": 1}),
    ],
)
def test_a_file_that_is_none_of_the_table_is_as_good_as_absent(table, change):
    table.save(KEY, {"direct": 0.25})
    path = table.path(KEY)
    path.write_text(change(json.loads(path.read_text())))
    assert table.load(["vdnn.layers.x"]) == {}
    table.save(KEY, {"direct": 0.5})
    assert table.load(["vdnn.layers.x"]) == {KEY: {"direct": 0.5}}


def test_writers_at_one_time_leave_whole_files(table):
    def write(number):
        for _ in range(20):
            table.save(KEY, {"direct": 1.0 + number, "pack": 1.0 + number})

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for writer in writers:
        writer.start()
    seen = [table.load(["vdnn.layers.x"]).get(KEY) for _ in range(50)]
    for writer in writers:
        writer.join()
    seen.append(table.load(["vdnn.layers.x"])[KEY])
    assert all(times["direct"] in (1, 2, 3, 4) and len(times) == 2 for times in seen if times is not None)
    assert [path.suffix for path in table.path(KEY).parent.iterdir()] == [".json"]


def test_an_empty_vdnn_cache_means_no_table(monkeypatch):
    monkeypatch.setenv("VDNN_CACHE", "")
    assert OpTimes.of(KERNELS) is None


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "times").write_text("a file")
    with pytest.raises(OSError, match="times"):
        OpTimes.of(KERNELS, tmp_path).save(KEY, {"direct": 0.25})

"""Weights from outside into a trainer: all or, if so asked, those that suit."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from networks import norm_dropout
from safetensors.numpy import save_file
from torch_archives import save as save_torch

import vdnn
from vdnn.layers import BatchNorm2d, Conv2d, Flatten, Linear, SoftmaxCrossEntropy
from vdnn.network import Network
from vdnn.train import Trainer


def network():
    net = Network((2, 3, 4, 4), name="small")
    x = net.add(BatchNorm2d(), net.add(Conv2d(4, 3, name="conv1"), net.input), name="bn1")
    net.add(SoftmaxCrossEntropy(), net.add(Linear(5), net.add(Flatten(), x), name="fc"))
    return net


@pytest.fixture
def trainer():
    made = Trainer(network(), policy="keep_all", threads=1)
    yield made
    made.close()


def weights(seed=0):
    random = np.random.default_rng(seed)
    shapes = {
        "conv1.weight": (4, 3, 3, 3),
        "conv1.bias": (4,),
        "bn1.weight": (4,),
        "bn1.bias": (4,),
        "bn1.running_mean": (4,),
        "bn1.running_var": (4,),
        "fc.weight": (5, 16),
        "fc.bias": (5,),
    }
    return {name: random.uniform(0.5, 1, shape).astype(np.float32) for name, shape in shapes.items()}


def everything(trainer):
    return {**trainer.weights, **trainer.statistics}


def assert_unchanged(trainer, before):
    for name, value in everything(trainer).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "a mapping"])
def test_weights_and_statistics_are_replaced(trainer, tmp_path, kind):
    given = weights()
    if kind == "safetensors":
        save_file(given, tmp_path / "a.safetensors")
        report = trainer.load_weights(tmp_path / "a.safetensors")
    elif kind == "torch":
        report = trainer.load_weights(save_torch(tmp_path / "a.pth", given))
    else:
        report = trainer.load_weights(given)
    np.testing.assert_array_equal(trainer.weights["fc.w"], given["fc.weight"])
    np.testing.assert_array_equal(trainer.statistics["bn1.variance"], given["bn1.running_var"])
    assert report.is_complete
    assert len(report.loaded) == 8


def test_missing_unexpected_and_misshapen_tensors_are_listed_with_shapes_and_suggestions(trainer):
    given, before = weights(), everything(trainer)
    given["fc.wieght"] = given.pop("fc.weight")
    given["head.scale"] = np.ones(3, np.float32)
    given["conv1.bias"] = np.ones(7, np.float32)
    with pytest.raises(vdnn.ModelError) as caught:
        trainer.load_weights(given)
    message = str(caught.value)
    assert "1 missing: fc.weight (5, 16)" in message
    assert "2 not of small: fc.wieght (5, 16) (did you mean fc.weight?), head.scale (3,)" in message
    assert "1 of another shape: conv1.bias is (7,), small has (4,)" in message
    assert "strict=False loads those that suit: 6 of 8" in message
    assert_unchanged(trainer, before)


def test_what_suits_is_loaded_if_asked_and_the_rest_is_reported(trainer):
    given = weights()
    before = trainer.weights["fc.w"]
    del given["fc.weight"]
    report = trainer.load_weights(given, strict=False)
    np.testing.assert_array_equal(trainer.weights["conv1.w"], given["conv1.weight"])
    np.testing.assert_array_equal(trainer.weights["fc.w"], before)
    assert report.missing == ("fc.weight (5, 16)",)
    assert str(report) == "small: 7 tensors from a mapping\n  1 missing: fc.weight (5, 16)"


def test_nothing_that_suits_is_an_error_even_if_not_strict(trainer):
    with pytest.raises(vdnn.ModelError, match="nothing suits: 0 of 8"):
        trainer.load_weights({"encoder.weight": np.ones((2, 2))}, strict=False)


def test_counters_and_the_prefix_of_data_parallel_are_left_out(trainer):
    given = {f"module.{name}": value for name, value in weights().items()}
    report = trainer.load_weights(given | {"module.bn1.num_batches_tracked": np.array(5)})
    assert report.left_out == ("bn1.num_batches_tracked",)
    np.testing.assert_array_equal(trainer.weights["fc.b"], weights()["fc.bias"])


def test_names_of_ones_own_are_followed(trainer):
    given = {f"x{i}": value for i, value in enumerate(weights().values())}
    order = [*("conv1.w", "conv1.b", "bn1.w", "bn1.b", "bn1.mean", "bn1.variance", "fc.w", "fc.b")]
    trainer.load_weights(given, names={f"x{i}": name for i, name in enumerate(order)})
    np.testing.assert_array_equal(trainer.weights["fc.b"], weights()["fc.bias"])
    with pytest.raises(vdnn.ModelError, match=r"'fc\.ww' is no weight or statistic of small \(did you mean fc\.w\?\)"):
        trainer.load_weights(given, names={"x0": "fc.ww"})
    with pytest.raises(vdnn.ModelError, match=r"2 tensors are to be fc\.w; one can be"):
        trainer.load_weights(given, names={"x0": "fc.w", "x1": "fc.w"})


def test_names_of_ones_own_are_beside_the_others(trainer):
    given = weights()
    given["head"] = given.pop("fc.weight")
    assert trainer.load_weights(given, names={"head": "fc.w"}).is_complete
    with pytest.raises(vdnn.ModelError, match=r"7 missing: conv1\.weight"):
        trainer.load_weights({"head": given["head"]}, names={"head": "fc.w"})


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats_are_converted_and_said(trainer, dtype):
    report = trainer.load_weights({name: value.astype(dtype) for name, value in weights().items()})
    expected = weights()["fc.weight"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(trainer.weights["fc.w"], expected)
    assert f"8 converted from {dtype}" in str(report)


def test_bfloat16_in_safetensors_is_converted(trainer, tmp_path):
    given = weights()
    save_file({name: value for name, value in given.items() if name != "fc.bias"}, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    header["fc.bias"] = {"dtype": "BF16", "shape": [5], "data_offsets": [len(body), len(body) + 10]}
    halves = np.array([0x3F80, 0x4000, 0xBF80, 0x3F00, 0], np.uint16)
    text = json.dumps(header).encode()
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body + halves.tobytes())
    report = trainer.load_weights(tmp_path / "b.safetensors")
    np.testing.assert_array_equal(trainer.weights["fc.b"], np.array([1, 2, -1, 0.5, 0], np.float32))
    assert report.converted == ("fc.bias from bfloat16",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full(5, np.nan, np.float32), r"5 of 5 values of fc\.bias are not finite"),
        (np.full(5, 1e300), r"5 of 5 values of fc\.bias are not finite in float32"),
        (np.ones(5, np.int64), "of type int64, which no weight is of"),
        (["a", "b", "c", "d", "e"], "no array of numbers"),
    ],
)
def test_values_that_are_no_weights_change_nothing(trainer, value, message):
    before = everything(trainer)
    with pytest.raises(vdnn.ModelError, match=message):
        trainer.load_weights(weights() | {"fc.bias": value})
    assert_unchanged(trainer, before)


def lying_headers():
    good = {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    change = {
        "offsets beyond the file": {"data_offsets": [0, 2**40]},
        "a shape larger than its data": {"shape": [2**31, 2**31]},
        "a negative size": {"shape": [-2, -2]},
        "offsets in reverse": {"data_offsets": [16, 0]},
        "a type that is not there": {"dtype": "F7"},
    }
    return {name: {"w": good["w"] | values} for name, values in change.items()}


@pytest.mark.parametrize("name", lying_headers())
def test_a_safetensors_header_that_lies_is_refused(trainer, tmp_path, name):
    text = json.dumps(lying_headers()[name]).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(vdnn.ModelError, match="neither a whole safetensors file"):
        trainer.load_weights(tmp_path / "a.safetensors")


def test_a_header_longer_than_the_file_is_refused(trainer, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(vdnn.ModelError, match="neither a whole safetensors file"):
        trainer.load_weights(tmp_path / "a.safetensors")


def test_every_truncation_of_a_safetensors_file_is_refused(trainer, tmp_path):
    before = everything(trainer)
    save_file({"fc.bias": np.ones(5, np.float32)}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "b.safetensors").write_bytes(whole[:length])
        with pytest.raises(vdnn.ModelError, match=r"b\.safetensors"):
            trainer.load_weights(tmp_path / "b.safetensors", strict=False)
    assert_unchanged(trainer, before)


def test_saved_weights_are_loaded_again_by_any_of_their_names(trainer, tmp_path):
    expected = everything(trainer)
    for names in ("layers", "vdnn"):
        trainer.save_weights(tmp_path / names, names)
        other = Trainer(network(), policy="keep_all", threads=1, seed=9)
        assert other.load_weights(tmp_path / names).is_complete
        assert_unchanged(other, expected)
        other.close()
    assert "fc.running_mean" not in vdnn.read_weights(tmp_path / "layers")
    assert "bn1.running_mean" in vdnn.read_weights(tmp_path / "layers")


def test_names_that_a_network_has_not_are_refused_before_anything_is_written(trainer, tmp_path):
    with pytest.raises(vdnn.ModelError, match=r"small has no names 'torchvision'; there are layers, vdnn"):
        trainer.save_weights(tmp_path / "a.safetensors", "torchvision")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_gives_its_weights_and_leaves_its_optimizer_state(tmp_path):
    first, second = (Trainer(norm_dropout(), policy="keep_all", threads=1, seed=seed) for seed in (1, 2))
    first.save(str(tmp_path / "run.safetensors"))
    report = second.load_weights(tmp_path / "run.safetensors")
    assert any(name.endswith(".velocity") for name in report.left_out)
    assert_unchanged(second, everything(first))
    first.close()
    second.close()

"""ONNX files that cannot be taken: what they ask for is named, and nothing else happens."""

from __future__ import annotations

import builtins
import os

import numpy as np
import pytest

from vdnn.exchange.errors import ModelError
from vdnn.exchange.onnx_model import from_onnx, network_of_onnx

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
from onnx import TensorProto, helper  # noqa: E402
from onnx_graphs import Graph, resnet_like  # noqa: E402


def refusal(path, **options):
    with pytest.raises(ModelError) as caught:
        from_onnx(path, 3, **options)
    return str(caught.value)


def saved(model, folder):
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


CASES = {
    "an unknown operator": (
        lambda g: g("LSTM", "x", "x", "x"),
        "LSTM (node /LSTM_0): not supported; supported are Add,",
    ),
    "another domain's": (lambda g: g("Gelu", "x", domain="com.microsoft"), "com.microsoft::Gelu"),
    "softmax in the middle": (
        lambda g: g("Relu", g("Softmax", "x", axis=1)),
        "Softmax /Softmax_0: axis=1; over axis 1",
    ),
    "an even LRN": (lambda g: g("LRN", "x", size=4), "size=4; an odd one"),
    "a concatenation of rows": (lambda g: g("Concat", "x", "x", axis=2), "axis=2; channels"),
    "a broadcast": (lambda g: g("Add", "x", g.vector((1, 3, 1, 1))), "is a constant; what layers make is needed"),
    "a bias along the columns": (
        lambda g: g("Add", g.conv("x", 3, 16, bias=False), g.vector(16)),
        "shape (16,); one number for each of 16 channels, (1, 16, 1, 1), would fit",
    ),
    "a bias along the rows": (
        lambda g: g("Add", g.conv("x", 3, 16, bias=False), g.vector((16, 1))),
        "shape (16, 1); one number",
    ),
    "a bias for each sample": (
        lambda g: g("Gemm", g("Flatten", "x"), g.weight(768, 3), g.vector((3, 1))),
        "shape (3, 1); one number for each of 3 channels, (1, 3), would fit",
    ),
    "a bias of more dimensions": (
        lambda g: g("Add", g.conv("x", 3, 16, bias=False), g.vector((1, 1, 16, 1, 1))),
        "shape (1, 1, 16, 1, 1); one number",
    ),
    "a clip elsewhere": (lambda g: g("Clip", "x", np.float32(-1), np.float32(1)), "between -1.0 and 1.0"),
    "a reshape": (lambda g: g("Reshape", "x", np.array([0, 12, 8, 8])), "to (0, 12, 8, 8); one row"),
    "a computed weight": (lambda g: g("Conv", "x", g("Relu", "x")), "is no constant; a weight of 4 dimensions"),
    "a weight of other channels": (
        lambda g: g("Conv", "x", g.weight(4, 5, 3, 3)),
        "(4, 5, 3, 3); (4, 3, 3, 3) would fit",
    ),
    "a window that does not fit": (
        lambda g: g("MaxPool", "x", kernel_shape=[20, 20]),
        "MaxPool /MaxPool_0: kernel_size=(20, 20) has more than 255",
    ),
    "a window larger than its map": (lambda g: g("MaxPool", "x", kernel_shape=[17, 3]), "rows must be at least 17"),
    "unequal pads of a mean": (
        lambda g: g("AveragePool", "x", kernel_shape=[3, 3], pads=[0, 0, 1, 1]),
        "pads (0, 0) before and (1, 1) after, which differ",
    ),
    "indices": (
        lambda g: (lambda y: g("Concat", y, y[:-1] + "b", axis=1))(g("MaxPool", "x", kernel_shape=[2, 2], outputs=2)),
        "Indices, is not supported",
    ),
    "training": (
        lambda g: g("BatchNormalization", "x", *[np.ones(3, np.float32)] * 4, training_mode=1),
        "training_mode=1",
    ),
    "a cubic resize": (lambda g: g("Resize", "x", "", np.array([1, 1, 2, 2], np.float32), mode="cubic"), "mode cubic"),
    "a broken scale": (lambda g: g("Resize", "x", "", np.array([1, 1, 1.5, 2], np.float32)), "scales [1.0, 1.0, 1.5"),
    "huge padding": (
        lambda g: g("Conv", "x", g.weight(4, 3, 3, 3), pads=[2**40] * 4),
        "four numbers of 0 to 2147483647",
    ),
    "a huge map": (
        lambda g: g("Conv", "x", g.weight(4, 3, 3, 3), pads=[2**30] * 4),
        "is larger than 1,099,511,627,776",
    ),
    "a huge enlargement": (
        lambda g: g("Resize", "x", "", np.array([1, 1, 2**24, 2**24], np.float32)),
        "whole numbers up to 1024 would fit",
    ),
    "strides of nothing": (lambda g: g("Conv", "x", g.weight(4, 3, 3, 3), strides=[0, 1]), "strides=(0, 1)"),
    "groups of nothing": (lambda g: g("Conv", "x", g.weight(4, 3, 3, 3), group=0), "groups=0"),
    "a weight that is no number": (
        lambda g: g("Conv", "x", np.full((4, 3, 3, 3), np.nan, np.float32)),
        "Conv_0.w are not finite",
    ),
    "no layer at all": (lambda g: g("Identity", "x"), "is no layer's"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_no_layer_can_do_is_refused_with_its_node(tmp_path, name):
    make, message = CASES[name]
    graph = Graph(shape=(3, 3, 16, 16))
    found = refusal(graph.save(tmp_path, make(graph), 4))
    assert message in found
    assert "model.onnx" in found


@pytest.mark.parametrize("opset", [6, 27])
def test_an_opset_that_was_not_read_is_refused_with_the_range(tmp_path, opset):
    graph = Graph(opset=opset)
    assert f"opset {opset}; 7 to 26 are read" in refusal(graph.save(tmp_path, graph("Relu", "x"), 4))


def test_a_cycle_is_refused(tmp_path):
    graph = Graph()
    graph("Add", "x", "value1a")
    model = graph.model(graph("Relu", "value0a"), 4)
    assert "no valid model" in refusal(saved(model, tmp_path))


def test_several_inputs_or_outputs_are_refused(tmp_path):
    graph = Graph()
    model = graph.model(graph("Relu", "x"), 4)
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    assert "2 inputs (x, mask)" in refusal(saved(model, tmp_path))
    model = graph.model(graph("Relu", "x"), 4)
    model.graph.output.append(helper.make_tensor_value_info("value0a", TensorProto.FLOAT, [None] * 4))
    assert "2 outputs (value1a, value0a)" in refusal(saved(model, tmp_path))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 2**40, 1, 1), "1 to 2147483647"), ((3, 768), "(N, C, H, W)"), ((3, 2**30, 2**30, 2**30), "larger than")],
)
def test_an_input_of_another_form_is_refused(tmp_path, shape, message):
    graph = Graph(shape)
    assert message in refusal(graph.save(tmp_path, graph("Relu", "x"), len(shape)))


def test_an_input_of_integers_is_refused(tmp_path):
    graph = Graph(dtype=TensorProto.UINT8)
    assert "of type uint8" in refusal(graph.save(tmp_path, graph("Identity", "x"), 4))


def convolution():
    graph = Graph()
    return graph.model(graph("Conv", "x", graph.weight(4, 3, 3, 3)), 4)


@pytest.mark.parametrize("dims", [(4, 3, 3, 4), (2**30, 2**30, 3, 3), (4, 3, 3, -3)])
def test_a_constant_whose_data_are_not_what_its_shape_says_is_refused(tmp_path, dims):
    model = convolution()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    assert "constant0" in refusal(saved(model, tmp_path))


def outside(model, folder, location, **entries):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return saved(model, folder)


def test_data_outside_of_the_models_folder_are_refused_and_not_opened(tmp_path, monkeypatch):
    inner = tmp_path / "inner"
    inner.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(432))
    (inner / "link.bin").symlink_to(secret)
    opened = []
    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *a, **k: (opened.append(str(file)), real(file, *a, **k))[1])
    for location in ("../../etc/passwd", "/etc/passwd", "../secret.bin", os.fspath(secret), "link.bin", "", "a\0b"):
        message = refusal(outside(convolution(), inner, location))
        assert "refused" in message or "cannot be found" in message
    assert not any("passwd" in name or "secret" in name for name in opened)


def test_data_beside_the_model_must_be_as_long_as_they_say(tmp_path):
    assert "which is no file" in refusal(outside(convolution(), tmp_path, "weights.bin"))
    (tmp_path / "weights.bin").write_bytes(bytes(400))
    assert "432 bytes, it is said to have 432 at 0 of the 400" in refusal(
        outside(convolution(), tmp_path, "weights.bin")
    )
    assert "2,000 at 0" in refusal(outside(convolution(), tmp_path, "weights.bin", length=2000))
    assert "at -8" in refusal(outside(convolution(), tmp_path, "weights.bin", offset=-8))
    assert "cannot be found" in refusal(outside(convolution(), tmp_path, "weights.bin", offset="x"))


def test_every_truncation_is_refused(tmp_path):
    graph = Graph()
    whole = graph.model(graph("Relu", graph("Conv", "x", graph.weight(2, 3, 1, 1))), 4).SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert str(path) in refusal(path)


def test_changed_bytes_give_a_network_or_a_refusal(tmp_path):
    graph = Graph()
    y, rank = resnet_like(graph)
    whole, random, path = graph.model(y, rank).SerializeToString(), np.random.default_rng(1), tmp_path / "model.onnx"
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        for place in random.integers(0, len(content), 3):
            content[place] = random.integers(0, 256)
        path.write_bytes(content)
        try:
            network_of_onnx(path, 2)
        except ModelError:
            refused += 1
    assert 0 < refused < 150


def test_files_that_are_not_there_or_not_onnx_are_refused(tmp_path):
    assert "is no file" in refusal(tmp_path / "none.onnx")
    (tmp_path / "a.onnx").write_bytes(b"import os; os.system('true')\n")
    assert "truncated or no ONNX file" in refusal(tmp_path / "a.onnx")


def test_without_the_package_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install 'vdnn[onnx]'" in refusal(tmp_path / "a.onnx")

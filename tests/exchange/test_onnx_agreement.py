"""Networks from ONNX give the scores that onnxruntime gives."""

from __future__ import annotations

import numpy as np
import pytest

from vdnn.exchange.onnx_model import from_onnx, network_of_onnx
from vdnn.train import Trainer

pytest.importorskip("onnx", reason="the package onnx is not installed")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime, to compare with, is not installed")
from onnx_graphs import Graph, googlenet_like, resnet_like, unet_like, vgg_like  # noqa: E402

AGREE = 1e-5  # relative to the largest score


def reference(path, images, output=None):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(output and [output], {session.get_inputs()[0].name: images})[0]


def scores(model, images, policy="keep_all"):
    trainer = Trainer(model.network, policy=policy, threads=1)
    try:
        assert trainer.load_weights(model.weights).is_complete
        return trainer.predict(images)
    finally:
        trainer.close()


def images_for(shape, count=3):
    return np.random.default_rng(3).standard_normal((count, *shape[1:]), np.float32)


def assert_agrees(found, expected):
    expected = expected.reshape(found.shape)
    assert np.abs(expected).max() > 1e-3
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= AGREE * np.abs(expected).max()


def logits(probabilities):
    """What softmax made these of, less its mean: softmax cannot tell more."""
    found = np.log(probabilities)
    return found - found.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("make", [resnet_like, googlenet_like, unet_like])
def test_a_network_has_the_scores_of_onnxruntime(tmp_path, make):
    graph = Graph()
    y, rank = make(graph)
    path, images = graph.save(tmp_path, y, rank), images_for(graph.shape)
    assert_agrees(scores(from_onnx(path, batch=3), images, "vdnn_all"), reference(path, images))


def test_a_vgg_has_the_scores_of_onnxruntime_before_its_softmax(tmp_path):
    graph = Graph()
    y, rank = vgg_like(graph)
    path, images = graph.save(tmp_path, y, rank), images_for(graph.shape)
    model = from_onnx(path, batch=3)
    found = scores(model, images)
    assert_agrees(found - found.mean(axis=1, keepdims=True), logits(reference(path, images)))
    assert any("Softmax" in note for note in model.notes)


ZERO_TO_SIX = (np.array(0, np.float32), np.array(6, np.float32))
SINGLE = {
    "asymmetric padding": (lambda g: g("Conv", "x", g.weight(4, 3, 3, 3), pads=[0, 1, 2, 1], strides=[2, 2]), 4),
    "padding as SAME_UPPER": (lambda g: g.conv("x", 3, 4, 4, auto_pad="SAME_UPPER", strides=[2, 2]), 4),
    "padding as SAME_LOWER": (lambda g: g.conv("x", 3, 4, 4, auto_pad="SAME_LOWER"), 4),
    "padding as VALID": (lambda g: g.conv("x", 3, 4, 5, auto_pad="VALID"), 4),
    "groups and dilation": (lambda g: g("Conv", "x", g.weight(6, 1, 3, 3), group=3, dilations=[2, 3]), 4),
    "a bias added later": (lambda g: g("Add", g.conv("x", 3, 4, bias=False), g.vector((1, 4, 1, 1))), 4),
    "a constant before a product's result": (
        lambda g: g("Add", g.vector(5), g("MatMul", g("Flatten", "x"), g.weight(768, 5))),
        2,
    ),
    "groups transposed": (
        lambda g: g("ConvTranspose", g.conv("x", 3, 4), g.weight(4, 3, 3, 3), group=2, strides=[2, 2], pads=[1] * 4),
        4,
    ),
    "output padding": (
        lambda g: g(
            *("ConvTranspose", "x", g.weight(3, 4, 3, 3), g.vector(4)),
            strides=[2, 2],
            pads=[1] * 4,
            output_padding=[1, 0],
        ),
        4,
    ),
    "a transposed one with less padding at its end": (
        lambda g: g("ConvTranspose", "x", g.weight(3, 4, 3, 3), strides=[2, 2], pads=[1, 1, 0, 1]),
        4,
    ),
    "pooling with unequal padding": (
        lambda g: g("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
        4,
    ),
    "pooling over the edge": (
        lambda g: g("MaxPool", "x", kernel_shape=[3, 3], strides=[3, 2], ceil_mode=1, pads=[1] * 4),
        4,
    ),
    "pooling with dilation": (lambda g: g("MaxPool", "x", kernel_shape=[2, 3], dilations=[2, 1]), 4),
    "the largest of a plane": (
        lambda g: g("GlobalMaxPool", g("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2])),
        4,
    ),
    "means without padding": (lambda g: g("AveragePool", "x", kernel_shape=[3, 3], pads=[1] * 4), 4),
    "means over the edge": (
        lambda g: g("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        4,
    ),
    "means with unequal padding": (
        lambda g: g("AveragePool", "x", kernel_shape=[3, 3], pads=[0, 1, 1, 0], count_include_pad=1),
        4,
    ),
    "padding of its own": (
        lambda g: g("Pad", "x", np.array([0, 0, 1, 0, 0, 0, 2, 3]), np.array(0.5, np.float32)),
        4,
    ),
    "ReLU6": (lambda g: g("Clip", g.conv("x", 3, 4), *ZERO_TO_SIX), 4),
    "a clip without end": (lambda g: g("Clip", "x", ZERO_TO_SIX[0]), 4),
    "leaky": (lambda g: g("LeakyRelu", "x", alpha=0.2), 4),
    "sigmoid": (lambda g: g("Sigmoid", "x"), 4),
    "tanh": (lambda g: g("Tanh", "x"), 4),
    "a sum of three": (lambda g: g("Sum", "x", g("Tanh", "x"), g("Relu", "x")), 4),
    "repeating to a size": (
        lambda g: g(
            *("Resize", "x", "", "", np.array([3, 3, 32, 48])),
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        4,
    ),
    "repeating by default": (lambda g: g("Resize", "x", "", np.array([1, 1, 3, 2], np.float32)), 4),
    "interpolating with corners": (
        lambda g: g(
            *("Resize", "x", "", np.array([1, 1, 2, 3], np.float32)),
            mode="linear",
            coordinate_transformation_mode="align_corners",
        ),
        4,
    ),
    "squeezing": (lambda g: g("Squeeze", g("GlobalAveragePool", g.conv("x", 3, 4)), np.array([2, 3])), 2),
    "a mean without its axes": (lambda g: g("ReduceMean", "x", axes=[-1, -2], keepdims=0), 2),
    "what nothing reads": (lambda g: (g("Relu", "x"), g("Tanh", "x"))[1], 4),
}


@pytest.mark.parametrize("name", SINGLE)
def test_an_operator_gives_what_onnxruntime_gives(tmp_path, name):
    make, rank = SINGLE[name]
    graph = Graph(shape=(3, 3, 16, 16))
    path, images = graph.save(tmp_path, make(graph), rank), images_for(graph.shape)
    assert_agrees(scores(from_onnx(path, batch=3), images), reference(path, images))


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 13, 18, 21, 22, 24, 25, 26])
def test_every_opset_is_read_as_it_defines_its_operators(tmp_path, opset):
    """Attributes that became inputs: limits of Clip, axes of ReduceMean, ratio of Dropout, scales of Upsample."""
    graph = Graph(opset=opset)
    limits = {"min": 0.0, "max": 6.0} if opset < 11 else {}
    x = graph("Clip", graph.conv("x", 3, 4), *(() if limits else ZERO_TO_SIX), **limits)
    x = graph("MaxPool", graph.norm(x, 4), kernel_shape=[2, 2], strides=[2, 2])
    scales = np.array([1, 1, 2, 2], np.float32)
    if opset < 9:
        x = graph("Upsample", x, scales=scales.tolist())
    elif opset < 11:
        x = graph("Upsample" if opset < 10 else "Resize", x, scales)
    else:
        x = graph("Resize", x, np.array([], np.float32), scales)
    x = graph("Dropout", x, **({"ratio": 0.4} if opset < 12 else {}))
    axes = ((), {"axes": [2, 3]}) if opset < 18 else ((np.array([2, 3]),), {})
    x = graph("Flatten", graph("ReduceMean", x, *axes[0], keepdims=1, **axes[1]))
    path, images = graph.save(tmp_path, graph("Softmax", x)), images_for(graph.shape)
    found = scores(from_onnx(path, batch=3), images)
    assert_agrees(found - found.mean(axis=1, keepdims=True), logits(reference(path, images)))


def flattened_by_arithmetic(graph):
    """As PyTorch exports x.view(x.size(0), -1)."""
    x = graph.conv("x", 3, 4)
    samples = graph("Unsqueeze", graph("Gather", graph("Shape", x), np.array(0), axis=0), np.array([0]))
    x = graph("Reshape", x, graph("Concat", samples, graph("Constant", value_ints=[-1]), axis=0))
    return graph("Gemm", x, graph.weight(1024, 10), graph.vector(10))


@pytest.mark.parametrize("shape", [("N", 3, 16, 16), (1, 3, 16, 16)])
def test_arithmetic_on_shapes_is_done_for_any_batch(tmp_path, shape):
    graph = Graph(shape)
    path = graph.save(tmp_path, flattened_by_arithmetic(graph))
    images = images_for(shape, 1)
    found = scores(from_onnx(path, batch=5), np.repeat(images, 5, axis=0))
    assert_agrees(found[4:], reference(path, images))


def test_an_open_size_of_images_must_be_said(tmp_path):
    graph = Graph(("N", 3, "H", "W"))
    x = graph("Flatten", graph("GlobalAveragePool", graph.conv("x", 3, 4)))
    path, images = graph.save(tmp_path, x), images_for((3, 3, 20, 12))
    with pytest.raises(ValueError, match=r"\(None, 3, None, None\).*image=\(C, H, W\)"):
        network_of_onnx(path)
    assert_agrees(scores(from_onnx(path, 3, image=(3, 20, 12)), images), reference(path, images))


def test_constants_with_several_readers_are_copied_and_said(tmp_path):
    graph = Graph()
    w = graph.constant(graph.weight(3, 3, 3, 3))
    again = graph("Identity", w)
    x = graph("Conv", graph("Relu", graph("Conv", "x", w, pads=[1] * 4)), again, pads=[1] * 4)
    path, images = graph.save(tmp_path, x, 4), images_for(graph.shape)
    model = from_onnx(path, 3)
    assert_agrees(scores(model, images), reference(path, images))
    assert any("several readers" in note for note in model.notes)


def test_data_beside_the_model_are_read(tmp_path):
    import onnx

    graph = Graph()
    y, rank = resnet_like(graph)
    path = tmp_path / "model.onnx"
    onnx.save(graph.model(y, rank), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    images = images_for(graph.shape)
    assert (tmp_path / "weights.bin").stat().st_size > 1000
    assert_agrees(scores(from_onnx(path, 3), images), reference(path, images))


def test_half_precision_is_converted_and_said(tmp_path):
    from onnx import TensorProto

    graph = Graph(dtype=TensorProto.FLOAT16)
    w = graph.weight(4, 3, 3, 3).astype(np.float16)
    path, images = graph.save(tmp_path, graph("Conv", "x", w), 4), images_for(graph.shape).astype(np.float16)
    model = from_onnx(path, 3)
    assert model.notes == ("1 weights converted from float16 to float32",)
    expected = reference(path, images).astype(np.float32)
    assert np.abs(scores(model, images.astype(np.float32)) - expected).max() < 2e-3 * np.abs(expected).max()


def test_a_network_from_onnx_trains_on_from_its_weights(tmp_path):
    graph = Graph((4, 3, 4, 4))
    x = graph("Relu", graph("Gemm", graph("Flatten", "x"), graph.weight(48, 12), graph.vector(12)))
    path = graph.save(tmp_path, graph("Gemm", x, graph.weight(12, 5), graph.vector(5)))
    model, images, labels = from_onnx(path, batch=4), images_for(graph.shape, 4), np.arange(4)
    rows = reference(path, images)
    expected = np.mean(np.log(np.exp(rows).sum(axis=1)) - rows[labels, labels])
    trainer = Trainer(model.network, policy="vdnn_all", threads=1)
    trainer.load_weights(model.weights)
    losses = [trainer.step(images, labels) for _ in range(5)]
    trainer.close()
    assert losses[0] == pytest.approx(expected, rel=AGREE)
    assert losses[4] < losses[0]

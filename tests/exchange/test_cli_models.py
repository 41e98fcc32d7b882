"""The command line with networks and weights from outside."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from vdnn.__main__ import main


def run(*arguments, status=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == status, result.output
    return result


@pytest.fixture
def model(tmp_path):
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    from onnx_graphs import Graph

    graph = Graph(("N", 1, 8, 8))
    x = graph("Relu", graph("Gemm", graph("Flatten", "x"), graph.weight(64, 12), graph.vector(12)))
    return graph.save(tmp_path, graph("Softmax", graph("Gemm", x, graph.weight(12, 10), graph.vector(10))))


def test_an_onnx_file_is_planned_like_a_network_by_name(model):
    figures = json.loads(run("plan", model, "--batch", 16, "--json").stdout)
    assert (figures["network"], figures["batch"]) == ("model.onnx", 16)
    assert figures["breakdown"]["weight"] >= 4 * (64 * 12 + 12 + 12 * 10 + 10)
    assert "model.onnx" in run("plan", model, "--explain", "--rules", "paper").output


def test_an_onnx_file_is_compared_and_fitted(model):
    found = json.loads(run("compare", model, "--policy", "keep_all", "--policy", "vdnn_all", "--json").stdout)
    assert [row["network"] for row in found] == ["model.onnx"] * 2
    assert json.loads(run("fit", model, "--policy", "keep_all", "--budget", "1MiB", "--json").stdout)[0]


def test_training_begins_with_the_weights_of_the_onnx_file(model):
    result = run("train", model, "--epochs", 1, "--samples", 32, "--threads", 1, "--policy", "keep_all")
    assert "begins with its 4 weights" in result.stderr
    assert "Softmax" in result.stderr


def test_a_wrong_file_is_a_usage_error(tmp_path):
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    assert "truncated or no ONNX file" in run("plan", tmp_path / "a.onnx", status=2).output
    assert "is no file" in run("train", tmp_path / "b.onnx", status=2).output


def test_training_begins_with_weights_from_a_file(tmp_path):
    path = tmp_path / "first.safetensors"
    save_file({"fc.weight": np.zeros((10, 4096), np.float32), "fc.bias": np.zeros(10, np.float32)}, path)
    message = run("train", "digits_vgg", "--weights", path, "--threads", 1, status=2).output
    assert "digits_vgg cannot take the weights" in message
    assert "missing: conv1_1.weight (32, 1, 3, 3)" in message
    message = run("train", "digits_vgg", "--weights", path, "--resume", path, status=2).output
    assert "one of the two" in message

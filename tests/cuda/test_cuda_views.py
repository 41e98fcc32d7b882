"""Where storage is in logical order, Flatten and its gradient are views; networks that would notice a wrong one."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_doubles import emulated_device

import vdnn
from vdnn import layers


def ended(net, scores):
    net.add(layers.SoftmaxCrossEntropy(), scores)
    return net


def images():
    return vdnn.Network((4, 3, 4, 4))


def two_views_of_one_map():
    """A ReLU on one view may not overwrite what the other shows."""
    net = images()
    x = net.add(layers.Conv2d(4, 3, padding=1), net.input)
    one = net.add(layers.Linear(5), net.add(layers.ReLU(), net.add(layers.Flatten(), x)))
    other = net.add(layers.Linear(5), net.add(layers.Flatten(), x))
    return ended(net, net.add(layers.Add(), one, other))


def one_gradient_for_two_views():
    """Add passes one gradient to both branches: the first ReLU's backward may not overwrite what the second reads."""
    net = images()
    branches = []
    for _ in range(2):
        x = net.add(layers.ReLU(), net.add(layers.Conv2d(4, 3, padding=1), net.input))
        branches.append(net.add(layers.Flatten(), x))
    return ended(net, net.add(layers.Linear(5), net.add(layers.Add(), *branches)))


def a_map_and_its_view():
    """The gradient through the view is a second one, though it has the bytes of the first."""
    net = vdnn.Network((4, 12))
    x = net.add(layers.Linear(12), net.input)
    return ended(net, net.add(layers.Linear(5), net.add(layers.Add(), x, net.add(layers.Flatten(), x))))


def a_map_beside_its_view():
    """Add may not work in place on bytes that it reads twice."""
    net = vdnn.Network((4, 12))
    x, y = (net.add(layers.Linear(12), net.input) for _ in range(2))
    return ended(net, net.add(layers.Linear(5), net.add(layers.Add(), x, y, net.add(layers.Flatten(), x))))


def the_images_flattened():
    """A ReLU on the flattened images may not overwrite them."""
    net = images()
    x = net.add(layers.Linear(8), net.add(layers.ReLU(), net.add(layers.Flatten(), net.input)))
    return ended(net, net.add(layers.Linear(5), net.add(layers.ReLU(), x)))


def scores_flattened():
    """What is copied to the host needs an op that makes it."""
    net = images()
    x = net.add(layers.GlobalAvgPool2d(), net.add(layers.Conv2d(5, 3, padding=1), net.input))
    return ended(net, net.add(layers.Flatten(), x))


NETWORKS = (
    two_views_of_one_map,
    one_gradient_for_two_views,
    a_map_and_its_view,
    a_map_beside_its_view,
    the_images_flattened,
    scores_flattened,
)


def trained(make, storage, policy):
    net = make()
    numbers = np.random.default_rng(0)
    batch = numbers.standard_normal(net.input.shape, np.float32), numbers.integers(5, size=4)
    trainer = vdnn.Trainer(net, policy, device=emulated_device(net, storage=storage), optimizer=vdnn.SGD(0.1), seed=1)
    loss, gradients = trainer.gradients(*batch)
    found = {"loss": float(loss), "scores": trainer.predict(batch[0]), "step": float(trainer.step(*batch)), **gradients}
    trainer.close()
    return found


@pytest.mark.parametrize("policy", ["keep_all", "least", "checkpoint"])
@pytest.mark.parametrize("make", NETWORKS)
def test_views_change_no_result(make, policy):
    expected, found = trained(make, "nhwc", "keep_all"), trained(make, "nchw", policy)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.abs(value).max() > 0
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)

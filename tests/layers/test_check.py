import numpy as np
import pytest

from vdnn.layers import Algorithm, Init, Layer, LayerError, LeakyReLU, ReLU, Shapes, Spec, check_layer

SHAPE = (2, 3, 4, 4)


class Square(Layer):
    """y = x ** 2, correct; the classes below each plant one bug."""

    def forward(self, xp, x, y):
        xp.multiply(x, x, out=y)

    def backward(self, xp, x, dy, dx):
        xp.multiply(x, 2, out=dx)
        xp.multiply(dx, dy, out=dx)


class Scale(Layer):
    """y = x * w, correct."""

    def shapes(self, *x):
        return Shapes(x[0], parameters={"w": Spec((1,), init=Init("constant", 1.0))})

    def forward(self, xp, x, w, y):
        xp.multiply(x, w, out=y)

    def backward(self, xp, x, w, dy, dx, dw):
        dw[...] = xp.sum(x * dy)
        if dx is not None:
            xp.multiply(dy, w, out=dx)


def refuses(layer, match, *shapes):
    with pytest.raises(LayerError, match=match):
        check_layer(layer, *(shapes or (SHAPE,)))


@pytest.mark.parametrize("layer", [Square(), Scale(), ReLU(), LeakyReLU(0.1)])
def test_a_correct_layer_passes(layer):
    check_layer(layer, SHAPE)


def test_a_wrong_sign_is_found():
    class Wrong(Square):
        def backward(self, xp, x, dy, dx):
            xp.multiply(x, -2, out=dx)
            xp.multiply(dx, dy, out=dx)

    refuses(Wrong(), r"dx along a random direction is .* differences of y give")


def test_a_gradient_wrong_at_one_element_is_found():
    class Wrong(Square):
        def backward(self, xp, x, dy, dx):
            Square.backward(self, xp, x, dy, dx)
            dx[0, 0, 0, 0] = 0

    refuses(Wrong(), "dx along a random direction")


def test_a_small_factor_is_found():
    class Wrong(Square):
        def backward(self, xp, x, dy, dx):
            Square.backward(self, xp, x, dy, dx)
            xp.multiply(dx, 1 + 1e-5, out=dx)

    refuses(Wrong(), "dx along a random direction")


def test_a_wrong_parameter_gradient_is_found():
    class Wrong(Scale):
        def backward(self, xp, x, w, dy, dx, dw):
            Scale.backward(self, xp, x, w, dy, dx, dw)
            dw[...] = xp.sum(dy)

    refuses(Wrong(), "dw along a random direction")


def test_a_gradient_that_nobody_writes_is_found():
    class Wrong(Scale):
        def backward(self, xp, w, dy, dx):
            xp.multiply(dy, w, out=dx)

    refuses(Wrong(), "no backward method writes dw")


def test_a_forward_that_writes_its_input_is_found():
    class Wrong(Square):
        def forward(self, xp, x, y):
            Square.forward(self, xp, x, y)
            x[0, 0, 0, 0] += 1

    refuses(Wrong(), "forward writes x, which it may only read: 1 elements changed")


def test_a_backward_that_writes_dy_is_found():
    class Wrong(Square):
        def backward(self, xp, x, dy, dx):
            Square.backward(self, xp, x, dy, dx)
            dy[...] = 0

    refuses(Wrong(), "backward writes dy")


def test_a_forward_that_remembers_is_found():
    class Wrong(Square):
        calls = 0

        def forward(self, xp, x, y):
            Square.forward(self, xp, x, y)
            self.calls += 1
            y += 1e-9 * self.calls

    refuses(Wrong(), "with a second run, .* elements of y differ")


def test_a_forward_that_adds_to_what_y_held_is_found():
    class Wrong(Square):
        def forward(self, xp, x, y):
            xp.add(y, x * x, out=y)

    refuses(Wrong(), "not finite")


def test_scratch_that_is_taken_for_zero_is_found():
    class Wrong(Square):
        def algorithms(self, kernels, phase, dtype, *x):
            return (Algorithm("default", 8),)

        def forward(self, xp, x, y, workspace):
            Square.forward(self, xp, x, y)
            y += workspace.view("float64")[0]

    refuses(Wrong(), "not finite")


def test_writing_past_the_workspace_is_found():
    class Wrong(Square):
        def algorithms(self, kernels, phase, dtype, *x):
            return (Algorithm("default", 8),)

        def forward(self, xp, x, y, workspace):
            Square.forward(self, xp, x, y)
            xp.lib.stride_tricks.as_strided(workspace, (12,))[:] = 0

    refuses(Wrong(), "forward writes outside workspace: 4 bytes")


def test_an_alias_that_is_not_legal_is_found():
    class Wrong(Square):
        inplace = {"dx": "dy"}  # dx is written before dy is read

    refuses(Wrong(), "with dx in the place of dy")


def test_a_layout_that_is_assumed_is_found():
    class Wrong(Square):
        def forward(self, xp, x, y):
            Square.forward(self, xp, x, y)
            if x.flags.c_contiguous:
                y[0, 0, 0, 0] = 0

    refuses(Wrong(), "with arrays stored nchw, y differs")


def test_a_dx_that_may_be_none_is_tried():
    class Wrong(Scale):
        def backward(self, xp, x, w, dy, dx, dw):
            Scale.backward(self, xp, x, w, dy, dx, dw)
            if dx is None:
                dw[...] = 0

    refuses(Wrong(), "with dx=None, .* of dw differ")


def test_a_layer_of_zeros_tests_nothing():
    class Zero(Square):
        def forward(self, xp, x, y):
            xp.multiply(x, 0, out=y)

    refuses(Zero(), "all zero")


def test_a_wrong_algorithm_beside_a_right_one_is_found():
    class Wrong(Square):
        def algorithms(self, kernels, phase, dtype, *x):
            return (Algorithm("right", 0), Algorithm("wrong", 0))

        def forward(self, xp, x, y, algorithm):
            Square.forward(self, xp, x, y)
            if algorithm == "wrong":
                np.negative(y, out=y)

    refuses(Wrong(), "with forward by algorithm wrong, y differs")

"""How far a Winograd convolution is off: an estimate from the shape alone, so that all machines choose alike.

For independent inputs, weights and gradients of mean 0 and variance 1, one rounding to p bits is off by ROUNDING 2^-p
of the number's standard deviation.  A product of transformed tiles is a sum over the reduction; added up one after the
other, L terms are off by as much as (L + 1) / 2 roundings of the result (variances add).  The transform back adds the
errors of a x a products, but most of what the products hold cancels: what is left, the result, is smaller by the
amplification

    sum over i of out[i]^2 |left_i|^2 |right_i|^2 / the same for the plain convolution       per axis

out, left and right being rows of the three matrices (vdnn.kernels.numpy.transforms).  F(4x4) loses a factor of about 30
by it, F(2x2) one of about 3.
"""

from __future__ import annotations

from functools import lru_cache
from math import ldexp, sqrt

import numpy

from vdnn.kernels.numpy.geometry import Geometry
from vdnn.kernels.numpy.layout import ceil_div
from vdnn.kernels.numpy.transforms import TRANSFORMS, Program
from vdnn.kernels.numpy.winograd_plan import weights_plan
from vdnn.layers.base import Array

TOLERANCE = 1e-4  # of the largest element of the result: what may be off where nobody asked for more
ROUNDING = 0.425  # of 2^-p: sqrt((1 - 1/4) / (6 ln 2)), mantissas being spread evenly by their logarithm
TRANSFORMING = 20.0  # roundings of the result that the transforms add
LARGEST = 3.0  # between ratios of standard deviations and of largest elements: 1.9 was the most over two dozen runs


def matrix(program: Program, read: str, written: str, inputs: int, outputs: int) -> Array:
    """The matrix (outputs, inputs) that a program multiplies by."""
    arrays: dict[str, Array] = {
        written: numpy.zeros((outputs, inputs)),
        read: numpy.eye(inputs),
    }  # one and the same, if in place
    program.run([numpy.zeros(inputs) for _ in "tu"[: program.temporaries]], **arrays)
    found: Array = arrays[written][:outputs]
    return found


@lru_cache
def amplification(phase: str, m: int) -> float:
    """By how much errors of the products exceed those of the result, as standard deviations, where it is worst."""
    winograd, a = TRANSFORMS[m], m + 2
    source = (matrix(winograd.input, "d", "v", a, a) ** 2).sum(1)
    if phase == "backward_weights":
        other = (matrix(winograd.gradient, "d", "v", m, a) ** 2).sum(1)
        back, terms = matrix(winograd.taps, "v", "g", a, 3), m
    else:
        other = (matrix(winograd.filter, "g", "v", 3, a) ** 2).sum(1)
        back, terms = matrix(winograd.output, "v", "v", a, m), 3
    return float((back**2 @ (source * other)).max() / terms)  # two axes, so the square of the root


def relative_error(phase: str, g: Geometry, m: int) -> float:
    """The largest error of F(m x m, 3 x 3) over the largest element of the result, as estimated."""
    return _relative_error(phase, m, *_roundings(phase, g, m), int(numpy.finfo(g.dtype).nmant) + 1)


def _roundings(phase: str, g: Geometry, m: int) -> tuple[int, int]:
    """(terms of a product, products that are added up)."""
    if phase != "backward_weights":
        return (g.C if phase == "forward" else g.K), 1
    plan = weights_plan(m, g.N, g.outputs, g.K, g.C, g.dtype)
    tiles = g.N * ceil_div(g.outputs[0], m) * ceil_div(g.outputs[1], m)
    return min(plan.tiles, tiles), plan.products


def _relative_error(phase: str, m: int, terms: int, products: int, bits: int) -> float:
    roundings = (terms + 1) / 2 + (products - 1) / 2 + TRANSFORMING
    return LARGEST * amplification(phase, m) * ROUNDING * ldexp(1, -bits) * sqrt(roundings)

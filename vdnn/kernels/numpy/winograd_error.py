"""How far a Winograd convolution is off: an estimate from the shape alone, so that all machines choose alike.

For independent inputs, weights and gradients of mean 0 and variance 1, one rounding to p bits is off by ROUNDING 2^-p
of the number's standard deviation.  Roundings are taken as independent of each other; what one does to the result
follows from the matrices that the number still goes through (vdnn.kernels.numpy.transforms).  Per axis, with the
covariance S of products of transformed elements, (B^T B) * (G G^T) or (B^T B) * (A A^T) elementwise, in units of one
rounding of numbers of variance 1 and for each output:

products  sum over i of out[i]^2 S[i, i]: one rounding of each product, out being a row of the matrix back.  Most of
          what the products hold cancels in the result, whose variance is that of a plain sum of `terms` products:
          F(2x2, 3x3) loses a factor of about 2 by it, F(4x4, 3x3) one of 24 to 31, F(2x2, 5x5) one of 20 to 45
factors   roundings of the two transforms there: each goes through the products that its number is a factor of
back      roundings of the transform back

A product of tiles is a sum over the reduction; added up one after the other, L terms are off by (L + 1) / 2 roundings
of their sum (variances add), and by one more for the products.  Two axes: what happens along one of them goes through
the other, where errors of single products add up and errors of the plain convolution's own inputs cancel as it does.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import ldexp, sqrt
from typing import NamedTuple

import numpy

from vdnn.kernels.numpy.geometry import Geometry
from vdnn.kernels.numpy.layout import ceil_div
from vdnn.kernels.numpy.transforms import OPERATIONS, Program, Winograd
from vdnn.kernels.numpy.winograd_plan import transform_of, weights_plan
from vdnn.layers.base import Array

TOLERANCE = 1e-4  # of the largest element of the result: what may be off where nobody asked for more
ROUNDING = 0.425  # of 2^-p: sqrt((1 - 1/4) / (6 ln 2)), mantissas being spread evenly by their logarithm
# Between the ratio of standard deviations and that of largest elements: both are the largest of n about normal numbers,
# and the one exceeds three times the other with a probability below 1e-3 for n = 16, below 1e-6 for n = 64.
LARGEST = 3.0


class Linear(NamedTuple):
    """What a program does, roundings included."""

    matrix: Array  # (outputs, inputs): what it multiplies by
    rounded: Array  # (roundings, inputs): the numbers that are rounded, of the inputs
    effects: Array  # (outputs, roundings): what each rounding adds to the outputs


def linear(program: Program, letters: str, inputs: int, outputs: int) -> Linear:
    """A program taken apart; letters: those of its arguments and of its results."""
    # an element for each input, and one for the error of each statement
    values = {f"{letters[0]}{i}": row for i, row in enumerate(numpy.eye(inputs, inputs + len(program.statements)))}
    rounded = numpy.zeros((len(program.statements), inputs))
    for number, (target, operation, first, second) in enumerate(program.statements):
        other = values[second] if isinstance(second, str) else float(second)
        value = values[first] * 1.0 if operation == "=" else OPERATIONS[operation](values[first], other)
        if not is_exact(second):
            rounded[number] = value[:inputs]
            value[inputs + number] = 1
        values[target] = value
    results = numpy.array([values[f"{letters[1]}{i}"] for i in range(outputs)])
    return Linear(results[:, :inputs], rounded, results[:, inputs:])


def is_exact(operand: object) -> bool:
    """Whether an operand is a factor that changes nothing but the exponent."""
    return isinstance(operand, Fraction) and all(
        n & (n - 1) == 0 for n in (abs(operand.numerator), operand.denominator)
    )


class Errors(NamedTuple):
    """Variances per axis, for each output: see the module's text."""

    products: Array
    factors: Array
    back: Array
    terms: int  # of the plain sum


@lru_cache
def errors(phase: str, winograd: Winograd) -> Errors:
    """What roundings do to the outputs, along one axis."""
    m, r, a = winograd.m, winograd.r, winograd.a
    source = linear(winograd.input, "dv", a, a)
    if phase == "backward_weights":
        other, back, terms = linear(winograd.gradient, "dv", m, a), linear(winograd.taps, "vg", a, r), m
    else:
        other, back, terms = linear(winograd.filter, "gv", r, a), linear(winograd.output, "vv", a, m), r
    products = (source.matrix @ source.matrix.T) * (other.matrix @ other.matrix.T)
    factors = through(source, other, back) + through(other, source, back)
    own = back.effects**2 @ variances(back.rounded, products)
    return Errors(back.matrix**2 @ products.diagonal(), factors, own, terms)


def through(factor: Linear, other: Linear, back: Linear) -> Array:
    """What the roundings of one factor's transform do to each output."""
    covariance = other.matrix @ other.matrix.T
    sizes = variances(factor.rounded, numpy.eye(factor.matrix.shape[1]))
    ways = back.matrix[:, None, :] * factor.effects.T  # (outputs, roundings, a): by way of each product
    found: Array = variances(ways, covariance) @ sizes
    return found


def variances(rows: Array, covariance: Array) -> Array:
    """Those of sums row @ x of numbers x with a covariance; rows: (..., length)."""
    found: Array = ((rows @ covariance) * rows).sum(-1)
    return found


def amplification(phase: str, winograd: Winograd) -> float:
    """By how much errors of the products exceed those of the result, as standard deviations, where it is worst."""
    found = errors(phase, winograd)
    return float(found.products.max() / found.terms)  # two axes, so the square of the root


def deviation(phase: str, winograd: Winograd, roundings: float) -> float:
    """The error over the result, as standard deviations in units of ROUNDING 2^-p, for the output where it is worst.

    roundings: those of a product of tiles, while its terms are added up.
    """
    products, factors, back, terms = errors(phase, winograd)
    rows_first = numpy.outer(factors, numpy.full_like(factors, terms)) + numpy.outer(back, products)
    columns_then = numpy.outer(products, factors) + terms * back
    found = roundings * numpy.outer(products, products) + rows_first + columns_then
    return sqrt(float(found.max())) / terms


def relative_error(phase: str, g: Geometry, m: int) -> float:
    """The largest error of F(m x m, r x r) over the largest element of the result, as estimated."""
    winograd, bits = transform_of(g, m), int(numpy.finfo(g.dtype).nmant) + 1
    terms, products = sums(phase, g, winograd)
    roundings = 1 + (terms + 1) / 2 + (products - 1) / 2
    return LARGEST * deviation(phase, winograd, roundings) * ROUNDING * ldexp(1, -bits)


def sums(phase: str, g: Geometry, winograd: Winograd) -> tuple[int, int]:
    """(terms of a product, products that are added up)."""
    if phase != "backward_weights":
        return (g.C if phase == "forward" else g.K), 1
    plan = weights_plan(winograd, g.N, g.outputs, g.K, g.C, g.dtype)
    tiles = g.N * ceil_div(g.outputs[0], winograd.m) * ceil_div(g.outputs[1], winograd.m)
    return min(plan.tiles, tiles), plan.products

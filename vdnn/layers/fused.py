"""Fused: a layer's two backward methods as one op, as the paper has them (section II-B, Fig. 2)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from vdnn.layers.base import Algorithm, Array, Layer, Shape

PAIR = ("backward_weights", "backward_data")


def is_split(layer: Layer) -> bool:
    """Whether the layer's backward is two methods."""
    return layer.method("backward") is None and all(layer.method(phase) for phase in PAIR)


class Fused:
    """`backward_weights` and then `backward_data` of a layer, with one workspace that the two use in turn.

    It needs what either needs, {x, w, dy, dx} for a convolution, all at once: this is what the split saves.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def needs(self, inputs: int) -> dict[str, bool]:
        """{argument name: required} of both together."""
        first, second = (self.layer.needs(phase, inputs) for phase in PAIR)
        return first | second

    def algorithms(self, kernels: Any, dtype: str, *x: Shape) -> tuple[Algorithm, ...]:
        """Every pair of algorithms, "a+b", least workspace first; the pair takes the larger workspace."""
        first, second = (self.layer.algorithms(kernels, phase, dtype, *x) for phase in PAIR)
        shares = [self.layer.flops(phase, *x) / self.flops(*x) for phase in PAIR]
        pairs = [
            Algorithm(
                f"{a.name}+{b.name}",
                max(a.workspace, b.workspace),
                1 / (shares[0] / a.rate + shares[1] / b.rate),
                a.seconds + b.seconds if a.seconds and b.seconds else 0.0,
            )
            for a, b in product(first, second)
        ]
        return tuple(sorted(pairs, key=lambda pair: pair.workspace))

    def flops(self, *x: Shape) -> int:
        """Of both."""
        return sum(self.layer.flops(phase, *x) for phase in PAIR)

    def backward(self, inputs: int, algorithm: str, **arguments: Array) -> None:
        """Run one after the other."""
        for phase, name in zip(PAIR, algorithm.split("+"), strict=True):
            offered: Mapping[str, Any] = {"algorithm": name, **arguments}
            method = self.layer.method(phase)
            assert method is not None
            method(**{k: v for k, v in offered.items() if k in self.layer.needs(phase, inputs)})

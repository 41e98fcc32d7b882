"""PyTorch's side of the CPU benchmarks: whole training steps, and the time of every layer in one of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from cpu_cases import LAYOUTS, MOMENTUM
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch_twin import Piece, Translated

from vdnn.network import Network

FORMATS = dict(zip(LAYOUTS, (torch.contiguous_format, torch.channels_last), strict=True))
Seconds = dict[tuple[str, str], float]  # {(layer, "forward", "backward" or "update"): seconds}


class TorchTraining:
    """A translated network in one layout, with the fused and the default SGD on the same weights.

    Its images are in that layout before a step begins.  With `recompute` only what is between parts is kept, by
    torch.utils.checkpoint: each block with what leads to it, or about sqrt(n) parts of a chain.
    """

    def __init__(
        self,
        net: Network,
        weights: Mapping[str, Any],
        batch: tuple[Any, Any],
        layout: str,
        rate: float,
        recompute: bool = False,
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"layout {layout!r} is none of {', '.join(LAYOUTS)}")
        self.model = Translated(net).to(getattr(torch, net.dtype))
        self.model.load(dict(weights))
        self.model.to(memory_format=FORMATS[layout]).train()
        images, labels = (torch.from_numpy(a) for a in batch)
        self.images = images.contiguous(memory_format=FORMATS[layout])
        self.labels = labels
        self.recompute = recompute
        self.parts = self.model.parts() if recompute else list(self.model.pieces)
        about = {"lr": rate, "momentum": MOMENTUM}
        self.optimizers = {
            "fused": torch.optim.SGD(self.model.parameters(), fused=True, **about),
            "default": torch.optim.SGD(self.model.parameters(), **about),
        }

    def forward(self) -> torch.Tensor:
        """The loss, ready for backward."""
        x = self.images
        for part in self.parts:
            if self.recompute:  # nothing in these networks is random, so there is no state to keep
                x = checkpoint(part, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = part(x)
        return functional.cross_entropy(x, self.labels)

    def step(self, sgd: str = "fused") -> float:
        """Forward, backward and update; the loss before it."""
        loss = self.forward()
        loss.backward()
        self.optimizers[sgd].step()
        self.optimizers[sgd].zero_grad(set_to_none=True)
        return float(loss.detach())

    def gradients(self) -> tuple[float, dict[str, Any]]:
        """The loss and {"conv1.w": its gradient, ...}, as arrays; changes no weight."""
        loss = self.forward()
        loss.backward()
        found = {name: p.grad.numpy().copy() for name, p in self.model.by_name().items()}
        self.model.zero_grad(set_to_none=True)
        return float(loss.detach()), found

    def layer_seconds(self, sgd: str = "fused") -> Seconds:
        """The time of every layer in one step: see `_LayerClock`."""
        with _watched(self.model) as clock:
            loss = self.forward()
            clock.loss(loss)
            loss.backward()
        began = time.perf_counter()
        self.optimizers[sgd].step()
        clock.seconds["all", "update"] = time.perf_counter() - began
        self.optimizers[sgd].zero_grad(set_to_none=True)
        return clock.seconds


class _LayerClock:
    """Times layers: forward around the call, backward around each of the layer's nodes of the autograd graph.

    On the CPU one thread runs these nodes one after the other, so that the times of different layers do not overlap.
    The nodes of a layer are those between its output and its inputs; what accumulates the gradients of its weights is
    among them, sums of gradients where a tensor has several readers are not.
    """

    def __init__(self) -> None:
        self.seconds: Seconds = {}
        self.known: set[Any] = set()  # nodes that belong to layers already
        self._began = 0.0

    def timed(self, layer: str, given: list[torch.Tensor], call: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What the call returns, its time noted."""
        self.known |= {x.grad_fn for x in given if x.grad_fn is not None}
        began = time.perf_counter()
        y = call()
        self.seconds[layer, "forward"] = time.perf_counter() - began
        self._watch(layer, y)
        return y

    def loss(self, value: torch.Tensor) -> None:
        """The nodes of the loss, which no layer called."""
        self._watch("loss", value)

    def _watch(self, layer: str, y: torch.Tensor) -> None:
        self.seconds[layer, "backward"] = 0.0
        open_nodes = [y.grad_fn]
        while open_nodes:
            node = open_nodes.pop()
            if node is None or node in self.known:
                continue
            self.known.add(node)
            node.register_prehook(self._begin)
            node.register_hook(self._end_of(layer))
            open_nodes += [following for following, _ in node.next_functions]

    def _begin(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _end_of(self, layer: str) -> Callable[..., None]:
        def end(*_: Any) -> None:
            self.seconds[layer, "backward"] += time.perf_counter() - self._began

        return end


@contextmanager
def _watched(model: Translated) -> Iterator[_LayerClock]:
    """A clock that every layer of the model runs under, for as long as the block lasts."""
    clock = _LayerClock()
    for piece in model.pieces:
        _put(piece, clock)
    try:
        yield clock
    finally:
        for piece in model.pieces:
            del piece.run


def _put(piece: Piece, clock: _LayerClock) -> None:
    plain = piece.run

    def run(name: str, kind: str, given: list[torch.Tensor]) -> torch.Tensor:
        return clock.timed(name, given, lambda: plain(name, kind, given))

    piece.run = run  # type: ignore[method-assign]

"""Optimizers: what an update op does.  Names, defaults and formulas are PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from vdnn.layers.base import Array, Shape
from vdnn.naming import among
from vdnn.schedules import Schedule, as_schedule


class Optimizer:
    """Changes a weight by its gradient, in place; `state` names the arrays that it keeps per weight."""

    state: ClassVar[tuple[str, ...]] = ()
    learning_rate: float | Schedule
    betas: tuple[float, float] = (0.0, 0.0)

    @property
    def name(self) -> str:
        """What tables and plans call it."""
        return type(self).__name__.lower()

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, 2, ..."""
        return as_schedule(self.learning_rate)(step)

    def workspace(self, kernels: Any, shape: Shape, dtype: str) -> int:
        """Bytes of scratch that the update of one weight needs."""
        raise NotImplementedError

    def update(self, kernels: Any, clock: Array, w: Array, dw: Array, workspace: Array, **state: Array) -> None:
        """Change `w` and its state in place.  All arrays have the weight's shape; the learning rate is in `clock`."""
        raise NotImplementedError


def _check(**values: tuple[float, float, float]) -> None:
    for name, (value, low, high) in values.items():
        if not low <= value < high:
            raise ValueError(f"{name}={value} is not in [{low}, {high})")


def _check_rate(rate: float | Schedule) -> None:
    if not callable(rate) and not rate >= 0:
        raise ValueError(f"learning_rate={rate} is not a number of at least 0")


@dataclass(frozen=True)
class SGD(Optimizer):
    """v = momentum * v + (1 - dampening) * (dw + weight_decay * w);  w -= learning_rate * v.

    Without momentum there is no state.  `nesterov` uses dw + momentum * v in place of v.
    """

    learning_rate: float | Schedule = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)
        _check(momentum=(self.momentum, 0, 1), dampening=(self.dampening, 0, 1))
        _check(weight_decay=(self.weight_decay, 0, float("inf")))
        if self.nesterov and (not self.momentum or self.dampening):
            raise ValueError("nesterov needs momentum and no dampening")

    @property
    def state(self) -> tuple[str, ...]:  # type: ignore[override]
        """The velocity, if there is momentum."""
        return ("velocity",) if self.momentum else ()

    @property
    def name(self) -> str:
        """Momentum or sgd."""
        return "momentum" if self.momentum else "sgd"

    def workspace(self, kernels: Any, shape: Shape, dtype: str) -> int:
        """Bytes of scratch that the update of one weight needs."""
        return int(kernels.update_workspace("sgd", shape, dtype))

    def update(
        self, kernels: Any, clock: Array, w: Array, dw: Array, workspace: Array, velocity: Array = None, **_: Array
    ) -> None:
        """Change `w` and `velocity` in place."""
        kernels.sgd(
            clock,
            w,
            dw,
            velocity,
            momentum=self.momentum,
            dampening=self.dampening,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            workspace=workspace,
        )


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015); with `decoupled` the weight decay is AdamW's (Loshchilov and Hutter, 2019).

    m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
    w -= learning_rate * (m / c1) / (sqrt(v / c2) + eps), with c = 1 - beta ** step, step counted from 1.
    """

    state: ClassVar[tuple[str, ...]] = ("m", "v")
    learning_rate: float | Schedule = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)
        _check(beta1=(self.betas[0], 0, 1), beta2=(self.betas[1], 0, 1))
        _check(eps=(self.eps, 0, float("inf")), weight_decay=(self.weight_decay, 0, float("inf")))

    def workspace(self, kernels: Any, shape: Shape, dtype: str) -> int:
        """Bytes of scratch that the update of one weight needs."""
        return int(kernels.update_workspace("adam", shape, dtype))

    def update(
        self,
        kernels: Any,
        clock: Array,
        w: Array,
        dw: Array,
        workspace: Array,
        m: Array = None,
        v: Array = None,
        **_: Array,
    ) -> None:
        """Change `w`, `m` and `v` in place."""
        kernels.adam(
            clock,
            w,
            dw,
            m,
            v,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            weight_decay=self.weight_decay,
            decoupled=self.decoupled,
            workspace=workspace,
        )


_BY_NAME: dict[str, Callable[[], Optimizer]] = {
    "sgd": lambda: SGD(0.01),
    "momentum": lambda: SGD(0.01, momentum=0.9),
    "adam": lambda: Adam(),
}
NAMES = tuple(_BY_NAME)


def get(optimizer: str | Optimizer) -> Optimizer:
    """The optimizer of that name with its default settings, or the one given.  Raises ValueError."""
    if isinstance(optimizer, Optimizer):
        return optimizer
    if optimizer not in _BY_NAME:
        raise ValueError(f"no optimizer {optimizer!r}{among(optimizer, NAMES)}")
    return _BY_NAME[optimizer]()

"""Layer: two functions whose signatures say which arrays they need.

Sizes: N batch, C input channels, H, W input rows and columns; K output channels, R, S filter rows and columns.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

from vdnn.naming import among

Array = Any  # a numpy.ndarray or a cupy.ndarray: layers are written once for both
Shape = tuple[int, ...]
INIT_KINDS = ("constant", "uniform", "normal")


class LayerError(ValueError):
    """A layer that is declared wrongly."""


class ShapeError(ValueError):
    """Shapes that a layer cannot take; the message names the layer, the shapes and what would fit."""


@dataclass(frozen=True)
class Init:
    """How a parameter or a statistic starts: `kind` is constant, uniform (+-scale) or normal (deviation scale)."""

    kind: str = "constant"
    scale: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in INIT_KINDS:
            raise ValueError(f"no init is of kind {self.kind!r}{among(self.kind, INIT_KINDS)}")


@dataclass(frozen=True)
class Spec:
    """An array that a layer owns or asks for.  `dtype` None means the network's.

    follows_storage   its elements are in the order in which y is stored, so that another storage has other contents
    """

    shape: Shape
    dtype: str | None = None
    init: Init = Init()
    follows_storage: bool = False


@dataclass(frozen=True)
class Shapes:
    """All arrays of one layer, for given input shapes.

    y           the output, (N, ...); a loss has y = (1,)
    parameters  trained: each has a gradient d<name>
    saved       written by forward for backward (pooling indices, batch statistics)
    statistics  kept from step to step without a gradient (running averages)
    labels      what a loss compares with; None for any other layer
    """

    y: Shape
    parameters: Mapping[str, Spec] = field(default_factory=dict)
    saved: Mapping[str, Spec] = field(default_factory=dict)
    statistics: Mapping[str, Spec] = field(default_factory=dict)
    labels: Spec | None = None


@dataclass(frozen=True)
class Algorithm:
    """One way to compute an op: its exact workspace in bytes and its rate relative to a plain GEMM (1.0).

    The rate only ranks algorithms until times are measured; it is direct arithmetic done per second.

    seconds  measured time of one call on the device that declared it; 0 if it was not measured
    """

    name: str
    workspace: int
    rate: float = 1.0
    seconds: float = 0.0


def _parameters(method: Callable[..., None]) -> tuple[tuple[str, bool, bool], ...]:
    """(name, whether it has no default, whether it is **name) of each parameter of a bound method."""
    function = getattr(method, "__func__", None)
    return _signature(method) if function is None else _signature(function)[1:]  # without self


@cache
def _signature(function: Callable[..., None]) -> tuple[tuple[str, bool, bool], ...]:
    """Reading a signature takes 70 us, and a deep network asks thousands of times for the same few."""
    return tuple(
        (name, p.default is inspect.Parameter.empty, p.kind is inspect.Parameter.VAR_KEYWORD)
        for name, p in inspect.signature(function).parameters.items()
    )


DEFAULT = (Algorithm("default", 0),)
SERVICES = frozenset({"xp", "kernels", "algorithm", "workspace", "clock", "samples", "rectify"})
FORWARD = ("forward", "evaluate")
BACKWARD = ("backward", "backward_weights", "backward_data")
PHASES = (*FORWARD, "update_statistics", *BACKWARD)


class Layer:
    """A differentiable function of one or more inputs, with one output `y`.

    A subclass writes `forward` and either `backward` or the pair `backward_weights`, `backward_data`.  Each method
    receives exactly the arrays that its signature names and writes its results into them; a layer never allocates.

    x, y               input and output; with several inputs x0, x1, ...
    parameters, saved  under the names that `shapes` gives them
    labels             a loss's targets
    dy, dx             gradients of y and x (dx0, dx1, ...); dx is None where nobody wants it
    d<parameter>       gradients of parameters
    xp                 numpy or cupy
    kernels            the kernel set
    algorithm          name chosen by the plan
    workspace          its scratch: uint8 array, None if 0 bytes
    clock              what changes from step to step (see vdnn.clock)
    samples            how many samples the step has in all, of which x may be a part (see vdnn.micro_batches)
    rectify            of forward and evaluate, by default False: write max(y, 0), never -0.0, in place of y

    On a GPU a step is recorded as a graph and replayed, so that a method may be called once for many steps: what
    changes from step to step is in `clock`.

    A name with the default None is passed only if `shapes` declares it (`b=None`).  Optional methods: `evaluate`
    (forward-only plans; default `forward`) and `update_statistics` (an op of its own, so that a rerun of forward in
    the middle of backward changes nothing).  `inplace` declares legal aliases, such as {"y": "x", "dx": "dy"};
    `passes_gradient` says that every dx equals dy, so that no backward op is needed at all (Add); `couples_samples`
    that in training y of one sample depends on which others are with it (batch norm), so that parts of a batch do not
    give what the batch would.  A loss, which divides by the number of samples, takes `samples` for it in backward.

    With `rectify` a method does the work of a ReLU behind it in its own pass over memory, bit for bit: `takes_rectify`
    says that it can, `rectifies` that a layer's work is of this kind.
    """

    name: str = ""
    kind: ClassVar[str] = "layer"  # layers without a name are numbered by kind: conv1, conv2, relu1
    inplace: ClassVar[Mapping[str, str]] = {}
    passes_gradient: ClassVar[bool] = False
    couples_samples: ClassVar[bool] = False
    is_loss: ClassVar[bool] = False
    inputs: ClassVar[int | None] = 1  # None: two or more

    def __init_subclass__(cls) -> None:
        if "kind" not in cls.__dict__:
            cls.kind = cls.__name__.lower().removesuffix("2d")

    def shapes(self, *x: Shape) -> Shapes:
        """Shapes of all arrays for these input shapes.  Raises ShapeError.  Default: y like the first x."""
        return Shapes(y=x[0])

    def algorithms(self, kernels: Any, phase: str, dtype: str, *x: Shape) -> tuple[Algorithm, ...]:
        """The algorithms that `kernels` has for this phase, least workspace first; at least one."""
        return DEFAULT

    def flops(self, phase: str, *x: Shape) -> int:
        """Floating-point operations of this phase; multiply and add count as two.  Default: one per element of y."""
        size = 1
        for n in self.shapes(*x).y:
            size *= n
        return size

    def views(self, kernels: Any, inputs: int = 1) -> Mapping[str, str]:
        """{result: argument}: results that need no op, since these kernels can take the argument's bytes for them.

        Such as y of Flatten where storage is in logical order.  Default: none.
        """
        return {}

    def takes_rectify(self, kernels: Any, phase: str) -> bool:
        """Whether this phase's method, forward or evaluate, takes `rectify` with these kernels.  Default: no."""
        return False

    def rectifies(self, phase: str) -> bool:
        """Whether all that this phase does is y = max(x, 0), never -0.0, NaN where x is.  Default: no."""
        return False

    def method(self, phase: str) -> Callable[..., None] | None:
        """The method that computes this phase, or None."""
        if phase == "evaluate" and not hasattr(self, "evaluate"):
            phase = "forward"
        return getattr(self, phase, None)

    def needs(self, phase: str, inputs: int = 1) -> dict[str, bool]:
        """{argument name: required} of a phase's method, in order; empty if the layer has no such phase.

        `**x` in a signature stands for x0, x1, ... and `**dx` for dx0, dx1, ...
        """
        method = self.method(phase)
        if method is None:
            return {}
        needs: dict[str, bool] = {}
        for name, required, stands_for_all in _parameters(method):
            needs |= {f"{name}{i}": True for i in range(inputs)} if stands_for_all else {name: required}
        return needs

    def check(self, shapes: Shapes, inputs: int) -> None:
        """Raise LayerError unless every signature uses only the closed list of names."""
        own = {*shapes.parameters, *shapes.saved, *shapes.statistics}
        clash = sorted(n for n in own if n in SERVICES or re.fullmatch(r"d?[xy]\d*|labels", n))
        if clash:
            raise LayerError(f"{self}: {', '.join(clash)} may not be the name of a parameter, saved array or statistic")
        twice = len(shapes.parameters) + len(shapes.saved) + len(shapes.statistics) - len(own)
        if twice or own & {f"d{n}" for n in shapes.parameters}:
            raise LayerError(
                f"{self}: parameters, saved arrays, statistics and gradients d<parameter> need names of their own; "
                f"got {', '.join((*shapes.parameters, *shapes.saved, *shapes.statistics))}"
            )
        x = {"x"} if inputs == 1 and self.inputs == 1 else {f"x{i}" for i in range(inputs)}
        known = SERVICES | own | x | {"y"} | ({"labels"} if shapes.labels else set())
        gradients = (set() if self.is_loss else {"dy"}) | {f"d{n}" for n in (*x, *shapes.parameters)}
        if not self.needs("forward", inputs).get("y"):
            raise LayerError(f"{self} has no forward method that names y")
        if self.passes_gradient and shapes.parameters:
            raise LayerError(f"{self} passes its gradient on, so it cannot have parameters")
        for phase in PHASES:
            allowed = known | (gradients if phase in BACKWARD else set())
            for name, required in self.needs(phase, inputs).items():
                if name not in allowed and required:
                    raise LayerError(
                        f"{self}.{phase} names {name!r}, which is none of {', '.join(sorted(allowed))}; "
                        f"give it the default None if shapes() declares it only sometimes"
                    )

    def __repr__(self) -> str:
        """The layer as its constructor would be written, `name` left out."""
        values = {k: v for k, v in self.config().items() if k != "name"}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in values.items())})"

    def config(self) -> dict[str, Any]:
        """Constructor arguments, so that type(self)(**config) is an equal layer.

        The default reads the attributes that bear the constructor's argument names.
        """
        if type(self).__init__ is object.__init__:
            return {}
        parameters = list(inspect.signature(type(self).__init__).parameters.values())[1:]
        names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return {n: getattr(self, n) for n in names if hasattr(self, n)}

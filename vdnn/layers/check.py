"""check_layer: the test that every layer must pass, one's own included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vdnn import clock as clocks
from vdnn.layers.base import BACKWARD, Array, Layer, LayerError, Shape, ShapeError, Shapes

GUARD = 64  # bytes on either side of every array, which nobody may write
PATTERN = 0xA5
DIRECTIONS = 3
ROUGH = 1e-4  # how far float32 may be from float64, relative to the largest element
SAME = 1e-9  # how far two layouts or algorithms may be from each other in float64, likewise


def check_layer(
    layer: Layer,
    *shapes: Shape,
    seed: int = 0,
    tolerance: float = 1e-6,
    labels: Array | None = None,
    kernels: Any = None,
) -> None:
    """Raise LayerError, with numbers, unless `layer` does what plans rely on, for inputs of these shapes.

    * gradients agree with differences along random directions in float64, to `tolerance`, for every algorithm
    * forward twice gives the same bits (so it may be run again), and no call writes what it only reads
    * scratch and outputs may hold anything before (NaN), and no call writes outside its arrays
    * contiguous and channels-last arrays agree, where the kernels take both; declared aliases change no bit; a dx of
      None is left out
    * float32 is near float64; `evaluate` and `update_statistics` run

    labels    what a loss compares with; default random.  kernels: default vdnn's NumPy kernels.

    Inputs are well apart from each other and from 0, where max pooling and ReLU have no derivative.
    """
    if kernels is None:
        from vdnn.kernels.numpy import NumpyKernels  # layers know of no kernels otherwise

        kernels = NumpyKernels()
    if not shapes:
        raise TypeError("check_layer needs the shape of at least one input")
    for shape in shapes:
        if min(shape, default=0) < 1:
            raise ShapeError(f"check_layer takes shapes of positive integers, such as (2, 3, 4, 4); got {shape}")
    trial = _Trial(layer, shapes, kernels, seed, labels)
    first = trial.run("float64")
    _check_values(layer, first)
    _check_gradients(trial, first, tolerance)
    _compare(layer, "a second run", first, trial.run("float64", fill=0x3C), 0)
    for other in set(kernels.storages) - {kernels.storage}:
        found = trial.run("float64", storage=other)
        found = {n: a for n, a in found.items() if n not in trial.spec.saved or not trial.spec.saved[n].follows_storage}
        _compare(layer, f"arrays stored {other}", first, found, SAME)
    for out, into in layer.inplace.items():
        _compare(layer, f"{out} in the place of {into}", first, trial.run("float64", alias={out: into}), 0)
    for name in trial.optional_gradients():
        _compare(layer, f"{name}=None", first, trial.run("float64", without=name), 0)
    for phase, names in trial.algorithm_names("float64").items():
        for name in names[1:]:
            other = trial.run("float64", algorithms={phase: name})
            _compare(layer, f"{phase} by algorithm {name}", first, other, SAME)
    for phase, names in trial.algorithm_names("float32").items():
        for name in names:
            near = trial.run("float32", algorithms={phase: name})
            _compare(layer, f"float32 ({phase} by {name})", first, near, ROUGH)


class _Memory:
    """Arrays between guards, filled with a byte that makes floats NaN (0xFF) or odd (any other)."""

    def __init__(self, fill: int) -> None:
        self.fill = fill
        self.blocks: list[tuple[str, Array]] = []

    def array(self, name: str, shape: Shape, dtype: str, storage: str = "nchw") -> Array:
        """A new array of that logical shape; "nhwc" stores axis 1 of four innermost."""
        if len(shape) == 4 and storage == "nhwc":
            N, C, H, W = shape
            stored: Array = self.array(name, (N, H, W, C), dtype).transpose(0, 3, 1, 2)
            return stored
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        block = np.full(nbytes + 3 * GUARD, PATTERN, np.uint8)
        start = GUARD + -(block.ctypes.data) % GUARD
        block[start : start + nbytes] = self.fill
        self.blocks += [(name, block[:start]), (name, block[start + nbytes :])]
        return block[start : start + nbytes].view(dtype).reshape(shape)

    def check(self, layer: Layer, phase: str) -> None:
        """Raise LayerError if a guard has changed."""
        for name, guard in self.blocks:
            if (guard != PATTERN).any():
                raise LayerError(
                    f"{layer}.{phase} writes outside {name}: {int((guard != PATTERN).sum())} bytes beside it"
                )


@dataclass
class _Trial:
    """One layer, its input shapes and their values; `run` calls all its methods once."""

    layer: Layer
    shapes: tuple[Shape, ...]
    kernels: Any
    seed: int
    labels: Array | None
    spec: Shapes = field(init=False)
    values: dict[str, Array] = field(init=False)  # float64 values of all that is given: x, parameters, dy, ...
    step: float = field(init=False)  # by which an input may move without meeting a kink

    def __post_init__(self) -> None:
        layer = self.layer
        self.spec = layer.shapes(*self.shapes)
        layer.check(self.spec, len(self.shapes))
        rng = np.random.default_rng(self.seed)
        total = sum(int(np.prod(s)) for s in self.shapes)
        self.step = min(1e-3, 1 / (2 * total))
        apart = (rng.permutation(total) - total // 2 + 0.6) * (4 / total)  # at least 1.6 / total from 0
        self.values, start = {}, 0
        for name, shape in zip(self.inputs, self.shapes, strict=True):
            size = int(np.prod(shape))
            self.values[name] = apart[start : start + size].reshape(shape)
            start += size
        for name, spec in self.spec.parameters.items():
            self.values[name] = rng.uniform(0.2, 1, spec.shape) * rng.choice([-1, 1], spec.shape)
        for name, spec in self.spec.statistics.items():
            self.values[name] = rng.uniform(0.5, 2, spec.shape)
        self.values["dy"] = rng.standard_normal(self.spec.y)
        if self.spec.labels is not None:
            self.values["labels"] = self._labels(rng)
        self.values = {k: v.astype(np.float32).astype(v.dtype) for k, v in self.values.items()}
        clock = np.zeros(clocks.SIZE)
        clock[clocks.STEP], clock[clocks.SEED], clock[clocks.LEARNING_RATE] = 3, self.seed, 0.1
        clock[clocks.BIAS_1 : clocks.BIAS_2 + 1] = 0.5
        self.values["clock"] = clock

    def _labels(self, rng: np.random.Generator) -> Array:
        assert self.spec.labels is not None
        shape, dtype = self.spec.labels.shape, self.spec.labels.dtype
        if self.labels is not None:
            return np.asarray(self.labels).reshape(shape)
        return rng.integers(0, self.shapes[0][1], shape) if dtype else rng.standard_normal(shape)

    @property
    def inputs(self) -> list[str]:
        """x, or x0, x1, ..."""
        return ["x"] if self.layer.inputs == 1 else [f"x{i}" for i in range(len(self.shapes))]

    @property
    def phases(self) -> list[str]:
        """The phases that the layer has, in order."""
        own = ["evaluate"] if hasattr(self.layer, "evaluate") else []
        last = [] if self.layer.passes_gradient else [p for p in BACKWARD if self.layer.method(p)]
        return ["forward", *own, *(["update_statistics"] if self.layer.method("update_statistics") else []), *last]

    def optional_gradients(self) -> list[str]:
        """Gradients that may be unwanted in an op that has others to write."""
        needs = self.layer.needs("backward", len(self.shapes)) if "backward" in self.phases else {}
        gradients = [f"d{n}" for n in (*self.inputs, *self.spec.parameters) if f"d{n}" in needs]
        return [n for n in gradients if n[1:] in self.inputs] if len(gradients) > 1 else []

    def algorithm_names(self, dtype: str) -> dict[str, list[str]]:
        """{phase: the names of its algorithms}."""
        return {p: [a.name for a in self.layer.algorithms(self.kernels, p, dtype, *self.shapes)] for p in self.phases}

    def written(self, phase: str) -> list[str]:
        """What a phase may write."""
        if phase in BACKWARD:
            return [f"d{n}" for n in (*self.inputs, *self.spec.parameters)]
        return list(self.spec.statistics) if phase == "update_statistics" else ["y", *self.spec.saved]

    def run(
        self,
        dtype: str,
        *,
        storage: str = "",
        fill: int = 0xFF,
        alias: Mapping[str, str] | None = None,
        without: str = "",
        algorithms: Mapping[str, str] | None = None,
        moved: Mapping[str, Array] | None = None,
        phases: list[str] | None = None,
    ) -> dict[str, Array]:
        """Call the phases with fresh arrays; gives {array written: its values}, evaluate's output as `evaluate.y`."""
        storage = storage or self.kernels.storage
        memory, arrays, results = _Memory(fill), dict[str, Array | None](), dict[str, Array]()
        given = {**self.values, **(moved or {})}
        for name, value in given.items():
            kind = "float64" if name == "clock" else dtype if value.dtype.kind == "f" else value.dtype.name
            array = memory.array(name, value.shape, kind, storage)
            array[...] = value
            arrays[name] = array
        shapes = {"y": self.spec.y, **{f"d{n}": given[n].shape for n in (*self.inputs, *self.spec.parameters)}}
        kinds = {n: s.dtype or dtype for n, s in self.spec.saved.items()}
        shapes |= {n: s.shape for n, s in self.spec.saved.items()}
        for name, shape in shapes.items():
            arrays[name] = memory.array(name, shape, kinds.get(name, dtype), storage)
        if without:
            arrays[without] = None
        for phase in phases or self.phases:
            offered = dict(arrays)
            if phase == "evaluate":
                offered["y"] = memory.array("y", self.spec.y, dtype, storage)
            for out, into in (alias or {}).items():
                needs = self.layer.needs(phase, len(self.shapes))
                if out in needs and into in needs and offered[into] is not None and offered[out] is not None:
                    offered[into] = _copy(memory, into, offered[into], storage)
                    offered[out] = offered[into]
            chosen = (algorithms or {}).get(phase)
            self._call(phase, memory, offered, dtype, chosen, set((alias or {}).values()))
            for name in self.written(phase):
                array = offered.get(name)
                if array is not None and name in self.layer.needs(phase, len(self.shapes)):
                    key = f"evaluate.{name}" if phase == "evaluate" else name
                    results[key] = array.copy()
                    if phase != "evaluate":
                        arrays[name] = array
        return results

    def _call(
        self,
        phase: str,
        memory: _Memory,
        offered: dict[str, Array | None],
        dtype: str,
        chosen: str | None,
        overwritten: set[str],
    ) -> None:
        declared = self.layer.algorithms(self.kernels, phase, dtype, *self.shapes)
        algorithm = next((a for a in declared if chosen in (None, a.name)), None)
        if algorithm is None:
            return
        size = algorithm.workspace
        services = {
            "xp": self.kernels.xp,
            "kernels": self.kernels,
            "algorithm": algorithm.name,
            "workspace": memory.array("workspace", (size,), "uint8") if size else None,
            "samples": self.shapes[0][0],
        }
        needs = self.layer.needs(phase, len(self.shapes))
        arguments = {n: services.get(n, offered.get(n)) for n in needs if n in services or n in offered}
        writes = set(self.written(phase)) | overwritten
        before = {n: a.copy() for n, a in arguments.items() if n in offered and a is not None and n not in writes}
        method: Callable[..., None] | None = self.layer.method(phase)
        assert method is not None
        self.kernels.call(method, arguments)
        memory.check(self.layer, phase)
        for name, array in before.items():
            after: Array = arguments[name]
            if after.tobytes() != array.tobytes():
                count = int((after != array).sum())
                raise LayerError(
                    f"{self.layer}.{phase} writes {name}, which it may only read: {count} elements changed"
                )


def _copy(memory: _Memory, name: str, array: Array, storage: str) -> Array:
    copy = memory.array(name, array.shape, array.dtype.name, storage)
    copy[...] = array
    return copy


def _check_values(layer: Layer, results: Mapping[str, Array]) -> None:
    """Everything written is finite, and not all zero: a test of zeros would test nothing."""
    for name, array in results.items():
        if not np.isfinite(array).all():
            raise LayerError(
                f"{layer}: {name} has {int((~np.isfinite(array)).sum())} of {array.size} elements not finite"
            )
    if not results["y"].any():
        raise LayerError(f"{layer}: y is all zero, so that nothing can be tested; try other shapes or arguments")


def _check_gradients(trial: _Trial, results: Mapping[str, Array], tolerance: float) -> None:
    """Every gradient agrees with central differences along random directions, extrapolated from two steps."""
    layer, rng = trial.layer, np.random.default_rng(trial.seed + 1)
    dy = np.ones(1) if layer.is_loss else trial.values["dy"]
    for name in (*trial.inputs, *trial.spec.parameters):
        gradient = dy if layer.passes_gradient else results.get(f"d{name}")
        if gradient is None:
            raise LayerError(f"{layer}: no backward method writes d{name}")
        for _ in range(DIRECTIONS):
            direction = rng.uniform(-1, 1, gradient.shape)

            def difference(h: float, name: str = name, direction: Array = direction) -> float:
                value = trial.values[name]
                above, below = (
                    trial.run("float64", moved={name: value + s * direction}, phases=["forward"])["y"] for s in (h, -h)
                )
                return float(np.sum(dy * (above - below))) / (2 * h)

            h = trial.step
            expected = (4 * difference(h / 2) - difference(h)) / 3
            found = float(np.sum(gradient * direction))
            scale = max(abs(expected), abs(found), float(np.linalg.norm(gradient)) / 2)
            noise = 16 * np.finfo(np.float64).eps * float(np.linalg.norm(results["y"] * dy)) / h
            if not abs(found - expected) <= tolerance * scale + noise:
                raise LayerError(
                    f"{layer}: d{name} along a random direction is {found:.10g}, but differences of y give "
                    f"{expected:.10g} (relative error {abs(found - expected) / max(scale, 1e-300):.2g}, "
                    f"tolerance {tolerance:.2g})"
                )


def _compare(layer: Layer, what: str, first: Mapping[str, Array], other: Mapping[str, Array], tolerance: float) -> None:
    """Raise LayerError unless `other` is `first`, to the bit for tolerance 0, else relative to the largest element."""
    for name, array in other.items():
        if tolerance == 0:
            differing = int((array != first[name]).sum() or array.tobytes() != first[name].tobytes())
            if differing:
                raise LayerError(f"{layer}: with {what}, {differing} of {array.size} elements of {name} differ")
            continue
        error = float(np.max(np.abs(array.astype(np.float64) - first[name]), initial=0))
        bound = tolerance * max(float(np.max(np.abs(first[name].astype(np.float64)), initial=0)), 1e-3)
        if not error <= bound:
            raise LayerError(f"{layer}: with {what}, {name} differs by {error:.3g}; {bound:.3g} is allowed")

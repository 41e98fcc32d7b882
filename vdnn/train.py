"""Trainer: a network, its plans and a device; every step runs a plan that was verified before."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vdnn import clock as clocks
from vdnn import optimizers
from vdnn.arrays import Arrays, initial
from vdnn.data.batches import Batches, Recipe, Source, other_recipe, plain_recipe, sizes_in
from vdnn.inputs import InputError, check_images, check_labels, check_set
from vdnn.layers.base import Array, LayerError
from vdnn.losses import Loss
from vdnn.memory.cost import is_measured
from vdnn.memory.device import Device
from vdnn.memory.execute import Pending, begin, interrupt_held
from vdnn.memory.host import HostDevice
from vdnn.memory.plan import Plan
from vdnn.memory.trace import Trace
from vdnn.micro_batches import in_round, parts_in, summed
from vdnn.network import Network
from vdnn.plans import Plans
from vdnn.resident import Resident, resident_bytes
from vdnn.units import parse_bytes

if TYPE_CHECKING:
    from vdnn.exchange.loading import LoadedWeights, WeightSource


class TrainingError(RuntimeError):
    """Training that cannot go on."""


class Evaluation(NamedTuple):
    """Mean loss, and the share of samples whose highest score is the label's (nan where labels are no classes)."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Epoch:
    """What `fit` did in one epoch."""

    epoch: int
    loss: float
    learning_rate: float
    test: Evaluation | None


@dataclass
class _Running:
    """The step that runs: its plan, its loss, and how many batches were done before it."""

    pending: Pending
    plan: Plan
    loss: Loss
    position: int


def _refuse(options: dict[str, Any], why: str) -> None:
    """Raise ValueError if one of these was given."""
    given = [f"{name}={value!r}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)}: {', '.join(options)} {why}")


def _settling(trainer: weakref.ref[Trainer]) -> Callable[[], None]:
    """Settle the trainer, if there still is one: a device does not keep it."""

    def settle() -> None:
        there = trainer()
        if there is not None:
            there.settle()

    return settle


class Trainer:
    """Trains `net` within `budget` bytes of device memory.

    net         its batch is the largest that `step` takes
    policy      a policy's name, a function, Decisions, or {tensor: Fate}
    budget      bytes, "2GiB", or "80%" of what is free on the device; None: all of that.  A hard cap on the device slab
    device      "host", "cuda", or a Device made for `net`
    optimizer   an Optimizer; default SGD(0.01, momentum=0.9)
    seed        of the weights, the order of the data and dropout
    algorithms  "performance", "memory", or {op: algorithm} (another plan's, to get equal bits)
    undo        copy what an update overwrites first, so that a failure in the middle of a step can be undone
    rewrites    of the tape, such as "all" or "standard" (vdnn.rewrites); None: the policy's choice.  They change no bit
    deterministic  equal bits from run to run; the host's kernels always give them, so False is refused there.  With
                "cuda" False also admits algorithms that add up in any order
    micro_batches  equal parts of the batch that forward and backward run on one after the other, with one update after
                all: less memory, and the same results but for rounding.  A smaller batch comes in parts of the same
                size, and one with the rest.  None: the policy's choice, mostly 1
    allow_coupled  parts even if a layer takes statistics over the samples that are together (batch norm), so that
                results differ: each part has its own, and running averages move once for each
    host_budget  bytes of host memory for what is offloaded, or "2GiB"; what is beyond goes to disk (vdnn.memory.tiers).
                0: as few as there can be; None: any number
    threads, exact, link_bandwidth, spill   of the host, see HostDevice; spill is the folder of what goes to disk
    math, storage   of a GPU, see CudaDevice

    `resident` says what the whole process was planned to hold and, so far, held; None where the system does not say.

    Raises BudgetError, with what would fit, if no plan of the policy does; HostBudgetError if inputs and results are
    larger than the host budget; DecisionError for a wrong policy; SpillError if there is no room on the disk;
    MicroBatchError or LayerError if the batch cannot come in so many parts.
    """

    def __init__(
        self,
        net: Network,
        policy: Any = "vdnn_dyn",
        budget: int | str | None = None,
        device: str | Device = "host",
        optimizer: optimizers.Optimizer | str | None = None,
        seed: int = 0,
        *,
        algorithms: Any = "performance",
        threads: int | None = None,
        exact: bool = False,
        undo: bool = True,
        rewrites: str | Iterable[str] | None = None,
        micro_batches: int | None = None,
        allow_coupled: bool = False,
        host_budget: int | str | None = None,
        deterministic: bool = True,
        link_bandwidth: float | None = None,
        spill: str | os.PathLike[str] | None = None,
        math: str | None = None,
        storage: str | None = None,
    ) -> None:
        if not 0 <= seed < 2**53:
            raise ValueError(f"seed={seed} is not in [0, 2**53)")
        self.net, self.policy, self.seed, self.undo = net, policy, seed, undo
        self.allow_coupled = allow_coupled
        self.optimizer = optimizers.get(optimizer or "momentum")
        self.host_budget = None if host_budget is None else parse_bytes(host_budget, least=0)
        on_host = {"threads": threads, "exact": exact or None, "link_bandwidth": link_bandwidth, "spill": spill}
        on_gpu = {"math": math, "storage": storage, "deterministic": None if deterministic else False}
        self.device = self._device(device, on_host, on_gpu)
        self.device.settle = _settling(weakref.ref(self))
        if net.labels is None:
            raise LayerError(f"{net.name} has no loss layer; add SoftmaxCrossEntropy() or MeanSquaredError() last")
        self._labels = net.labels
        self.steps_done = 0
        self.epoch = 0  # epochs completed
        self.position = 0  # batches done of the next one
        self.recipe: Recipe = None  # of the batches that it was trained on last
        self.trace: Trace | None = None
        self.observers: list[Callable[[Trace, float], None]] = []  # each is called with a step's trace and loss
        self._busy = threading.RLock()
        self._running: _Running | None = None
        self._rescued = False
        free = self.device.free_bytes()
        self.budget_bytes = free if budget is None else parse_bytes(budget, free)
        self.device.limit(self.budget_bytes)
        parts = rewrites, micro_batches, allow_coupled, self.host_budget
        self.plans = Plans(net, policy, self.budget_bytes, algorithms, self.device, self.optimizer, undo, *parts)
        self.plan = self.plans.main
        self._given = isinstance(algorithms, Mapping)
        self.micro_batches = self.plans.micro_batches
        self._before = resident_bytes()
        self.device.reserve(self.plans.arena_bytes, self.plans.host_bytes, self.plans.disk_bytes)
        self._initialise()

    # ---- plans

    def _device(self, device: str | Device, on_host: dict[str, Any], on_gpu: dict[str, Any]) -> Device:
        """The device, made with the options of its kind that are not None; others are refused."""
        if isinstance(device, Device):
            _refuse({**on_host, **on_gpu}, "belong to the device that was given")
            if device.network is not self.net:
                raise ValueError(f"the device was made for another network, {device.network!r}")
            if device.held:
                raise ValueError("the device holds the weights of another trainer; make one for each")
            device.optimizer = self.optimizer
            return device
        if device == "cuda":
            _refuse(on_host, "are for the host; a GPU has its own")
            from vdnn.memory.cuda import CudaDevice

            return CudaDevice(self.net, self.optimizer, **{k: v for k, v in on_gpu.items() if v is not None})
        if device != "host":
            raise ValueError(f"device {device!r} is not 'host', 'cuda' or a Device")
        _refuse(on_gpu, "are for a GPU; the host has no other kernels than float32's, deterministic ones")
        return HostDevice(self.net, self.optimizer, **{k: v for k, v in on_host.items() if v is not None})

    def plan_for(self, batch: int, purpose: str = "step") -> Plan:
        """The plan for a batch of 1 to N samples.  Raises InputError for another size, BudgetError if none fits."""
        if self._running is not None and self._running.plan is not self.plans.made.get((batch, purpose)):
            self.settle()  # before a plan is made, too: to measure algorithms takes a device that is idle
        plan = self.plans.get(batch, purpose)
        # fewer samples may need a larger workspace
        self.device.grow(plan.arena_bytes, self.device.host_bytes_of(plan), plan.disk_bytes)
        return plan

    @property
    def measured_ops(self) -> int:
        """How many ops of the plan have times that were measured on this device: the rest is by published rates."""
        tape, cost, chosen = self.plan.tape, self.device.cost, self.plan.decisions.algorithms
        return sum(is_measured(cost, tape, op, chosen[op.name]) for op in tape.ops)

    @property
    def algorithms_by(self) -> str:
        """By what algorithms were chosen: "measured" times, of all or some ops; "published" rates; or "given"."""
        return "given" if self._given else "measured" if self.measured_ops else "published"

    # ---- weights

    def _initialise(self) -> None:
        for name, (tensor, spec) in {**self.net.parameters, **self.net.statistics}.items():
            self.device.write(self.plan, name, initial(tensor, spec, self.seed))
        for name in self.plan.tape.resident:
            if name not in self.device.held:
                self.device.write(self.plan, name, np.zeros(self.plan.tape.tensors[name].shape, np.float32))

    @property
    def weights(self) -> Arrays:
        """{"conv1.w": (K, C, R, S), ...}: reading gives a read-only copy, assigning replaces the weight."""
        return Arrays(self, [t for t, _ in self.net.parameters.values()])

    @property
    def statistics(self) -> Arrays:
        """{"bn1.mean": (C,), ...}: running statistics, read and replaced like weights."""
        return Arrays(self, [t for t, _ in self.net.statistics.values()])

    @property
    def state(self) -> Arrays:
        """{"conv1.w.velocity": ...}: the optimizer's state, read and replaced like weights."""
        known = self.net.parameters.keys() | self.net.statistics.keys()
        return Arrays(self, [self.plan.tape.tensors[n] for n in self.plan.tape.resident if n not in known])

    # ---- steps

    def step(self, images: Array, labels: Array) -> float | Loss:
        """One forward, backward and update on 1 to N samples; returns the loss before the update, which is a number.

        images: (n, C, H, W), finite; labels: as the loss takes them, (n,) integers for SoftmaxCrossEntropy.
        Raises InputError and changes nothing if they are not; TrainingError if the loss is not finite.  After any
        failure the weights are as before the step.

        On a GPU the step may still run when this returns.  The loss is waited for when it is looked at, and that is
        when a failure shows; at the latest in the next step, before it begins.
        """
        with interrupt_held(), self._alone():
            plan = self._feed(images, labels, "step")
            self.settle()
            loss = Loss(self.settle)
            with self._rescuing(plan):
                pending = begin(plan, self.device, self.device.timed)
            self._running = _Running(pending, plan, loss, self.position)
            self.steps_done += 1
            if not self.device.asynchronous:
                self.settle()
        return loss if self.device.asynchronous else float(loss)

    def settle(self) -> None:
        """Wait for the step that runs, if any, and raise what failed in it."""
        with interrupt_held(), self._alone():
            if self._running is None:
                return
            running, self._running = self._running, None
            done = False
            try:
                with self._rescuing(running.plan):
                    self.trace = running.pending.finish()
                value = self._loss_of(running.plan)
                if not math.isfinite(value):
                    raise TrainingError(
                        f"the loss is {value} at step {self.steps_done} (learning rate "
                        f"{self.optimizer.rate(self.steps_done - 1):g}); {self.device.take_back(running.plan)}; "
                        f"lower the learning rate"
                    )
                running.loss.set(value)
                done = True
            finally:
                if not done:
                    running.loss.fail()
                    self.steps_done -= 1
                    self.position = running.position
            if self.trace is not None:
                for observer in tuple(self.observers):
                    observer(self.trace, value)

    @contextmanager
    def _rescuing(self, plan: Plan) -> Iterator[None]:
        """If the device is lost in the block, save what can be saved, and say where."""
        try:
            yield
        except Exception as error:
            if self.device.lost and not self._rescued:
                from vdnn.checkpoint import rescue

                self._rescued = True
                raise TrainingError(f"{error}; {rescue(self, plan)}") from error
            raise

    def gradients(self, images: Array, labels: Array) -> tuple[float, dict[str, Array]]:
        """The loss and {"conv1.w": its gradient, ...} of one forward and backward; changes nothing."""
        with self._alone():
            plan = self._feed(images, labels, "gradients")
            loss = self._run(plan)
            layers = {n: n.rsplit(".", 1) for n in self.net.parameters}
            names = {n: summed(f"{layer}.d{own}", plan.tape.micro_batches) for n, (layer, own) in layers.items()}
            return loss, {n: self.device.read(plan, gradient) for n, gradient in names.items()}

    def evaluate(self, images: Array | Source, labels: Array | None = None) -> Evaluation:
        """Mean loss and accuracy over any number of samples, by forward-only plans; changes nothing.

        images   with their labels; or alone a Source, such as a Loader, of which it is epoch 0
        """
        source = self._source(images, labels, self.plans.largest("evaluate"), shuffle=False)
        losses, right, count = 0.0, 0, 0
        with self._alone():
            for batch, own in source.epoch(0):
                for first, plan in self._parts(batch, own):
                    losses += self._run(plan) * plan.tape.batch
                    scores = self.device.read(plan, self.net.scores.name)
                    part = own[first : first + plan.tape.batch]
                    right += int((scores.argmax(axis=1) == part).sum()) if part.ndim == 1 and scores.ndim == 2 else 0
                count += len(own)
        return Evaluation(losses / count, right / count if source.labels.ndim == 1 else float("nan"))

    def predict(self, images: Array) -> Array:
        """The scores, (n, classes), of any number of images; changes nothing."""
        out = []
        with self._alone():
            for _, plan in self._parts(images, None):
                self._run(plan)
                out.append(self.device.read(plan, self.net.scores.name))
        return np.concatenate(out)

    def fit(
        self,
        images: Array | Source,
        labels: Array | None = None,
        epochs: int | None = None,
        *,
        test: tuple[Array, Array] | Source | None = None,
        shift: int = 0,
        save: str | None = None,
        progress: Callable[[Trainer, float | Loss], None] | None = None,
    ) -> list[Epoch]:
        """Train until `epochs` epochs are done in all; a trainer that was loaded goes on where it was saved.

        images    with their labels, shuffled by the trainer's seed; or alone a Source, such as a Loader: fit(loader,
                  epochs=3).  To go on in the middle of an epoch, make it as before
        shift     move each image by up to so many pixels at random, if they are arrays
        test      images and labels, or a Source, to evaluate on after each epoch
        save      a path to save to after each epoch
        progress  called with this trainer and the loss after each step; to look at the loss is to wait for it

        Raises what `step` raises.  That data do not suit, that an epoch would go on with other batches than it began
        with, or that a plan does not fit, is found before the first step.
        """
        if epochs is None:
            raise TypeError("fit takes epochs: fit(images, labels, epochs=3) or fit(loader, epochs=3)")
        batches = self._source(images, labels, self.net.batch, shift=shift)
        self._foresee(batches, "step")
        self._take_recipe(batches)
        tests = test if isinstance(test, tuple | list) else (test, None)
        if test is not None:
            self._foresee(self._source(tests[0], tests[1], self.plans.largest("evaluate")), "evaluate")
        history = []
        while self.epoch < epochs:
            losses = []
            for part in batches.epoch(self.epoch, start=self.position):
                with interrupt_held():  # a step and the count of it belong together
                    losses.append(self.step(*part))
                    self.position += 1
                if progress is not None:
                    progress(self, losses[-1])
            self.settle()
            rate = self.optimizer.rate(max(0, self.steps_done - 1))
            self.epoch, self.position = self.epoch + 1, 0
            result = self.evaluate(*tests) if test is not None else None
            history.append(
                Epoch(
                    self.epoch,
                    float(np.mean([float(loss) for loss in losses])) if losses else float("nan"),
                    rate,
                    result,
                )
            )
            if save is not None:
                self.save(save)
        return history

    def _take_recipe(self, batches: Source) -> None:
        """Raise TrainingError if the epoch that is under way began with batches that came about otherwise."""
        recipe = plain_recipe(batches)
        other = other_recipe(self.recipe, recipe) if self.position else ""
        if other:
            raise TrainingError(
                f"{self.position} batches of epoch {self.epoch + 1} are done, it cannot go on with others: {other}; "
                "to begin it anew with these set the trainer's position to 0"
            )
        if recipe is not None or not self.position:
            self.recipe = recipe

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuse a second thread: there is one slab, and one step at a time."""
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("this trainer is in the middle of a step in another thread")
        try:
            yield
        finally:
            self._busy.release()

    def _source(self, images: Array | Source, labels: Array | None, batch: int, **options: Any) -> Source:
        """Arrays in batches of the trainer's own, or the source that was given alone."""
        if labels is not None:
            images, labels = np.asarray(images), np.asarray(labels)
            check_set(images, labels, self.net)
            return Batches(images, labels, batch, self.seed, **options)
        if not hasattr(images, "epoch"):
            raise TypeError(f"images are a {type(images).__name__} without labels; give both, or a Loader or Batches")
        if options.get("shift"):
            raise ValueError(f"shift={options['shift']} is for arrays; {type(images).__name__} has options of its own")
        return images

    def _foresee(self, source: Source, purpose: str) -> None:
        """Check labels and sizes of all the data, and plan for every size of batch that they come in."""
        labels, samples, most = source.labels, source.shape[0], self.plans.largest(purpose)
        check_set(source, labels, self.net)
        check_labels(labels, (samples, *self._labels.shape[1:]), self._labels.dtype, self.net)
        if purpose == "step" and source.batch > most < samples:
            raise InputError(f"batches have {source.batch} samples; {self.net.name} takes 1 to {most}")
        comes_in = [(min(size, most), size % most) for size in sizes_in(samples, source.batch, source.drop_last)]
        for size in sorted({size for sizes in comes_in for size in sizes} - {0}, reverse=True):
            self.plan_for(size, purpose)

    def _parts(self, images: Array, labels: Array | None) -> Iterator[tuple[int, Plan]]:
        """Feed the images in batches; (index of the first image, the plan to run) of each once it is fed."""
        images = np.asarray(images)
        check_set(images, images if labels is None else labels, self.net)
        most = self.plans.largest("evaluate")
        for first in range(0, len(images), most):
            part = images[first : first + most]
            own = None if labels is None else labels[first : first + most]
            yield first, self._feed(part, own, "evaluate")

    def _feed(self, images: Array, labels: Array | None, purpose: str) -> Plan:
        """Check a batch and put it, and the clock, where its plan fetches them; returns that plan."""
        images = np.asarray(images)
        check_images(images, self.net)
        batch = len(images)
        plan = self.plan_for(batch, purpose)
        wanted = self._labels
        shape = (batch, *wanted.shape[1:])
        labels = np.zeros(shape, wanted.dtype) if labels is None else np.asarray(labels)
        check_labels(labels, shape, wanted.dtype, self.net)
        self._write(plan, images, labels.astype(wanted.dtype, copy=False))
        return plan

    def _write(self, plan: Plan, images: Array, labels: Array) -> None:
        """Put a batch, and the clock, where the rounds of its plan fetch them."""
        clock, first = self._clock(), 0
        for number, samples in enumerate(parts_in(plan.tape), start=1):
            clock[clocks.SAMPLE] = first
            self.device.write(plan, in_round("labels", number), labels[first : first + samples])
            self.device.write(plan, in_round("input", number), images[first : first + samples])
            self.device.write(plan, in_round("clock", number), clock)
            first += samples

    def _loss_of(self, plan: Plan) -> float:
        """The loss that a run of the plan gave: the mean over the samples of all its rounds."""
        name, loss = self.net.loss.y.name, 0.0
        for number, samples in enumerate(parts_in(plan.tape), start=1):
            loss += samples / plan.tape.batch * float(self.device.read(plan, in_round(name, number))[0])
        return loss

    def _clock(self) -> Array:
        clock = np.zeros(clocks.SIZE)
        clock[clocks.STEP] = self.steps_done
        clock[clocks.SEED] = self.seed
        rate = self.optimizer.rate(self.steps_done)
        if not (math.isfinite(rate) and rate >= 0):
            raise TrainingError(f"the learning rate of step {self.steps_done + 1} is {rate}")
        clock[clocks.LEARNING_RATE] = rate
        beta1, beta2 = self.optimizer.betas
        clock[clocks.BIAS_1] = 1 - beta1 ** (self.steps_done + 1)
        clock[clocks.BIAS_2] = 1 - beta2 ** (self.steps_done + 1)
        return clock

    def _run(self, plan: Plan) -> float:
        """Run a plan that was fed, to its end; the loss."""
        self.settle()
        with interrupt_held(), self._rescuing(self.plan):
            self.trace = begin(plan, self.device, self.device.timed).finish()
        return self._loss_of(plan)

    # ---- memory, checkpoints

    @property
    def measured_peak_bytes(self) -> int:
        """Most bytes of the device slab in use at one time in a full step, from what kernels and copies were handed."""
        return self.device.measured_peak_bytes(self.plan)

    @property
    def resident(self) -> Resident | None:
        """What the whole process is planned to hold, and what it held; None where the system does not say."""
        if self._before is None:
            return None
        return Resident.of(self.device, self._before, self.plans.training_host_bytes)

    def save(self, path: str) -> None:
        """Write everything that is needed to go on, bit for bit, as one safetensors file.  The old file stays whole
        until the new one is.
        """
        from vdnn.checkpoint import save

        self.settle()
        save(self, path)

    def load_weights(
        self, source: WeightSource, *, names: Mapping[str, str] | None = None, strict: bool = True
    ) -> LoadedWeights:
        """Replace weights and running statistics by those of `source`; returns what became of every tensor of it.

        source   a .safetensors file, a .pt or .pth file of PyTorch's, of which nothing is run, or {name: array}
        names    {name in the source: name in `weights` or `statistics`} where it differs from all of: torchvision's
                 names for those architectures that it has, PyTorch's for the layers' own (conv1.weight), and vdnn's
                 (conv1.w), of which those count that most of the names are
        strict   refuse a source that has not just what the network has; False: replace what suits

        float16, bfloat16 and float64 are converted.  Only then is anything replaced, and the optimizer's state is left
        as it is.  Raises ModelError, with names, shapes and what may have been meant.
        """
        from vdnn.exchange.loading import load_weights

        self.settle()
        return load_weights(self, source, names=names, strict=strict)

    def save_weights(self, path: str | os.PathLike[str], names: str = "torchvision") -> None:
        """Write weights and running statistics as a safetensors file that PyTorch can load: under torchvision's names,
        or as names="layers" (conv1.weight) or "vdnn" (conv1.w).  Raises ModelError, CheckpointError.
        """
        from vdnn.checkpoint import save_weights

        self.settle()
        save_weights(self, path, names)

    @classmethod
    def load(cls, path: str, net: Network | None = None, **options: Any) -> Trainer:
        """A trainer that goes on where the one that saved stopped.  `net` is needed if it has layers of your own;
        `options` (policy, budget, device, ...) replace what was saved.  Raises CheckpointError.
        """
        from vdnn.checkpoint import load

        return load(cls, path, net, options)

    def close(self) -> None:
        """Wait for the step that runs, and give back what the device holds."""
        try:
            if not self.device.torn:
                self.settle()
        finally:
            self.device.close()

    def __repr__(self) -> str:
        return f"Trainer({self.net!r}, {self.plan!r}, {self.steps_done} steps done)"

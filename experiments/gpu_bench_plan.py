"""What gpu_bench.py measures of vdnn: the link, cuDNN's algorithms, and what a network under one policy costs.

Times and bytes whose names end in _measured come from the device; those in _predicted from the plan alone, or from the
simulator with the times of single operations of one other run.
"""

from __future__ import annotations

import gc
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import vdnn
from vdnn import models
from vdnn.memory.cost import CostError
from vdnn.memory.cuda import CudaDevice
from vdnn.memory.execute import begin
from vdnn.memory.trace import Trace
from vdnn.network import Network
from vdnn.planning import BudgetError

TESTS = Path(__file__).resolve().parent.parent / "tests"
RATES = {"googlenet": 1e-7}  # without batch norm its first loss is large
RATE = 1e-4  # of the others: small, so that none diverges on images of noise
MIB = 1 << 20
SLOW = 0.4  # seconds: a step that takes longer is traced once, faster ones a few times
AHEAD = 0.1  # seconds in which the host issues any step
SAME = "same as keep_all"  # the algorithms of the network's keep_all plan


@dataclass(frozen=True)
class Pace:
    """How long to measure: steps before it begins, groups of about so many seconds, traced steps, plans run again."""

    warm_up: int = 3  # the first loads kernels, the others capture a graph each
    groups: int = 3
    group_seconds: float = 0.4
    traced: int = 3
    most_steps: int = 20


@dataclass(frozen=True)
class Case:
    """A network to train; `options` are those of its model."""

    network: str
    batch: int
    math: str = "fp32"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def title(self) -> str:
        """Network, batch and math mode in a few letters."""
        return f"{self.network} {self.batch} {self.math}"

    @property
    def rate(self) -> float:
        """The learning rate."""
        return RATES.get(self.network, RATE)

    def make(self) -> Network:
        """The network."""
        return network_of(self.network, self.batch, dict(self.options))


def network_of(name: str, batch: int, options: Mapping[str, Any]) -> Network:
    """A model of vdnn's; "toy_chain" and such are those of the tests, to try this script."""
    if name.startswith("toy_"):
        if str(TESTS) not in sys.path:
            sys.path.insert(0, str(TESTS))
        import networks

        made: Network = getattr(networks, name.removeprefix("toy_"))(batch)
        return made
    return models.get(name, batch=batch, **options)


def batch_for(net: Network) -> tuple[Any, Any]:
    """Images of noise, and labels: the same ones each time."""
    random = np.random.default_rng(1)
    images = random.standard_normal(net.input.shape, np.float32)
    return images, random.integers(0, net.scores.shape[1], net.batch)


class Machine:
    """The GPU, or, `dry`, the doubles of CUDA that the tests use, which say nothing about any GPU."""

    def __init__(self, dry: bool) -> None:
        self.dry = dry
        self.kernels: Callable[..., Any] | None = None
        if dry:
            sys.path.insert(0, str(TESTS))
            from cuda_doubles import emulated_kernels
            from emulated import EmulatedDriver

            self.driver: Any = EmulatedDriver()
            self.kernels = emulated_kernels
        else:
            from vdnn.kernels.cuda.driver import CupyDriver

            self.driver = CupyDriver()
        self.pace = Pace(3, 2, 0.01, 1, 2) if dry else Pace()

    def device(self, net: Network, math: str = "fp32", **options: Any) -> CudaDevice:
        """A device for one trainer; what others of this process left behind is given back first."""
        gc.collect()
        return CudaDevice(net, math=math, driver=self.driver, kernels=self.kernels, **options)


# ---- one network under one policy


@dataclass(frozen=True)
class Attempt:
    """A policy, and its algorithms: "performance", "memory", SAME, or a plan."""

    policy: str
    algorithms: Any = SAME


WITHIN = (Attempt("vdnn_dyn"), Attempt("least"), Attempt("least", "memory"))  # the first that fits


KEPT = (Attempt("keep_all", "performance"),)
TOYS = (Case("toy_chain", 4), Case("toy_residual", 4, "tf32"))


@dataclass(frozen=True)
class Reference:
    """The network with everything kept, which others are compared with."""

    plan: vdnn.Plan
    sha256: str
    times: Any  # vdnn.measured: seconds of each operation


class NothingFitsError(RuntimeError):
    """No attempt fits the budget; in short, since a BudgetError would first look for what does, for seconds."""

    def __init__(self, last: BudgetError) -> None:
        figures = f"{last.needed_bytes} bytes, the budget is {last.budget_bytes}, the floor {last.floor_bytes}"
        super().__init__(f"no attempt fits: the last needs {figures}")


@contextmanager
def trainer_of(
    machine: Machine, case: Case, attempts: Sequence[Attempt], budget: Any = None, reference: Any = None, **options: Any
) -> Iterator[tuple[vdnn.Trainer, dict[str, Any]]]:
    """A trainer by the first attempt that fits, and what belongs to its row.  Raises NothingFitsError if none does.

    reference  the plan that SAME means
    options    undo, deterministic
    """
    net = case.make()
    device = machine.device(net, case.math, deterministic=options.pop("deterministic", True))
    free = machine.driver.memory_info()[0]
    try:
        for attempt in attempts:
            chosen = (reference or "performance") if attempt.algorithms is SAME else attempt.algorithms
            began = time.perf_counter()
            optimizer = vdnn.SGD(case.rate, momentum=0.9)
            try:
                trainer = vdnn.Trainer(
                    net, attempt.policy, budget, device, optimizer, seed=0, algorithms=chosen, **options
                )
            except BudgetError as error:
                if attempt is attempts[-1]:
                    raise NothingFitsError(error) from None
                continue
            row = {
                **_described(case, attempt, device, chosen),
                "undo": options.get("undo", True),
                "budget_bytes": None if budget is None else trainer.budget_bytes,
                "setup_seconds_measured": time.perf_counter() - began,
                "device_bytes_taken_measured": free - machine.driver.memory_info()[0],
            }
            yield trainer, row
            break
    finally:
        device.close()


def _described(case: Case, attempt: Attempt, device: CudaDevice, chosen: Any) -> dict[str, Any]:
    """What is trained, and how."""
    return {
        "network": case.network,
        "batch": case.batch,
        "math": case.math,
        "storage": device.kernels.storage,
        "policy": attempt.policy,
        "algorithms": chosen if isinstance(chosen, str) else SAME,
        "learning_rate": case.rate,
        "deterministic": device.kernels.deterministic,
    }


def first_steps(trainer: vdnn.Trainer, batch: tuple[Any, Any], pace: Pace) -> dict[str, Any]:
    """The steps before measuring begins: their losses, and the weights after them."""
    steps = [trainer.step(*batch) for _ in range(pace.warm_up)]
    return {
        "losses_measured": [float(loss) for loss in steps],
        "steps_to_sha256": pace.warm_up,
        "weights_sha256": digest(trainer),
    }


def digest(trainer: vdnn.Trainer) -> str:
    """A hash of every weight and running statistic."""
    total = hashlib.sha256()
    for group in (trainer.weights, trainer.statistics):
        for name in group:
            total.update(name.encode())
            total.update(np.ascontiguousarray(group[name]))
    return total.hexdigest()


def again(trainer: vdnn.Trainer) -> float:
    """Seconds of one step whose inputs lie on the host where the plan fetches them, from its issue to its end."""
    began = time.perf_counter()
    begin(trainer.plan, trainer.device, timed=False).finish()
    return time.perf_counter() - began


def group(trainer: vdnn.Trainer, batch: tuple[Any, Any], steps: int) -> float:
    """Seconds from one call of `trainer.step` to the next, in a row of `steps` after a first one.

    Each call checks and copies its images on the host while the step before runs, and waits for that one.
    """
    loss = trainer.step(*batch)
    began = time.perf_counter()
    for _ in range(steps):
        loss = trainer.step(*batch)
    seconds = (time.perf_counter() - began) / steps
    float(loss)
    return seconds


def steps_for(seconds: float, pace: Pace) -> int:
    """Steps of a group, when one takes so many seconds."""
    return max(2, min(pace.most_steps, round(pace.group_seconds / max(seconds, 1e-6))))


def timing(trainer: vdnn.Trainer, batch: tuple[Any, Any], pace: Pace) -> dict[str, Any]:
    """Medians of steps by `trainer.step`, and of steps whose inputs are in their place."""
    once = again(trainer)
    steps = steps_for(once, pace)
    groups = [group(trainer, batch, steps) for _ in range(pace.groups)]
    placed = [again(trainer) for _ in range(min(steps, 5))]
    seconds = median(groups)
    return {
        "step_seconds_measured": seconds,
        "step_seconds_of_groups_measured": groups,
        "steps_in_a_group": steps,
        "images_per_second_measured": trainer.net.batch / seconds,
        "plan_seconds_measured": median(placed),
        "images_per_second_with_inputs_in_place_measured": trainer.net.batch / median(placed),
        "graph": not trainer.device.graph_refusal,
        "graph_refusal": trainer.device.graph_refusal,
    }


def traces(trainer: vdnn.Trainer, count: int) -> list[Trace]:
    """So many steps with an event before and after each operation, after one that makes these events.

    The device is kept busy meanwhile, so that a step is issued as a whole before it begins, as a graph is: else short
    operations would seem to take as long as the host takes to issue them.
    """
    device, found = trainer.device, []
    assert isinstance(device, CudaDevice)
    for _ in range(count + 1):
        device.driver.launch("spin", "float32", (1,), 1, [round(1e9 * AHEAD)], device.streams["compute"])
        trace = begin(trainer.plan, device, timed=True).finish()
        assert trace is not None, "a timed step left no trace"
        found.append(trace)
    return found[1:]


def times_of(traced: Sequence[Trace], cost: Any) -> Any:
    """The cost model of what was traced: medians by operation and algorithm.  What ran by other algorithms than a later
    plan's takes, there, the time that cuDNN's search measured.
    """
    plan = traced[0].plan
    table: dict[tuple[str, str], float] = {}
    for op in plan.tape.ops:
        table |= {(op.name, a.name): a.seconds for a in op.algorithms if a.seconds}
    took: dict[tuple[str, str], list[float]] = {}
    for trace in traced:
        for event in trace.events:
            if event.step.kind == "compute" and event.start is not None and event.finish is not None:
                key = (event.step.name, event.step.algorithm)
                took.setdefault(key, []).append(event.finish - event.start)
    table |= {key: median(seconds) for key, seconds in took.items()}
    return vdnn.measured(table, link=cost, name="a traced step of keep_all")


def bytes_of(trainer: vdnn.Trainer) -> dict[str, Any]:
    """Bytes, measured and predicted."""
    plan, peak = trainer.plan, trainer.measured_peak_bytes
    return {
        "arena_bytes_measured": trainer.device.arena_bytes,
        "arena_bytes_predicted": plan.arena_bytes,
        "peak_bytes_measured": peak,
        "peak_bytes_predicted": plan.peak_bytes,
        "peak_bytes_difference": peak - plan.peak_bytes,
        "floor_bytes_predicted": plan.floor_bytes,
        "host_bytes_measured": int(trainer.device.host.nbytes),
        "host_bytes_predicted": trainer.device.host_bytes_of(plan),
        "offloaded_bytes_predicted": plan.offloaded_bytes,
    }


def measure(
    machine: Machine, trainer: vdnn.Trainer, batch: tuple[Any, Any], reference: Reference | None = None
) -> tuple[dict[str, Any], Reference]:
    """(the row of one trainer, what others may be compared with): without a reference it is its own."""
    row = first_steps(trainer, batch, machine.pace)
    row |= bytes_of(trainer) | timing(trainer, batch, machine.pace)
    traced = traces(trainer, machine.pace.traced if row["plan_seconds_measured"] < SLOW else 1)
    own = Reference(trainer.plan, row["weights_sha256"], times_of(traced, trainer.device.cost))
    compared = reference or own
    seconds = median(t.step_seconds for t in traced)
    same = dict(trainer.plan.decisions.algorithms) == dict(compared.plan.decisions.algorithms)
    row |= {
        "traced_step_seconds_measured": seconds,
        "copy_seconds_measured": median(t.copy_seconds for t in traced),
        "hidden_copy_fraction_measured": median(t.hidden_copy_fraction for t in traced),
        "algorithms_equal_those_of_keep_all": same,
        "weights_identical_to_keep_all": row["weights_sha256"] == compared.sha256 if same else None,
    }
    return row | prediction(trainer.plan, compared.times, row), own


def prediction(plan: vdnn.Plan, times: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """What the simulator says of a plan, and by how much of what was measured it is wrong."""
    try:
        predicted = vdnn.simulate(plan, times)
    except CostError as error:  # an algorithm that keep_all does not use, and cuDNN's search had no memory for
        return {"step_seconds_predicted": None, "not_predicted": str(error)}
    seconds = predicted.step_seconds
    return {
        "step_seconds_predicted": seconds,
        "hidden_copy_fraction_predicted": predicted.hidden_copy_fraction,
        "prediction_error_of_plan_seconds": seconds / row["plan_seconds_measured"] - 1,
        "prediction_error_of_step_seconds": seconds / row["step_seconds_measured"] - 1,
        "prediction_error_of_traced_step_seconds": seconds / row["traced_step_seconds_measured"] - 1,
    }


def budgets(plan: vdnn.Plan, shares: Sequence[float]) -> dict[float, int]:
    """{share: the floor and that share of what keep_all needs above it}, in bytes."""
    return {share: plan.floor_bytes + round(share * (plan.arena_bytes - plan.floor_bytes)) for share in shares}

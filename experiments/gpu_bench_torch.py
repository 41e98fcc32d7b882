"""The part of gpu_bench.py that trains vdnn and PyTorch in turn; PyTorch runs in a process of its own, gpu_torch.py."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Any

from children import Child, ChildError
from gpu_bench_plan import (
    KEPT,
    TOYS,
    WITHIN,
    Attempt,
    Case,
    NothingFitsError,
    again,
    batch_for,
    budgets,
    first_steps,
    group,
    steps_for,
    trainer_of,
)
from gpu_bench_report import Section

import vdnn

PLAIN = (("dropout", 0.0),)  # random numbers differ between vdnn and PyTorch
AGAINST = (
    Case("vgg19", 64, "fp32", PLAIN),
    Case("resnet50", 64, "tf32"),
    Case("resnet50", 64, "fp32"),
    Case("vgg19", 64, "tf32", PLAIN),
    Case("googlenet", 128, "tf32", PLAIN),
)
LOSS_LIMIT = {"fp32": 1e-3, "tf32": 2e-2}  # relative: how far first losses of the same network may differ
TORCH = [sys.executable, str(Path(__file__).resolve().parent / "gpu_torch.py")]
ROUNDS = 3


def against_torch(section: Section) -> None:
    """The same networks in PyTorch, in turn with vdnn."""
    if importlib.util.find_spec("torch") is None:
        section.note(torch="not installed, so nothing was compared")
        return
    section.note(order=f"A B A B ..., {ROUNDS} rounds; medians; torch with cudnn.benchmark, vdnn by default settings")
    child: Child | None = None
    try:
        for case in TOYS if section.dry else AGAINST:
            if child is None or not child.alive:
                child = Child(TORCH)
                section.note(torch=child.ask(90, do="about"))
            Opponents(section, child, case).run()
    finally:
        if child is not None:
            child.close()


class Opponents:
    """vdnn and PyTorch on one case, in turn."""

    def __init__(self, section: Section, child: Child, case: Case) -> None:
        self.section, self.child, self.case = section, child, case
        self.machine = section.machine
        self.batch = batch_for(case.make())

    def run(self) -> None:
        """Everything kept on both sides, in both of PyTorch's layouts; then PyTorch's ways to save memory, each against
        vdnn with as many bytes as its peak.
        """
        case = self.case
        plan = self.section.row(f"{case.title} eager", self._eager)
        if plan is None:
            return
        for variant in ("save_on_cpu", "checkpoint", "stream_offload"):
            self.section.row(f"{case.title} {variant}", lambda v=variant: self._lean(v, plan))
        with suppress(ChildError):  # then it has ended, and holds nothing
            self.child.ask(30, do="close")

    def _open(self, variant: str, channels_last: bool) -> dict[str, Any]:
        case = self.case
        what = {"network": case.network, "batch": case.batch, "options": dict(case.options), "math": case.math}
        how = {
            "variant": variant,
            "channels_last": channels_last,
            "warm_up": self.machine.pace.warm_up,
            "rate": case.rate,
        }
        return self.child.ask(100, do="open", **what, **how)

    def _eager(self) -> vdnn.Plan:
        loose = {"undo": False, "deterministic": False}
        with (
            trainer_of(self.machine, self.case, KEPT) as (kept, row),
            trainer_of(self.machine, self.case, KEPT, **loose) as (free, free_row),
        ):
            ours = {"keep_all": (kept, row), "keep_all, no undo, any algorithms": (free, free_row)}
            for trainer, own in ours.values():
                own |= first_steps(trainer, self.batch, self.machine.pace)
            for channels_last in (False, True):
                self._compare("eager", channels_last, self._open("eager", channels_last), ours)
            return kept.plan

    def _lean(self, variant: str, plan: vdnn.Plan) -> None:
        # save_on_cpu makes contiguous copies whatever the layout; for the others it is what suits the math mode
        channels_last = self.case.math == "tf32" and variant != "save_on_cpu"
        opened = self._open(variant, channels_last)
        budget = opened.get("allocated") or budgets(plan, (0.5,))[0.5]  # a CPU counts no bytes
        ways = {"within its peak": WITHIN}
        if variant == "checkpoint":
            ways["checkpoint within its peak"] = (Attempt("checkpoint"), Attempt("checkpoint", "memory"))
        ours = {}
        with ExitStack() as stack:
            for name, attempts in ways.items():
                try:
                    pair = stack.enter_context(trainer_of(self.machine, self.case, attempts, budget, plan))
                except NothingFitsError as error:
                    what = f"{self.case.title} {variant} {name}"
                    self.section.add({"what": what, "fits": False, "reason": str(error)})
                    continue
                pair[1].update(first_steps(pair[0], self.batch, self.machine.pace))
                ours[name] = pair
            self._compare(variant, channels_last, opened, ours)

    def _compare(self, variant: str, channels_last: bool, opened: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        """Both in turn; keeps a row for each of ours."""
        count = steps_for(opened["step_seconds"], self.machine.pace)
        theirs: list[float] = []
        placed: dict[str, list[float]] = {name: [] for name in ours}
        stepped: dict[str, list[float]] = {name: [] for name in ours}
        for _ in range(ROUNDS):
            for name, (trainer, _) in ours.items():
                placed[name] += [again(trainer) for _ in range(count)]
                stepped[name].append(group(trainer, self.batch, count))
            theirs.append(self.child.ask(60, do="run", steps=count)["step_seconds"])
        torch = {
            "torch_variant": variant,
            "torch_channels_last": channels_last,
            "torch_step_seconds_measured": median(theirs),
            "torch_images_per_second_measured": self.case.batch / median(theirs),
            "torch_peak_bytes_allocated_measured": opened.get("allocated"),
            "torch_peak_bytes_reserved_measured": opened.get("reserved"),
            "torch_losses_measured": opened["losses"],
        }
        if not ours:
            case = {"network": self.case.network, "batch": self.case.batch, "math": self.case.math}
            self.section.add({**case, **torch, "vdnn": "does not fit"})
        for name, (trainer, row) in ours.items():
            figures = self._figures(trainer, median(placed[name]), median(stepped[name]), median(theirs))
            difference = abs(row["losses_measured"][0] / opened["losses"][0] - 1)
            told = {"vdnn": name, "first_loss_relative_difference_measured": difference}
            self.section.add({**row, **torch, **figures, **told})
            if not difference <= LOSS_LIMIT[self.case.math]:
                raise ChildError(f"first losses differ by {difference:.2g}: this is not one network")

    def _figures(self, trainer: vdnn.Trainer, placed: float, stepped: float, theirs: float) -> dict[str, Any]:
        """Of vdnn, and over PyTorch: with inputs in place both do the same, `trainer.step` does more on the host."""
        return {
            "plan_seconds_measured": placed,
            "step_seconds_measured": stepped,
            "images_per_second_with_inputs_in_place_measured": self.case.batch / placed,
            "images_per_second_measured": self.case.batch / stepped,
            "arena_bytes_measured": trainer.device.arena_bytes,
            "peak_bytes_measured": trainer.measured_peak_bytes,
            "peak_bytes_difference": trainer.measured_peak_bytes - trainer.plan.peak_bytes,
            "offloaded_bytes_predicted": trainer.plan.offloaded_bytes,
            "speed_over_torch_with_inputs_in_place_measured": theirs / placed,
            "speed_over_torch_measured": theirs / stepped,
            "graph_refusal": trainer.device.graph_refusal,
        }

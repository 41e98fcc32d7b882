"""What vdnn costs on a GPU, measured in one run: link, algorithms, policies and budgets, VGG(256) in 12 GiB, PyTorch.

    python experiments/gpu_bench.py             # writes experiments/results/gpu_bench.json; about seven minutes
    python experiments/gpu_bench.py --dry       # tries every section on toy networks and test doubles, without a GPU

The file is written after each result, so a run that is cut short leaves what it had.  `--seconds` are shared out over
the sections; what a section does not reach is named there.  Each key says its unit, and whether the number was measured
or predicted.  Status: 0, or 1 if something failed, or 2 if there is no GPU.  Steps are those of Trainer by default
(undo copies, deterministic algorithms) unless a row says otherwise, with SGD and momentum.
"""

from __future__ import annotations

import argparse
import faulthandler
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_about import RESULTS, about, refuse_without_gpu
from gpu_bench_plan import (
    KEPT,
    MIB,
    TOYS,
    WITHIN,
    Attempt,
    Case,
    Machine,
    Reference,
    batch_for,
    budgets,
    bytes_of,
    first_steps,
    measure,
    network_of,
    trainer_of,
)
from gpu_bench_report import TABLES, Report, Section, show
from gpu_bench_torch import against_torch

from vdnn import models
from vdnn.kernels.cuda.driver import CudaError
from vdnn.kernels.cuda.finding import Problem
from vdnn.kernels.cuda.link import link_of
from vdnn.network import Network

UNITS = (
    "seconds, bytes, bytes or images per second; shares and errors of 1; _measured on the device, _predicted from the "
    "plan or by the simulator; plan_seconds: inputs in page-locked memory, one step by itself; step_seconds: "
    "Trainer.step, which also checks and copies images on the host"
)
SHARES = (0.5, 0.25, 0.1, 0.75)  # of what keep_all needs above the floor
FIRST = 3  # of these have equal parts of the time; what they leave is for the others
STEPS = (
    Case("vgg19", 64),
    Case("resnet50", 64),
    Case("googlenet", 128),
    Case("resnet50", 64, "tf32"),
    Case("vgg19", 128),
    Case("vgg19", 64, "tf32"),
    Case("resnet50", 256),
    Case("googlenet", 512),
)
MATHS = (("fp32", "nchw"), ("tf32", "nhwc"), ("fp32", "nhwc"), ("tf32", "nchw"))  # those by default first


# ---- single figures


def link_rows(machine: Machine) -> Iterator[dict[str, Any]]:
    """Bandwidth for several sizes of copies, and what page-locking memory takes."""
    net = network_of("toy_chain", 4, {}) if machine.dry else models.get("digits_vgg", batch=8)
    device = machine.device(net)
    try:
        for mib in (1, 16, 64, 256):
            size = mib * (1024 if machine.dry else MIB)
            link = link_of(machine.driver, device.streams, size)
            yield {"copy_bytes": size} | {
                "offload_bytes_per_second_measured": link.offload,
                "prefetch_bytes_per_second_measured": link.prefetch,
                "each_way_while_both_run_bytes_per_second_measured": link.both,
                "copy_of_4_bytes_seconds_measured": link.latency,
            }
    finally:
        device.close()
    size = MIB if machine.dry else 1 << 30
    began = time.perf_counter()
    memory = machine.driver.allocate_pinned(size)
    taken = time.perf_counter()
    del memory
    given = time.perf_counter()
    yield {
        "page_locked_bytes": size,
        "take_and_clear_seconds_measured": taken - began,
        "give_back_seconds_measured": given - taken,
    }


def algorithm_rows(machine: Machine, case: Case, enough: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """What cuDNN's search measures for every convolution of a network that differs from the ones before it."""
    net = case.make()
    device = machine.device(net)
    try:
        for math, storage in MATHS:
            for layer, phase, problem in _problems(net, math, storage):
                if enough():
                    return
                what = {
                    "layer": layer,
                    "phase": phase,
                    "x": problem.x,
                    "w": problem.w,
                    "math": math,
                    "storage": storage,
                }
                try:
                    candidates = device.kernels.convolutions.candidates(phase, problem)
                except CudaError as error:
                    yield what | {"refused": str(error)}
                    continue
                for found in candidates:
                    yield what | {
                        "algorithm": found.name,
                        "deterministic": found.deterministic,
                        "workspace_bytes": found.workspace,
                        "seconds_measured": found.seconds or None,
                    }
    finally:
        device.close()


def _problems(net: Network, math: str, storage: str) -> Iterator[tuple[str, str, Problem]]:
    """(layer, phase, problem) of each kind of convolution in the network; its first layer wants no dx."""
    seen = set()
    for node in net.nodes:
        if type(node.layer).__name__ != "Conv2d":
            continue
        layer: Any = node.layer
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        x, y, w = node.inputs[0], node.y.shape, node.parameters["w"].shape
        problem = Problem(x.shape, w, y, *geometry, net.dtype, storage, math)
        for phase in ("forward", "backward_weights", "backward_data"):
            if (phase, problem) not in seen and not (phase == "backward_data" and x is net.input):
                seen.add((phase, problem))
                yield node.name, phase, problem


# ---- sections


def link(section: Section) -> None:
    """The link, and page-locked memory."""

    def rows() -> None:
        for row in link_rows(section.machine):
            section.add(row)

    section.row("all", rows)


def algorithms(section: Section) -> None:
    """Time and workspace of cuDNN's algorithms for VGG-E's convolutions."""
    case = TOYS[0] if section.dry else Case("vgg19", 64)
    section.note(network=case.network, batch=case.batch)

    def rows() -> None:
        for row in algorithm_rows(section.machine, case, section.enough):
            section.add(row)

    section.row("all", rows)
    section.note(cut_short=time.monotonic() > section.ends)


def run_once(
    section: Section,
    case: Case,
    batch: tuple[Any, Any],
    attempts: Sequence[Attempt],
    reference: Reference | None = None,
    budget: Any = None,
    known: Mapping[Any, str] | None = None,
    **options: Any,
) -> tuple[dict[str, Any], Reference | None]:
    """Train a case one way and measure it, unless its plan is one that is `known` from another way."""
    same = reference.plan if reference else None
    with trainer_of(section.machine, case, attempts, budget, same, **options) as (trainer, row):
        other = (known or {}).get(trainer.plan.steps)
        if other is not None:
            return row | bytes_of(trainer) | {"same_plan_as": other}, None
        found, own = measure(section.machine, trainer, batch, reference)
    return row | found, own


def steps(section: Section) -> None:
    """Policies and budgets, each compared with everything kept."""
    cases = TOYS if section.dry else STEPS
    section.note(vdnn_dyn="without a budget it may take all memory, and then is keep_all")
    ends = section.ends
    for i, case in enumerate(cases):
        section.ends = time.monotonic() + (ends - time.monotonic()) / max(1, FIRST - i)
        section.longest /= 2  # another network may be faster
        batch = batch_for(case.make())
        kept = section.row(f"{case.title} keep_all", lambda c=case, b=batch: run_once(section, c, b, KEPT))
        if kept is None:
            continue
        row, reference = kept
        section.add(row)
        _compared(section, case, batch, row, reference)


def _compared(section: Section, case: Case, batch: Any, kept: Mapping[str, Any], reference: Reference) -> None:
    """One case under every policy and budget."""
    sizes = budgets(reference.plan, SHARES)
    ways: list[tuple[str, Sequence[Attempt], int | None, dict[str, Any]]] = [
        (name, (Attempt(name),), None, {}) for name in ("vdnn_all", "vdnn_conv")
    ]
    ways += [(f"floor + {share:.0%}", WITHIN, sizes[share], {}) for share in SHARES]
    ways += [("keep_all, no undo", KEPT, None, {"undo": False})]
    ways += [(name, (Attempt(name),), None, {}) for name in ("checkpoint", "vdnn_dyn")]
    known = {reference.plan.steps: "keep_all"}
    for title, attempts, budget, options in ways:
        made = section.row(
            f"{case.title} {title}",
            lambda a=attempts, b=budget, o=options: run_once(section, case, batch, a, reference, b, known, **o),
        )
        if made is None:
            continue
        row, own = made
        if own is not None:
            known[own.plan.steps] = title
            row["step_seconds_over_keep_all_measured"] = row["step_seconds_measured"] / kept["step_seconds_measured"]
        section.add(row | {"way": title})


def vgg_in_12_gib(section: Section) -> None:
    """VGG-E at batch 256, the paper's VGG(256), within its 12 GB, against everything kept."""
    section.note(paper="vdnn_dyn loses 18 % of the speed (Titan X, 12 GB, feature extraction only)")
    for math in ("fp32", "tf32"):
        case = Case("toy_residual", 4, math) if section.dry else Case("vgg19", 256, math)
        section.row(case.title, lambda c=case: _within(section, c))


def _within(section: Section, case: Case) -> None:
    batch = batch_for(case.make())
    fast, reference = run_once(section, case, batch, KEPT)
    section.add(fast)
    budget = budgets(reference.plan, (0.5,))[0.5] if section.dry else "12GiB"
    lean, own = run_once(section, case, batch, (Attempt("vdnn_dyn", "performance"),), reference, budget)
    speed = fast["step_seconds_measured"] / lean["step_seconds_measured"]
    placed = fast["plan_seconds_measured"] / lean["plan_seconds_measured"]
    lean |= {"loss_of_speed_measured": 1 - speed, "loss_of_speed_with_inputs_in_place_measured": 1 - placed}
    if not lean["algorithms_equal_those_of_keep_all"] and not section.enough():
        with trainer_of(section.machine, case, (Attempt("keep_all"),), None, own.plan) as (trainer, _):
            found = first_steps(trainer, batch, section.machine.pace)
        lean["weights_identical_to_keep_all_by_its_algorithms"] = found["weights_sha256"] == lean["weights_sha256"]
    section.add(lean)


# ---- all of it

SECTIONS: tuple[tuple[Callable[[Section], None], float], ...] = (  # (what, its share of the time that is left)
    (link, 0.03),
    (vgg_in_12_gib, 0.2),
    (against_torch, 0.48),
    (steps, 0.8),
    (algorithms, 1.0),
)


def measure_all(machine: Machine, report: Report, seconds: float, only: Sequence[str]) -> None:
    """Every section, one after the other; what one leaves of its time is for the others."""
    ends = time.monotonic() + seconds
    for function, share in SECTIONS:
        name = function.__name__
        if only and name not in only:
            continue
        section = Section(name, machine, report, share * (ends - time.monotonic()))
        began = time.monotonic()
        try:
            function(section)
        except Exception as error:
            report.fail(name, "the section", error)
        section.note(seconds=round(time.monotonic() - began, 1))
        rows = [row for row in report.section(name)["rows"] if row.get("fits", True)]
        if rows:
            show(TABLES[name], rows)


def arguments() -> argparse.Namespace:
    """What was asked for; argparse, since this runs with the Python that is there, whatever is installed."""
    parser = argparse.ArgumentParser(description="Measure vdnn on the GPU of this machine.")
    parser.add_argument(
        "--seconds", type=float, default=440.0, help="when to begin nothing new; watched, and cut 40 later [440]"
    )
    parser.add_argument(
        "--dry", action="store_true", help="toy networks on test doubles: results say emulated, and are no measurements"
    )
    names = [function.__name__ for function, _ in SECTIONS]
    parser.add_argument("--only", action="append", default=[], choices=names, help="a section; as often as you like")
    parser.add_argument("--out", type=Path, help="default: experiments/results/gpu_bench.json")
    found = parser.parse_args()
    if found.dry and found.out and RESULTS in found.out.resolve().parents:
        parser.error(f"a dry run measures nothing, so it does not write into {RESULTS}")
    return found


def main() -> None:
    """Measure, write and show."""
    found = arguments()
    seconds, dry, only, out = found.seconds, found.dry, found.only, found.out
    if dry:
        out = out or Path(tempfile.mkdtemp()) / "gpu_bench_emulated.json"
        head = {"about": {"device": "emulated", "note": "test doubles: no number here says anything about a GPU"}}
    else:
        refuse_without_gpu()
        head = {"about": about()}
    faulthandler.dump_traceback_later(seconds + 40, exit=True)  # a GPU that hangs is not waited for
    head |= {"seconds_asked_for": seconds, "units": UNITS}
    report = Report(out or RESULTS / "gpu_bench.json", head)
    report.save()
    measure_all(Machine(dry), report, seconds, only)
    faulthandler.cancel_dump_traceback_later()
    print(f"{'emulated: ' if dry else ''}results in {report.path}")
    raise SystemExit(1 if report.failed else 0)


if __name__ == "__main__":
    main()

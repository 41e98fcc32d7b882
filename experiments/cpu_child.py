"""One side of a CPU benchmark in a process of its own, so that its memory can be told apart.

Reads one line of JSON, a Task's fields, and writes one: what `run` gives back, or {"error": ..., "memory": ...}, where
`memory` says whether it ended for want of memory.  `ask` starts such a process and waits for its answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from children import ChildError, answers_apart
from cpu_limit import Limit

WANT_OF_MEMORY = (
    *("can't allocate", "cannot allocate", "unable to allocate", "bad_alloc", "out of memory"),
    "could not create",  # oneDNN's word for it
)
FEWEST = "fewest"  # micro_batches: as few as fit
KILLED = -9  # by the system, where a control group's limit was reached
RESERVE = 96 << 20  # bytes of vdnn's target for what is neither arena, nor images, nor there before: stacks, staging


@dataclass(frozen=True)
class Task:
    """What a child does.

    side     "torch" or "vdnn"
    case     network, batch, image, options and rate of a cpu_cases.Case
    steps    of training; their times are given back
    layout, recompute    of PyTorch
    kernels, policy, how  of vdnn: "numpy" or "fast"; the policy; more of the Trainer's arguments
    target   bytes that vdnn's process may hold in all, from which its budget follows; 0: any number
    limit    bytes, 0: none; group: the control group that enforces it
    """

    side: str
    case: dict[str, Any]
    threads: int
    steps: int
    layout: str = "channels_last"
    recompute: bool = False
    kernels: str = "numpy"
    policy: str = "keep_all"
    how: dict[str, Any] = field(default_factory=dict)
    target: int = 0
    limit: int = 0
    group: str = ""


def environment() -> dict[str, str]:
    """Of such processes: vdnn's threads are its own, so that NumPy's BLAS has one."""
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1"}


def ask(task: Task, seconds: float) -> dict[str, Any]:
    """The child's answer; {"error", "memory": True} if it wanted more memory than there is.

    Raises ChildError for any other failure, or if it takes longer than that; then it is ended.
    """
    command = [sys.executable, str(Path(__file__).resolve())]
    try:
        ended = subprocess.run(
            command, input=json.dumps(asdict(task)), capture_output=True, text=True, timeout=seconds, env=environment()
        )
    except subprocess.TimeoutExpired:
        raise ChildError(f"{task.side} on {task.case}: no answer in {seconds:.0f} s") from None
    said = " ".join(ended.stderr[-1500:].split())
    try:
        found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, ValueError):  # it ended without a word
        is_memory = ended.returncode == KILLED or _is_memory(said)
        found = {"error": f"ended with {ended.returncode}: {said}", "memory": is_memory}
    if "error" in found and not found["memory"]:
        raise ChildError(f"{task.side} on {task.case}: {found['error']}")
    return found


def _is_memory(text: str) -> bool:
    """Whether an error's text speaks of memory that could not be had."""
    return any(words in text.lower() for words in WANT_OF_MEMORY)


# ---- in the child


def run(task: Task) -> dict[str, Any]:
    """Seconds and losses of the steps, bytes at most resident, bytes resident before the network was made; of vdnn's
    also what its plan is.
    """
    from cpu_cases import Case, batch_of

    from vdnn.resident import peak_resident_bytes, resident_bytes

    case = Case.of(task.case)
    net = case.make()
    batch = batch_of(net)
    if task.side == "torch":
        step, about = _torch(task, case, net, batch)
    else:
        step, about = _vdnn(task, case, net, batch)
    seconds, losses = [], []
    for _ in range(task.steps):
        began = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds, "losses": losses, "peak": peak_resident_bytes(), "resident": resident_bytes(), **about}


def _torch(task: Task, case: Any, net: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
    import torch
    from cpu_torch import TorchTraining
    from torch_twin import first_weights

    from vdnn.resident import resident_bytes

    torch.set_num_threads(task.threads)
    before = resident_bytes()
    training = TorchTraining(net, first_weights(net), batch, task.layout, case.rate, task.recompute)
    return training.step, {"before": before, "versions": f"PyTorch {torch.__version__}"}


def _vdnn(task: Task, case: Any, net: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
    from cpu_cases import kernels_chosen

    from vdnn.kernels.numpy import NumpyKernels
    from vdnn.resident import resident_bytes

    with kernels_chosen(task.kernels):
        _ = NumpyKernels(task.threads).routines  # what they import is there before any plan
    before = resident_bytes()
    trainer = _trainer(task, case, net, before + sum(a.nbytes for a in batch))
    plan = trainer.plan
    about = {
        "before": before,
        "arena": plan.arena_bytes,
        "host": trainer.device.host_bytes_of(plan),
        "disk": getattr(plan, "disk_bytes", 0),
        "micro_batches": trainer.micro_batches,
        "recomputed": sum(1 for _ in plan.computes()) - len(plan.tape.ops),
        "offloaded": plan.offloaded_bytes,
        "algorithms": sorted(set(plan.decisions.algorithms.values())),
    }
    return (lambda: float(trainer.step(*batch))), about


def _trainer(task: Task, case: Any, net: Any, taken: int) -> Any:
    """The trainer, of which no more is resident than the target allows; `taken` bytes are before and beside its arena.

    Raises BudgetError if no plan is so small, MemoryError if the target is less than what is taken already.
    """
    from cpu_cases import trainer_of

    how = dict(task.how)
    if task.target:
        how["budget"] = task.target - taken - RESERVE - how.get("host_budget", 0)
        if how["budget"] <= 0:
            raise MemoryError(f"a target of {task.target} bytes is less than the {taken} that are taken before a plan")
    if how.get("micro_batches") != FEWEST:
        return trainer_of(case, task.threads, task.kernels, task.policy, net, **how)
    parts = [n for n in range(1, case.batch + 1) if case.batch % n == 0]
    for number in parts:
        try:
            return trainer_of(case, task.threads, task.kernels, task.policy, net, **{**how, "micro_batches": number})
        except Exception as error:
            if not _is_budget(error) or number == parts[-1]:
                raise
    raise AssertionError("a batch has at least one part")


def main() -> None:
    """Do the task that stands on standard input."""
    answer_to = answers_apart()
    task = Task(**json.loads(sys.stdin.readline()))
    try:
        if task.limit:
            Limit(task.limit, task.group).enter()
        found = run(task)
    except Exception as error:
        text = f"{type(error).__name__}: {error}" if not _is_budget(error) else f"BudgetError: {_short(error)}"
        is_memory = isinstance(error, MemoryError) or _is_budget(error) or _is_memory(text)
        found = {"error": " ".join(text.split())[:500], "memory": is_memory}
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(found), file=answer_to, flush=True)
    os._exit(0)  # the network's memory need not be given back in order


def _is_budget(error: Exception) -> bool:
    """Whether vdnn says that no plan fits."""
    return type(error).__name__ in ("BudgetError", "HostBudgetError")


def _short(error: Any) -> str:
    """Its figures alone: its text would first look for what does fit, for seconds."""
    return f"needs {error.needed_bytes} bytes of {error.budget_bytes}"


if __name__ == "__main__":
    main()

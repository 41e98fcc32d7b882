"""One side of cpu_speed.py in a process of its own, which makes its network once and steps when it is asked to.

So no side's threads, heap or fragments are another's, and the peak resident set is that of the process that was timed.
`Remote` is the parent's end; the child answers what `answer` knows, until its standard input ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from children import Child, ChildError, answers_apart
from cpu_child import Task, environment
from cpu_layers import LayerTimes, of_torch, of_trace

PATIENCE = 600.0  # seconds for one answer


class Remote:
    """A side in its own process, which begins to make its network at once.

    What fails there, or is not answered in PATIENCE seconds, is a ChildError where the answer is waited for.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._child = Child([sys.executable, str(Path(__file__).resolve())], environment())
        self._begin("make", task=asdict(task))

    def ready(self) -> None:
        """Wait until the network is made; so too after `threads`."""
        self._answer(self._begun)

    def steps(self, count: int, sgd: str = "") -> tuple[list[float], float]:
        """(seconds of so many steps, the loss of the first)."""
        found = self._ask("steps", count=count, sgd=sgd)
        return found["seconds"], found["loss"]

    def layers(self, sgd: str = "") -> LayerTimes:
        """Seconds of each layer in one step."""
        return {(layer, phase): seconds for layer, phase, seconds in self._ask("layers", sgd=sgd)["seconds"]}

    def threads(self, count: int) -> None:
        """Begin to take so many threads from now on; vdnn makes its network anew, with its first weights."""
        self._begin("threads", count=count)

    def worked(self) -> float:
        """Processor seconds of the process so far."""
        found: float = self._ask("used")["seconds"]
        return found

    def peak(self) -> int:
        """Bytes at most resident so far."""
        found: int = self._ask("used")["peak"]
        return found

    def close(self) -> None:
        """End the process."""
        self._child.close(kill=True)  # what it holds need not be given back in order

    def _ask(self, name: str, **how: Any) -> dict[str, Any]:
        self._begin(name, **how)
        return self._answer(name)

    def _begin(self, name: str, **how: Any) -> None:
        self._begun = name
        self._child.tell(do=name, **how)

    def _answer(self, name: str) -> dict[str, Any]:
        try:
            return self._child.answer(PATIENCE, name)
        except ChildError as error:
            raise ChildError(f"{self.task.side} on {self.task.case}: {error}") from error


# ---- in the child


class VdnnSide:
    """vdnn's: everything kept, nothing undone."""

    def __init__(self, task: Task, case: Any) -> None:
        from cpu_cases import batch_of

        self.task, self.case = task, case
        self.batch = batch_of(case.make())
        self.trainer: Any = None
        self.threads(task.threads)

    def threads(self, count: int) -> None:
        """Make the trainer anew for so many."""
        from cpu_cases import trainer_of

        if self.trainer is not None:
            self.trainer.close()
        self.trainer = trainer_of(self.case, count, self.task.kernels)

    def step(self, sgd: str) -> float:
        """One step; its loss."""
        return float(self.trainer.step(*self.batch))

    def layers(self, sgd: str) -> LayerTimes:
        """The times of one step's layers."""
        self.trainer.step(*self.batch)
        return of_trace(self.trainer.trace)


class TorchSide:
    """PyTorch's, in one layout."""

    def __init__(self, task: Task, case: Any) -> None:
        from cpu_cases import batch_of
        from cpu_torch import TorchTraining
        from torch_twin import first_weights

        self.threads(task.threads)
        net = case.make()
        self.training = TorchTraining(net, first_weights(net), batch_of(net), task.layout, case.rate)

    def threads(self, count: int) -> None:
        """Take so many from now on."""
        import torch

        torch.set_num_threads(count)

    def step(self, sgd: str) -> float:
        """One step; its loss."""
        return self.training.step(sgd)

    def layers(self, sgd: str) -> LayerTimes:
        """The times of one step's layers."""
        return of_torch(self.training.layer_seconds(sgd))


def answer(side: Any, question: dict[str, Any]) -> dict[str, Any]:
    """What is answered to a question.  Raises ValueError for what is none."""
    from vdnn.resident import peak_resident_bytes

    match question:
        case {"do": "steps", "count": count, "sgd": sgd}:
            seconds, losses = [], []
            for _ in range(count):
                began = time.perf_counter()
                losses.append(side.step(sgd))
                seconds.append(time.perf_counter() - began)
            return {"seconds": seconds, "loss": losses[0]}
        case {"do": "layers", "sgd": sgd}:
            return {"seconds": [(*key, seconds) for key, seconds in side.layers(sgd).items()]}
        case {"do": "threads", "count": count}:
            side.threads(count)
            return {}
        case {"do": "used"}:
            return {"seconds": time.process_time(), "peak": peak_resident_bytes()}
    raise ValueError(f"no question is {question}")


def made(task: Task) -> Any:
    """The side of that task."""
    from cpu_cases import Case

    case = Case.of(task.case)
    return VdnnSide(task, case) if task.side == "vdnn" else TorchSide(task, case)


def main() -> None:
    """Answer until there are no more questions."""
    answers, side = answers_apart(), None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if question["do"] == "make":
                side, said = made(Task(**question["task"])), {}
            else:
                said = answer(side, question)
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"[:500]}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(said), file=answers, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()

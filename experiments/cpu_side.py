"""One side of cpu_speed.py in a process of its own, which makes its network once and steps when it is asked to.

So no side's threads, heap or fragments are another's, and the peak resident set is that of the process that was timed.
Messages are lines of JSON, a question and its answer in turn: first a Task's fields; then {"do": NAME, ...}, see
`answer`.  `Remote` is the parent's end.  The process ends with its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpu_child import ChildError, Task
from cpu_layers import LayerTimes, of_torch, of_trace


class Remote:
    """A side in its own process, which begins to make its network at once.  Raises ChildError for what fails there."""

    def __init__(self, task: Task) -> None:
        self.task = task
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).resolve())]
        self.worked = 0.0  # processor seconds of its steps
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, bufsize=1
        )
        self._send(asdict(task))

    def ready(self) -> None:
        """Wait until the network is made."""
        self._answer()

    def steps(self, count: int, sgd: str = "") -> tuple[list[float], float]:
        """(seconds of so many steps, the loss of the first)."""
        found = self._ask("steps", count=count, sgd=sgd)
        self.worked += found["worked"]
        return found["seconds"], found["loss"]

    def layers(self, sgd: str = "") -> LayerTimes:
        """Seconds of each layer in one step."""
        return {(layer, phase): seconds for layer, phase, seconds in self._ask("layers", sgd=sgd)}

    def threads(self, count: int) -> None:
        """Take so many threads from now on; vdnn makes its network anew, with its first weights."""
        self._ask("threads", count=count)

    def peak(self) -> int:
        """Bytes at most resident so far."""
        found: int = self._ask("peak")
        return found

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process.wait()

    def _ask(self, name: str, **how: Any) -> Any:
        self._send({"do": name, **how})
        return self._answer()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: there will be no answer, which is said
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        who = f"{self.task.side} on {self.task.case}"
        if not said:
            raise ChildError(f"{who}: its process ended with {self._process.wait()}")
        found = json.loads(said)
        if found["error"]:
            raise ChildError(f"{who}: {found['error']}")
        return found["answer"]


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


def answer(side: Any, question: dict[str, Any]) -> Any:
    """What is answered to a question."""
    match question:
        case {"do": "steps", "count": count, "sgd": sgd}:
            seconds, losses, before = [], [], time.process_time()
            for _ in range(count):
                began = time.perf_counter()
                losses.append(side.step(sgd))
                seconds.append(time.perf_counter() - began)
            return {"seconds": seconds, "loss": losses[0], "worked": time.process_time() - before}
        case {"do": "layers", "sgd": sgd}:
            return [(*key, seconds) for key, seconds in side.layers(sgd).items()]
        case {"do": "threads", "count": count}:
            return side.threads(count)
        case {"do": "peak"}:
            from vdnn.resident import peak_resident_bytes

            return peak_resident_bytes()
    raise ValueError(f"no question is {question}")


def made(task: Task) -> Any:
    """The side of that task."""
    from cpu_cases import Case

    case = Case(**{**task.case, "image": tuple(task.case["image"])})
    return VdnnSide(task, case) if task.side == "vdnn" else TorchSide(task, case)


def main() -> None:
    """Answer until there are no more questions."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    side = None
    for line in sys.stdin:
        try:
            question = json.loads(line)
            if side is None:
                side, found = made(Task(**question)), None
            else:
                found = answer(side, question)
            said = {"error": "", "answer": found}
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"[:500], "answer": None}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(said), file=answers, flush=True)
    os._exit(0)  # the network's memory need not be given back in order


if __name__ == "__main__":
    main()

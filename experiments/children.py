"""Processes that answer: a command and its answer are a line of JSON each."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TextIO


class ChildError(RuntimeError):
    """The other process failed, or did not answer in time."""


class Child:
    """The other process: its commands have a name, `do`; its answers `error` if it could not."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        self.process = subprocess.Popen(list(command), text=True, env=environment, **pipes)  # type: ignore[call-overload]
        self.answers: queue.Queue[str] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.said = ""  # the end of what it wrote to stderr, once it has ended

    def _read(self) -> None:
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")

    def ask(self, seconds: float, **command: Any) -> dict[str, Any]:
        """Its answer.  Raises ChildError if it refuses, has ended, or takes longer than that; then it is ended."""
        self.tell(**command)
        return self.answer(seconds, command["do"])

    def tell(self, **command: Any) -> None:
        """Have it begin; it must be asked for its answer before the next command."""
        with suppress(OSError, ValueError):  # its end of the pipe is closed, or ours is: there will be no answer
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()

    def answer(self, seconds: float, what: str) -> dict[str, Any]:
        """Its answer to what it was told."""
        try:
            line = self.answers.get(timeout=seconds)
        except queue.Empty:
            self.close(kill=True)
            raise ChildError(f"no answer to {what!r} in {seconds:.0f} s: {self.said}") from None
        if not line:
            self.answers.put(line)  # nor will there be an answer to the next command
            self.close(kill=True)
            raise ChildError(f"it ended: {self.said}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise ChildError(found["error"])
        return found

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.process.poll() is None

    def close(self, kill: bool = False) -> None:
        """End it: by itself, or else by force."""
        if self.log.closed:
            return
        if kill:
            self.process.kill()
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join(10)
        self.process.stdout.close()
        self.log.seek(0)
        self.said = " ".join(self.log.read()[-1500:].split())
        self.log.close()


# ---- in the child


def answers_apart() -> TextIO:
    """Where answers go; whatever a library prints to standard output from now on goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers

"""Run: what a device gives back when it begins a step, and what walking, tracing and undoing a step ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Run(Protocol):
    """One step under way on a device.

    Steps are issued in plan order.  Each starts after all steps in its `waits` have finished and after the one before
    it on its stream.  After a failure nothing more is started, and `wait` raises what failed.
    """

    is_open: bool  # set to False by whoever began the run, when nothing will be asked of it any more

    @property
    def start(self) -> Sequence[float | None]:
        """Seconds from the beginning of the step at which each of the plan's steps began; None if it is not timed."""

    @property
    def finish(self) -> Sequence[float | None]:
        """When each ended."""

    @property
    def error(self) -> BaseException | None:
        """What failed, if anything did."""

    @property
    def failed_at(self) -> int:
        """The place of the step that failed; -1 while none has."""

    @property
    def active(self) -> int:
        """Something true while any stream may still be at work."""

    def issue(self, stream: str) -> None:
        """Let the next step of the plan go, which is on `stream`."""

    def issue_all(self) -> None:
        """Let all steps go."""

    def wait(self) -> None:
        """Return when all that was issued has ended.  Raises what failed."""

    def cancel(self) -> None:
        """Start nothing more."""

    def started(self, index: int) -> bool:
        """Whether that step may have begun, so that what it writes may be half written."""

    def finished(self, index: int) -> bool:
        """Whether that step has ended well."""

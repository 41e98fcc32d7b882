"""walk and execute: run a plan on a device; begin: issue one, and come back for its end."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from vdnn.memory.plan import Plan
from vdnn.memory.run import Run
from vdnn.memory.trace import Event, Trace

if TYPE_CHECKING:
    from vdnn.memory.device import Device


def walk(plan: Plan, device: Device) -> Iterator[Event]:
    """Run one step of training and yield an event for each step of the plan, in plan order, as it is issued.

    An event's start and finish are set by the end of the step; `device.bytes_in_use` is what the plan has allocated at
    this point.  If anything fails, or the loop is left early, the streams are stopped, what was overwritten is put back
    from its undo copy, and the error is raised.
    """
    live = plan.live_bytes
    with _run_of(plan, device, timed=True, apart=True) as (run, events):
        for event in events:
            device.bytes_in_use = live[event.index]
            if event.step.kind not in ("alloc", "free"):
                run.issue(event.stream)
            yield event
        run.wait()


def execute(plan: Plan, device: Device, apart: bool = False) -> Trace:
    """Run one step of training to its end; Ctrl-C is held until then.  Returns what happened when.

    The same as exhausting `walk`, but all steps are issued at once, so that nothing but compute is busy meanwhile, and
    a device may do two ops in one pass over memory, with the same bits: one of them then takes no time.

    apart   run every op by itself, as `walk` does, so that each takes its own time
    """
    with interrupt_held():
        trace = begin(plan, device, timed=True, apart=apart).finish()
    assert trace is not None
    return trace


def begin(plan: Plan, device: Device, timed: bool, apart: bool = False) -> Pending:
    """Issue one whole step of training.  On a device that is asynchronous it may still run when this returns.

    timed   record when each of the plan's steps begins and ends, which takes a GPU some time of its own
    apart   see `execute`
    """
    with ExitStack() as stack:
        run, events = stack.enter_context(_run_of(plan, device, timed, apart))
        run.issue_all()
        return Pending(plan, run, events if timed else None, stack.pop_all())


class Pending:
    """A step that was issued, and ends some time."""

    def __init__(self, plan: Plan, run: Run, events: list[Event] | None, stack: ExitStack) -> None:
        self.plan, self._run, self._events, self._stack = plan, run, events, stack

    def finish(self) -> Trace | None:
        """Wait for the end; what happened when, if the step is timed.

        Raises what failed, after what was overwritten has been put back.
        """
        with self._stack:
            self._run.wait()
        return None if self._events is None else Trace(self.plan, self._events, "measured")


@contextmanager
def _run_of(plan: Plan, device: Device, timed: bool, apart: bool) -> Iterator[tuple[Run, list[Event]]]:
    """A step begun on the device, and its events if it is timed; whatever goes wrong in the block, nothing stays half
    done.
    """
    events = [Event(i, step, step.stream, None, None) for i, step in enumerate(plan.steps)] if timed else []
    run = device.start(plan, timed, apart)
    try:
        yield run, events
    except BaseException as error:
        if sys.is_finalizing():  # a step that nobody waited for: the device goes with the process
            raise
        _stop(run)
        why = device.restore(plan, run)
        if why:
            error.add_note(f"the weights could not be put back: {why}")
        if run.failed_at >= 0 and error is run.error:
            error.add_note(f"in step {run.failed_at} of the plan: {plan.steps[run.failed_at]}")
        raise
    finally:
        device.bytes_in_use = plan.tape.resident_bytes
        for event in events:
            event.start, event.finish = run.start[event.index], run.finish[event.index]
        run.is_open = False


def _stop(run: Run) -> None:
    run.cancel()
    while run.active:
        try:
            run.wait()
        except BaseException:  # it is being raised already
            continue


@contextmanager
def interrupt_held() -> Iterator[None]:
    """Hold Ctrl-C until the block ends, so that a step is whole; only the main thread gets it, and can hold it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)
        for number in caught:
            signal.raise_signal(number)  # for a hold around this one, or else KeyboardInterrupt

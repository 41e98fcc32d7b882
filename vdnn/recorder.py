"""Recording of many steps in bounded space: the last ones event by event, all of them in sums."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vdnn.memory.chrome import Record, as_text, metadata, micro, step_records, write_trace
from vdnn.records import Table
from vdnn.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from vdnn.memory.trace import Trace
    from vdnn.train import Trainer

MOST_SUMS = 16384  # rows of sums that are kept; then two neighbours become one, again and again
SUMS_PROCESS = 2  # in a trace: the steps in full are 1


class RecordingError(ValueError):
    """A recording that cannot be: no steps to keep, or nothing recorded."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What `count` steps from step `first` on took together, in measured seconds and bytes.

    begin, finish   of the first and the last, in seconds since recording began
    loss            the mean of their losses
    """

    first: int
    count: int
    begin: float
    finish: float
    seconds: float
    stall_seconds: float
    copy_seconds: float
    offloaded_bytes: int
    prefetched_bytes: int
    loss: float

    def __add__(self, later: Sums) -> Sums:
        count = self.count + later.count
        return Sums(
            self.first,
            count,
            self.begin,
            later.finish,
            self.seconds + later.seconds,
            self.stall_seconds + later.stall_seconds,
            self.copy_seconds + later.copy_seconds,
            self.offloaded_bytes + later.offloaded_bytes,
            self.prefetched_bytes + later.prefetched_bytes,
            (self.count * self.loss + later.count * later.loss) / count,
        )


class _Kept(NamedTuple):
    number: int
    begin: float
    trace: Trace


class Recorder:
    """Records the steps of a trainer from when it is made to `stop`, or in a `with` block; see `record`.

    last   how many steps are kept in full: `traces`, the newest last
    sums   for each step, or from 16,384 rows on for each two, four, ..., what it took
    """

    def __init__(self, trainer: Trainer, last: int = 3) -> None:
        if isinstance(last, bool) or not isinstance(last, int) or last < 1:
            raise RecordingError(f"last={last!r}: how many steps are kept in full is a whole number from 1 on")
        self.trainer = trainer
        self.sums: list[Sums] = []
        self._kept: deque[_Kept] = deque(maxlen=last)
        self._began = time.perf_counter()
        self._was_timed = trainer.device.timed
        trainer.device.timed = True
        trainer.observers.append(self._observe)

    def stop(self) -> None:
        """Record no further steps; what was recorded stays."""
        if self._observe in self.trainer.observers:
            self.trainer.settle()
            self.trainer.observers.remove(self._observe)
            owners = (getattr(observer, "__self__", None) for observer in self.trainer.observers)
            others = [owner for owner in owners if isinstance(owner, Recorder)]
            for other in others:  # the last to stop leaves the device as the first found it
                other._was_timed = other._was_timed and self._was_timed
            if not others:
                self.trainer.device.timed = self._was_timed

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def steps(self) -> int:
        """How many steps were recorded."""
        return sum(row.count for row in self.sums)

    @property
    def traces(self) -> list[Trace]:
        """The traces of the last steps, the newest last."""
        return [kept.trace for kept in self._kept]

    def _observe(self, trace: Trace, loss: float) -> None:
        now, last = time.perf_counter() - self._began, self.sums[-1].finish if self.sums else 0.0
        begin = max(last, now - trace.step_seconds)  # a step seen late began after the one before it, no earlier
        moved = trace.moved_bytes
        stalled = sum(stall.seconds for stall in trace.stalls)
        number, finish = self.trainer.steps_done, begin + trace.step_seconds
        took = (trace.step_seconds, stalled, trace.copy_seconds, moved["offload"], moved["prefetch"])
        self.sums.append(Sums(number, 1, begin, finish, *took, loss))
        self._kept.append(_Kept(number, begin, trace))
        if len(self.sums) > MOST_SUMS:
            odd = self.sums[len(self.sums) // 2 * 2 :]
            self.sums = [a + b for a, b in zip(self.sums[::2], self.sums[1::2], strict=False)] + odd

    # ---- what was recorded

    def table(self) -> Table:
        """The sums as a Table: a row for each step, or for so many as "steps" says."""
        columns = (
            *("step", "steps", "begin_seconds_measured", "finish_seconds_measured", "step_seconds_measured"),
            *("stall_seconds_measured", "copy_seconds_measured", "offloaded_bytes", "prefetched_bytes", "loss"),
        )
        rows = tuple(tuple(getattr(row, name) for name in Sums.__slots__) for row in self.sums)
        return Table(columns, rows, f"steps of {self.trainer.net.name}, measured")

    def to_chrome(self, path: str | os.PathLike[str], limit: int | str = "20MB") -> Path:
        """Write what was recorded for https://ui.perfetto.dev, compressed if the name ends in .gz; the path.

        The last steps are as in `Trace.to_chrome`; all are slices on a thread of their own, with their sums.  Where
        this would take more than `limit` bytes before it is compressed, the oldest of the steps in full are left out.
        Raises RecordingError if nothing was recorded, or the sums alone take more.
        """
        if not self._kept:
            raise RecordingError("no step was recorded; train some between record(trainer) and this")
        most = parse_bytes(limit)
        records = [*metadata(self._kept[-1].trace), *_sum_records(self.sums)]
        size = len(as_text("measured", records))
        if size > most:
            raise RecordingError(f"the sums alone take {format_bytes(size)}, the limit is {format_bytes(most)}")
        full: list[list[Record]] = []
        for kept in reversed(self._kept):
            step = list(step_records(kept.trace, kept.begin, kept.number, is_last=not full))
            size += len(as_text("measured", step))
            if size > most:
                break
            full.append(step)
        records += [record for step in reversed(full) for record in step]
        return write_trace(as_text("measured", records), path)

    def __repr__(self) -> str:
        return f"Recorder({self.steps} steps, the last {len(self._kept)} in full)"


def _sum_records(sums: list[Sums]) -> Iterator[Record]:
    where: Record = {"pid": SUMS_PROCESS, "tid": 1}
    yield {"ph": "M", "pid": SUMS_PROCESS, "name": "process_name", "args": {"name": "every step (measured)"}}
    yield {"ph": "M", **where, "name": "thread_name", "args": {"name": "steps"}}
    for row in sums:
        title = f"step {row.first}" + (f" to {row.first + row.count - 1}" if row.count > 1 else "")
        start, finish = micro(row.begin), micro(row.finish)
        names = ("stall_seconds", "copy_seconds", "offloaded_bytes", "prefetched_bytes", "loss")
        arguments: dict[str, Any] = {name: _short(getattr(row, name)) for name in names}
        times = {"ts": start, "dur": round(finish - start, 3)}
        yield {"ph": "X", **where, "name": title, "cat": "step", **times, "args": {"steps": row.count, **arguments}}
        yield {"ph": "C", "pid": SUMS_PROCESS, "name": "step, mean", "ts": start, "args": {"ms": _mean_ms(row)}}


def _mean_ms(row: Sums) -> float:
    return round(1e3 * row.seconds / row.count, 4)


def _short(value: float) -> float:
    """Enough digits for people."""
    return value if isinstance(value, int) else float(f"{value:.6g}")


def record(trainer: Trainer, last: int = 3) -> Recorder:
    """Record what the steps of a trainer do from now on, in bounded space: the last so many steps event by event, and
    of every step its times, bytes and loss.

        with vdnn.record(trainer, last=5) as recorder:
            trainer.fit(images, labels, epochs=10)
        recorder.to_chrome("run.json.gz")       # opens in https://ui.perfetto.dev
        recorder.table().to_csv("steps.csv")

    Raises RecordingError if `last` is no whole number from 1 on.
    """
    return Recorder(trainer, last)

"""What cpu_memory.py says: lines of its CSV, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from cpu_cases import Case
from rich.table import Table

from vdnn.units import format_bytes

COLUMNS = (
    *("network", "batch", "image", "threads", "side", "way", "share", "target_bytes"),
    *("peak_resident_bytes_measured", "peak_over_torch", "step_seconds_measured", "time_over_torch"),
    *("micro_batches", "ops_run_again", "offloaded_bytes", "disk_bytes", "arena_bytes", "within_target", "note"),
)


@dataclass(frozen=True)
class Row:
    """One side at the common batch; `found` is the child's answer."""

    case: Case
    threads: int
    side: str
    way: str
    share: str
    target: int  # bytes, 0: none
    found: dict[str, Any]

    @property
    def seconds(self) -> float:
        """The median step but the first; nan if there was none."""
        return median(self.found["seconds"][1:]) if "seconds" in self.found else float("nan")

    @property
    def peak(self) -> int:
        """Bytes at most resident, 0 if it did not run."""
        return int(self.found.get("peak", 0))

    def cells(self, torch: Row) -> tuple[object, ...]:
        """The line of the CSV."""
        about = self.case.network, self.case.batch, self.case.shape, self.threads, self.side, self.way, self.share
        told = [self.found.get(key, "") for key in ("micro_batches", "recomputed", "offloaded", "disk", "arena")]
        if not self.peak:
            return *about, self.target or "", *[""] * 4, *told, False, self.found["error"]
        times = f"{self.seconds:.4f}", f"{self.seconds / torch.seconds:.3f}"
        figures = self.peak, f"{self.peak / torch.peak:.3f}", *times
        return *about, self.target or "", *figures, *told, not self.target or self.peak <= self.target, ""


def table_of(rows: Sequence[Row]) -> Table:
    """What is printed of one network."""
    torch = rows[0]
    table = Table(title=f"{torch.case.network}, batch {torch.case.batch}, {torch.threads} threads, measured")
    for column in ("side", "way", "target", "peak resident", "of torch's", "step s", "of torch's", "parts", "to disk"):
        table.add_column(column, justify="left" if column in ("side", "way") else "right")
    for row in rows:
        target = f"{row.share} {format_bytes(row.target)}" if row.target else ""
        if not row.peak:
            table.add_row(row.side, row.way, target, "does not fit")
            continue
        peak = format_bytes(row.peak) + (" (more)" if row.target and row.peak > row.target else "")
        shares = f"{row.peak / torch.peak:.3f}", f"{row.seconds:.2f}", f"{row.seconds / torch.seconds:.2f}"
        disk = row.found.get("disk", 0)
        parts = str(row.found.get("micro_batches", ""))
        table.add_row(row.side, row.way, target, peak, *shares, parts, format_bytes(disk) if disk else "")
    return table

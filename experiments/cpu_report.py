"""What cpu_speed.py says: lines of its CSV, its tables, the limits that are wanted and which of them are missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from rich.console import Console
from rich.table import Table

from vdnn.units import format_bytes

COLUMNS = (
    *("network", "batch", "image", "threads", "side", "kernels", "layout", "sgd"),
    *("step_seconds_measured", "lower_quartile_seconds", "upper_quartile_seconds", "steps", "others_cores"),
    *("ratio_to_better_fused_torch", "ratio_to_default_torch", "peak_resident_bytes_measured", "first_loss"),
)
WIDTH = 140  # columns of text where output goes to a file
LOSSES = 1e-3  # relative: how far first losses of the same network may differ
# the most that a step may take, over PyTorch's in its better layout with its fused SGD, with two threads
LIMITS = {
    ("vgg11", "numpy"): 0.60,
    ("vgg16", "numpy"): 0.60,
    ("vgg11", "fast"): 0.50,
    ("vgg16", "fast"): 0.50,
    ("resnet18", "fast"): 0.8,
    ("resnet50", "fast"): 1.0,
    ("alexnet", "fast"): 1.1,
    ("googlenet", "fast"): 1.1,
    ("small_vgg", "fast"): 1.0,
    ("resnet20", "fast"): 1.4,
}


@dataclass(frozen=True)
class Line:
    """One side of one network with one number of threads; `kernels` are vdnn's, `layout` and `sgd` PyTorch's."""

    network: str
    batch: int
    image: str
    threads: int
    side: str
    kernels: str
    layout: str
    sgd: str
    seconds: tuple[float, ...]  # of every step that counted
    first_loss: float
    others: float  # cores that other processes took, the median over rounds
    peak: int = 0  # bytes; 0 if it was not looked at

    @property
    def typical(self) -> float:
        """The median of its steps, in seconds."""
        return median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of its steps, in seconds; least and most where there are few."""
        if len(self.seconds) < 4:
            return min(self.seconds), max(self.seconds)
        first, _, third = quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    def cells(self, lines: Sequence[Line]) -> tuple[object, ...]:
        """The line of the CSV; `lines` are those of all sides."""
        about = self.network, self.batch, self.image, self.threads, self.side, self.kernels, self.layout, self.sgd
        times = tuple(f"{n:.6f}" for n in (self.typical, *self.spread))
        ratios = tuple(f"{self.typical / other.typical:.3f}" for other in (better(lines), default(lines)))
        rest = self.peak or "", f"{self.first_loss:.7g}"
        return *about, *times, len(self.seconds), f"{self.others:.2f}", *ratios, *rest


def better(lines: Sequence[Line]) -> Line:
    """PyTorch with its fused SGD in the layout that is the faster."""
    return min((line for line in lines if line.sgd == "fused"), key=lambda line: line.typical)


def default(lines: Sequence[Line]) -> Line:
    """PyTorch with its default SGD."""
    return next(line for line in lines if line.sgd == "default")


def missed(lines: Sequence[Line]) -> list[str]:
    """The limits that these lines do not keep; there are some for two threads alone."""
    found = []
    for line in lines:
        limit = LIMITS.get((line.network, line.kernels))
        ratio = line.typical / better(lines).typical
        if limit is not None and line.threads == 2 and ratio > limit:
            found.append(f"{line.network} with {line.side}: {ratio:.2f} of PyTorch's time, at most {limit:.2f} wanted")
    return found


def faults(lines: Sequence[Line]) -> list[str]:
    """Sides whose first losses differ from PyTorch's."""
    expected = better(lines).first_loss
    wrong = [line for line in lines if not abs(line.first_loss - expected) <= LOSSES * abs(expected)]
    return [f"{line.network} {line.side}: first loss {line.first_loss}, PyTorch's {expected}" for line in wrong]


def wide_console() -> Console:
    """A console whose tables keep their lines whole in a file too."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def table_of(lines: Sequence[Line]) -> Table:
    """What is printed of one network with one number of threads."""
    first = lines[0]
    about = f"{first.network}, batch {first.batch} of {first.image}, {first.threads} threads, measured"
    table = Table(title=f"{about}; others took {first.others:.2f} cores")
    heads = "side", "step s", "quartiles", "steps", "over better torch, fused", "over torch, default", "peak resident"
    for column in heads:
        table.add_column(column, justify="left" if column == "side" else "right")
    for line in lines:
        low, high = line.spread
        ratios = (f"{line.typical / other.typical:.2f}" for other in (better(lines), default(lines)))
        peak = format_bytes(line.peak) if line.peak else ""
        table.add_row(
            line.side, f"{line.typical:.4f}", f"{low:.4f} to {high:.4f}", str(len(line.seconds)), *ratios, peak
        )
    return table

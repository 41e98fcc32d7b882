"""What if link and arithmetic were others?  How much of the copying hides then, and where recompute beats offload.

    python experiments/paper/whatif.py

No figure of the paper, but its question put to the machines that came after it.  A step of VGG-16 (256) and one of
ResNet-152 (64) are planned and simulated over a plane, with links from PCIe 3 (12.8 GB/s attained) to NVLink-C2C (375)
and arithmetic from the Titan X's 7 TFLOPS to the 500 of an H100's tensor cores in TF32; and on real machines.

How: our rules, everything counted, SGD without momentum, fp32 tensors.  Kernels are cuDNN 4's as the paper timed them,
at rates relative to the Titan X's arithmetic: convolutions are as much faster as arithmetic is.  Real kernels gain less
and so hide more.  Other ops are bound by the device's memory.  Its bandwidth over the plane is a power of arithmetic,
a straight line in logarithms through all machines (`memory_bandwidth`); a real machine has its own, so its point may
differ in colour from the ground around it.  Launches (5 us), a copy's latency (10 us) and the share of peaks that is
attained (70 %) are those that hardware.json gives to all.  In BF16 a copy would be of half the bytes as well.

    vdnn_all, vdnn_conv   the paper's; each copy is timed by the cost model of its point
    checkpoint            recompute: about every sqrt(n)-th map stays, the rest is run again; nothing is copied
    keep_all              nothing is copied or run again
    within                on machines only: vdnn_all, but the X of the last layers, of as many as there is room for
                          within checkpoint's peak, stay

Recompute against offload is a question of memory, too.  A line where both are equally fast is solid where recompute
needs no more memory than the plan it is compared with, so that it wins beyond, and dashed where it is faster but
larger.  On machines it is compared with the fastest of the three offloading plans that need no more than it does.

Images are copied in as well, in all plans and in the oracle; nothing hides them, so keep_all hides nothing.  Plans are
laid out without a search for the smallest arena (effort 0), which moves a step's time by about 1 %; peaks are exact.

Thin lines are the hiding rule: a 3x3 CONV does 4.5 C_out FLOP for each byte of its X (2 x 9 x C_in x C_out for each
4 x C_in), so its forward hides the copy of its X where the machine does no more FLOP while it copies a byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from math import exp
from pathlib import Path

import click
from published import MIB, Pair
from reporting import Result, console_table, read_csv, write_csv
from rich.console import Console
from whatif_picture import draw
from whatif_plans import (
    COLUMNS,
    NETWORKS,
    OFFLOADING,
    Found,
    bandwidth_line,
    everywhere,
    hiding_channels,
    machines,
    on_machines,
)

HERE = Path(__file__).parent


def read(path: str | Path) -> list[Found]:
    """The steps of a file that `main` wrote."""
    kinds = {field.name: {"int": int, "float": float, "str": str}[field.type] for field in fields(Found)}
    return [Found(**{name: kinds[name](text) for name, text in row.items()}) for row in read_csv(path)]


def write(path: str | Path, found: Iterable[Found]) -> Path:
    """Write steps as CSV."""
    slope, height = bandwidth_line()
    about = (
        "what if: our rules, everything counted, SGD, cuDNN 4's kernels by arithmetic; simulated; where no machine is "
        f"named, memory bandwidth is {exp(height):.5g} x (FLOP per second)^{slope:.4f}, a line through the machines"
    )
    return write_csv(path, (asdict(each) for each in found), COLUMNS, about)


def in_no_more_memory(found: Mapping[str, Found]) -> Found:
    """Of one place's steps {policy: step} the fastest that offloads and has no higher peak than recompute.

    Raises ValueError if all need more.
    """
    most = found["checkpoint"].peak_bytes
    fitting = [found[policy] for policy in OFFLOADING if policy in found and found[policy].peak_bytes <= most]
    if not fitting:
        raise ValueError(f"no offloading plan of {found['checkpoint'].network} needs at most {most} bytes")
    return min(fitting, key=lambda each: each.simulated_step_seconds)


def results(pairs: tuple[Pair, ...] = NETWORKS) -> list[Result]:
    """Of each machine and network what hides, and recompute against offload; of each machine the hiding rule."""
    found = []
    for pair in pairs:
        for name in machines():
            found += _results({e.policy: e for e in on_machines(pairs) if (e.network, e.machine) == (pair[0], name)})
    for name, cost in machines().items():
        channels = hiding_channels(cost, min(cost.offload_bytes_per_second, cost.prefetch_bytes_per_second))
        note = f"{cost.attained:.0%} of {cost.flops_per_second / 1e12:g} TFLOPS; the slower way of the link"
        quantity = f"{name}: C_out from which a 3x3 CONV hides its X"
        found.append(Result("What if", "any", None, quantity, "channels", None, channels, "exact", note=note))
    return found


def _results(found: Mapping[str, Found]) -> Iterator[Result]:
    """One machine's."""
    recompute, rival = found["checkpoint"], in_no_more_memory(found)
    where = ("What if", recompute.network, recompute.batch)
    for policy in ("vdnn_all", "vdnn_conv"):
        each, start = found[policy], f"{recompute.machine}: {policy}"
        hidden, performance = each.simulated_hidden_copy_fraction, each.simulated_performance
        yield Result(*where, f"{start}, copying that hides", "share", None, hidden, "simulated")
        yield Result(*where, f"{start}, performance", "ratio", None, performance, "simulated")
    ratio = rival.simulated_step_seconds / recompute.simulated_step_seconds
    note = (
        f"{rival.policy}, {rival.peak_bytes / MIB:,.0f} MiB, against checkpoint, "
        f"{recompute.peak_bytes / MIB:,.0f} MiB; above 1 recompute is faster"
    )
    quantity = f"{recompute.machine}: offload's time over recompute's, in no more memory"
    yield Result(*where, quantity, "ratio", None, ratio, "simulated", note=note)


@click.command()
def main() -> None:
    """Plan and simulate everything: print the machines, and write results/whatif.csv and pictures/whatif.png."""
    Console().print(console_table(results()))
    path = write(HERE / "results" / "whatif.csv", everywhere())
    draw(read(path), HERE / "pictures")


if __name__ == "__main__":
    main()

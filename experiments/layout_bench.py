"""How tight and how fast arena layouts are: training steps of known networks, and small cases against the optimum.

    python experiments/layout_bench.py [--quick] [--effort UNITS] [--target RATIO]

Each step is a list of lifetimes as a planner would make it: maps, pooling indices, gradients, workspaces, weights;
batch 32, 224 x 224, float32. A map has one of three fates between forward and backward: kept ("K", one lifetime),
offloaded ("O", two), dropped and rerun ("D", one per making).
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vdnn.memory.layout import Lifetime, extent, peak, place
from vdnn.tape import GRANULE

MIB = 1 << 20
BATCH = 32


@dataclass
class Op:
    """One layer: makes map `y` (bytes) from the maps of the ops in `reads`; `saves` are the maps its backward reads."""

    reads: tuple[int, ...]
    saves: tuple[int, ...]
    y: int
    index: int = 0  # bytes of pooling indices, kept until backward
    weight: int = 0  # bytes


@dataclass
class Net:
    """A network as ops in forward order; op 0 is the input."""

    ops: list[Op] = field(default_factory=list)
    shapes: list[tuple[int, int]] = field(default_factory=list)  # (channels, side) of each map

    def add(self, reads: tuple[int, ...], channels: int, side: int, saves: tuple[int, ...], **bytes_: int) -> int:
        """Adds an op whose map has channels x side x side numbers an image; gives back its number."""
        self.ops.append(Op(reads, saves, 4 * BATCH * channels * side * side, **bytes_))
        self.shapes.append((channels, side))
        return len(self.ops) - 1

    def conv(self, x: int, channels: int, kernel: int = 3, stride: int = 1) -> int:
        """Convolution with in-place ReLU: backward reads x and y."""
        c, side = self.shapes[x]
        return self.add((x,), channels, side // stride, (x, len(self.ops)), weight=4 * c * channels * kernel * kernel)

    def conv_bn(self, x: int, channels: int, kernel: int, stride: int = 1) -> int:
        """Convolution, then batch normalisation with in-place ReLU (its backward reads its x and y)."""
        c, side = self.shapes[x]
        z = self.add((x,), channels, side // stride, (x,), weight=4 * c * channels * kernel * kernel)
        return self.add((z,), channels, side // stride, (z, len(self.ops)), weight=16 * channels)

    def pool(self, x: int, stride: int = 2) -> int:
        """Max pooling: backward reads one byte of index per output."""
        c, side = self.shapes[x]
        return self.add((x,), c, side // stride, (), index=BATCH * c * (side // stride) ** 2)

    def join(self, *xs: int, concat: bool = False) -> int:
        """Sum with in-place ReLU (backward reads y) or concatenation (reads nothing)."""
        channels = sum(self.shapes[x][0] for x in xs) if concat else self.shapes[xs[0]][0]
        return self.add(xs, channels, self.shapes[xs[0]][1], () if concat else (len(self.ops),))

    def dense(self, x: int, features: int) -> int:
        """Fully connected, with in-place ReLU."""
        c, side = self.shapes[x]
        return self.add((x,), features, 1, (x, len(self.ops)), weight=4 * c * side * side * features)


def vgg(*convolutions: int) -> Net:
    net = Net()
    x = net.add((), 3, 224, ())
    for count, channels in zip(convolutions, (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            x = net.conv(x, channels)
        x = net.pool(x)
    for features in (4096, 4096, 1000):
        x = net.dense(x, features)
    return net


def resnet(*blocks: int, bottleneck: bool) -> Net:
    net = Net()
    x = net.pool(net.conv_bn(net.add((), 3, 224, ()), 64, 7, 2))
    for stage, count in enumerate(blocks):
        for block in range(count):
            width, stride = 64 << stage, 2 if stage and not block else 1
            out = 4 * width if bottleneck else width
            y = net.conv_bn(x, width, 1 if bottleneck else 3, 1 if bottleneck else stride)
            y = net.conv_bn(y, width, 3, stride if bottleneck else 1)
            if bottleneck:
                y = net.conv_bn(y, out, 1)
            shortcut = x if net.shapes[x] == net.shapes[y] else net.conv_bn(x, out, 1, stride)
            x = net.join(y, shortcut)
    net.dense(net.pool(x, 7), 1000)
    return net


def googlenet() -> Net:
    net = Net()
    x = net.pool(net.conv(net.add((), 3, 224, ()), 64, 7, 2))
    x = net.pool(net.conv(net.conv(x, 64, 1), 192))
    tables = (
        (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128),
        (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
    )  # fmt: skip
    for number, (a, b1, b, c1, c, d) in enumerate(tables):
        b_out, c_out = net.conv(net.conv(x, b1, 1), b), net.conv(net.conv(x, c1, 1), c, 5)
        x = net.join(net.conv(x, a, 1), b_out, c_out, net.conv(net.pool(x, 1), d, 1), concat=True)
        x = net.pool(x) if number in (1, 6) else x
    net.dense(net.pool(x, 7), 1000)
    return net


def order_of_ops(net: Net, fates: str) -> list[tuple[str, int]]:
    """Forward, then backward with the reruns that bring back dropped maps: [("F", 0), ..., ("R", 3), ("B", 4), ...]."""
    plan = [("F", i) for i in range(len(net.ops))]
    present = {i for i, fate in enumerate(fates) if fate != "D"}

    def bring(i: int) -> None:
        missing = [i]
        while missing:
            absent = [j for j in net.ops[missing[-1]].reads if j not in present]
            if absent:
                missing.append(absent[0])
                continue
            plan.append(("R", missing[-1]))
            present.add(missing.pop())

    for i in range(len(net.ops) - 1, 0, -1):
        for j in net.ops[i].saves:
            if j not in present:
                bring(j)
        plan.append(("B", i))
    return plan


def lifetimes(net: Net, fates: str, workspace: Callable[[], int], lead: int = 1) -> list[Lifetime]:
    """One step's lifetimes in bytes; a gradient goes from the first backward that adds to it to its map's own backward.

    An offloaded map leaves one op after its last forward use and is back `lead` ops before its first use in backward.
    """
    plan = order_of_ops(net, fates)
    turn = len(net.ops)
    spans: list[tuple[int, int, int]] = []  # start, stop, bytes
    uses: dict[tuple[int, int], list[int]] = {}  # (map, number of its making) -> positions
    making = [0] * len(net.ops)
    gradient: dict[int, int] = {}
    for at, (kind, i) in enumerate(plan):
        op = net.ops[i]
        spans.append((at, at + 1, workspace()))
        if kind == "R":
            making[i] += 1
        for j in (*op.reads, i) if kind != "B" else op.saves:
            away = fates[j] == "O" and at >= turn
            uses.setdefault((j, -1 if away else making[j]), []).append(at)
        if kind == "B":
            spans.append((at, at + 1, op.weight))
            spans.append((gradient.pop(i, at), at + 1, op.y))
            for j in op.reads:
                gradient.setdefault(j, at)
            if op.index:
                spans.append((i, at + 1, op.index))
    spans += [(0, len(plan), op.weight) for op in net.ops]
    for (j, number), positions in uses.items():
        early = lead if number == -1 else 0
        late = 1 if fates[j] == "O" and number != -1 else 0
        spans.append((positions[0] - early, positions[-1] + 1 + late, net.ops[j].y))
    return [Lifetime(a, b, -(-n // GRANULE) * GRANULE) for a, b, n in spans if n]


def fixed_fates(net: Net) -> dict[str, str]:
    """The fixed policies, one letter a map."""
    count = len(net.ops)
    every = max(2, round(count**0.5))
    convs = {i for op in net.ops if op.weight > 0 for i in op.reads}
    return {
        "keep all": "K" * count,
        "offload all": "O" * count,
        "offload conv": "".join("O" if i in convs else "K" for i in range(count)),
        "checkpoint": "".join("K" if i % every == 0 else "D" for i in range(count)),
        "mixed": "".join(random.Random(count).choices("KOD", (2, 2, 1), k=count)),
    }


def workspaces(seed: int) -> dict[str, Callable[[], int]]:
    """Workspace of each op, bytes: random up to 60 MiB, or 1 MiB each."""
    draw = random.Random(seed)
    return {"0-60 MiB": lambda: draw.randrange(0, 60 * MIB) if draw.random() < 0.7 else 0, "1 MiB": lambda: MIB}


def networks(quick: bool) -> dict[str, Net]:
    named = {
        "vgg16": vgg(2, 2, 3, 3, 3), "vgg19": vgg(2, 2, 4, 4, 4), "vgg416": vgg(82, 82, 83, 83, 83),
        "resnet18": resnet(2, 2, 2, 2, bottleneck=False), "resnet50": resnet(3, 4, 6, 3, bottleneck=True),
        "googlenet": googlenet(),
    }  # fmt: skip
    return {k: v for k, v in named.items() if k != "vgg416"} if quick else {**named, "vgg10000": vgg(*[2000] * 5)}


def optimum(spans: list[Lifetime]) -> int:
    """The least extent (bytes), exact, for a handful of lifetimes: every order, each put on top of those before it.

    Let a best layout sink, and take it by offset: each lies on the ground or on one before it, and offsets ascend.
    """
    best = sum(span.size for span in spans)
    floor = peak(spans)

    def descend(placed: list[tuple[Lifetime, int]], rest: list[Lifetime], last: int) -> None:
        nonlocal best
        if not rest:
            best = min(best, max(offset + span.size for span, offset in placed))
        for k, span in enumerate(rest):
            tops = [o + p.size for p, o in placed if p.start < span.stop and span.start < p.stop]
            offset = max(tops, default=0)
            if best > floor and offset >= last and offset + span.size < best:
                descend([*placed, (span, offset)], rest[:k] + rest[k + 1 :], offset)

    descend([], spans, 0)
    return best


def small(seed: int) -> list[Lifetime]:
    """Seven to ten lifetimes, few sizes."""
    draw = random.Random(seed)
    starts = [draw.randrange(9) for _ in range(draw.randrange(7, 11))]
    return [Lifetime(s, s + draw.randrange(1, 7), GRANULE * draw.randrange(1, 4)) for s in starts]


def instances(quick: bool) -> Iterator[tuple[str, list[Lifetime]]]:
    for name, net in networks(quick).items():
        for policy, fates in fixed_fates(net).items():
            for label, workspace in workspaces(1).items():
                yield f"{name}, {policy}, {label}", lifetimes(net, fates, workspace)


def mixed(quick: bool) -> Iterator[list[Lifetime]]:
    nets = list(networks(quick=True).values())
    for seed in range(20 if quick else 200):
        net, draw = nets[seed % len(nets)], random.Random(seed)
        weights = [draw.random() for _ in "KOD"]
        fates = "".join(draw.choices("KOD", weights, k=len(net.ops)))
        yield lifetimes(net, fates, workspaces(seed)["0-60 MiB" if seed % 2 else "1 MiB"], lead=1 + seed % 3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--effort", type=int)
    parser.add_argument("--target", type=float, default=1.0)
    arguments = parser.parse_args()
    options = {"target": arguments.target} | ({} if arguments.effort is None else {"effort": arguments.effort})

    def measure(spans: list[Lifetime]) -> tuple[float, float]:
        begin = time.perf_counter()
        offsets = place(spans, **options)
        return extent(spans, offsets) / peak(spans), time.perf_counter() - begin

    print(f"{'instance':40} {'lifetimes':>9} {'peak MiB':>9} {'extent/peak':>11} {'seconds':>8}")
    for name, spans in instances(arguments.quick):
        ratio, seconds = measure(spans)
        print(f"{name:40} {len(spans):9} {peak(spans) / MIB:9.0f} {ratio:11.4f} {seconds:8.3f}", flush=True)
    rows = [measure(spans) for spans in mixed(arguments.quick)]
    ratios, seconds = [r for r, _ in rows], [s for _, s in rows]
    print(f"random mixed decisions, {len(rows)}: {sum(r == 1 for r in ratios)} at the peak;", end=" ")
    print(f"extent/peak median {statistics.median(ratios):.4f}, worst {max(ratios):.4f};", end=" ")
    print(f"seconds median {statistics.median(seconds):.3f}, most {max(seconds):.3f}")
    cases = [small(seed) for seed in range(100 if arguments.quick else 1000)]
    found = [extent(case, place(case, **options)) / optimum(case) for case in cases]
    print(f"small cases, {len(cases)}: {sum(f == 1 for f in found)} optimal, worst {max(found):.4f} of the optimum")


if __name__ == "__main__":
    main()

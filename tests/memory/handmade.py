"""A tape and a plan small enough to work out by hand."""

from __future__ import annotations

from vdnn.layers.base import DEFAULT, Algorithm
from vdnn.memory.cost import measured
from vdnn.memory.decisions import resolve
from vdnn.memory.plan import Plan, Step
from vdnn.network import Role, Tensor
from vdnn.tape import Op, Tape

SLOW_AND_FAST = (Algorithm("slow", 0, 1.0), Algorithm("middle", 2048, 2.0), Algorithm("fast", 8192, 4.0))
HUNGRY = (Algorithm("slow", 0, 1.0), Algorithm("middle", 10240, 2.0), Algorithm("fast", 40960, 4.0))
KIB = 1024


def op(name, reads, writes, kind="", layer="", algorithms=DEFAULT, flops=0):
    phase = "forward" if name.startswith("f") else "backward"
    arguments = {n: n for n in (*reads, *writes)} | ({"x": reads[0]} if phase == "forward" else {})
    return Op(name, layer or name[1:], phase, arguments, tuple(reads), tuple(writes), algorithms, flops, kind=kind)


def tape(ops, sizes, results=()):
    roles = {"x": Role.INPUT, "y": Role.FEATURE, "g": Role.GRADIENT}
    tensors = {n: Tensor(n, (nbytes // 4,), "float32", roles[n[0]]) for n, nbytes in sizes.items()}
    return Tape("handmade", 2, "step", "", "k", "nhwc", 1, tensors, {}, tuple(ops), (), results)


def plan(tape, text, arena=1 << 20, host=1 << 20):
    steps = tuple(Step.parse(line.split("#")[0]) for line in text.strip().splitlines())
    return Plan(tape, resolve({"y": "offload"}, tape, {}), steps, arena, host)


# x -> y -> y2, and backward reads y again.  Copies take a second per KiB.
SMALL = tape(
    [op("f1", ["x"], ["y"]), op("f2", ["y"], ["y2"]), op("b2", ["y", "y2"], ["g"])],
    {"x": KIB, "y": 4 * KIB, "y2": KIB, "g": KIB},
)
OFFLOADED = """
compute alloc x @0
prefetch prefetch x @0                    # 0 to 1
compute alloc y @1024
compute compute f1 by default after 1     # 1 to 4
compute free x
offload offload y @1024 after 3           # 4 to 8
compute alloc y2 @5120
compute compute f2 by default             # 4 to 6
compute free y
compute alloc y @1024
prefetch prefetch y @1024 after 5 7       # 8 to 12
compute alloc g @6144
compute compute b2 by default after 10    # 12 to 13
compute free y
compute free y2
compute free g
"""


class SecondPerKiB:
    """A link of 1 KiB/s."""

    name = "slow link"
    memory_bytes = 64 * KIB

    def op_seconds(self, tape, op, algorithm):
        raise NotImplementedError

    def copy_seconds(self, nbytes, kind):
        return nbytes / KIB


COST = measured({"f1": 3, "f2": 2, "b2": 1}, SecondPerKiB())


def chain():
    """conv, conv, pool, conv and back; y1 and y2 are large; convolutions have three algorithms, and f4's are hungry."""
    conv = {"kind": "conv", "algorithms": SLOW_AND_FAST, "flops": 10**9}
    return tape(
        [
            op("f1", ["x"], ["y1"], **conv),
            op("f2", ["y1"], ["y2"], **conv),
            op("f3", ["y2"], ["y3"], kind="maxpool"),
            op("f4", ["y3"], ["y4"], **conv | {"algorithms": HUNGRY}),
            op("b5", ["y4"], ["g4"], kind="loss"),
            op("b4", ["y3", "g4"], ["g3"], **conv),
            op("b3", ["y2", "y3", "g3"], ["g2"], kind="maxpool"),
            op("b2", ["y1", "g2"], ["g1"], **conv),
            op("b1", ["x", "g1"], ["g0"], **conv),
        ],
        {"x": 1024, "y1": 8192, "y2": 8192, "y3": 1024, "y4": 512}
        | {"g4": 512, "g3": 1024, "g2": 8192, "g1": 8192, "g0": 512},
    )

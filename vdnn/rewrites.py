"""Rewrites: changes of the tape that change no bit of any result, each by a name of its own.

    inplace           an activation's y takes the bytes of its x, and dx those of dy
    split             backward of a convolution or Linear in two ops, so that x, w, dy and dx are never needed at once
    sum_inplace       gradients that meet are added up in the bytes of one of them
    early_update      a weight is updated right after its layer's backward, and its gradient freed
    relu_behind_pool  conv, relu, pool becomes conv, pool, relu: nothing reads the large map in backward
    relu_mask         backward of ReLU reads a bit for each element, which forward saves, instead of y

The first four are the standard; the tape of the paper's rules is that without split.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from vdnn.layers.activation import ReLU
from vdnn.layers.base import Layer
from vdnn.layers.common import elements
from vdnn.layers.pool import MaxPool2d
from vdnn.naming import hint
from vdnn.network import Network, Node, Role, Tensor

ALL = ("inplace", "split", "sum_inplace", "early_update", "relu_behind_pool", "relu_mask")
STANDARD = ALL[:4]
NONE: tuple[str, ...] = ()
PAPER = ("inplace", "sum_inplace", "early_update")
SETS = {"all": ALL, "standard": STANDARD, "none": NONE, "paper": PAPER}
LEAST_MASKED = 4096  # elements: the mask of fewer is less than the 512 bytes that the smallest buffer takes


class RewriteError(ValueError):
    """There is no such rewrite."""


def named(text: str) -> tuple[str, ...]:
    """The rewrites that `text` names: "all", "standard", "inplace,split", "all-relu_mask", "standard+relu_mask".

    Raises RewriteError with those there are.
    """
    first, *rest = re.split(r"([+,-])", text.replace(" ", ""))
    found = set(_of(first, text))
    for sign, name in zip(rest[::2], rest[1::2], strict=True):
        found = found - set(_of(name, text)) if sign == "-" else found | set(_of(name, text))
    return _ordered(found)


def checked(given: str | Iterable[str]) -> tuple[str, ...]:
    """The rewrites of a text, or of any collection of names: each once, in the order of ALL.  Raises RewriteError."""
    if isinstance(given, str):
        return named(given)
    names = list(given)
    for name in names:
        if name not in ALL:
            _of(str(name) if str(name) not in SETS else "", str(name))
    return _ordered(names)


def title(names: Sequence[str]) -> str:
    """How to call these rewrites: by the name of their set if they have one."""
    return next((name for name, members in SETS.items() if members == tuple(names)), ", ".join(names))


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    chosen = set(names)
    return tuple(name for name in ALL if name in chosen)


def _of(name: str, text: str) -> tuple[str, ...]:
    """The rewrites that one word names."""
    if name in SETS:
        return SETS[name]
    if name not in ALL:
        raise RewriteError(
            f"{name or text!r} in {text!r} is no rewrite{hint(name, (*ALL, *SETS))}; there are {', '.join(ALL)}, "
            f"the sets {', '.join(SETS)}, and sums such as standard+relu_mask or all-split"
        )
    return (name,)


# ---- those that change layers


def rewritten(network: Network, names: Sequence[str], kernels: Any) -> list[Node]:
    """The nodes of `network` in the order in which they run, as these rewrites have them for these kernels."""
    nodes = _relus_behind_pools(network) if "relu_behind_pool" in names else list(network.nodes)
    if "relu_mask" in names and getattr(kernels, "has_relu_mask", False):
        nodes = [_masked(node) for node in nodes]
    return nodes


def as_on_tape(layer: Layer, arguments: Iterable[str]) -> Layer:
    """The layer that an op with these arguments is of: a ReLU that was given a mask is another one."""
    if "mask" in arguments and type(layer) is ReLU and layer.saves != "mask":
        return ReLU("mask", layer.name)
    return layer


def _masked(node: Node) -> Node:
    """The node, with a mask if its layer is a ReLU that would read y again."""
    layer = node.layer
    if type(layer) is not ReLU or layer.saves == "mask" or elements(node.y.shape) < LEAST_MASKED:
        return node
    return _relu(replace(node, layer=ReLU("mask", layer.name)), node.inputs[0])


def _relu(node: Node, x: Tensor) -> Node:
    """The ReLU over another x, with y and mask of its shape."""
    shapes = node.layer.shapes(x.shape)
    saved = {k: Tensor(f"{node.name}.{k}", s.shape, s.dtype or x.dtype, Role.FEATURE) for k, s in shapes.saved.items()}
    return replace(node, inputs=(x,), shapes=shapes, y=replace(node.y, shape=shapes.y), saved=saved)


def _relus_behind_pools(network: Network) -> list[Node]:
    """The nodes with every ReLU moved behind the max pooling that is all that reads it, and behind the next one.

    The bits stay.  The maximum of a window is above 0 or not, clipped before or after.  If it is, its first element
    that is so large is the same one in both maps, and gets the same terms in the same order.  If not, no element of the
    window gets anything: in one order since it is clipped, in the other since what the window hands on is +0.0.  This
    is ReLU's alone.  A LeakyReLU rounds, so that two elements may become equal, and another one be the first; a ReLU6
    multiplies by its mask, and a -0.0 that it gives would vanish in the sum over windows.

    A window that holds NaN gives NaN in both orders; its gradient is masked in one and may not be in the other.  Then
    the loss is NaN, and the step is refused.
    """
    readers = Counter(t.name for node in network.nodes for t in node.inputs)
    pools = {n.inputs[0].name: n for n in network.nodes if _commutes(n) and n.y is not network.scores}
    relus: dict[str, Node] = {}  # {the map that a pool is to read of: the ReLU, not placed yet, that gives it}
    outputs: dict[str, Tensor] = {}  # {y of a pool: y of the ReLU behind it}
    nodes: list[Node] = []
    for node in network.nodes:
        relu = relus.pop(node.inputs[0].name, None)
        if relu is not None:
            node = replace(node, inputs=relu.inputs)
            nodes.append(node)
            name = node.y.name
            node = _relu(relu, node.y)
            outputs[name] = node.y
        else:
            node = replace(node, inputs=tuple(outputs.get(t.name, t) for t in node.inputs))
            name = node.y.name
        if readers[name] == 1 and name in pools and _moves(node, readers, relu is not None):
            relus[name] = node
        else:
            nodes.append(node)
    return nodes


def _moves(node: Node, readers: Counter[str], is_behind: bool) -> bool:
    """Whether the node is a ReLU that alone reads its x, as it does behind a pool; so x holds nothing for backward."""
    if type(node.layer) is not ReLU:
        return False
    x = node.inputs[0]
    return is_behind or (x.role is Role.FEATURE and readers[x.name] == 1)


def _commutes(node: Node) -> bool:
    """Whether the node is a max pooling by indices whose windows all hold an element: an empty one gives -inf."""
    layer = node.layer
    if type(layer) is not MaxPool2d or layer.saves != "indices":
        return False
    hw, pq = node.inputs[0].shape[2:], node.y.shape[2:]
    return all(_meets(layer, axis, hw[axis], pq[axis]) for axis in (0, 1))


def _meets(layer: MaxPool2d, axis: int, inputs: int, outputs: int) -> bool:
    """Whether along this axis every window has a position inside of x."""
    window = layer.window
    met = set[int]()
    for offset in range(window.size[axis]):
        reached = window.reach(axis, offset, inputs, 0, outputs)
        met |= set(range(outputs)[reached[0]]) if reached else set()
    return len(met) == outputs

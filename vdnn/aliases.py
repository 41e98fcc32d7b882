"""Aliases: which tensors of a tape may take the bytes of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vdnn.network import Role, Tensor
from vdnn.tape import Op

Wish = Mapping[str, tuple[str, ...]]  # of one op: {tensor written: tensors whose bytes it may take, best first}


def legal_aliases(
    ops: Sequence[Op],
    wishes: Sequence[Wish],
    tensors: Mapping[str, Tensor],
    results: Iterable[str],
    views: Mapping[str, str],
) -> dict[str, str]:
    """{tensor: the tensor whose bytes it takes}: the views, and those of the wishes that can change no result.

    A gradient may be overwritten by the last op that reads it.  A feature map may be brought back by running its maker
    again, so it may be overwritten only by its sole reader: then nobody ever needs the old values.  Whoever reads a
    view reads what it is a view of, and the other way round.
    """
    readers: dict[str, list[int]] = {}
    for i, op in enumerate(ops):
        for name in op.reads:
            readers.setdefault(name, []).append(i)
    parts: dict[str, list[str]] = {}
    for part, whole in views.items():
        parts.setdefault(whole, []).append(part)
    alias = dict(views)
    kept = set(results)  # what must not be overwritten: results, and what is overwritten already

    def legal(i: int, into: str, out: str) -> bool:
        old, new = tensors[into], tensors[out]
        same = _overlapping(into, views, parts)
        if old.nbytes != new.nbytes or sum(name in same for name in ops[i].arguments.values()) > 1:
            return False
        if not kept.isdisjoint(same):
            return False
        read = sorted({reader for name in same for reader in readers.get(name, ())})
        if old.role is Role.GRADIENT:
            return read[-1] == i
        return old.role is Role.FEATURE and read == [i]

    for i, wish in enumerate(wishes):
        for out, candidates in wish.items():
            into = next((c for c in candidates if legal(i, c, out)), None)
            if into is not None:
                alias[out] = into
                kept.add(into)
    return alias


def _overlapping(name: str, views: Mapping[str, str], parts: Mapping[str, Sequence[str]]) -> set[str]:
    """The tensors that share bytes with this one: itself, its parts, what it is a part of, and the parts of that.

    Parts that one layer made of a whole, side by side in channels, share none.
    """
    found = {name, *_below(name, parts)}
    part = name
    while part in views:
        whole = views[part]
        for other in parts[whole]:
            if other != part and _layer(other) != _layer(part):
                found |= {other, *_below(other, parts)}
        found.add(whole)
        part = whole
    return found


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _below(name: str, parts: Mapping[str, Sequence[str]]) -> list[str]:
    found, pending = [], list(parts.get(name, ()))
    while pending:
        part = pending.pop()
        found.append(part)
        pending += parts.get(part, ())
    return found

"""Budgets relative to a tape: text such as "floor+25%", whose bytes depend on what is planned."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from vdnn.memory import trial as trials
from vdnn.setting import Setting
from vdnn.units import UnitError, parse_bytes

MARKS = ("floor", "keep_all")
_RELATIVE = re.compile(rf"\s*({'|'.join(MARKS)})\s*(?:([+-])\s*(.*\S))?\s*", re.IGNORECASE)
_SHARE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*%")


def is_relative(budget: int | str | None) -> bool:
    """Whether the bytes of a budget depend on the tape."""
    return isinstance(budget, str) and _RELATIVE.fullmatch(budget) is not None


def budget_bytes(budget: int | str | None, setting: Setting, algorithms: Mapping[str, str]) -> int:
    """Bytes of a budget for the tape of `setting`.

    None             the memory of the hardware
    12GiB, 80%       as everywhere (vdnn.units): bytes, or a share of the hardware's memory
    floor            what no plan of the tape can undercut; floor+512MiB is 512 MiB more
    keep_all         the arena of the plan that keeps everything, by `algorithms`; keep_all-1GiB is 1 GiB less
    floor+25%        percentages after a mark are of the span between the two marks, so keep_all-75% is the same

    Raises UnitError for what cannot be read, for a budget of no bytes, and for numbers beyond all bounds.
    """
    if budget is None:
        return setting.cost.memory_bytes
    found = _RELATIVE.fullmatch(budget) if isinstance(budget, str) else None
    if found is None:
        return parse_bytes(budget, setting.cost.memory_bytes)
    mark, sign, amount = found.groups()
    floor = setting.tape.floor_bytes
    share = _SHARE.fullmatch(amount) if amount else None
    needs_span = share is not None or mark.lower() == "keep_all"
    all_kept = keep_all_bytes(setting, algorithms) if needs_span else floor
    base = floor if mark.lower() == "floor" else all_kept
    if share is not None:
        change = _rounded((all_kept - floor) * float(share[1]) / 100, share[1])
    else:
        change = parse_bytes(amount) if amount else 0
    total = base - change if sign == "-" else base + change
    if total <= 0:
        raise UnitError(f"{budget!r}: {base} bytes less {change} leave {total}; memory is more than 0 bytes")
    return total


def _rounded(amount: float, text: str) -> int:
    if not math.isfinite(amount):
        raise UnitError(f"a number of {len(text)} digits, {text[:8]}..., is no amount of memory")
    return round(amount)


def keep_all_bytes(setting: Setting, algorithms: Mapping[str, str]) -> int:
    """Bytes of the arena of the plan that keeps everything, by `algorithms`."""
    decisions = setting.decide("keep_all", algorithms).decisions
    peak = trials.sketch(setting.tape, decisions).peak_bytes
    return trials.trial(setting.tape, decisions, peak).arena_bytes


def check_budget(budget: int | str | None) -> None:
    """Nothing.  Raises UnitError for what is no budget, whatever the tape and the memory are."""
    found = _RELATIVE.fullmatch(budget) if isinstance(budget, str) else None
    if found is None:
        parse_bytes(1 if budget is None else budget, total=1 << 40)
    elif found[3] and (share := _SHARE.fullmatch(found[3])):
        _rounded(float(share[1]), share[1])
    elif found[3]:
        parse_bytes(found[3])

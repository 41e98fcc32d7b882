"""Bytes and seconds as people write them; inside vdnn they are plain numbers of bytes and seconds."""

from __future__ import annotations

import re
from math import isfinite

from vdnn.naming import hint

UNITS = {
    "B": 1,
    **{f"{letter}iB": 2 ** (10 * n) for n, letter in enumerate("KMGT", 1)},
    **{f"{letter}B": 10 ** (3 * n) for n, letter in enumerate("KMGT", 1)},
}
_BY_LOWER_NAME = {unit.lower(): size for unit, size in UNITS.items()}
MOST = 1 << 63  # bytes: more than this is a slip of the keyboard
ACCEPTED = "a number of bytes, or text such as '12GiB' (2^30), '8GB' (10^9), '500MiB' or '80%'"


class UnitError(ValueError):
    """An amount that cannot be read; the message says what can."""


def parse_bytes(amount: int | str, total: int | None = None, least: int = 1) -> int:
    """Bytes that `amount` stands for, `least` or more; a percentage is of `total`.  Raises UnitError.

    >>> parse_bytes("1.5KiB"), parse_bytes("8GB"), parse_bytes("80%", total=1000)
    (1536, 8000000000, 800)
    """
    if isinstance(amount, bool) or not isinstance(amount, (int, str)):
        raise UnitError(f"{_short(amount)} is no amount of memory; give {ACCEPTED}")
    if isinstance(amount, int):
        return _within(least, amount, amount)
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*|%)\s*", amount)
    if not found:
        raise UnitError(f"{_short(amount)} is no amount of memory; give {ACCEPTED}")
    number, unit = found.groups()
    if unit == "%":
        if total is None:
            raise UnitError(f"{amount!r}: a percentage needs a hardware or device whose memory it is of")
        if float(number) > 100:
            raise UnitError(f"{_short(amount)}: a share of the memory is at most 100%")
        return _within(least, int(total * float(number) / 100), amount)
    if unit and unit.lower() not in _BY_LOWER_NAME:
        raise UnitError(f"{_short(amount)}: no unit {unit!r}{hint(unit, UNITS)}; units are {', '.join(UNITS)} and %")
    count = float(number) * _BY_LOWER_NAME[unit.lower() or "b"]
    return _within(least, round(count) if isfinite(count) else MOST + 1, amount)


def _within(least: int, count: int, amount: int | str) -> int:
    """The count.  Raises UnitError if it is less than there may be, or more than any machine has."""
    if count > MOST:
        raise UnitError(f"{_short(amount)} is no amount of memory that any machine has; at most {MOST} bytes")
    if count < least:
        raise UnitError(f"{_short(amount)}: memory is {'more than 0' if least else 'no less than 0'} bytes")
    return count


def _short(amount: int | str) -> str:
    """What was given, as it is written in Python; of what is long, its beginning and its length."""
    if isinstance(amount, int) and amount.bit_length() > 200:
        return f"a number of {amount.bit_length()} bits"
    text = repr(amount)
    return text if len(text) <= 40 else f"{text[:20]}... of {len(text)} characters"


def format_bytes(count: float) -> str:
    """Bytes with three or four digits in the largest binary unit: "1.42 GiB", "512 B".

    >>> format_bytes(3 * 2**29)
    '1.50 GiB'
    """
    if abs(count) < 1024:
        return f"{count:.0f} B"
    size, unit = abs(count) / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if size < 999.5:
            break
        size, unit = size / 1024, larger
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{'-' if count < 0 else ''}{size:.{digits}f} {unit}"


def format_seconds(seconds: float) -> str:
    """Seconds with three digits in a fitting unit: "1.23 s", "45.6 ms", "789 us".

    >>> format_seconds(0.0456)
    '45.6 ms'
    """
    size, unit = abs(seconds), "s"
    for scale, smaller in ((1e3, "ms"), (1e6, "us"), (1e9, "ns")):
        if size >= 0.9995 or seconds == 0:
            break
        size, unit = abs(seconds) * scale, smaller
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    if seconds == 0:
        digits = 0
    return f"{'-' if seconds < 0 else ''}{size:.{digits}f} {unit}"

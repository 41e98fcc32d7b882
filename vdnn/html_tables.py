"""HTML tables for notebooks: small, escaped, and readable on light and on dark pages.

Colours and backgrounds are the page's own; what is added is half transparent, or as far from white as from black.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from html import escape

from vdnn.tables import RIGHT, WRAPPED

FIRST, LAST = 24, 8  # rows that are shown of a table that is cut
WORD_COLOURS = {"offload": "#1f7fb8", "drop": "#b06a00", "no": "#d4483b"}  # contrast of 4 to 5 on white and on black
EDGE = "1px solid rgba(128,128,128,0.45)"
BAR = "rgba(128,128,128,0.28)"
LEAST = 0.02  # the share from which on a bar is more than a line


def html_table(
    title: str,
    columns: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    rows: str = "rows",
    bar: tuple[str, Sequence[float]] | None = None,
    right: Container[str] = RIGHT,
) -> str:
    """The table as HTML; of more than 32 lines the first 24 and the last 8, with a count of the others.

    title   its first line is printed bold
    rows    what the lines are, for that count
    bar     (column, a number for each line): its cells are shaded in proportion
    right   columns whose cells stand at the right
    """
    shares = _shares(bar[1]) if bar else [0.0] * len(lines)
    head = "".join(f'<th style="{_side(name, right)};border-bottom:{EDGE}">{escape(name)}</th>' for name in columns)
    body = []
    for number in _shown(len(lines)):
        if number < 0:
            count = f"… {len(lines) - FIRST - LAST} more of {len(lines)} {rows} …"
            style = "text-align:center;opacity:0.7"
            body.append(f'<tr><td colspan="{len(columns)}" style="{style}">{escape(count)}</td></tr>')
            continue
        shaded = {bar[0]: shares[number]} if bar else {}
        named = zip(columns, lines[number], strict=True)
        cells = (_cell(_side(name, right), text, shaded.get(name, 0.0)) for name, text in named)
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<table style="border-collapse:collapse;font-variant-numeric:tabular-nums">{_caption(title)}'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def _shown(count: int) -> Iterator[int]:
    """Places of the lines that are shown; -1 where some are left out."""
    if count <= FIRST + LAST:
        yield from range(count)
        return
    yield from range(FIRST)
    yield -1
    yield from range(count - LAST, count)


def _shares(numbers: Sequence[float]) -> list[float]:
    most = max(numbers, default=0.0)
    return [number / most if most > 0 else 0.0 for number in numbers]


def _caption(title: str) -> str:
    first, *others = title.splitlines() or [""]
    lines = [f"<b>{escape(first)}</b>", *(f'<span style="opacity:0.8">{escape(line)}</span>' for line in others)]
    return f'<caption style="text-align:left;caption-side:top;color:inherit">{"<br>".join(lines)}</caption>'


def _side(column: str, right: Container[str]) -> str:
    broken = "" if column in WRAPPED and column != "instead" else ";white-space:nowrap"
    return f"text-align:{'right' if column in right else 'left'};padding:2px 10px 2px 4px{broken}"


def _cell(style: str, text: str, share: float) -> str:
    if text in WORD_COLOURS:
        style += f";color:{WORD_COLOURS[text]};font-weight:600"
    if share >= LEAST:
        style += f";background:linear-gradient(to left,{BAR} {100 * share:.0f}%,transparent {100 * share:.0f}%)"
    return f'<td style="{style}">{"<br>".join(map(escape, text.splitlines()))}</td>'

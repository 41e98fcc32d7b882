"""Sphinx extension: docstrings that are plain text, as this project writes them, become reStructuredText.

They hold paragraphs, examples (`>>>`), bullets (`* ` or `1. `), simple tables, code in single backticks, and lists of
names:

    seconds   of its own, after those that others take
    jitter    above 0: plans are compared by their expected step, which is
              explained elsewhere

Such a list becomes a definition list; single backticks become code, or a link where they hold a public name; all other
characters mean themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import vdnn

ENTRY = re.compile(r"(?P<names>[A-Za-z_][\w<>]*(?:, [A-Za-z_][\w<>]*)*) {2,}(?P<text>\S.*)")
BULLET = re.compile(r"([*-]|\d\.) (?=\S)")
CODE = re.compile(r"`([^`\n]+)`")
PUBLIC = re.compile(rf"\b({'|'.join(name for name in vdnn.__all__ if name.endswith(('Error', 'Warning')))})\b")
UNWRITTEN = re.compile(r"<[^<>]*>")
SPECIAL = re.compile(r"([\\*|]|_(?=\W|$)|(?<=\W)_|^_|::)")


def plain_to_rst(lines: list[str]) -> list[str]:
    """The reStructuredText of a docstring's lines."""
    return [line for block in _blocks(lines) for line in (*_rendered(block), "")]


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines that belong together: a paragraph, one entry of a list, a bullet, a table, an example."""
    block: list[str] = []
    for line in lines:
        if block:
            line = _aligned(line, block[0])
        if block and (not line.strip() or _begins(line, block)):
            yield block
            block = []
        if line.strip():
            block.append(line)
    if block:
        yield block


def _aligned(line: str, first: str) -> str:
    """`line` with two blanks after its name, if its text stands where that of the list's entry `first` does: a name may
    be so long that there is room for one.
    """
    entry = ENTRY.match(first.lstrip())
    column = _indent(first) + entry.start("text") if entry else 0
    is_entry = entry and _indent(line) == _indent(first) and re.fullmatch(r" *[a-z_]\w* ", line[:column])
    return f"{line[:column]} {line[column:]}" if is_entry else line


def _begins(line: str, block: list[str]) -> bool:
    """Whether `line` does not belong to the lines before it."""
    first = block[0].lstrip()
    if first.startswith(("==", ">>>")):
        return False
    text, indent, before = line.lstrip(), _indent(line), _indent(block[0])
    if ENTRY.match(text) or BULLET.match(text):
        return indent <= before or not (ENTRY.match(first) or BULLET.match(first))
    return indent <= before and bool(ENTRY.match(first) or BULLET.match(first))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _rendered(block: list[str]) -> list[str]:
    text = [line.strip() for line in block]
    entry = ENTRY.fullmatch(text[0])
    if text[0].startswith("=="):
        return [CODE.sub(r"``\1``", line) if "``" not in line else line for line in _wider(block)]
    if text[0].startswith(">>>"):
        return text
    if entry:
        names = ", ".join(f"``{name}``" for name in entry["names"].split(", "))
        return [names, *(f"    {inline(line)}" for line in (entry["text"], *text[1:]))]
    bullet = BULLET.match(text[0])
    if bullet:
        mark = bullet[0]
        return [mark + inline(text[0][len(mark) :]), *(" " * len(mark) + inline(line) for line in text[1:])]
    return [inline(line) for line in text]


def _wider(table: list[str]) -> list[str]:
    """A simple table with room for the second backticks: every column grows by as many as its cells have of them."""
    rule = table[0]
    edges = [match.span() for match in re.finditer("=+", rule)]
    rows = [[line[start:stop] if line[0] != "=" else "=" for start, stop in _cells(edges)] for line in table]
    widths = [max(len(CODE.sub(r"``\1``", row[i].strip())) for row in rows) for i in range(len(edges))]
    return ["  ".join(_cell(row[i], widths[i]) for i in range(len(edges))).rstrip() for row in rows]


def _cells(edges: list[tuple[int, int]]) -> list[tuple[int, int | None]]:
    """The columns of a simple table; the last one reaches to the end of the line."""
    return [(start, stop if i + 1 < len(edges) else None) for i, (start, stop) in enumerate(edges)]


def _cell(text: str, width: int) -> str:
    return "=" * width if text == "=" else CODE.sub(r"``\1``", text.strip()).ljust(width)


def inline(text: str) -> str:
    """A line of text with its code marked, names of errors linked, and no other markup."""
    parts = CODE.split(text)
    marked = [_code(part) if i % 2 else _words(part) for i, part in enumerate(parts)]
    return "".join(marked)


def _code(text: str) -> str:
    """Code; a link if it is a public name.  The blanks that markup needs around it vanish."""
    name = text.removeprefix("vdnn.")
    linked = name in vdnn.__all__ and name not in ("layers", "models", "schedules", "plan", "fit", "measured")
    return rf"\ :py:obj:`~vdnn.{name}`\ " if linked else rf"\ ``{text}``\ "


def _words(text: str) -> str:
    escaped = SPECIAL.sub(lambda match: "".join(f"\\{c}" for c in match[0]), text)
    return PUBLIC.sub(r"\\ :py:obj:`~vdnn.\1`\\ ", escaped)


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    prefix = name.rpartition(".")[2] + ": "
    if what == "module" and lines and lines[0].startswith(prefix):  # the page has a title
        rest = lines[0].removeprefix(prefix)
        lines[0] = rest[:1].upper() + rest[1:]
    lines[:] = plain_to_rst(lines)


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out fields of named tuples, of which Python says no more than their numbers."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def _process_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A signature that parses: what stands for a default that has no source, such as <factory>, is an ellipsis."""
    return signature and UNWRITTEN.sub("...", signature), returns


def setup(app: Any) -> dict[str, Any]:
    """Connect to autodoc."""
    app.connect("autodoc-process-signature", _process_signature)
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}

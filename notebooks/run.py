"""Run a notebook in percent format without Jupyter: `python notebooks/run.py NOTEBOOK [FOLDER]`.

As in Jupyter the last expression of a cell is shown, here as plain text; pictures go into the folder, if one is given.
"""

from __future__ import annotations

import ast
import re
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before anything is drawn

from matplotlib import pyplot


def run(path: Path, folder: Path | None) -> None:
    """Run all code cells, one after the other in one namespace."""
    cells = re.split(r"^# %%( \[markdown\])?\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    names: dict[str, Any] = {"__name__": "__main__"}
    pyplot.show = lambda: _save(path.stem, folder)
    for number, (kind, text) in enumerate(zip(cells[::2], cells[1::2], strict=True)):
        if not kind:
            _cell(text, f"{path.name}, cell {number}", names)


def _cell(text: str, title: str, names: dict[str, Any]) -> None:
    tree = ast.parse(text, title)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, title, "exec"), names)
    if last is None:
        return
    value = eval(compile(ast.Expression(last.value), title, "eval"), names)
    if hasattr(value, "_repr_html_"):
        value._repr_html_()
    if value is not None:
        print(repr(value))


def _save(stem: str, folder: Path | None) -> None:
    """Each open figure into a file of its own."""
    for figure in map(pyplot.figure, pyplot.get_fignums()):
        figure.canvas.draw()  # even if nothing is kept: what cannot be drawn is an error here
        if folder is not None:
            number = len(list(folder.glob(f"{stem}_*.png")))
            figure.savefig(folder / f"{stem}_{number}.png", dpi=80)
    pyplot.close("all")


if __name__ == "__main__":
    began = time.perf_counter()
    run(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    print(f"{sys.argv[1]}: {time.perf_counter() - began:.1f} s", file=sys.stderr)

"""Sphinx extension: the notebooks of notebooks/ become pages of tutorials/, with what they printed and drew.

Building executes nothing.  `python docs/extensions/tutorials.py` runs the notebooks and leaves executed copies in
docs/_build/executed; one is shown as long as it is of the same text.  Without it the page shows the code alone, and
says so.  A notebook whose header has `requires: gpu` is not run.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jupytext
import nbformat

DOCS = Path(__file__).parent.parent
SOURCES = DOCS.parent / "notebooks"
EXECUTED = DOCS / "_build" / "executed"
PAGES = DOCS / "tutorials" / "notebooks"
WITHOUT_OUTPUT = (
    "*These pages were built without running this notebook. `make tutorials` before `make docs` shows what it prints "
    "and draws.*"
)


def notebooks(sources: Path = SOURCES) -> dict[str, Any]:
    """{name: notebook} of every text notebook of a folder."""
    files = sorted(p for p in sources.glob("*") if p.suffix in (".md", ".py") and _is_notebook(p))
    return {p.stem: jupytext.read(p) for p in files}


def pages(sources: Path = SOURCES, executed: Path = EXECUTED) -> dict[str, Any]:
    """{name: notebook} as it is shown: its executed copy if that is still of the same text, else itself."""
    found = notebooks(sources)
    return {name: _copy(notebook, executed / f"{name}.ipynb") or _unrun(notebook) for name, notebook in found.items()}


def _is_notebook(path: Path) -> bool:
    """Whether a file begins with jupytext's header."""
    with path.open(encoding="utf-8") as file:
        return "jupytext:" in file.read(1000)


def text_of(notebook: Any) -> list[tuple[str, str]]:
    """(kind, text) of each cell of a notebook."""
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def _copy(notebook: Any, path: Path) -> Any | None:
    """The executed copy, or None if there is none of the same text."""
    executed = nbformat.read(path, as_version=4) if path.is_file() else None
    return executed if executed is not None and text_of(executed) == text_of(notebook) else None


def _unrun(notebook: Any) -> Any:
    """The notebook with a note below its title that it was not run."""
    notebook.metadata.setdefault("language_info", {"name": "python"})  # how the code is coloured
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(WITHOUT_OUTPUT, id="without-output"))
    return notebook


def execute(sources: Path = SOURCES, executed: Path = EXECUTED) -> None:
    """Run every notebook of which there is no executed copy of the same text.  Raises what a cell raises."""
    from nbclient import NotebookClient  # building needs no kernel

    executed.mkdir(parents=True, exist_ok=True)
    for name, notebook in notebooks(sources).items():
        path = executed / f"{name}.ipynb"
        if "requires" in notebook.metadata or _copy(notebook, path) is not None:
            continue
        began = time.perf_counter()
        with TemporaryDirectory() as folder:
            NotebookClient(notebook, timeout=120, resources={"metadata": {"path": folder}}).execute()
        nbformat.write(notebook, path)
        print(f"{name}: {time.perf_counter() - began:.1f} s")


def _write(app: Any) -> None:
    """Write the pages that changed, and take away those whose notebook is gone."""
    PAGES.mkdir(parents=True, exist_ok=True)
    found = pages()
    for old in PAGES.glob("*.ipynb"):
        if old.stem not in found:
            old.unlink()
    for name, notebook in found.items():
        page, text = PAGES / f"{name}.ipynb", nbformat.writes(notebook)
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, Any]:
    """Write the pages before Sphinx looks for them."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    execute()

"""How docs/ turns docstrings, notebooks and built pages into what it needs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "docs" / "extensions"


def extension(name: str):
    """The extension of that name, which is no package's."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def plain_to_rst():
    return extension("plain_docstrings").plain_to_rst


def test_a_list_of_names_becomes_a_definition_list(plain_to_rst):
    text = ["seconds   of its own, after those", "          that others take", "seed      of what it tries"]
    assert plain_to_rst(text) == [
        "``seconds``",
        "    of its own, after those",
        "    that others take",
        "",
        "``seed``",
        "    of what it tries",
        "",
    ]


def test_a_name_that_leaves_room_for_one_blank_is_an_entry_all_the_same(plain_to_rst):
    assert plain_to_rst(["seed  any", "times number", "for what"])[3:6] == ["``times``", "    number", ""]
    assert plain_to_rst(["seed  any", "Raise an error."])[3:] == ["Raise an error.", ""]


def test_several_names_share_an_entry(plain_to_rst):
    assert plain_to_rst(["dy, d<parameter>   gradients"])[0] == "``dy``, ``d<parameter>``"


def test_a_paragraph_right_after_a_list_is_not_part_of_it(plain_to_rst):
    assert plain_to_rst(["a  one", "Returns nothing."]) == ["``a``", "    one", "", "Returns nothing.", ""]


def test_two_blanks_after_a_sentence_make_no_list(plain_to_rst):
    assert plain_to_rst(["As it is.  And so on."]) == ["As it is.  And so on.", ""]


def test_code_is_code_and_stars_and_underscores_are_themselves(plain_to_rst):
    found = plain_to_rst(["`x` of **dx and name_ or a|b"])[0]
    assert found == r"\ ``x``\  of \*\*dx and name\_ or a\|b"


def test_errors_and_public_names_become_links(plain_to_rst):
    found = plain_to_rst(["Raises BudgetError; see `simulate`."])[0]
    assert r"\ :py:obj:`~vdnn.BudgetError`\ " in found
    assert r"\ :py:obj:`~vdnn.simulate`\ " in found


def test_bullets_and_examples_stay(plain_to_rst):
    assert plain_to_rst(["* one", "* two"]) == ["* one", "", "* two", ""]
    assert plain_to_rst(["1. one", "   more", "Else none."]) == ["1. one", "   more", "", "Else none.", ""]
    assert plain_to_rst([">>> 1 + 1", "2"]) == [">>> 1 + 1", "2", ""]


def test_a_table_has_room_for_its_code(plain_to_rst):
    rows = plain_to_rst(["===  ====", "`a`  text", "b    more", "===  ===="])
    assert rows == ["=====  ====", "``a``  text", "b      more", "=====  ====", ""]


NOTEBOOK = """---
jupyter:
  jupytext:
    text_representation:
      extension: .md
      format_name: markdown
  kernelspec:
    display_name: Python 3
    language: python
    name: python3
---

# One and one

```python
print(1 + 1)
```
"""


@pytest.fixture
def notebook(tmp_path):
    pytest.importorskip("jupytext", reason="notebooks are read by jupytext: pip install 'vdnn[docs]'")
    (tmp_path / "sums.md").write_text(NOTEBOOK, encoding="utf-8")
    (tmp_path / "README.md").write_text("# no notebook\n", encoding="utf-8")
    return tmp_path


def test_a_notebook_that_was_not_run_says_so_below_its_title(notebook):
    pages = extension("tutorials").pages(notebook, notebook / "executed")
    assert list(pages) == ["sums"]
    assert [cell.cell_type for cell in pages["sums"].cells] == ["markdown", "markdown", "code"]
    assert "without running" in pages["sums"].cells[1].source


def executed(notebook: Path, source: str) -> None:
    """Leave an executed copy, with this code."""
    import jupytext
    import nbformat

    copy = jupytext.read(notebook / "sums.md")
    copy.cells[-1].source = source
    copy.cells[-1].outputs = [nbformat.v4.new_output("stream", name="stdout", text="2\n")]
    (notebook / "executed").mkdir()
    nbformat.write(copy, notebook / "executed" / "sums.ipynb")


def test_an_executed_copy_of_the_same_text_is_shown_with_its_output(notebook):
    executed(notebook, "print(1 + 1)")
    page = extension("tutorials").pages(notebook, notebook / "executed")["sums"]
    assert page.cells[-1].outputs[0].text == "2\n"


def test_an_executed_copy_of_another_text_is_not_shown(notebook):
    executed(notebook, "print(2)")
    page = extension("tutorials").pages(notebook, notebook / "executed")["sums"]
    assert page.cells[-1].source == "print(1 + 1)"
    assert page.cells[-1].outputs == []


def test_a_notebook_is_run_and_its_output_shown(notebook, capsys):
    pytest.importorskip("ipykernel", reason="notebooks are run by Jupyter's kernel: pip install 'vdnn[docs]'")
    tutorials = extension("tutorials")
    tutorials.execute(notebook, notebook / "executed")
    assert tutorials.pages(notebook, notebook / "executed")["sums"].cells[-1].outputs[0].text == "2\n"
    assert capsys.readouterr().out.startswith("sums: ")
    tutorials.execute(notebook, notebook / "executed")
    assert capsys.readouterr().out == ""  # not again


def test_a_notebook_that_requires_a_gpu_is_not_run(notebook):
    pytest.importorskip("nbclient", reason="notebooks are run by nbclient: pip install 'vdnn[docs]'")
    header = NOTEBOOK.replace("  kernelspec:", "  requires: gpu\n  kernelspec:")
    (notebook / "sums.md").write_text(header, encoding="utf-8")
    extension("tutorials").execute(notebook, notebook / "executed")
    assert list((notebook / "executed").iterdir()) == []


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<script async src="https://cdn.example/a.js"></script>', ["https://cdn.example/a.js"]),
        ('<link rel="stylesheet" href="//fonts.example/b.css">', ["//fonts.example/b.css"]),
        ("<style>@import 'https://c.example/c.css';</style>", ["https://c.example/c.css"]),
        ('<a href="https://ui.perfetto.dev">a link</a><img src="memory.png">', []),
    ],
)
def test_what_a_page_would_fetch_is_found(html, found):
    pytest.importorskip("sphinx", reason="pages are built by Sphinx: pip install 'vdnn[docs]'")
    assert extension("offline").fetched(html) == found

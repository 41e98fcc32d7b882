"""What the pages of docs/ show runs, what they name exists, and every public name is on a page of the reference."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

import vdnn
from vdnn.__main__ import main

ROOT = Path(__file__).parent.parent
PAGES = {str(p.relative_to(ROOT / "docs")): p.read_text(encoding="utf-8") for p in sorted(ROOT.glob("docs/*/*.md"))}
PAGES["index.md"] = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
BLOCKS = [
    pytest.param(name, block, id=f"{name}-{number}")
    for name, text in PAGES.items()
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
]
SHELL = {
    line: name
    for name, text in PAGES.items()
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for line in block.replace("\\\n", " ").splitlines()
}
REFERENCE = "".join(text for name, text in PAGES.items() if name.startswith("reference"))


def test_there_is_something_to_test():
    assert len(PAGES) > 25
    assert len(BLOCKS) >= 15
    assert len(SHELL) >= 5


@pytest.mark.parametrize(("name", "block"), BLOCKS)
def test_python_of_a_page_runs_by_itself(name, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, f"docs/{name}", "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("line", SHELL)
def test_a_command_of_a_page_exits_with_0(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(line, comments=True)
    assert program == "vdnn"
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_every_public_name_is_on_a_page_of_the_reference():
    named = set(re.findall(r"vdnn\.(\w+)$", REFERENCE, re.MULTILINE))
    modules = {"layers", "models", "schedules"}
    assert sorted(set(vdnn.__all__) - modules - named) == [], "put `.. autofunction:: vdnn.NAME` or the like there"


def test_the_reference_names_nothing_that_there_is_not():
    named = set(re.findall(r"^\.\. auto(?:function|class|exception):: vdnn\.(\w+)$", REFERENCE, re.MULTILINE))
    assert sorted(named - set(vdnn.__all__)) == []


def test_every_shipped_layer_is_on_a_page_of_the_reference():
    shipped = [getattr(vdnn.layers, name) for name in vdnn.layers.__all__]
    layers = [c.__name__ for c in shipped if isinstance(c, type) and issubclass(c, vdnn.Layer) and c is not vdnn.Layer]
    assert sorted(n for n in layers if not re.search(rf"\b{n}\b", REFERENCE)) == []


@pytest.mark.parametrize("name", PAGES)
def test_files_and_make_targets_that_a_page_names_exist(name):
    files = re.findall(r"`((?:vdnn|experiments|tests|notebooks)/[\w/.]*)`", PAGES[name])
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+\.png)\)", PAGES[name])
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert [f for f in files if not (ROOT / f).exists() and not f.startswith("notebooks")] == []
    assert [p for p in pictures if not ((ROOT / "docs" / name).parent / p).is_file()] == []
    assert set(re.findall(r"`make ([\w-]+)`", PAGES[name].replace("\n", " "))) <= targets


def test_the_steps_of_the_plan_that_is_shown_are_steps():
    shown = re.search(r"```text\n(.*?)```", PAGES["explanation/plan.md"], re.DOTALL)[1].splitlines()
    assert [str(vdnn.Step.parse(line.split(maxsplit=1)[1])).split() for line in shown] == [
        line.split()[1:] for line in shown
    ]


def test_policies_by_name_and_published_ones_are_all_explained():
    from vdnn.memory.policy import POLICIES

    page = PAGES["explanation/policies.md"]
    assert [name for name in POLICIES if f"`{name}`" not in page] == []


def rows(text: str) -> dict[str, list[str]]:
    """{first cell: the others} of every row of a page's tables."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {first: others for first, *others in cells if first.strip("-: ")}


def compared(name: str, beginning: str) -> list[tuple[list[str], list[str]]]:
    """(a row of that page, the README's of the same first cell), from the row that begins so to the last."""
    page, readme = rows(PAGES[name].partition(beginning)[2]), rows((ROOT / "README.md").read_text(encoding="utf-8"))
    return [(others, readme[first]) for first, others in page.items() if first in readme]


def test_figures_of_policies_are_those_of_the_readme():
    pairs = compared("explanation/policies.md", "How they compare")
    assert len(pairs) == 9  # eight policies and the head
    assert [ours for ours, theirs in pairs[1:] if ours != theirs[: len(ours)]] == []


def test_figures_beyond_the_paper_are_those_of_the_readme():
    pairs = compared("explanation/paper.md", "And by vdnn's own rules")
    assert len(pairs) == 6
    assert [ours for ours, theirs in pairs if ours != theirs] == []


def test_figures_against_pytorch_are_those_of_the_readme():
    pairs = compared("explanation/kernels.md", "Against PyTorch")
    assert len(pairs) == 9
    assert [ours for ours, theirs in pairs[1:] if ours != [cell.split()[0] for cell in theirs[:2]]] == []


def test_how_much_was_recomputed_is_what_the_results_say():
    summary = (ROOT / "experiments/paper/RESULTS.md").read_text(encoding="utf-8").partition("## Summary")[2]
    table = rows(PAGES["explanation/paper.md"])
    for row in ("of 629 numbers", "with a counterpart", "inputs", "with a tolerance", "without a tolerance, near"):
        first = next(cell for cell in table if cell.startswith(row))
        figure = table[first][0] or "629"
        assert re.search(rf"\b{figure}\b", summary.partition("|")[0]), row

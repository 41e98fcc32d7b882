"""What the README shows runs as it stands."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from vdnn.__main__ import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
SHELL = "".join(re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)).splitlines()
INLINE = re.findall(r"`([^`\n]+)`", README)
COMMANDS = [line for line in SHELL if line.startswith("vdnn ")]


def test_there_is_something_to_test():
    assert len(PYTHON) >= 4
    assert len(COMMANDS) >= 3
    assert {"plan", "compare", "train"} <= {shlex.split(line)[1] for line in COMMANDS}


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_runs_by_itself(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(PYTHON[number], f"README.md, block {number}", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_exits_with_0(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, shlex.split(line, comments=True)[1:], catch_exceptions=False)
    if "--device cuda" in line and "no GPU can be used" in result.stderr:
        pytest.skip(result.stderr.strip())
    assert result.exit_code == 0, result.stderr


def test_shell_lines_are_of_known_programs():
    assert {line.split()[0] for line in SHELL if line.strip()} <= {"make", "pip", "vdnn"}


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {words[1] for line in (*SHELL, *INLINE) if (words := line.split())[:1] == ["make"] and len(words) > 1}
    assert named
    assert named <= targets


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {
        name
        for line in (*SHELL, *INLINE)
        if line.startswith("pip ")
        for group in re.findall(r"\[([\w,]+)\]", line)
        for name in group.split(",")
    }
    assert named
    assert named <= extras.keys()


def test_files_that_it_names_exist():
    named = re.findall(r"`((?:vdnn|experiments)/[\w/.]*)`", README)
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_pictures_exist_and_nothing_is_left_to_fill_in():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures
    assert [name for name in pictures if not (ROOT / name).is_file()] == []
    assert not [word for word in re.findall(r"[A-Z]+_[A-Z_]+", README) if not word.startswith("VDNN_")]

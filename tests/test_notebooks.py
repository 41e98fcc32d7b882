"""The notebooks run: their percent cells, one after the other, with pictures drawn and not shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conformance import why_no_gpu

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]_*.py"))


def cells(path):
    """(kind, text) of each cell after the header."""
    parts = re.split(r"^# %%( \[markdown\])?\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return [("text" if kind else "code", text) for kind, text in zip(parts[::2], parts[1::2], strict=True)]


def test_there_are_six():
    assert [path.stem[0] for path in NOTEBOOKS] == list("123456")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    pytest.importorskip("matplotlib")
    if "\n#   requires: gpu\n" in path.read_text(encoding="utf-8") and why_no_gpu():
        pytest.skip(f"no GPU can be used: {why_no_gpu()}")
    command = [sys.executable, "-W", "error", str(ROOT / "notebooks" / "run.py"), str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_teaches(path):
    texts = [text for kind, text in cells(path) if kind == "text"]
    codes = [text for kind, text in cells(path) if kind == "code"]
    assert any("$$" in text for text in texts)  # a formula
    assert sum("plt.show()" in code for code in codes) >= 1  # a picture
    assert len(re.findall(r"^# \d\. ", texts[-1], re.MULTILINE)) >= 3  # questions, at the end
    assert "simulated" in " ".join(texts) or "measured" in " ".join(texts)
    for code in codes:
        compile(code, str(path), "exec")

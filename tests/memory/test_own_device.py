"""The conformance suite takes a device of somebody else's, and tells a wrong one from a right one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
SOURCE = '''
from vdnn.memory.host import HostDevice

def right(net, optimizer, seed=0, **options):
    return HostDevice(net, optimizer, threads=1, **options)

class Forgetful(HostDevice):
    """Its copies of the second half of an array never arrive."""

    def copier(self, kind, offset, places, nbytes):
        return super().copier(kind, offset, places, nbytes // 2)

def wrong(net, optimizer, seed=0, **options):
    return Forgetful(net, optimizer, threads=1, **options)
'''


@pytest.mark.parametrize(("function", "status"), [("right", 0), ("wrong", 1)])
def test_a_device_of_ones_own_goes_through_the_same_suite(function, status, tmp_path, monkeypatch):
    (tmp_path / "somebodys_device.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{TESTS.parent}")
    monkeypatch.setenv("VDNN_DEVICE", f"somebodys_device:{function}")
    chosen = "foreign and (test_poison_changes_no_bit or test_a_step_can_be_repeated)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    result = subprocess.run([*command, TESTS / "memory" / "test_conformance.py"], capture_output=True, text=True)
    assert result.returncode == status, result.stdout
    assert ("FAILED" in result.stdout) == bool(status)

"""All tests that need a GPU, on this one: pytest, then a sanitizer over a few kernels; one JSON with what came of it.

    PYTHONPATH=. python experiments/gpu_test.py         # experiments/results/gpu_test.json; exit status is pytest's

Without a usable GPU, CuPy, cuDNN or cuBLAS it says why in one line and exits with status 2.  Nothing is written but the
JSON and a temporary folder.  What has not begun when time is up is skipped, and the JSON says so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from gpu_about import RESULTS, ROOT, about, refuse_without_gpu

FILES = ("device", "kernels", "convolutions", "training")
TESTS = (*(f"tests/gpu/test_gpu_{name}.py" for name in FILES), "tests/memory/test_conformance.py")
MODE = "required"  # of tests/conformance.py: a test that finds no GPU fails
SECONDS = float(os.environ.get("VDNN_GPU_TEST_SECONDS", "390"))  # after which no further test begins
LIMIT = SECONDS + 75  # seconds after which no sanitizer runs
TOOLS = ("memcheck", "racecheck")
SANITIZED = ("tests/gpu/test_gpu_kernels.py", "-k", "small_case and nchw")
FAULT = 99  # exit status of a sanitizer that found something
ENOUGH = 4000  # characters of a failure's text
OPTIONS = ("-p", "no:cacheprovider", "-m", "gpu", "-W", "default")  # another CuPy may warn of what is no fault here


class Collector:
    """A pytest plugin: outcomes, properties, durations and failures by test; skips what begins too late."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.tests: dict[str, dict[str, Any]] = {}
        self.warnings: Counter[str] = Counter()
        self.errors: list[str] = []  # in collecting
        self.late = 0

    def pytest_runtest_setup(self, item: Any) -> None:
        """Skip a test that begins too late."""
        import pytest

        if time.monotonic() - self.began > SECONDS:
            self.late += 1
            pytest.skip(f"out of time: {SECONDS:g} s are over")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test that never ends is known by this."""
        self.tests[nodeid] = {"outcome": "never ended", "seconds": 0.0}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep what a test's setup, call or teardown came to."""
        entry = self.tests[report.nodeid]
        entry["seconds"] = round(entry["seconds"] + report.duration, 3)
        if report.skipped:
            text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            entry |= {"outcome": "skipped", "reason": text.removeprefix("Skipped: ")}
        elif report.failed:
            entry |= {"outcome": "failed" if report.when == "call" else "error", "text": str(report.longrepr)[-ENOUGH:]}
        elif report.when == "call":
            entry["outcome"] = "passed"
        if report.user_properties:
            entry["properties"] = dict(report.user_properties)

    def pytest_collectreport(self, report: Any) -> None:
        """Keep why a file could not be read."""
        if report.failed:
            self.errors.append(f"{report.nodeid}: {str(report.longrepr)[-ENOUGH:]}")

    def pytest_warning_recorded(self, warning_message: Any) -> None:
        """Count a warning."""
        self.warnings[f"{warning_message.category.__name__}: {warning_message.message}"[:300]] += 1

    def result(self) -> dict[str, Any]:
        """What there is so far, for the JSON."""
        return {
            "counts": dict(Counter(entry["outcome"] for entry in self.tests.values())),
            "out_of_time": self.late,
            "seconds": round(time.monotonic() - self.began, 1),
            "collection_errors": self.errors,
            "warnings": dict(self.warnings),
            "tests": self.tests,
        }


def sanitized(tool: str, seconds: float) -> dict[str, Any]:
    """What compute-sanitizer says of a few of vdnn's own kernels."""
    path = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
    if path is None:
        return {"outcome": "missing", "text": "compute-sanitizer is not on the PATH"}
    if seconds < 20:
        return {"outcome": "skipped", "text": "out of time"}
    own = ("--report-api-errors", "no") if tool == "memcheck" else ()  # libraries try calls that may fail
    command = [path, "--tool", tool, *own, "--error-exitcode", str(FAULT), sys.executable, "-m", "pytest"]
    command += [*SANITIZED, *OPTIONS]
    environment = {**os.environ, "VDNN_GPU": "sanitized"}
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as expired:
        return {"outcome": "out of time", "text": _tail(expired.stdout) + _tail(expired.stderr), "seconds": seconds}
    outcome = {0: "passed", FAULT: "failed"}.get(done.returncode, "error")
    text = "" if outcome == "passed" else _tail(done.stdout) + _tail(done.stderr)
    return {"outcome": outcome, "status": done.returncode, "text": text, "seconds": time.monotonic() - began}


def _tail(text: str | bytes | None) -> str:
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return (text or "")[-ENOUGH:]


def write(result: dict[str, Any]) -> Path:
    """Write the JSON file."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "gpu_test.json"
    path.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    return path


def give_up(known: dict[str, Any], collector: Collector) -> None:
    """A test hangs: write what there is, and end, since nothing else can end it."""
    write({**known, "status": "a test never ended", **collector.result()})
    print("a test never ended; what there is was written", file=sys.stderr, flush=True)
    os._exit(1)


def main() -> int:
    """Run everything; the exit status."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vdnn-gpu-test-") as folder:
        os.environ |= {
            "VDNN_GPU": MODE,
            "VDNN_CACHE": str(Path(folder, "vdnn")),
            "CUPY_CACHE_DIR": str(Path(folder, "cupy")),
            "CUDA_CACHE_PATH": str(Path(folder, "cuda")),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(ROOT),
        }
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(ROOT))
        refuse_without_gpu()
        known = about()
        os.chdir(ROOT)
        import pytest

        collector = Collector(began)
        watchdog = threading.Timer(LIMIT, give_up, (known, collector))
        watchdog.daemon = True
        watchdog.start()
        base = f"--basetemp={Path(folder, 'pytest')}"
        status = int(pytest.main([*TESTS, *OPTIONS, base], plugins=[collector]))
        watchdog.cancel()
        checks = {tool: sanitized(tool, min(60.0, LIMIT - (time.monotonic() - began))) for tool in TOOLS}
    result = {**known, "status": status, "sanitizer": checks, **collector.result()}
    path = write(result)
    outcomes = [f"{n} {outcome}" for outcome, n in result["counts"].items()]
    outcomes += [f"{tool} {found['outcome']}" for tool, found in checks.items()]
    print(f"{known['device']}: {', '.join(outcomes)}; {collector.late} out of time; {result['seconds']} s; {path}")
    return status


if __name__ == "__main__":
    raise SystemExit(main())

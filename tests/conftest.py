"""Counts that tests record as properties are summed at the end of a run."""

from collections import Counter


def pytest_terminal_summary(terminalreporter):
    counts = Counter()
    for report in terminalreporter.stats.get("passed", []):
        counts.update({name: n for name, n in report.user_properties if isinstance(n, int)})
    if counts:
        terminalreporter.write_line(", ".join(f"{name}: {n}" for name, n in counts.items()))

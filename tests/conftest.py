"""A cache of the tests' own; and counts that tests record as properties are summed at the end of a run."""

import builtins
import gc
import sys
from collections import Counter

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Searches keep their results where no user has any."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VDNN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def tables_as_wide_as_they_like():
    """Whatever terminal starts the tests: it, or pytest-xdist for it, may have exported its width."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        yield


@pytest.fixture
def without_package(monkeypatch):
    """A function after which a package cannot be imported, as where it is not installed."""

    def hide(package):
        real = builtins.__import__

        def importing(name, *rest):
            if name.startswith(package):
                raise ImportError(name)
            return real(name, *rest)

        for name in [name for name in sys.modules if name.startswith(package)]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(builtins, "__import__", importing)

    return hide


def pytest_collection_finish(session):
    """Networks and plans that tests are parametrised with stay to the end, so that no collection need look at them."""
    set_aside(0)


@pytest.fixture(scope="module", autouse=True)
def few_objects():
    """Nor at what modules leave in caches: with two million objects, a collection takes a second."""
    yield
    set_aside(200_000)


def set_aside(most):
    """Keep what is there out of later collections, if it is more than so many objects."""
    if len(gc.get_objects()) > most:
        gc.collect()
        gc.freeze()


def pytest_terminal_summary(terminalreporter):
    counts = Counter()
    for report in terminalreporter.stats.get("passed", []):
        counts.update({name: n for name, n in report.user_properties if isinstance(n, int)})
    if counts:
        terminalreporter.write_line(", ".join(f"{name}: {n}" for name, n in counts.items()))

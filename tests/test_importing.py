from __future__ import annotations

import pytest

from vdnn.importing import imported

A_NUMBER = 3


class OwnError(ValueError):
    """The caller's."""


def test_a_function_is_found_by_its_module_and_name():
    assert imported("vdnn.importing:imported", "itself", OwnError) is imported


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "'no_such_module:f': there is no module 'no_such_module' to import"),
        ("vdnn.nowhere:f", "there is no module 'vdnn.nowhere' to import"),
        ("vdnn.importing:exported", "module 'vdnn.importing' has no 'exported'"),
        (f"{__name__}:A_NUMBER", "is a int, not a function that returns tea"),
    ],
)
def test_a_name_of_nothing_is_the_callers_error(name, message):
    with pytest.raises(OwnError, match=message):
        imported(name, "tea", OwnError)


def test_a_fault_inside_the_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        imported("broken_module:f", "tea", OwnError)

from __future__ import annotations

import csv
import io
import json
import sys

import pytest

from vdnn.html_tables import FIRST, LAST
from vdnn.records import SHOWN, Table, TableError

SMALL = Table(("name", "bytes", "seconds_simulated"), (("conv1.y", 4096, 0.5), ("<x>", 512, None)), "two tensors")


def test_csv_has_a_header_and_nothing_for_what_there_is_not():
    assert SMALL.to_csv() == "name,bytes,seconds_simulated\nconv1.y,4096,0.5\n<x>,512,\n"


def test_csv_reads_back_with_commas_and_quotes_in_cells():
    awkward = 'a, "b"\nc'
    (row,) = csv.DictReader(io.StringIO(Table(("name",), ((awkward,),)).to_csv()))
    assert row == {"name": awkward}


def test_json_has_title_columns_and_rows():
    assert json.loads(SMALL.to_json()) == {
        "title": "two tensors",
        "columns": ["name", "bytes", "seconds_simulated"],
        "rows": [["conv1.y", 4096, 0.5], ["<x>", 512, None]],
    }


@pytest.mark.parametrize("form", ["to_csv", "to_json"])
def test_a_path_gets_the_text_that_is_given_back(tmp_path, form):
    text = getattr(SMALL, form)(tmp_path / "table")
    assert (tmp_path / "table").read_text(encoding="utf-8") == text == getattr(SMALL, form)()


def test_dicts_make_a_table_with_every_key_as_a_column():
    made = Table.of([{"a": 1}, {"b": 2, "a": 3}])
    assert made.columns == ("a", "b")
    assert made.rows == ((1, None), (3, 2))
    assert list(made) == [{"a": 1, "b": None}, {"a": 3, "b": 2}]


def test_a_column_by_name_or_an_error_with_the_near_one():
    assert SMALL.column("bytes") == [4096, 512]
    with pytest.raises(TableError, match=r"no column 'byte' \(did you mean bytes\?\); there are"):
        SMALL.column("byte")
    with pytest.raises(TableError, match="there are name, bytes, seconds_simulated"):
        SMALL.column("zzz")


def test_rows_that_do_not_fit_the_header_are_refused_with_the_numbers():
    with pytest.raises(TableError, match="row 1 has 1 cells for 2 columns"):
        Table(("a", "b"), ((1, 2), (3,)))
    with pytest.raises(TableError, match="two columns are named 'a'"):
        Table(("a", "a"), ())


def test_html_is_escaped_and_cut_with_a_count_of_the_rest():
    assert "&lt;x&gt;" in SMALL._repr_html_()
    assert " more of " not in SMALL._repr_html_()
    long = Table(("n",), tuple((n,) for n in range(SHOWN + 2)))
    assert long._repr_html_().count("<tr>") == 1 + FIRST + 1 + LAST
    assert f"{SHOWN + 2 - FIRST - LAST} more of {SHOWN + 2} rows" in long._repr_html_()
    assert f"and 2 more rows of {SHOWN + 2}" in str(long)


def test_pandas_gets_columns_and_rows():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = SMALL.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(SMALL.columns)
    assert frame["bytes"].sum() == 4608


def test_without_pandas_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        SMALL.to_pandas()

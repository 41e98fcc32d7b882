"""What a study may say, and which cells it stands for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from vdnn.studies import StudyError, load
from vdnn.studies.grid import resolve
from vdnn.studies.keys import KEYS


def cells(given, *names):
    return [tuple(cell.settings[name] for name in names) for cell in resolve(given, threads=1).cells]


def test_lists_are_axes_and_the_first_varies_slowest():
    given = {"policy": ["vdnn_all", "keep_all"], "network": "digits_vgg", "batch": [2, 4]}
    found = cells(given, "policy", "batch")
    assert found == [("vdnn_all", 2), ("vdnn_all", 4), ("keep_all", 2), ("keep_all", 4)]


def test_a_cell_has_every_key_of_its_mode_with_its_default():
    (cell,) = resolve({"network": "alexnet"}, threads=3).cells
    assert set(cell.settings) == {name for name, key in KEYS.items() if "simulate" in key.modes}
    asked = ("batch", "policy", "budget", "hardware", "optimizer", "kernels", "threads", "rewrites")
    assert [cell.settings[k] for k in asked] == [32, "vdnn_dyn", "100%", "titan-x", "momentum", "numpy", 3, "standard"]


def test_an_included_table_is_the_grid_with_its_keys_in_place():
    given = {"network": "alexnet", "batch": [2, 4], "include": [{"network": "vgg11", "batch": 8}]}
    assert cells(given, "network", "batch") == [("alexnet", 2), ("alexnet", 4), ("vgg11", 8)]


def test_included_tables_alone_may_name_the_networks():
    given = {"policy": ["vdnn_all", "keep_all"], "include": [{"network": "alexnet"}, {"network": "vgg11", "batch": 8}]}
    found = cells(given, "network", "batch", "policy")
    assert found[1:3] == [("alexnet", 32, "keep_all"), ("vgg11", 8, "vdnn_all")]


def test_cells_that_are_there_are_not_added_again():
    given = {"network": "alexnet", "batch": [2, 4], "include": [{"batch": [4, 8]}]}
    assert cells(given, "batch") == [(2,), (4,), (8,)]


def test_a_table_excludes_cells_that_have_all_it_names():
    given = {"network": ["alexnet", "vgg11"], "batch": [2, 4], "exclude": [{"network": "vgg11", "batch": [2]}]}
    assert cells(given, "network", "batch") == [("alexnet", 2), ("alexnet", 4), ("vgg11", 4)]


def test_a_key_without_bearing_makes_no_more_cells():
    given = {"network": "alexnet", "policy": ["search", "keep_all"], "search_seconds": [1, 2]}
    assert cells(given, "policy", "search_seconds") == [("search", 1.0), ("search", 2.0), ("keep_all", None)]


def test_all_policies_have_the_rewrites_of_the_one_that_has_most():
    assert set(cells({"network": "alexnet", "policy": ["search", "keep_all"]}, "rewrites")) == {("all",)}


def test_the_rules_of_the_paper_have_their_own_kernels_and_rewrites():
    given = {"network": "alexnet", "rules": ["ours", "paper"]}
    assert cells(given, "kernels", "rewrites", "threads") == [("numpy", "standard", 1), ("cudnn4", "paper", 1)]


def test_a_run_has_the_learning_rate_of_its_optimizer():
    assert cells({"network": "alexnet", "mode": "run", "optimizer": "adam"}, "learning_rate") == [(0.001,)]


WRONG = [
    ({"networks": "alexnet"}, "no key of a study is named 'networks' (did you mean network?)"),
    ({"network": "alexnet", "mode": "simulated"}, "mode = 'simulated': none of these (did you mean simulate?)"),
    ({"network": "alexnte"}, "network = 'alexnte': no network is named 'alexnte' (did you mean alexnet"),
    ({"network": "alexnet", "policy": "vdnn_al"}, "did you mean vdnn_all"),
    ({"network": "alexnet", "policy": len}, 'a name, or "module:function"'),
    ({"network": "alexnet", "hardware": "titanx"}, "did you mean titan-x?"),
    ({"network": "alexnet", "budget": "12GB8"}, "'12GB8'"),
    ({"network": "alexnet", "budget": "floor+nothing"}, "'nothing'"),
    ({"network": "alexnet", "budget": True}, "True is no amount of memory"),
    ({"network": "alexnet", "batch": "32"}, "batch = '32': a whole number of at least 1"),
    ({"network": "alexnet", "batch": []}, "batch is an empty list"),
    ({"network": "alexnet", "batch": [2, 2]}, "batch has 2 twice"),
    ({"network": "alexnet", "exact": 1}, "exact = 1: true or false"),
    ({"network": "alexnet", "jitter": 1.5}, "jitter = 1.5: a number above 0 and below 1"),
    ({"network": "alexnet", "rewrites": "inplacee"}, "did you mean inplace"),
    ({"network": "alexnet", "optimizer": "adamw"}, "did you mean adam?"),
    ({"network": "alexnet", "steps": 3}, "steps is for mode run, and this study's is simulate"),
    ({"network": "alexnet", "mode": "run", "hardware": "v100"}, "it measures this machine"),
    ({"network": "alexnet", "search_seconds": 3}, "search_seconds has no effect"),
    ({"network": "alexnet", "seed": 3}, "seed has no effect"),
    ({"network": "alexnet", "kernels": "cudnn4", "threads": 2}, "not for cudnn4"),
    ({"batch": 2}, "network is missing"),
    ({"network": "alexnet", "include": [{"batch": 32}]}, "include 1 adds no cell"),
    ({"network": "alexnet", "include": 3}, "include = 3: tables"),
    ({"network": "alexnet", "exclude": [{"batch": 8}]}, "batch = 8 is that of no cell; there are 32"),
    ({"network": "alexnet", "exclude": [{"batch": 32}]}, "all cells are excluded"),
    ({"network": "alexnet", "exclude": [{"bach": 32}]}, "exclude 1: no key is named 'bach' (did you mean batch "),
    ({"network": "alexnet", "batch": list(range(1, 400)), "seed": list(range(400))}, "159,600 cells; at most 100,000"),
]


@pytest.mark.parametrize(("given", "said"), WRONG, ids=[said[:40] for _, said in WRONG])
def test_what_is_wrong_is_said(given, said):
    with pytest.raises(StudyError) as error:
        resolve(given, threads=1)
    assert said in str(error.value)


def test_an_exclusion_without_effect_is_an_error():
    given = {
        "network": ["alexnet", "vgg11"],
        "batch": [2, 4],
        "exclude": [{"network": "vgg11", "batch": 4}, {"network": "vgg11", "batch": 4}],
    }
    with pytest.raises(StudyError, match="exclude 2 excludes nothing"):
        resolve(given, threads=1)


def test_a_file_that_is_no_toml_is_said_with_its_name(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("network = [")
    with pytest.raises(StudyError, match=r"broken\.toml is no TOML"):
        load(path)
    with pytest.raises(StudyError, match="No such file"):
        load(tmp_path / "absent.toml")


def test_the_study_in_the_readme_is_one():
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```toml\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    assert len(resolve(tomllib.loads(block), threads=1).cells) == 3 * 3 * 2 * 2


@pytest.mark.parametrize("path", sorted((Path(__file__).parent.parent / "experiments" / "studies").glob("*.toml")))
def test_a_study_of_the_experiments_is_one(path):
    assert len(load(path).cells) >= 6

"""Policies of installed distributions, by entry point: a folder with a .dist-info on the path is one."""

from __future__ import annotations

import json

import networks
import pytest
from click.testing import CliRunner

import vdnn
from vdnn.__main__ import main
from vdnn.memory.policy import PolicyError, get, names

MODULE = '''
"""Policies of somebody else."""

def first_away(tape):
    """Offload the first tensor.  Nothing else."""
    return {tape.saved[0]: "offload"}

number = 3
'''
POINTS = """[vdnn.policies]
first_away = {module}:first_away
broken = {module}_not_there:policy
no_function = {module}:number
misspelt = {module}:firstaway
"""


def install(folder, name, points):
    """A distribution of that name, version 1.2, in the folder."""
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(points, encoding="utf-8")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path with one distribution."""
    module = f"away_{tmp_path.name.replace('-', '_')}"  # what is imported in one test is not there in the next
    (tmp_path / f"{module}.py").write_text(MODULE, encoding="utf-8")
    install(tmp_path, "away", POINTS.format(module=module))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("site")
def test_a_policy_of_a_distribution_has_a_name_like_any_other():
    plan = vdnn.plan(networks.chain(), "first_away")
    assert (plan.policy, plan.fate("input")) == ("first_away", vdnn.OFFLOAD)
    found = vdnn.compare(networks.chain(), ["first_away", "keep_all"])
    assert [s["policy"] for s in found] == ["first_away", "keep_all"]


def test_where_nothing_is_installed_there_is_no_such_name():
    with pytest.raises(PolicyError, match="no policy is named 'first_away'"):
        get("first_away")


@pytest.mark.usefixtures("site")
def test_near_misses_suggest_it():
    with pytest.raises(PolicyError, match=r"did you mean first_away\?\); there are keep_all.*, first_away"):
        get("first-awayy")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"'broken' of away 1\.2 cannot be loaded from .*_not_there:policy: ModuleNotFoundError: No module"),
        ("misspelt", r"'misspelt' of away 1\.2 cannot be loaded .*AttributeError: .*firstaway"),
        ("no_function", r"'no_function' of away 1\.2: .*:number is a int, not a function"),
    ],
)
@pytest.mark.usefixtures("site")
def test_what_is_broken_says_so_when_it_is_asked_for_and_breaks_nothing_else(name, message):
    with pytest.raises(PolicyError, match=message):
        vdnn.plan(networks.chain(), name)
    assert vdnn.plan(networks.chain(), "first_away").policy == "first_away"


def test_a_name_of_vdnns_own_is_refused_with_the_distribution(site):
    install(site / "more", "copycat", "[vdnn.policies]\nvdnn_all = os:getcwd\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site / "more")
        with pytest.raises(PolicyError, match=r"copycat 1\.2 offers a policy 'vdnn_all' \(os:getcwd\)"):
            vdnn.plan(networks.chain(), "vdnn_all")
        assert get("vdnn_conv")[0] == "vdnn_conv"
    assert get("vdnn_all")[0] == "vdnn_all"


def test_a_name_that_two_distributions_offer_is_refused_with_both(site, monkeypatch):
    install(site / "more", "rival", "[vdnn.policies]\nfirst_away = os:getcwd\n")
    monkeypatch.syspath_prepend(site / "more")
    with pytest.raises(PolicyError, match=r"away 1\.2 \(.*\) and rival 1\.2 \(os:getcwd\)"):
        get("first_away")


def test_a_distribution_that_is_on_the_path_twice_is_one(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site) + "/")
    assert get("first_away")[0] == "first_away"


@pytest.mark.usefixtures("site")
def test_the_command_lists_them_with_what_is_wrong():
    result = CliRunner().invoke(main, ["policies", "--json"])
    assert result.exit_code == 0
    found = {line["policy"]: line for line in json.loads(result.stdout)}
    assert list(found) == list(names())
    assert found["vdnn_all"]["source"] == "vdnn"
    assert (found["first_away"]["source"], found["first_away"]["about"]) == ("away 1.2", "Offload the first tensor")
    assert "ModuleNotFoundError" in found["broken"]["error"]
    text = CliRunner().invoke(main, ["policies"]).stdout
    assert "cannot be used: policy 'broken' of away 1.2" in " ".join(text.split())
    assert all(line["about"] or line["error"] for line in found.values())

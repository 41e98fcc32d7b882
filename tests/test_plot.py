from __future__ import annotations

import networks
import pytest

from vdnn.memory.cost import roofline
from vdnn.memory.policy import OWN
from vdnn.memory.simulate import simulate
from vdnn.planning import plan
from vdnn.plot import PlotError, memory_picture


@pytest.mark.parametrize("policy", OWN)
def test_every_policy_has_a_picture(tmp_path, policy):
    trace = simulate(plan(networks.residual(), policy, hardware="host"), roofline("host"))
    path = memory_picture(trace, tmp_path / "memory.png", budget="1MiB")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 20_000


def test_a_picture_says_whether_it_was_simulated_or_measured(tmp_path):
    trace = simulate(plan(networks.chain(), "vdnn_all", hardware="host"), roofline("host"))
    trace.kind = "measured"
    text = memory_picture(trace, tmp_path / "memory.svg", title="a title").read_text()
    assert "<!-- a title -->" in text
    assert "(measured) -->" in text
    assert "<!-- feature map -->" in text
    assert "budget" not in text


def test_without_matplotlib_it_says_what_to_install(tmp_path, without_package):
    trace = simulate(plan(networks.chain(), hardware="host"), roofline("host"))
    without_package("matplotlib")
    with pytest.raises(PlotError, match=r"pip install 'vdnn\[plot\]'"):
        memory_picture(trace, tmp_path / "memory.png")

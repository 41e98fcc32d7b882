"""What notebooks show: escaped, cut where it is long, with units, and said to be simulated or measured."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import networks
import pytest

import vdnn
from vdnn.html_tables import FIRST, LAST, html_table
from vdnn.layers import ReLU
from vdnn.memory.trace import Trace

VOID = ("br",)


class Cells(HTMLParser):
    """The text of every element, and whether every one is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.found.append(data)


@pytest.fixture(scope="module")
def made():
    return vdnn.plan(networks.residual(), "vdnn_all", hardware="titan-x")


@pytest.fixture(scope="module")
def shown(made):
    net = networks.residual()
    trace = vdnn.simulate(made)
    return {
        "network": net,
        "plan": made,
        "simulated": trace,
        "measured": Trace(made, trace.events, "measured"),
        "explanation": made.explain(),
        "comparison": vdnn.compare(net, ["keep_all", "vdnn_all"]),
        "fitted": vdnn.fit(net, budget="1MiB", policies=["keep_all", "vdnn_all"]),
    }


KINDS = ("network", "plan", "simulated", "measured", "explanation", "comparison", "fitted")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shown_is_whole_small_and_has_units(shown, kind):
    text = shown[kind]._repr_html_()
    cells = Cells(text).found
    assert len(cells) > 10
    assert len(text) < 40_000
    assert any(re.fullmatch(r".*\d (B|KiB|MiB|ms|us)\b.*", cell) for cell in cells)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("network", "plan", "measured")])
def test_times_are_said_to_be_simulated(shown, kind):
    assert "simulated" in " ".join(Cells(shown[kind]._repr_html_()).found)


def test_measured_times_are_said_to_be_measured(shown):
    text = " ".join(Cells(shown["measured"]._repr_html_()).found)
    assert "measured" in text
    assert "simulated" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_black_or_white_on_any_page(shown, kind):
    colours = re.findall(r"(?:color|background)[^;\"]*(#[0-9a-f]+|black|white)", shown[kind]._repr_html_())
    for colour in colours:
        levels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) > 3.5  # contrast with white, as WCAG 2 has it
        assert (luminance + 0.05) / 0.05 > 3.5  # and with black


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_text_is_short(shown, kind):
    assert len(repr(shown[kind])) < 350
    assert "\n" not in repr(shown[kind])


def test_names_are_escaped():
    net = vdnn.Network((2, 3, 4, 4), name="<script>alert(1)</script>")
    net.add(ReLU(), net.input, name="a<b>&c")
    text = net._repr_html_()
    assert "<script" not in text
    assert "a&lt;b&gt;&amp;c" in text


def test_a_long_network_is_cut_with_a_count():
    net = vdnn.Network((2, 3, 4, 4))
    x = net.input
    for _ in range(100):
        x = net.add(ReLU(), x)
    cells = Cells(net._repr_html_()).found
    assert f"… {100 - FIRST - LAST} more of 100 layers …" in cells
    assert {"relu1", f"relu{FIRST}", f"relu{101 - LAST}", "relu100"} <= set(cells)
    assert f"relu{FIRST + 1}" not in cells


def test_a_table_that_just_fits_is_not_cut():
    lines = [[str(n)] for n in range(FIRST + LAST)]
    assert "more of" not in html_table("title", ("n",), lines)
    assert f"1 more of {FIRST + LAST + 1} rows" in html_table("title", ("n",), [*lines, ["one more"]])


def test_an_empty_network_and_an_empty_comparison_can_be_shown():
    assert "0 layers" in vdnn.Network((2, 3, 4, 4), name="empty")._repr_html_()
    nothing = vdnn.Comparison(())
    assert "no plans" in nothing._repr_html_()
    assert repr(nothing) == "Comparison(no plans)"
    assert nothing.table() == ""


def test_cells_are_shaded_in_proportion():
    text = html_table("title", ("bytes",), [["1"], ["2"]], bar=("bytes", [1, 2]))
    assert re.findall(r"rgba\([\d,.]+\) (\d+)%", text) == ["50", "100"]

"""Pages in a real browser; `make view-test` runs these where Debian's chromium and chromium-driver are installed."""

from __future__ import annotations

import networks
import pytest
from browser import chromium, complaints, drag, figures, open_page, requests, tip_at, why_not

from vdnn.memory.cost import roofline
from vdnn.memory.simulate import simulate
from vdnn.planning import plan

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is a browser"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's, of sockets to the browser
]


def traced(policy):
    return simulate(plan(networks.residual(), policy, hardware="host"), roofline("host"))


@pytest.fixture(scope="module")
def driver():
    with chromium() as driver:
        yield driver


@pytest.fixture
def page(driver, tmp_path):
    """The figures of a page of two plans that was just opened."""
    pytest.importorskip("bokeh", reason="Bokeh is not installed")
    path = traced("vdnn_all").save_html(tmp_path / "page.html", other=traced("keep_all"), budget="1MiB")
    open_page(driver, path)
    return figures(driver)


def at(figure, x, y):
    """The place on the screen of a time and a height of this figure."""
    across = (x - figure["start"]) / (figure["end"] - figure["start"])
    up = (y - figure["bottom"]) / (figure["top"] - figure["bottom"])
    return figure["x"] + across * figure["width"], figure["y"] + (1 - up) * figure["height"]


def test_a_page_opens_without_network_and_complaints(driver, tmp_path):
    pytest.importorskip("bokeh", reason="Bokeh is not installed")
    requests(driver), complaints(driver)  # forget those of other pages
    path = traced("vdnn_all").save_html(tmp_path / "page.html")
    open_page(driver, path)
    assert requests(driver) == [path.as_uri()]
    assert complaints(driver) == []
    assert [figure["name"] for figure in figures(driver)] == ["memory", "streams"]


def test_pointing_at_an_op_names_it_with_layer_bytes_and_time(driver, page):
    trace = traced("vdnn_all")
    event = max(
        (e for e in trace.events if e.step.kind == "compute"), key=lambda e: e.finish - e.start
    )  # fmt: skip
    scale = 1e6 if trace.step_seconds < 2e-3 else 1e3
    streams = page[1]
    x, y = at(streams, (event.start + event.finish) / 2 * scale, 2)
    (tip,) = tip_at(driver, x - 3, y)
    assert tip.startswith(event.step.name)
    assert "layer " in tip
    assert "touches " in tip
    assert " to " in tip.splitlines()[-1]


def test_pointing_at_memory_names_its_largest_tensors(driver, page):
    memory = page[0]
    x, y = at(memory, memory["end"] / 2, memory["top"] * 0.001)
    (tip,) = tip_at(driver, x, y - 1)
    assert tip.startswith("weight: ")
    assert "layer " in tip
    assert "KiB live" in tip


def test_zoom_of_one_picture_zooms_all_and_a_double_click_undoes_it(driver, page):
    before = page[0]["start"], page[0]["end"]
    streams = page[1]
    drag(driver, streams["x"] + 0.4 * streams["width"], streams["y"] + 40, streams["x"] + 0.6 * streams["width"])
    after = figures(driver)
    assert len({(figure["start"], figure["end"]) for figure in after}) == 1
    whole = before[1] - before[0]
    assert after[0]["start"] == pytest.approx(before[0] + 0.4 * whole, abs=0.02 * whole)
    assert after[0]["end"] == pytest.approx(before[0] + 0.6 * whole, abs=0.02 * whole)
    assert (after[0]["bottom"], after[0]["top"]) == (page[0]["bottom"], page[0]["top"])
    double_click(driver, streams["x"] + 0.5 * streams["width"], streams["y"] + 40)
    assert {(figure["start"], figure["end"]) for figure in figures(driver)} == {before}


def double_click(driver, x, y):
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    action = ActionBuilder(driver)
    action.pointer_action.move_to_location(int(x), int(y)).double_click()
    action.perform()
    driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

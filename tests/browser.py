"""A headless Chromium, for pages that must work without a network; see test_timeline_browser and `make view-test`."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--force-device-scale-factor=1"),
)


def why_not():
    """Why there is no browser to test with; "" if there is."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(missing)} on this machine" if missing else ""


@contextmanager
def chromium(width=1280, height=1000):
    """A driver that logs what pages ask of the network and say on the console."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


READY = """
const documents = window.Bokeh && Bokeh.documents;
return !!documents && documents.length > 0 && documents.every(one => one.is_idle) &&
  [...Bokeh.index].length >= document.querySelectorAll('[data-root-id]').length;
"""


def open_page(driver, path):
    """Open the file and wait until everything is drawn; seconds that took."""
    began = time.perf_counter()
    driver.get(Path(path).resolve().as_uri())
    while not driver.execute_script(READY):
        assert time.perf_counter() - began < 30, "the page was not drawn within 30 s"
        driver.execute_async_script("requestAnimationFrame(arguments[0])")
    driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    return time.perf_counter() - began


def requests(driver):
    """The addresses that pages asked for, besides data: and blob: ones, which need no network."""
    asked = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("data:", "blob:"))]


def complaints(driver):
    """Warnings and errors on the console."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]


FIGURES = """
const found = [];
const walk = view => {
  if (view.model.type === 'Figure') {
    const box = view.frame_view ? view.frame_view.bbox : view.frame.bbox;
    const place = view.el.getBoundingClientRect();
    const quads = view.renderer_views ? [...view.renderer_views.values()] : [];
    found.push({
      name: view.model.name, x: place.x + box.left, y: place.y + box.top, width: box.width, height: box.height,
      start: view.model.x_range.start, end: view.model.x_range.end,
      bottom: view.model.y_range.start, top: view.model.y_range.end,
    });
  }
  for (const child of (view.child_views || [])) walk(child);
};
for (const root of Bokeh.index) walk(root);
return found;
"""


def figures(driver):
    """Where each picture's frame is on the screen in pixels, and what its axes show."""
    return driver.execute_script(FIGURES)


TIPS = """
const tips = [];
const walk = root => {
  for (const one of root.querySelectorAll('*')) {
    if (one.classList.contains('vdnn-tip')) tips.push(one.innerText);
    if (one.shadowRoot) walk(one.shadowRoot);
  }
};
walk(document);
return tips;
"""


def tip_at(driver, x, y):
    """The text of the tooltips when the pointer is at this place of the window."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    for dx in (3, 0):  # a tooltip comes with a move
        action = ActionBuilder(driver)
        action.pointer_action.move_to_location(int(x) + dx, int(y))
        action.perform()
    ActionChains(driver).pause(0.15).perform()
    return driver.execute_script(TIPS)


def drag(driver, x, y, to):
    """Drag from one place to another at the same height."""
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    action = ActionBuilder(driver)
    action.pointer_action.move_to_location(int(x), int(y)).pointer_down()
    action.pointer_action.move_to_location(int((x + to) / 2), int(y)).move_to_location(int(to), int(y)).pointer_up()
    action.perform()
    driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

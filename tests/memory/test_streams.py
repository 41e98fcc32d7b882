from __future__ import annotations

import threading
import time

import pytest

from vdnn.memory.streams import NAMES, Entry, Program, Streams

SOON = 30  # seconds: long enough to be sure that something hangs


@pytest.fixture
def streams():
    streams = Streams()
    yield streams
    streams.close()


def program(**lanes):
    """Entries (action, waits) by stream, numbered as they come."""
    numbers = iter(range(100))
    filled = {name: [Entry(next(numbers), *entry) for entry in lanes.get(name, ())] for name in NAMES}
    return Program(filled, next(numbers))


def finish(run):
    """Issue everything, wait and let go."""
    for name, lane in run.program.lanes.items():
        for _ in lane:
            run.issue(name)
    try:
        run.wait()
    finally:
        run.is_open = False


def test_a_stream_runs_its_actions_in_order(streams):
    seen = []
    finish(streams.start(program(compute=[(lambda n=n: seen.append(n), ()) for n in range(50)])))
    assert seen == list(range(50))


def test_an_action_starts_when_what_it_waits_for_is_done(streams):
    seen = []
    lanes = {
        "compute": [(lambda: seen.append("a"), (("prefetch", 1),)), (lambda: seen.append("c"), (("offload", 1),))],
        "offload": [(lambda: seen.append("b"), (("compute", 1),))],
        "prefetch": [(lambda: seen.append("first"), ())],
    }
    run = streams.start(program(**lanes))
    for name in ("compute", "compute", "offload"):
        run.issue(name)
    assert seen == []  # nothing runs before the prefetch, which is not issued yet
    run.issue("prefetch")
    run.wait()
    assert seen == ["first", "a", "b", "c"]


def test_nothing_runs_before_it_is_issued(streams):
    ran = threading.Event()
    run = streams.start(program(compute=[(ran.set, ())]))
    assert run.start == [None]
    run.issue("compute")
    run.wait()
    assert ran.is_set()
    assert 0 <= run.start[0] <= run.finish[0]


def test_streams_run_beside_each_other(streams):
    """Each waits for the other inside its action, which one thread alone could never finish."""
    meet = threading.Barrier(3, timeout=SOON)
    finish(streams.start(program(compute=[(meet.wait, ())], offload=[(meet.wait, ())], prefetch=[(meet.wait, ())])))
    assert not meet.broken


def test_an_exception_stops_all_streams_and_is_raised_with_its_place(streams):
    after = []

    def fail():
        raise ArithmeticError("no")

    lanes = {
        "compute": [(lambda: None, ()), (fail, ()), (lambda: after.append("compute"), ())],
        "offload": [(lambda: after.append("offload"), (("compute", 2),))],
    }
    run = streams.start(program(**lanes))
    with pytest.raises(ArithmeticError, match="no"):
        finish(run)
    assert after == []
    assert run.failed_at == 1
    assert run.finish[0] is not None
    assert run.start[1] is not None
    assert run.finish[1:] == [None, None, None]
    finish(streams.start(program(compute=[(lambda: after.append("next run"), ())])))
    assert after == ["next run"]


def test_of_two_failures_the_first_is_raised(streams):
    both_run = threading.Barrier(2, timeout=SOON)

    def early():
        both_run.wait()
        raise ArithmeticError("first")

    def late():
        both_run.wait()
        until = time.monotonic() + SOON
        while not run.cancelled and time.monotonic() < until:
            pass
        raise ArithmeticError("second")

    run = streams.start(program(compute=[(early, ())], offload=[(late, ())]))
    with pytest.raises(ArithmeticError, match="first"):
        finish(run)


def test_cancel_ends_streams_that_wait_for_ever(streams):
    run = streams.start(program(compute=[(lambda: None, (("offload", 1),))], offload=[(lambda: None, ())]))
    run.issue("compute")
    run.cancel()
    run.wait()
    assert run.active == 0
    assert run.start == [None, None]


def test_a_second_run_is_refused_while_one_is_open_or_under_way(streams):
    run = streams.start(program(compute=[(lambda: None, ())]))
    with pytest.raises(RuntimeError, match="still running; exhaust or close its walk first"):
        streams.start(program())
    run.issue("compute")
    run.wait()
    with pytest.raises(RuntimeError, match="still running"):
        streams.start(program())
    run.is_open = False
    finish(streams.start(program()))


def test_closing_ends_the_threads_even_in_the_middle_of_a_run():
    streams = Streams()
    before = set(threading.enumerate())
    streams.start(program(compute=[(lambda: None, ())]))
    started = set(threading.enumerate()) - before
    assert {t.name for t in started} == {f"vdnn-{name}" for name in NAMES}
    streams.close()
    for thread in started:
        thread.join(SOON)
        assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        streams.start(program())

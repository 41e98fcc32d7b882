from __future__ import annotations

import gc
import importlib.util
import os
import threading
from contextlib import nullcontext

import numpy as np
import pytest

import vdnn
from vdnn.kernels.numpy import NumpyKernels
from vdnn.kernels.numpy.blas import BLAS
from vdnn.kernels.numpy.threads import BUFFER, Workers, available_threads

HAS_NUMBA = importlib.util.find_spec("numba") is not None


def counts():
    return [library.get_num_threads() for library, _ in BLAS.find()]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("tasks", [0, 1, 2, 100])
def test_every_task_runs_once(threads, tasks):
    workers, done = Workers(threads), np.zeros(tasks, int)

    def run(task, worker):
        assert 0 <= worker < threads
        done[task] += 1

    workers.parallel(run, tasks)
    assert (done == 1).all()
    workers.close()


def test_tasks_are_shared():
    workers, meeting = Workers(3), threading.Barrier(3, timeout=10)
    workers.parallel(lambda task, worker: meeting.wait() and None, 3)  # passes only if three run at one time
    workers.close()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads cannot be kept to processors here")
def test_as_many_workers_as_processors_keep_to_one_each_and_the_caller_is_let_go():
    before = os.sched_getaffinity(0)
    workers = Workers(len(before))
    meeting, kept = threading.Barrier(len(before), timeout=10), {}

    def run(task, worker):
        meeting.wait()
        kept[worker] = os.sched_getaffinity(0)

    workers.parallel(run, len(before))
    assert os.sched_getaffinity(0) == before
    if len(before) > 1:
        assert set.union(*kept.values()) == before
        assert all(len(own) == 1 for own in kept.values())
    workers.close()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads cannot be kept to processors here")
def test_another_number_of_workers_than_processors_goes_anywhere():
    workers, before = Workers(available_threads() + 1), os.sched_getaffinity(0)
    meeting, kept = threading.Barrier(workers.threads, timeout=10), []

    def run(task, worker):
        meeting.wait()
        kept.append(os.sched_getaffinity(0))

    workers.parallel(run, workers.threads)
    assert kept == [before] * workers.threads
    workers.close()


def test_little_work_is_not_split():
    workers, seen = Workers(2), set()
    workers.parallel(lambda task, worker: seen.add(threading.get_ident()), 10, seconds=100e-6)
    assert seen == {threading.get_ident()}
    assert not workers._helpers


@pytest.mark.parametrize("threads", [1, 3])
def test_an_exception_is_raised_in_the_caller_and_the_next_call_works(threads):
    workers, running = Workers(threads), []

    def fail(task, worker):
        running.append(task)
        try:
            if task == 4:
                raise KeyError("four")
        finally:
            running.remove(task)

    for _ in range(20):
        with pytest.raises(KeyError, match="four"):
            workers.parallel(fail, 50)
        assert not running
    done = []
    workers.parallel(lambda task, worker: done.append(task), 50)
    assert sorted(done) == list(range(50))
    workers.close()


def test_an_exception_in_a_helper_is_raised_in_the_caller():
    workers, meeting = Workers(2), threading.Barrier(2, timeout=10)

    def fail(task, worker):
        meeting.wait()
        if worker == 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        workers.parallel(fail, 2)
    workers.close()


def test_parallel_inside_a_task_is_a_plain_loop_of_the_same_worker():
    workers, inner = Workers(2), []

    def outer(task, worker):
        workers.parallel(lambda i, w: inner.append((task, i, w == worker)), 3)

    workers.parallel(outer, 4)
    assert sorted(inner) == [(t, i, True) for t in range(4) for i in range(3)]
    workers.close()


def test_step_holds_the_blas_to_one_thread_and_nests():
    workers, before = Workers(2), counts()
    with workers.step():
        assert counts() == [1] * len(before)
        with workers.step(), Workers(1).step():
            pass
        assert counts() == [1] * len(before)
    assert counts() == before
    with pytest.raises(KeyError), workers.step():
        raise KeyError
    assert counts() == before


def test_parallel_holds_the_blas_to_one_thread_too():
    workers, before, seen = Workers(2), counts(), []
    workers.parallel(lambda task, worker: seen.append(counts()), 4)
    assert seen == [[1] * len(before)] * 4
    assert counts() == before
    workers.close()


def test_close_stops_the_threads_and_a_later_call_starts_new_ones():
    workers = Workers(3)
    workers.parallel(lambda task, worker: None, 5)
    threads = list(workers._helpers)
    assert len(threads) == 2
    workers.close()
    assert not any(thread.is_alive() for thread in threads)
    workers.parallel(lambda task, worker: None, 5)
    workers.close()
    workers.close()


def test_threads_end_when_their_owner_is_collected():
    workers = Workers(2)
    workers.parallel(lambda task, worker: None, 5)
    thread = workers._helpers[0]
    del workers
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_the_default_is_what_the_process_may_use():
    assert NumpyKernels().threads == available_threads() >= 1
    with pytest.raises(ValueError, match="threads=0"):
        Workers(0)


def test_the_blas_is_held_from_any_thread_whichever_came_first():
    before = counts()
    seen = []

    def hold():
        with BLAS.single():
            seen.append(counts())

    for _ in range(2):
        thread = threading.Thread(target=hold)
        thread.start()
        thread.join()
    hold()
    assert seen == [[1] * len(before)] * 3
    assert counts() == before


def test_tasks_run_with_small_buffers_in_a_step_or_not_and_the_callers_come_back():
    workers, before, seen = Workers(2), np.getbufsize(), []
    for within in (nullcontext, workers.step):
        with within(), within():
            workers.parallel(lambda task, worker: seen.append(np.getbufsize()), 4)
        assert np.getbufsize() == before
    assert seen == [BUFFER] * 8
    workers.close()


def test_who_meets_is_heard_and_returns_with_another_number_or_after_so_many_looks():
    meet = pytest.importorskip("vdnn.kernels.numpy.compiled.watch", exc_type=ImportError).meet
    rung, watched = np.zeros(2, np.int64), np.array([7, 3])
    meet(rung, 1, 5, watched, 1, 2, 10**12)  # it would take hours
    meet(rung, 0, 6, watched, 1, 3, 3)
    assert rung.tolist() == [6, 5]
    assert watched.tolist() == [7, 3]


def test_two_threads_meet():
    meet = pytest.importorskip("vdnn.kernels.numpy.compiled.watch", exc_type=ImportError).meet
    ours, theirs, long = np.zeros(1, np.int64), np.zeros(1, np.int64), 10**9

    def answer():
        meet(theirs, 0, 0, ours, 0, 0, long)
        meet(theirs, 0, int(ours[0]) + 1, ours, 0, 0, 0)

    thread = threading.Thread(target=answer)
    thread.start()
    meet(ours, 0, 41, theirs, 0, 0, long)
    thread.join()
    assert theirs[0] == 42


def watching(workers):
    """Count the meetings of these workers that look for anything."""
    met = []

    def meet(rung, at, value, watched, index, seen, looks):
        rung[at] = value
        if looks:
            met.append(looks)

    workers._meet = meet
    return met


@pytest.mark.skipif(available_threads() < 2, reason="needs two processors")
def test_helpers_watch_within_a_step_alone_and_only_where_each_has_a_processor():
    for threads, expected in ((2, True), (available_threads() + 1, False)):
        workers = Workers(threads)
        met = watching(workers)
        workers.parallel(lambda task, worker: None, 50)
        assert not met
        with workers.step():
            workers.parallel(lambda task, worker: None, 50)
            workers.parallel(lambda task, worker: None, 50)
        workers.close()
        assert bool(met) == expected


@pytest.mark.skipif(available_threads() < 2, reason="needs two processors")
def test_helpers_watch_in_a_step_of_training():
    net = vdnn.Network((8, 8, 32, 32))
    x = net.add(vdnn.layers.Flatten(), net.add(vdnn.layers.ReLU(), net.input))
    net.add(vdnn.layers.SoftmaxCrossEntropy(), net.add(vdnn.layers.Linear(4), x))
    trainer = vdnn.Trainer(net, "keep_all", threads=2)
    kernels = trainer.device.kernels
    met = watching(kernels)
    kernels.estimate = lambda passes, *arrays: 1.0  # so that all is worth sharing
    trainer.step(np.ones(net.input.shape, np.float32), np.zeros(8, np.int64))
    trainer.close()
    assert met


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads cannot be kept to processors here")
def test_the_calling_thread_keeps_to_one_processor_within_a_step_and_is_let_go():
    before = os.sched_getaffinity(0)
    workers = Workers(len(before))
    with workers.step():
        with workers.step():
            assert len(os.sched_getaffinity(0)) == 1
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
    workers.close()


@pytest.mark.skipif(not HAS_NUMBA, reason="needs Numba")
def test_helpers_that_watch_miss_no_job():
    kernels, done = NumpyKernels(2, fast=True), np.zeros(8, int)
    assert kernels.routines.fast

    def run(task, worker):
        done[task] += 1

    with kernels.step():
        for _ in range(300):
            kernels.parallel(run, len(done))
    kernels.close()
    assert (done == 300).all()

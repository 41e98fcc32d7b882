"""Plans with a spill file run on the host: equal bits, and nothing half done, whatever the disk does."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from conformance import delays, emulated_device, require
from networks import (
    FATES,
    NETWORKS,
    assert_same_bits,
    chain,
    device_for,
    feed,
    norm_dropout,
    outcome,
    plan_of,
    resident,
    residual,
    train,
)

from vdnn.memory.decisions import Decisions
from vdnn.memory.device import DeviceError
from vdnn.memory.execute import execute
from vdnn.memory.spill import SpillError
from vdnn.memory.verify import verify

ROOT = Path(__file__).parents[2]


def on_disk(fates="offload", host_budget=0, **options):
    """Decisions by name, in so little host memory; undo copies go to disk first."""
    return lambda tape: Decisions(FATES[fates](tape), host_budget=host_budget, **options)


def features_on_disk(tape):
    """Everything offloaded to disk, and all undo copies in host memory."""
    fates = FATES["offload"](tape)
    return Decisions(fates, tiers=dict.fromkeys(tape.resident, "host"), host_budget=0)


@pytest.fixture(scope="module")
def kept():
    """What two steps leave behind when everything is kept, per network."""
    return {make: train(make)[0] for make in NETWORKS}


# ---- equal bits


@pytest.mark.parametrize("undo", [True, False])
@pytest.mark.parametrize("fates", ["offload", "alternate"])
@pytest.mark.parametrize("make", NETWORKS)
def test_disk_host_and_keeping_all_give_the_same_bits_under_random_delays(make, fates, undo, kept):
    net = make()
    plan = plan_of(net, on_disk(fates), undo=undo)
    verify(plan)
    assert plan.disk_bytes
    assert any(name in plan.tape.resident for name in plan.spilled) == undo
    with device_for(net, plan, delay=delays(7)) as device:
        assert_same_bits(outcome(device, plan), kept[make])
        assert device.measured_peak_bytes(plan) == plan.peak_bytes


@pytest.mark.parametrize("host_budget", [6 << 10, 12 << 10, 40 << 10])
def test_copies_on_either_tier_give_the_same_bits(host_budget, kept):
    found, plan = train(residual, on_disk(host_budget=host_budget, ahead=3, slack=2), delay=delays(host_budget))
    assert plan.host_bytes <= host_budget
    assert plan.disk_bytes
    assert_same_bits(found, kept[residual])


@pytest.mark.parametrize("options", [{"returns": "each", "ahead": 0}, {"streams": 1, "sync": "layer"}])
def test_other_schedules_give_the_same_bits(options, kept):
    found, plan = train(norm_dropout, on_disk(**options), delay=delays(3))
    assert plan.disk_bytes
    assert_same_bits(found, kept[norm_dropout])


def test_a_drive_that_takes_whole_pages_alone_gives_the_same_bits(kept):
    net = chain()
    plan = plan_of(net, on_disk())
    with device_for(net, plan) as device:
        device.spill.alignment = 4096
        assert_same_bits(outcome(device, plan), kept[chain])


def test_without_direct_reads_and_writes_the_bits_are_the_same(kept, monkeypatch):
    monkeypatch.setattr(os, "O_DIRECT", 0, raising=False)
    found, _ = train(chain, on_disk())
    assert_same_bits(found, kept[chain])


def test_the_predicted_bytes_on_disk_are_the_files_size():
    net = chain()
    plan = plan_of(net, on_disk())
    with device_for(net, plan) as device:
        assert os.fstat(device.spill.number).st_size == device.disk_bytes == plan.disk_bytes > 0
    kept_in_memory = plan_of(net, FATES["offload"])
    with device_for(net, kept_in_memory) as device:
        assert device.spill is None
        assert device.disk_bytes == kept_in_memory.disk_bytes == 0


def test_a_slow_link_slows_no_copy_to_disk():
    """At a byte a second this would not come back."""
    net = chain()
    plan = plan_of(net, on_disk())
    with device_for(net, plan, link_bandwidth=1.0) as device:
        for kind in ("offload", "prefetch"):
            device.spiller(kind, plan.tape.resident_bytes, 0, 4096, "bytes")()


# ---- a disk that fails


class Faults:
    """Counts what is written to a device's spill file, and does something to the k-th."""

    def __init__(self, device, way="write_some"):
        self.file, self.way, self.count, self.at, self.do = device.spill, way, 0, -1, None
        self.some = getattr(self.file, way)
        setattr(self.file, way, self)

    def __call__(self, memory, place):
        self.count += 1
        return self.do(memory, place) if self.count == self.at else self.some(memory, place)

    def plan(self, at, do):
        self.count, self.at, self.do = 0, at, do


def full(memory, place):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def reference():
    """What a second step leaves behind, after the first."""
    net = chain()
    plan = plan_of(net)
    with device_for(net, plan) as device:
        outcome(device, plan, 1)
        feed(device, plan, 1)
        execute(plan, device)
        return resident(device, plan)


def test_a_disk_full_at_any_write_leaves_everything_as_it_was_and_the_next_step_works(reference):
    net = chain()
    plan = plan_of(net, on_disk())
    with device_for(net, plan) as device:
        faults = Faults(device)
        outcome(device, plan, 1)
        writes = faults.count
        assert writes == sum(step.kind == "offload" and step.tier == "disk" for step in plan.steps) > 10
        before = resident(device, plan)
        feed(device, plan, 1)
        for k in range(1, writes + 1):
            faults.plan(k, full)
            with pytest.raises(SpillError, match=r"copied to byte \d+ of the spill file .*: No space left") as error:
                execute(plan, device)
            assert "in step" in error.value.__notes__[-1]
            assert "on disk" in error.value.__notes__[-1]
            assert not device.torn
            assert_same_bits(resident(device, plan), before)
        faults.plan(-1, full)
        execute(plan, device)
        assert_same_bits(resident(device, plan), reference)


@pytest.mark.parametrize("way", ["write_some", "read_some"])
def test_a_file_truncated_at_any_time_leaves_everything_as_it_was_and_the_next_step_works(way, reference):
    net = chain()
    plan = plan_of(net, features_on_disk)
    with device_for(net, plan) as device:
        faults = Faults(device, way)
        outcome(device, plan, 1)
        count = faults.count
        assert count > 5
        before = resident(device, plan)
        feed(device, plan, 1)

        def truncates(memory, place):
            os.ftruncate(device.spill.number, 0)
            return faults.some(memory, place)

        for k in range(1, count + 1):
            faults.plan(k, truncates)
            with pytest.raises(SpillError, match=r"was truncated|the file ends there"):
                execute(plan, device)
            assert not device.torn
            assert_same_bits(resident(device, plan), before)
        faults.plan(-1, truncates)
        execute(plan, device)
        assert_same_bits(resident(device, plan), reference)


def test_undo_copies_that_cannot_be_read_leave_the_weights_torn_and_that_is_said():
    net = chain()
    plan = plan_of(net, on_disk())
    with device_for(net, plan) as device:
        writes, reads = Faults(device), Faults(device, "read_some")
        outcome(device, plan, 1)
        last_write, last_read = writes.count, reads.count
        feed(device, plan, 1)
        writes.plan(last_write, full)  # weights were updated before

        def fails(memory, place):
            raise OSError(errno.EIO, "Input/output error")

        reads.plan(last_read + 1, fails)  # the first that is put back
        with pytest.raises(SpillError, match="No space left") as error:
            execute(plan, device)
        assert device.torn
        assert any("the weights could not be put back: " in note for note in error.value.__notes__)
        assert any("Input/output error" in note for note in error.value.__notes__)
        with pytest.raises(DeviceError, match="half updated; load them from a checkpoint first"):
            execute(plan, device)


def test_an_update_that_fails_is_put_back_from_disk():
    """The last copies out are of what is updated last; by then other weights have changed."""
    net = chain()
    plan = plan_of(net, on_disk())
    updates = [i for i, _, op in plan.computes() if op.phase == "update"]

    def fails(step):
        if step is plan.steps[updates[-1]]:
            raise KeyboardInterrupt
        return 0.0

    with device_for(net, plan) as device:
        outcome(device, plan, 1)
        before = resident(device, plan)
        feed(device, plan, 1)
        device.delay = fails
        device._programs.clear()
        with pytest.raises(KeyboardInterrupt):
            execute(plan, device)
        assert not device.torn
        assert_same_bits(resident(device, plan), before)


def test_a_step_that_ended_is_taken_back_from_disk():
    net = chain()
    plan = plan_of(net, on_disk())
    with device_for(net, plan) as device:
        before = resident(device, plan)
        feed(device, plan)
        execute(plan, device)
        assert device.take_back(plan) == "the weights are as before this step"
        assert_same_bits(resident(device, plan), before)
        execute(plan, device)
        device.spill.read_some = full
        assert "are lost: " in device.take_back(plan)
        assert device.torn


# ---- the file's life

KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {root!r}]
from networks import chain, device_for, feed, plan_of, FATES
from vdnn.memory.decisions import Decisions
from vdnn.memory.execute import execute

plan = plan_of(chain(), lambda tape: Decisions(FATES["offload"](tape), host_budget=0))

def kill(step):
    if step.kind == "prefetch" and step.tier == "disk":
        assert os.fstat(device.spill.number).st_size == plan.disk_bytes
        print("in the middle of a step", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.0

net = chain()
with device_for(net, plan, spill={folder!r}, delay=kill) as device:
    feed(device, plan)
    execute(plan, device)
"""


def test_a_process_killed_in_a_step_leaves_no_file(tmp_path):
    about = {"tests": str(ROOT / "tests"), "root": str(ROOT), "folder": str(tmp_path)}
    program = textwrap.dedent(KILLED).format(**about)
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert child.returncode == -9, child.stderr
    assert child.stdout == "in the middle of a step\n"
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_taken_with_the_slabs_and_grows_with_them(tmp_path):
    net = chain()
    small, large = plan_of(net, on_disk(host_budget=16 << 10)), plan_of(net, on_disk())
    assert small.disk_bytes < large.disk_bytes
    with device_for(net, small, spill=tmp_path) as device:
        before, number = resident(device, small), device.spill.number
        with pytest.raises(DeviceError, match=f"spill file of {large.disk_bytes} bytes.* reserved {small.disk_bytes}"):
            device.load(large)
        device.grow(large.arena_bytes, large.host_bytes, large.disk_bytes)
        assert (device.spill.number, device.disk_bytes) == (number, large.disk_bytes)
        assert_same_bits(resident(device, large), before)
        feed(device, large)
        execute(large, device)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_file_that_cannot_grow_leaves_the_weights_where_they_are():
    net = chain()
    plan = plan_of(net, on_disk())
    with device_for(net, plan) as device:
        before = resident(device, plan)
        with pytest.raises(SpillError, match=f"no spill file of {1 << 60} bytes"):
            device.grow(plan.arena_bytes + 512, 0, 1 << 60)
        assert not device.torn
        assert_same_bits(resident(device, plan), before)
        feed(device, plan)
        execute(plan, device)


def test_a_folder_that_there_is_not_is_refused_before_the_first_step(tmp_path):
    net = chain()
    plan = plan_of(net, on_disk())
    with pytest.raises(SpillError, match="No such file or directory"), device_for(net, plan, spill=tmp_path / "none"):
        pass


def test_a_gpu_refuses_a_plan_with_a_disk_and_keeps_what_it_has():
    require("emulated")
    net = chain()
    device = emulated_device(net, None)
    with pytest.raises(DeviceError, match="a spill file of 4096 bytes, and plans with one run on the host only"):
        device.reserve(1024, 1024, 4096)
    device.reserve(1024, 1024)
    with pytest.raises(DeviceError, match="run on the host only"):
        device.grow(2048, 1024, 4096)
    assert device.arena_bytes == 1024
    device.close()


def test_numbers_on_disk_are_no_constant(kept):
    """What is compared above differs from step to step, and is not all zeros."""
    found = kept[chain]
    assert (found["loss1.y of step 0"] != found["loss1.y of step 1"]).all()
    assert np.count_nonzero(found["conv1.w"]) == found["conv1.w"].size

"""What is really asked of CUDA, call by call, held against the plan by the verifier's rules.  No GPU."""

from __future__ import annotations

import emulator
import numpy as np
import pytest
from cuda_doubles import emulated_kernels
from networks import NETWORKS, chain, inception, residual
from recording import FakeAddresses, Recording, read_back

import vdnn
from vdnn.memory.cuda import CudaDevice
from vdnn.memory.verify import verify

OPTIMIZER = vdnn.SGD(0.1, momentum=0.9)
needs_compiler = pytest.mark.skipif(bool(emulator.available()), reason=emulator.available())


def recorded(make, policy, storage=None, driver=None):
    """(plan, device, the log of one step): the second one, when all is warm."""
    net = make()
    driver = driver or Recording()
    device = CudaDevice(net, OPTIMIZER, driver=driver, kernels=emulated_kernels, storage=storage, graphs=False)
    plan = vdnn.plan(net, policy, kernels=device.kernels, optimizer=OPTIMIZER, cost=device.cost, undo=True)
    if isinstance(driver, FakeAddresses):
        device.reserve(plan.arena_bytes, device.host_bytes_of(plan))
    else:
        for name in plan.tape.resident:
            device.write(plan, name, np.ones(plan.tape.tensors[name].shape, np.float32))
        _run(plan, device)
    driver.log.clear()
    return plan, device, _run(plan, device)


def _run(plan, device):
    """Issue a step whole; the calls between the first range and the last."""
    driver, run = device.driver, device.start(plan, timed=False)
    run.issue_all()
    names = [call for call, *_ in driver.log]
    first, last = names.index("range_push"), len(names) - 1 - names[::-1].index("range_pop")
    log = driver.log[:]
    run.wait()
    run.is_open = False
    begins = [i for i, (call, *_) in enumerate(log[:first]) if call == "record"]
    return log[begins[0] if begins else 0 : last + 1]


@needs_compiler
@pytest.mark.parametrize("policy", ["keep_all", "vdnn_all", "checkpoint", "least"])
@pytest.mark.parametrize("make", NETWORKS)
def test_the_calls_of_a_step_are_a_plan_that_is_safe_and_the_same(make, policy):
    plan, device, log = recorded(make, policy)
    found = read_back(log, plan, device)
    verify(found)
    for mine, theirs in zip(found.steps, plan.steps, strict=True):
        assert mine == theirs


@needs_compiler
@pytest.mark.parametrize("make", [chain, residual])
def test_without_any_one_wait_the_calls_are_refused(make):
    """Every event that is waited for is needed: so the check above can fail."""
    plan, device, log = recorded(make, "vdnn_all")
    waits = [i for i, (call, *_) in enumerate(log) if call == "wait"]
    begin = {id(log[0][1])}  # the fork at the start orders this step after the one before, not within itself
    refused = 0
    for i in waits:
        if id(log[i][2]) in begin:
            continue
        with pytest.raises(vdnn.PlanError, match="does not wait for"):
            verify(read_back(log[:i] + log[i + 1 :], plan, device))
        refused += 1
    assert refused == sum(len(s.waits) for s in plan.steps) > 5


@needs_compiler
def test_a_copy_from_elsewhere_is_noticed():
    plan, device, log = recorded(chain, "vdnn_all")
    i = next(i for i, (call, *a) in enumerate(log) if call == "copy" and a[3] == "prefetch" and a[2] > 2048)
    call, target, source, nbytes, kind, stream = log[i]
    moved = [*log[:i], (call, target, source + 512, nbytes, kind, stream), *log[i + 1 :]]
    with pytest.raises((vdnn.PlanError, AssertionError)):
        verify(read_back(moved, plan, device))


@needs_compiler
def test_a_step_allocates_nothing_and_waits_for_nothing():
    _, _, log = recorded(inception, "vdnn_all")
    assert not {call for call, *_ in log} & {"allocate", "synchronize"}


# ---- real CuPy arrays over addresses that nobody follows


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("make", NETWORKS)
def test_slab_and_layout_hold_for_real_cupy_arrays(make, storage):
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    plan, device, log = recorded(make, "vdnn_all", storage, FakeAddresses(cupy))
    verify(read_back(log, plan, device))
    bound = device.load(plan)
    seen = 0
    at = {}
    for i, step in enumerate(plan.steps):
        if step.kind == "alloc":
            at[step.name] = step.offset
        if step.kind != "compute":
            continue
        op = plan.tape.ops[plan.tape.index[step.name]]
        arrays = {k: a for k, a in bound.actions[i].keywords.items() if isinstance(a, cupy.ndarray)}
        for argument, array in arrays.items():
            if argument == "workspace":
                name, shape, dtype = f"{op.name}.workspace", (op.algorithm(step.algorithm).workspace,), "uint8"
            else:
                tensor = plan.tape.tensors[op.arguments[argument]]
                name, shape, dtype = plan.tape.buffer_of[tensor.name], tensor.shape, tensor.dtype
            assert array.data.ptr == device.block.address + at[name]
            assert array.data.ptr % 512 == 0
            assert array.shape == shape
            assert array.dtype == dtype
            assert array.nbytes <= plan.size(name)
            dense = array.transpose(0, 2, 3, 1) if array.ndim == 4 and storage == "nhwc" else array
            assert dense.flags.c_contiguous
            seen += 1
    assert seen > 50
    assert device.measured_peak_bytes(plan) == plan.peak_bytes

"""CudaDevice over test doubles: a driver whose streams are asynchronous in any order that events allow.  No GPU."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import emulator
import numpy as np
import pytest
from cuda_doubles import emulated_device, emulated_kernels
from emulated import EmulatedDriver
from networks import CLASSES, NETWORKS, chain, norm_dropout, residual
from safetensors.numpy import load_file

import vdnn
from vdnn.kernels.cuda.driver import CudaError, missing
from vdnn.kernels.cuda.link import link_of
from vdnn.memory import cuda
from vdnn.memory.cuda import CudaDevice

pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=emulator.available())
OPTIMIZER = vdnn.SGD(0.1, momentum=0.9, weight_decay=1e-3)


def batches(net, count=3):
    numbers = np.random.default_rng(7)
    shape = net.input.shape
    return [
        (numbers.standard_normal(shape, np.float32), numbers.integers(CLASSES, size=net.batch)) for _ in range(count)
    ]


def trainer_of(net, policy="keep_all", algorithms="performance", **options):
    device = emulated_device(net, **options)
    return vdnn.Trainer(net, policy, device=device, optimizer=OPTIMIZER, seed=1, algorithms=algorithms)


def trained(make, policy="keep_all", algorithms="performance", **options):
    """(losses, arrays, plan) after a few steps."""
    net = make()
    trainer = trainer_of(net, policy, algorithms, **options)
    losses = [float(loss) for loss in [trainer.step(*batch) for batch in batches(net)]]
    arrays = {k: v for group in (trainer.weights, trainer.state, trainer.statistics) for k, v in group.items()}
    assert trainer.measured_peak_bytes == trainer.plan.peak_bytes <= trainer.plan.arena_bytes
    plan = trainer.plan
    trainer.close()
    return losses, arrays, plan


class Kept(dict):
    """{network: what it is after a few steps with everything kept}, trained when it is first asked for."""

    def __missing__(self, make):
        self[make] = trained(make)
        return self[make]


@pytest.fixture(scope="module")
def kept():
    return Kept()


def assert_same(found, wanted):
    assert found[0] == wanted[0]
    for name, value in wanted[1].items():
        assert found[1][name].tobytes() == value.tobytes(), name


# ---- results


@pytest.mark.parametrize("make", NETWORKS)
def test_it_trains_like_the_host(make, kept):
    net = make()
    host = vdnn.Trainer(net, "keep_all", optimizer=OPTIMIZER, seed=1)
    losses = [host.step(*batch) for batch in batches(net)]
    assert kept[make][0] == pytest.approx(losses, rel=1e-4)
    assert len(set(losses)) == len(losses)
    for name, value in host.weights.items():
        np.testing.assert_allclose(kept[make][1][name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    host.close()


@pytest.mark.parametrize("policy", ["baseline", "vdnn_all", "vdnn_conv", "checkpoint", "least"])
@pytest.mark.parametrize("make", NETWORKS)
def test_every_policy_gives_the_same_bits_in_any_order_that_events_allow(make, policy, kept):
    seed = random.Random(f"{make.__name__}{policy}").randrange(2**32)
    assert_same(trained(make, policy, kept[make][2], seed=seed), kept[make])


@pytest.mark.parametrize(
    "options", [{"poison": True}, {"graphs": False}, {"timed": True}, {"delay": lambda step: 1e-6}]
)
def test_how_a_step_is_run_changes_no_bit(options, kept):
    assert_same(trained(norm_dropout, "vdnn_all", kept[norm_dropout][2], seed=3, **options), kept[norm_dropout])


@pytest.mark.parametrize("make", [chain, residual])
def test_channels_last_storage_trains_alike(make, kept):
    losses, arrays, plan = trained(make, "vdnn_all", storage="nhwc")
    assert plan.tape.storage == "nhwc"
    assert losses == pytest.approx(kept[make][0], rel=1e-5)
    for name, value in kept[make][1].items():
        np.testing.assert_allclose(arrays[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_missing_wait_shows_in_some_order(kept):
    """So the orders that the test double draws can find a race at all."""
    make = chain
    net = make()
    found = []
    for seed in range(12):
        device = emulated_device(net, OPTIMIZER, seed=seed, checked=False, poison=True)
        trainer = vdnn.Trainer(net, "vdnn_all", device=device, optimizer=OPTIMIZER, seed=1, algorithms=kept[make][2])
        bad = replace(trainer.plan, steps=tuple(replace(s, waits=()) for s in trainer.plan.steps))
        for name, value in zip(("input", "labels"), batches(net)[0], strict=True):
            device.write(bad, name, value)
        device.write(bad, "clock", trainer._clock())
        vdnn.execute(bad, device)
        found.append(float(device.read(bad, net.loss.y.name)[0]))
        trainer.close()
    assert any(loss != kept[make][0][0] for loss in found)


# ---- a step goes on by itself


def test_a_step_comes_back_before_anything_has_run():
    net = chain()
    trainer = trainer_of(net)
    loss = trainer.step(*batches(net)[0])
    assert trainer.device.running is not None
    assert any(stream.queue for stream in trainer.device.driver.streams)
    assert loss.value is None
    assert math.isfinite(loss)
    assert trainer.device.running is None
    assert not any(stream.queue for stream in trainer.device.driver.streams)


def test_the_next_inputs_are_written_elsewhere_while_a_step_runs(kept):
    net = chain()
    trainer = trainer_of(net)
    device, slots = trainer.device, []
    for batch in batches(net):
        trainer.step(*batch)
        slots.append(device.running.slot)
    assert slots == [0, 1, 0]
    assert trainer.step(*batches(net)[0]) > 0
    trainer.settle()
    trainer.step(*batches(net)[0])
    assert device.running.slot == device.slot  # nothing ran, so there was no need to change


def test_a_loss_behaves_as_a_float(kept):
    net = chain()
    trainer = trainer_of(net)
    loss = trainer.step(*batches(net)[0])
    value = kept[chain][0][0]
    assert loss == value
    assert (loss + 1, 1 - loss, loss * 2, -loss, abs(loss)) == (value + 1, 1 - value, value * 2, -value, value)
    assert f"{loss:.3f} {loss!r}" == f"{value:.3f} {value!r}"
    assert np.mean([loss, loss]) == np.float64(value)
    assert np.isfinite(loss)
    assert bool(loss)
    assert (math.floor(loss), int(loss)) == (math.floor(value), int(value))
    assert loss < 100
    assert hash(loss) == hash(value)


def test_from_its_second_time_on_a_step_is_a_graph():
    net = norm_dropout()
    trainer = trainer_of(net, "vdnn_all")
    ways = []
    for batch in [*batches(net), *batches(net)]:
        trainer.step(*batch)
        ways.append(trainer.device.running.is_graph)
    # both slots are captured once
    assert ways == [False, True, True, True, True, True]
    assert sorted(trainer.device._schedules[id(trainer.plan)].graphs) == [0, 1]
    assert trainer.device.graph_refusal == ""


def test_where_capture_is_refused_steps_go_on_without(kept):
    class Refusing(EmulatedDriver):
        def end_capture(self, stream):
            super().end_capture(stream)
            raise RuntimeError("operation not permitted when stream is capturing")

    net = chain()
    trainer = trainer_of(net, "vdnn_all", kept[chain][2], driver=Refusing())
    losses = [float(trainer.step(*batch)) for batch in batches(net)]
    assert losses == kept[chain][0]
    assert trainer.device.graph_refusal == "RuntimeError: operation not permitted when stream is capturing"


def test_a_timed_step_has_a_trace_and_another_has_none():
    net = chain()
    trainer = trainer_of(net, "vdnn_all")
    float(trainer.step(*batches(net)[0]))
    assert trainer.trace is None
    trainer.device.timed = True
    float(trainer.step(*batches(net)[1]))
    trace = trainer.trace
    assert trace.kind == "measured"
    ran = [e for e in trace.events if e.step.kind not in ("alloc", "free")]
    assert all(e.finish > e.start >= 0 for e in ran)
    for event in ran:
        for wait in event.step.waits:
            assert event.start >= trace.events[wait].finish


# ---- memory


def test_a_closed_device_gives_its_memory_back_though_others_still_refer_to_it():
    net = chain()
    driver = EmulatedDriver()
    trainer = trainer_of(net, driver=driver)
    losses = [trainer.step(*batch) for batch in batches(net)]
    device = trainer.device
    assert driver.allocated >= trainer.plan.arena_bytes
    trainer.close()
    assert driver.allocated == 0
    assert device.arena_bytes == 0
    assert all(math.isfinite(loss) for loss in losses)


def test_a_trainer_that_nobody_uses_any_more_makes_room_for_another(monkeypatch):
    monkeypatch.setattr(cuda, "link_of", lambda driver, streams, nbytes: link_of(driver, streams, 512))
    net = chain()
    driver = EmulatedDriver()
    first = trainer_of(net, driver=driver)
    float(first.step(*batches(net)[0]))
    driver.total = driver.allocated + 4096  # there is no room for a second slab beside the first
    del first
    again = trainer_of(net, driver=driver)
    assert again.step(*batches(net)[0]) > 0


def test_growing_gives_the_old_slab_back_first():
    net = chain()
    trainer = trainer_of(net)
    device, driver = trainer.device, trainer.device.driver
    float(trainer.step(*batches(net)[0]))
    weights = {name: value.copy() for name, value in trainer.weights.items()}
    driver.total = driver.allocated + 4096
    device.grow(device.arena_bytes + 2048, 0)
    for name, value in weights.items():
        assert trainer.weights[name].tobytes() == value.tobytes(), name


def test_measuring_may_take_what_the_arena_leaves_of_the_budget():
    net = chain()
    trainer = vdnn.Trainer(net, "keep_all", budget="10MiB", device=emulated_device(net), optimizer=OPTIMIZER)
    assert {limit for _, _, limit in trainer.device.kernels.convolutions.asked} == {10 << 20}
    assert trainer.device.kernels.find_limit == (10 << 20) - trainer.device.arena_bytes


def test_what_works_in_place_is_handed_one_array_and_not_two_on_the_same_bytes():
    """CuPy copies an input that shares bytes with the output, which allocates, unless they are one object."""
    net = vdnn.Network((2, 3, 4, 4))
    x = net.add(vdnn.layers.Sigmoid(), net.add(vdnn.layers.Conv2d(4, 3), net.input))
    net.add(vdnn.layers.SoftmaxCrossEntropy(), net.add(vdnn.layers.Linear(5), net.add(vdnn.layers.Flatten(), x)))
    trainer = trainer_of(net)
    bound = trainer.device.load(trainer.plan)
    shared = 0
    for i, step, op in trainer.plan.computes():
        if step.name.startswith("sigmoid"):
            given = bound.actions[i].keywords
            pair = ("x", "y") if op.phase == "forward" else ("dy", "dx")
            assert given[pair[0]] is given[pair[1]]
            shared += 1
    assert shared == 2
    assert trainer.step(*batches(net, 1)[0]) > 0


# ---- failures


def test_a_loss_that_is_not_finite_takes_its_step_back_and_says_so_at_the_next():
    net = chain()
    trainer = trainer_of(net)
    float(trainer.step(*batches(net)[0]))
    before = dict(trainer.weights)
    weights = trainer.weights
    weights["conv1.w"] = np.full_like(before["conv1.w"], 1e38)
    before = dict(trainer.weights)
    trainer.step(*batches(net)[1])
    with pytest.raises(vdnn.TrainingError, match=r"the loss is (nan|inf) at step 2.*as before this step"):
        trainer.step(*batches(net)[2])
    assert trainer.steps_done == 1
    for name, value in before.items():
        assert trainer.weights[name].tobytes() == value.tobytes(), name
    weights["conv1.w"] = np.zeros_like(before["conv1.w"])
    assert trainer.step(*batches(net)[2]) > 0
    assert trainer.steps_done == 2


def test_a_failure_while_a_step_is_issued_restores_everything(monkeypatch, kept):
    net = chain()
    trainer = trainer_of(net, "vdnn_all", kept[chain][2])
    losses = [float(trainer.step(*batches(net)[0]))]
    before = dict(trainer.weights)
    calls = []

    def fails(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError("planted")
        return whole(*arguments, **keywords)

    trainer.device.graphs = False
    whole = trainer.device.kernels.sgd
    monkeypatch.setattr(trainer.device.kernels, "sgd", fails)
    with pytest.raises(OSError, match="planted"):
        trainer.step(*batches(net)[1])
    assert len(calls) == 3
    monkeypatch.undo()
    for name, value in before.items():
        assert trainer.weights[name].tobytes() == value.tobytes(), name
    losses += [float(trainer.step(*batch)) for batch in batches(net)[1:]]
    assert losses == kept[chain][0]


def test_an_undo_copy_that_failed_is_not_put_back():
    class Failing(EmulatedDriver):
        failing_at = -1

        def copy(self, target, source, nbytes, kind, stream):
            self.failing_at -= kind == "offload" and stream is self.streams[1]
            if self.failing_at == -1 and kind == "offload":
                self.failing_at = -2
                raise KeyboardInterrupt
            super().copy(target, source, nbytes, kind, stream)

    net = chain()
    trainer = trainer_of(net, driver=Failing())
    before = {name: value.copy() for name, value in trainer.weights.items()}
    plan = trainer.plan
    copies = [i for i, s in enumerate(plan.steps) if s.kind == "offload"]
    undone = next(n for n, i in enumerate(copies) if plan.steps[i].name in plan.tape.resident)
    trainer.device.driver.failing_at = undone
    with pytest.raises(KeyboardInterrupt):
        trainer.step(*batches(net)[0])
    assert not trainer.device.torn
    for name, value in before.items():
        assert trainer.weights[name].tobytes() == value.tobytes(), name


def test_a_gpu_that_is_lost_leaves_a_file_and_is_not_used_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = chain()
    trainer = trainer_of(net)
    float(trainer.step(*batches(net)[0]))
    earlier = dict(trainer.weights)
    loss = trainer.step(*batches(net)[1])
    trainer.device.driver.failing = CudaError("cudaErrorIllegalAddress: an illegal memory access was encountered")
    with pytest.raises(vdnn.TrainingError, match=r"illegal memory access.*vdnn-rescue-.* has \d+ of \d+ weights"):
        float(loss)
    (file,) = tmp_path.iterdir()
    assert load_file(file).keys() == {*earlier, *trainer.state}
    for attempt in (lambda: trainer.step(*batches(net)[2]), lambda: trainer.device.reserve(1024, 1024)):
        with pytest.raises(vdnn.DeviceError, match="is lost; start again, in a new process"):
            attempt()
    trainer.close()


def test_a_loss_of_the_gpu_that_somebody_else_saw_first_is_no_good_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = chain()
    trainer = trainer_of(net)
    float(trainer.step(*batches(net)[0]))
    loss = trainer.step(*batches(net)[1])
    trainer.device.driver.failing = CudaError("planted")
    with pytest.raises(CudaError, match="planted"):
        trainer.device.read(trainer.plan, "conv1.w")
    with pytest.raises(vdnn.TrainingError, match=r"planted; .*vdnn-rescue-"):
        float(loss)
    with pytest.raises(RuntimeError, match="that was to give this loss failed"):
        float(loss)
    assert trainer.steps_done == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_gpu_that_is_lost_in_an_evaluation_leaves_a_file_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = chain()
    trainer = trainer_of(net)
    float(trainer.step(*batches(net)[0]))
    trainer.device.driver.failing = CudaError("planted")
    with pytest.raises(vdnn.TrainingError, match=r"planted; .*vdnn-rescue-"):
        trainer.evaluate(*batches(net)[0])
    assert len(list(tmp_path.iterdir())) == 1


def test_slabs_that_can_be_had_neither_larger_nor_as_before_leave_the_weights_torn(tmp_path):
    """Another process took the memory in between."""
    net = chain()
    trainer = trainer_of(net)
    float(trainer.step(*batches(net)[0]))
    trainer.save(tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    device = trainer.device
    device.driver.total = 100
    with pytest.raises(vdnn.DeviceError, match="device memory"):
        device.grow(device.arena_bytes + 512, 0)
    assert device.torn
    device.driver.total = 1 << 30
    with pytest.raises((vdnn.DeviceError, vdnn.CheckpointError)):
        trainer.save(tmp_path / "good")
    with pytest.raises(vdnn.DeviceError):
        trainer.step(*batches(net)[1])
    assert (tmp_path / "good").read_bytes() == good


def test_too_little_device_memory_is_said_with_the_numbers_before_anything_is_taken():
    net = chain()
    device = emulated_device(net, OPTIMIZER)
    with pytest.raises(vdnn.DeviceError, match=r"2\.00 GiB \(2147483648 bytes\).*1\.00 GiB .* free on emulated"):
        device.reserve(2 << 30, 0)


def test_page_locked_memory_that_is_refused_is_said_with_the_numbers():
    class NoPinned(EmulatedDriver):
        def allocate_pinned(self, nbytes):
            if nbytes > 100:
                raise CudaError(f"{nbytes} bytes of page-locked host memory were refused")
            return super().allocate_pinned(nbytes)

    device = emulated_device(chain(), OPTIMIZER, driver=NoPinned())
    with pytest.raises(vdnn.DeviceError, match=r"4096 bytes on the device, 512 page-locked.*refused"):
        device.reserve(4096, 512)
    assert device.arena_bytes == 0


def test_a_percentage_is_of_what_is_free_now():
    net = chain()
    driver = EmulatedDriver()
    other = driver.allocate(1 << 29)  # another process
    device = emulated_device(net, driver=driver)
    trainer = vdnn.Trainer(net, "keep_all", budget="50%", device=device, optimizer=OPTIMIZER)
    assert trainer.budget_bytes == 1 << 28
    assert other.nbytes == 1 << 29


def test_without_a_gpu_the_reason_is_given():
    if not missing():
        pytest.skip("there is a GPU")
    with pytest.raises(vdnn.DeviceError, match="no GPU can be used: CuPy"):
        CudaDevice(chain())
    with pytest.raises(vdnn.DeviceError, match="no GPU can be used: CuPy"):
        vdnn.Trainer(chain(), device="cuda")


# ---- checkpoints


def test_a_checkpoint_goes_on_bit_for_bit_and_on_another_device_nearly(tmp_path, kept):
    net = norm_dropout()
    trainer = trainer_of(net, "vdnn_all", kept[norm_dropout][2])
    losses = [float(trainer.step(*batch)) for batch in batches(net)[:2]]
    trainer.step(*batches(net)[2])  # still running when it is saved
    trainer.save(tmp_path / "part")
    if missing():
        with pytest.raises(vdnn.CheckpointError, match=r"was saved on a GPU.*load\(path, device='host'\)"):
            vdnn.Trainer.load(tmp_path / "part", net=net)
    again = vdnn.Trainer.load(tmp_path / "part", net=net, device=emulated_device(net), policy="keep_all")
    assert again.steps_done == 3
    for name, value in kept[norm_dropout][1].items():
        group = next(g for g in (again.weights, again.state, again.statistics) if name in g)
        assert group[name].tobytes() == value.tobytes(), name
    assert losses == kept[norm_dropout][0][:2]
    assert float(again.step(*batches(net)[0])) == float(trainer.step(*batches(net)[0]))
    for name, value in trainer.weights.items():
        assert again.weights[name].tobytes() == value.tobytes(), name
    again = vdnn.Trainer.load(tmp_path / "part", net=net, device=emulated_device(net))
    host = vdnn.Trainer.load(tmp_path / "part", net=net, device="host")
    one, other = host.step(*batches(net)[0]), float(again.step(*batches(net)[0]))
    assert one == pytest.approx(other, rel=1e-4)
    host.close()


@pytest.fixture
def by_name(monkeypatch):
    """`device="cuda"` is the test double."""
    monkeypatch.setattr(cuda, "CupyDriver", EmulatedDriver)
    monkeypatch.setattr(cuda.CudaKernels, "on", emulated_kernels)


@pytest.fixture
def saved(by_name, tmp_path):
    """A checkpoint of a trainer in tf32."""
    net = chain()
    trainer = vdnn.Trainer(net, "vdnn_all", device="cuda", math="tf32", deterministic=False, optimizer=OPTIMIZER)
    float(trainer.step(*batches(net)[0]))
    trainer.save(tmp_path / "run")
    return tmp_path / "run", dict(trainer.plan.decisions.algorithms)


@pytest.mark.parametrize(
    ("options", "traits", "keeps_algorithms"),
    [
        ({}, ("tf32", "nhwc", False), True),
        ({"device": "cuda"}, ("tf32", "nhwc", False), True),
        ({"math": "fp32"}, ("fp32", "nhwc", False), False),
        ({"device": "cuda", "storage": "nchw"}, ("tf32", "nchw", False), False),
        ({"deterministic": True}, ("tf32", "nhwc", True), False),
    ],
    ids=str,
)
def test_a_checkpoint_goes_on_with_its_own_device_but_for_what_is_asked(saved, options, traits, keeps_algorithms):
    path, algorithms = saved
    trainer = vdnn.Trainer.load(path, **options)
    kernels = trainer.device.kernels
    assert (kernels.math, kernels.storage, kernels.deterministic) == traits
    assert trainer.steps_done == 1
    if keeps_algorithms:
        assert dict(trainer.plan.decisions.algorithms) == algorithms
    assert trainer.step(*batches(trainer.net)[1]) > 0


@pytest.mark.parametrize("options", [{"threads": 2}, {"link_bandwidth": 1e9}])
def test_options_of_the_host_are_refused_for_a_gpu(saved, options):
    with pytest.raises(ValueError, match="are for the host; a GPU has its own"):
        vdnn.Trainer.load(saved[0], **options)
    vdnn.Trainer.load(saved[0], device="host", **options).close()


def test_options_of_a_gpu_are_refused_for_the_host():
    with pytest.raises(ValueError, match="math='tf32': math, storage, deterministic are for a GPU"):
        vdnn.Trainer(chain(), math="tf32")

"""The CPU benchmarks against PyTorch: what they say, their cases, limits, children; with PyTorch, whether it agrees."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from math import isnan
from pathlib import Path

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import cpu_cases  # noqa: E402
import cpu_child  # noqa: E402
import cpu_layers  # noqa: E402
import cpu_limit  # noqa: E402
import cpu_memory  # noqa: E402
import cpu_memory_report  # noqa: E402
import cpu_report  # noqa: E402
import cpu_side  # noqa: E402
import kernels_least  # noqa: E402
from children import ChildError  # noqa: E402
from cpu_cases import Case  # noqa: E402
from cpu_report import Line  # noqa: E402

import vdnn  # noqa: E402
from vdnn.layers.base import Algorithm  # noqa: E402

TINY = Case("digits_vgg", 8, (1, 32, 32), {"channels": 8, "counts": (1, 1), "batch_norm": False})
NORMED = Case("resnet20", 4, (3, 8, 8))


def line(side, seconds, threads=2, network="vgg11", loss=1.0):
    """A side of a network; its kernels, layout and SGD follow from its name, such as "vdnn fast"."""
    words = side.split()
    kernels, layout, sgd = (words[1], "", "") if words[0] == "vdnn" else ("", *words[1:])
    return Line(network, 8, "3x224x224", threads, side, kernels, layout, sgd, tuple(seconds), loss, 0.0)


def torch_lines(**how):
    """Three sides of PyTorch: medians of 2 and 1 s with the fused SGD, of 1.5 s with the default one."""
    return [
        line("torch contiguous fused", [2.0], **how),
        line("torch channels_last fused", [1.0], **how),
        line("torch channels_last default", [1.5], **how),
    ]


# ---- cases


def test_the_cases_are_six_networks_at_224_and_two_at_32():
    assert [(case.network, case.batch) for case in cpu_cases.CASES if case.image == (3, 224, 224)] == [
        *[("vgg11", 8), ("vgg16", 8), ("alexnet", 8), ("googlenet", 8), ("resnet18", 8), ("resnet50", 8)]
    ]
    assert [(case.network, case.batch) for case in cpu_cases.CASES if case.image == (3, 32, 32)] == [
        *[("resnet20", 128), ("small_vgg", 128)]
    ]


def test_resnet20_has_the_parameters_of_its_layers():
    net = cpu_cases.resnet20(batch=2)
    # 3x3 convolutions: 3 to 16, 6 of 16, 16 to 32, 5 of 32, 32 to 64, 5 of 64
    convolutions = 9 * (3 * 16 + 6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2)
    projections = 16 * 32 + 32 * 64
    normalised = 2 * (7 * 16 + 7 * 32 + 7 * 64)  # of every convolution, projections too
    assert sum(np.prod(t.shape) for t, _ in net.parameters.values()) == convolutions + projections + normalised + 650


def test_no_case_has_dropout():
    for case in cpu_cases.CASES:
        assert not [node for node in case.make().nodes if type(node.layer).__name__ == "Dropout"]


def test_an_unknown_case_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no case is named 'vgg12'; there are vgg11, vgg16"):
        cpu_cases.named("vgg12", cpu_cases.CASES)


def test_kernels_that_cannot_run_are_refused():
    refused = pytest.raises(ValueError, match="kernels 'abacus' cannot run here; there are numpy")
    with refused, cpu_cases.kernels_chosen("abacus"):
        pass


def test_the_choice_of_kernels_is_taken_back(monkeypatch):
    monkeypatch.setenv("VDNN_FAST", "1")
    with cpu_cases.kernels_chosen("numpy"):
        assert cpu_cases.os.environ["VDNN_FAST"] == "0"
    assert cpu_cases.os.environ["VDNN_FAST"] == "1"


# ---- what cpu_speed says


def test_a_ratio_is_over_the_better_layout_with_the_fused_sgd():
    lines = [line("vdnn numpy", [0.4, 0.5, 0.6]), *torch_lines()]
    cells = dict(zip(cpu_report.COLUMNS, lines[0].cells(lines), strict=True))
    assert (cells["ratio_to_better_fused_torch"], cells["ratio_to_default_torch"]) == ("0.500", "0.333")


def test_quartiles_are_of_the_steps():
    assert line("vdnn numpy", [1.0, 2.0, 3.0, 4.0, 5.0]).spread == (2.0, 4.0)
    assert line("vdnn numpy", [3.0, 1.0]).spread == (1.0, 3.0)


def test_a_limit_is_missed_only_by_more_than_it_says():
    assert cpu_report.missed([line("vdnn numpy", [0.60]), *torch_lines()]) == []
    assert cpu_report.missed([line("vdnn numpy", [0.61]), *torch_lines()]) == [
        "vgg11 with vdnn numpy: 0.61 of PyTorch's time, at most 0.60 wanted"
    ]


def test_there_are_no_limits_for_one_thread():
    assert cpu_report.missed([line("vdnn numpy", [9.0], threads=1), *torch_lines(threads=1)]) == []


def test_first_losses_that_differ_are_a_fault():
    good, bad = line("vdnn numpy", [1.0], loss=1.0009), line("vdnn fast", [1.0], loss=1.002)
    assert cpu_report.faults([good, *torch_lines()]) == []
    assert len(cpu_report.faults([bad, *torch_lines()])) == 1


def test_a_loss_that_is_no_number_is_a_fault():
    assert len(cpu_report.faults([line("vdnn numpy", [1.0], loss=float("nan")), *torch_lines()])) == 1


def test_the_times_of_layers_add_up_to_the_traces_compute_time():
    trainer = cpu_cases.trainer_of(TINY, 1)
    trainer.step(*cpu_cases.batch_of(trainer.net))
    times = cpu_layers.of_trace(trainer.trace)
    trainer.close()
    assert sum(times.values()) == pytest.approx(trainer.trace.compute_seconds)
    assert {("conv1_1", "forward"), ("conv1_1", "backward"), ("all", "update")} <= times.keys()


# ---- limits and children


def test_the_own_group_is_that_of_version_two():
    text = "4:memory:/old\n0::/user.slice/session\n"
    assert cpu_limit.own_group(text) == cpu_limit.CGROUPS / "user.slice/session"
    assert cpu_limit.own_group("4:memory:/old\n") is None


def test_an_allocation_beyond_the_limit_fails():
    code = (
        "import numpy as np; from cpu_limit import Limit; Limit(1 << 30).enter()\n"
        "np.ones(1 << 29, np.uint8); print('first')\n"
        "try: np.ones(1 << 30, np.uint8); print('second')\n"
        "except MemoryError: print('refused')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=EXPERIMENTS, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["first", "refused"]


def test_a_limit_of_another_kind_is_refused():
    refused = pytest.raises(ValueError, match="limit 'ulimit' is none of any, cgroup, rlimit")
    with refused, cpu_limit.limited(1, "ulimit"):
        pass


def task(**how):
    """vdnn on the tiny network for two steps, in this Python."""
    about = {"network": TINY.network, "batch": TINY.batch, "image": list(TINY.image), "options": dict(TINY.options)}
    return cpu_child.Task("vdnn", about, 1, 2, **how)


@pytest.fixture(autouse=True)
def children_find_vdnn(monkeypatch):
    """Children start in this Python, wherever vdnn is."""
    monkeypatch.setenv("PYTHONPATH", str(Path(vdnn.__file__).parent.parent))


def test_a_child_gives_losses_times_and_its_peak():
    found = cpu_child.ask(task(), 60)
    assert len(found["losses"]) == len(found["seconds"]) == 2
    assert found["peak"] >= found["before"] > 0
    trainer = cpu_cases.trainer_of(TINY, 1)
    batch = cpu_cases.batch_of(trainer.net)
    assert found["losses"] == [trainer.step(*batch) for _ in range(2)]
    trainer.close()


def test_a_child_says_that_its_target_is_too_small():
    found = cpu_child.ask(task(target=1 << 20), 60)
    assert found["memory"]
    assert found["error"].startswith("MemoryError: a target of 1048576 bytes is less than")


def test_a_child_that_fails_otherwise_is_an_error():
    with pytest.raises(ChildError, match="no policy is named"):
        cpu_child.ask(task(policy="wishful"), 60)


def test_the_fewest_sub_batches_that_fit_are_taken():
    whole = cpu_cases.trainer_of(TINY, 1)
    needed = whole.plan.arena_bytes
    whole.close()
    own = {"target": needed - 1 + cpu_child.RESERVE, "how": {"micro_batches": cpu_child.FEWEST}}
    trainer = cpu_child._trainer(task(**own), TINY, TINY.make(), 0)
    assert trainer.micro_batches == 2
    trainer.close()


# ---- sides of cpu_speed


@pytest.fixture
def side():
    """A function: a side in a process of its own, which ends with the test."""
    with ExitStack() as stack:

        def begin(made):
            remote = cpu_side.Remote(made)
            stack.callback(remote.close)
            return remote

        yield begin


def test_a_side_steps_when_it_is_asked_to(side):
    remote = side(task())
    remote.ready()
    seconds, loss = remote.steps(2)
    trainer = cpu_cases.trainer_of(TINY, 1)
    assert loss == trainer.step(*cpu_cases.batch_of(trainer.net))
    trainer.close()
    assert len(seconds) == 2
    assert min(seconds) > 0
    assert remote.worked() > 0
    assert {("conv1_1", "forward"), ("conv1_1", "backward"), ("all", "update")} <= remote.layers().keys()
    assert remote.peak() > 10 << 20
    remote.threads(1)
    remote.ready()
    assert remote.steps(1)[1] == loss  # its first weights again


def test_a_side_that_fails_says_why(side):
    remote = side(task(kernels="abacus"))
    with pytest.raises(ChildError, match="kernels 'abacus' cannot run here"):
        remote.ready()


def test_a_side_whose_process_ended_is_an_error(side):
    remote = side(task())
    remote.ready()
    remote._child.process.kill()
    with pytest.raises(ChildError, match=r"on .*digits_vgg.*: it ended"):
        remote.steps(1)


def test_what_is_no_question_is_refused():
    with pytest.raises(ValueError, match="no question is "):
        cpu_side.answer(None, {"do": "dance"})


# ---- cpu_memory


@pytest.mark.parametrize("most", [1, 2, 7, 31, 32, 100, 173, 500])
@pytest.mark.parametrize("guess", [1, 60, 180, 900])
def test_bisection_finds_the_largest_batch_to_within_a_32nd(most, guess):
    asked = []

    def fits(batch):
        asked.append(batch)
        return batch <= most

    found = cpu_memory.largest(fits, guess)
    assert found <= most <= found + max(1, found // 32) - (most < 64)
    assert len(asked) == len(set(asked))


def test_where_nothing_fits_there_is_no_largest_batch():
    with pytest.raises(ValueError, match="not even one sample fits"):
        cpu_memory.largest(lambda batch: False, 5)


def test_the_first_guess_follows_from_two_peaks():
    assert cpu_memory.guessed({4: 140, 12: 220}, 1000) == 90  # 100 and 10 a sample
    assert cpu_memory.guessed({4: 140, 12: 220}, 50) == 1


def test_no_sub_batches_where_a_layer_couples_samples():
    plain, normed = (
        {way.name for way in cpu_memory.ways_of(make(batch=2))} for make in (cpu_cases.small_vgg, cpu_cases.resnet20)
    )
    assert plain - normed == {"sub-batches"}


def test_a_kept_answer_is_not_asked_for_again(tmp_path, monkeypatch):
    calls = []
    answer = {"peak": 1 << 20, "seconds": [1.0, 2.0], "losses": [1.0, 1.0]}
    monkeypatch.setattr(cpu_memory, "ask", lambda task, seconds: calls.append(task) or answer)
    path = tmp_path / "kept.json"
    for fresh in (False, False, True):
        assert cpu_memory.Answers(path, fresh).ask(task(), "tiny") == answer
    assert len(calls) == 2
    assert len(json.loads(path.read_text())) == 1


def test_a_failure_is_told_but_not_kept(tmp_path, monkeypatch):
    def failing(task, seconds):
        raise ChildError("it ended")

    monkeypatch.setattr(cpu_memory, "ask", failing)
    path = tmp_path / "kept.json"
    assert cpu_memory.Answers(path, False).ask(task(), "tiny") == {"error": "it ended", "memory": False}
    assert not path.exists()


def test_the_first_step_does_not_count():
    found = {"seconds": [9.0, 1.0, 2.0, 3.0], "peak": 500, "micro_batches": 4}
    torch = cpu_memory_report.Row(TINY, 2, "torch", "plain", "", 0, {"seconds": [9.0, 4.0], "peak": 1000})
    row = cpu_memory_report.Row(TINY, 2, "vdnn numpy", "sub-batches", "1/2", 499, found)
    cells = dict(zip(cpu_memory_report.COLUMNS, row.cells(torch), strict=True))
    assert (cells["step_seconds_measured"], cells["time_over_torch"]) == ("2.0000", "0.500")
    assert (cells["peak_over_torch"], cells["within_target"]) == ("0.500", False)


def test_what_does_not_fit_has_a_line_that_says_so():
    torch = cpu_memory_report.Row(TINY, 2, "torch", "plain", "", 0, {"seconds": [9.0, 4.0], "peak": 1000})
    row = cpu_memory_report.Row(TINY, 2, "vdnn numpy", "search", "1/4", 250, {"error": "too small", "memory": True})
    assert isnan(row.seconds)
    assert dict(zip(cpu_memory_report.COLUMNS, row.cells(torch), strict=True))["note"] == "too small"


# ---- kernels_least


def test_each_shape_of_a_convolution_is_taken_once():
    layers = kernels_least.layers_of([cpu_cases.resnet20(batch=2), cpu_cases.resnet20(batch=2)])
    assert layers["resnet20 stem_conv"] == (2, 3, 32, 16, 3, 1, 1)
    assert layers["resnet20 stage2_0_short_conv"] == (2, 16, 32, 32, 1, 2, 0)
    assert len(layers) == 1 + 1 + 2 * 3  # the stem, that of stage 1, and of each other stage: strided, projection, rest


def test_large_planes_and_many_channels_are_judged():
    assert kernels_least.is_judged((8, 64, 56, 64, 3, 1, 1))
    assert not kernels_least.is_judged((8, 3, 224, 64, 3, 1, 1))
    assert not kernels_least.is_judged((8, 256, 28, 512, 3, 2, 1))  # 14x14 behind it


def test_a_median_and_a_worst_ratio_that_are_too_large_are_faults():
    layer = (8, 64, 56, 64, 3, 1, 1)
    about = "a", "fast", "direct", "forward", layer, 1 << 20
    rows = [kernels_least.Row(*about, ratio, 1.0, 3) for ratio in (1.3, 1.45, 2.3)]
    assert kernels_least.faults(rows) == [
        "the median ratio is 1.45, at most 1.4 wanted",
        "the worst ratio is 2.30, a forward, at most 2.2 wanted",
    ]
    assert kernels_least.faults(rows[:1]) == []


def test_least_memory_is_the_fastest_exact_algorithm_within_a_mebibyte_a_worker():
    found = [Algorithm("direct", 0, 0.9), Algorithm("winograd2", 10, 2.0), Algorithm("pack", 2 << 20, 1.0)]
    assert kernels_least.least(found, 1).name == "direct"
    assert kernels_least.least(found, 2).name == "pack"


# ---- with PyTorch, where it is installed


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_pytorch_has_the_same_losses_and_gradients(layout):
    pytest.importorskip("torch")
    from cpu_torch import TorchTraining
    from torch_twin import first_weights

    net = NORMED.make()
    batch = cpu_cases.batch_of(net)
    trainer = cpu_cases.trainer_of(NORMED, 1)
    ours = trainer.gradients(*batch)
    losses = [trainer.step(*batch) for _ in range(3)]
    trainer.close()
    torch = TorchTraining(net, first_weights(net), batch, layout, NORMED.rate)
    theirs = torch.gradients()
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    for name, expected in theirs[1].items():
        np.testing.assert_allclose(ours[1][name], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(), err_msg=name)
    assert [torch.step() for _ in range(3)] == pytest.approx(losses, rel=1e-4)


def test_both_sgds_of_pytorch_train_alike():
    pytest.importorskip("torch")
    from cpu_torch import TorchTraining
    from torch_twin import first_weights

    net = NORMED.make()
    ways = [(sgd, recompute) for sgd in ("fused", "default") for recompute in (False, True)]
    found = []
    for sgd, recompute in ways:
        torch = TorchTraining(net, first_weights(net), cpu_cases.batch_of(net), "contiguous", 0.01, recompute)
        found.append([torch.step(sgd) for _ in range(3)])
    assert found[1:] == [pytest.approx(found[0], rel=1e-5)] * 3


def test_every_layer_of_pytorch_has_a_time_and_is_left_as_it_was():
    pytest.importorskip("torch")
    from cpu_torch import TorchTraining
    from torch_twin import first_weights

    net = NORMED.make()
    torch = TorchTraining(net, first_weights(net), cpu_cases.batch_of(net), "contiguous", 0.01)
    times = torch.layer_seconds()
    layers = {node.name for node in net.nodes}
    assert {layer for layer, phase in times if phase == "backward"} == layers
    assert {layer for layer, phase in times if phase == "forward"} == layers - {"loss"}
    assert all(seconds > 0 for seconds in times.values())
    assert all("run" not in vars(piece) for piece in torch.model.pieces)


def test_gradients_of_both_types_are_as_near_as_rounding_lets_them():
    pytest.importorskip("torch")
    import torch_agreement

    found = torch_agreement.gradients_of(NORMED, 1)
    losses = torch_agreement.losses_of(NORMED, 1, 3)
    assert torch_agreement.faults(NORMED, found, losses) == []
    assert {one.dtype for one in found} == {"float32", "float64"}


def test_a_wrong_gradient_is_a_fault():
    pytest.importorskip("torch")
    import torch_agreement

    reference = 1.0, {"a": np.ones(4), "zero": np.full(4, 1e-17)}
    own = torch_agreement.compared("torch", "float32", (1.0, reference[1]), reference)
    off = torch_agreement.compared("vdnn", "float32", (1.0, {"a": np.ones(4) * 1.01, "zero": np.ones(4)}), reference)
    assert (off.tensor, off.largest) == ("a", pytest.approx(0.01))
    losses = {("torch", "float64"): [1.0], ("torch", "float32"): [1.0]}
    assert torch_agreement.faults(NORMED, [own, off], losses) == [
        "resnet20: vdnn float32: gradient of a is 1.00e-02 off, limit 1.00e-03"
    ]

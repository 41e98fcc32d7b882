"""The binding to cuDNN, over a stub that computes with NumPy; and over cuDNN itself where there is one."""

import ctypes
from dataclasses import replace

import emulator
import numpy as np
import pytest
from emulated import EmulatedDriver
from emulated_libraries import EmulatedProducts, prototypes
from fake_cudnn import KINDS, TITLES, FakeCudnn

from vdnn.kernels.cuda import CudaKernels
from vdnn.kernels.cuda.cudnn import CudnnConvolutions, Descriptors
from vdnn.kernels.cuda.driver import CudaError
from vdnn.kernels.cuda.finding import PHASES, Findings, Problem
from vdnn.kernels.cuda.libraries import CUDNN_FUNCTIONS, AlgoPerf, Cudnn
from vdnn.layers import Conv2d, ConvTranspose2d, check_layer

if emulator.available():
    pytest.skip(emulator.available(), allow_module_level=True)

PROBLEM = Problem(
    (2, 4, 7, 6), (6, 2, 3, 2), (2, 6, 3, 6), (2, 1), (0, 1), (1, 2), 2, "float32", "nchw", "fp32"
)  # fmt: skip


@pytest.fixture
def fake(tmp_path):
    return FakeCudnn(tmp_path)


def convolutions(fake, tmp_path, driver=None):
    driver = driver or EmulatedDriver(eager=True)
    findings = Findings("device", "9", "12", tmp_path / "cache")
    return CudnnConvolutions(driver, driver.new_stream(), Cudnn(fake.loaded), findings)


def letter(kind, typedefs):
    if kind.endswith("*") or f"void *{kind}" in typedefs or f", *{kind}" in typedefs:
        return "s" if kind == "const char *" else "p"
    return {"size_t": "z", "int": "i", "void": "v"}.get(kind, "i")


def test_the_table_of_functions_is_that_of_the_prototypes():
    text, functions = prototypes("cudnn")
    expected = {}
    for name, (result, kinds) in functions.items():
        before = "" if result == "cudnnStatus_t" else letter(result, text) + ":"
        expected[name] = before + "".join(letter(kind, text) for kind in kinds)
    assert expected == CUDNN_FUNCTIONS


def test_records_lie_as_the_compiler_puts_them():
    text, _ = prototypes("cudnn")
    fields = [name for name, _ in AlgoPerf._fields_]
    offsets = ", ".join(f"offsetof(AlgoPerf, {name})" for name in fields)
    struct = text[text.index("struct AlgoPerf") : text.index("typedef struct")]
    code = f'#include <cstddef>\n{struct}extern "C" size_t offsets[] = {{{offsets}, sizeof(AlgoPerf)}};'
    library = ctypes.CDLL(str(emulator._compiled(code, ())))
    compiled = list((ctypes.c_size_t * (len(fields) + 1)).in_dll(library, "offsets"))
    assert compiled == [*(getattr(AlgoPerf, name).offset for name in fields), ctypes.sizeof(AlgoPerf)]


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_passes_every_argument_in_its_place(phase, fake, tmp_path):
    title, roles = PHASES[phase].title, PHASES[phase].operands
    engine = convolutions(fake, tmp_path)
    arrays = {role: np.ones(getattr(PROBLEM, role), np.float32) for role in "xwy"}
    first, second, out = (arrays[role].ctypes.data for role in roles)
    scratch = np.zeros(8, np.uint8)
    name = PHASES[phase].algorithms[5]
    engine.run(phase, PROBLEM, name, first, second, out, scratch.ctypes.data, (3 << 32) + 8)
    ((handle, _, a, pa, b, pb, conv, number, space, size, _, c, pc),) = fake.called(f"cudnnConvolution{title}")
    assert fake.things[handle]["kind"] == "cudnnHandle_t"
    assert fake.things[handle]["cudnnSetStream"] == [1]
    assert (pa, pb, pc, number, space, size) == (first, second, out, 5, scratch.ctypes.data, (3 << 32) + 8)
    described = dict(zip(roles, (fake.things[t] for t in (a, b, c)), strict=True))
    assert described["x"]["cudnnSetTensor4dDescriptorEx"] == [0, 2, 4, 7, 6, 168, 42, 6, 1]
    assert described["y"]["cudnnSetTensor4dDescriptorEx"] == [0, 2, 6, 3, 6, 108, 18, 6, 1]
    assert described["w"]["cudnnSetFilter4dDescriptor"] == [0, 0, 6, 2, 3, 2]
    assert fake.things[conv]["cudnnSetConvolution2dDescriptor"] == [0, 1, 2, 1, 1, 2, 1, 0]
    assert fake.things[conv]["cudnnSetConvolutionMathType"] == [3]
    assert fake.things[conv]["cudnnSetConvolutionGroupCount"] == [2]


@pytest.mark.parametrize(
    ("dtype", "math", "name", "expected"),
    [
        ("float32", "fp32", "gemm", 3),
        ("float32", "tf32", "gemm", 0),
        ("float32", "tf32", "gemm.tensor_op", 1),
        ("float64", "fp32", "gemm", 0),
        ("float64", "tf32", "gemm", 0),
    ],
)
def test_the_math_type_is_set_before_anything_is_asked(dtype, math, name, expected, fake, tmp_path):
    problem = replace(PROBLEM, dtype=dtype, math=math, storage="nhwc")
    engine = convolutions(fake, tmp_path)
    engine.workspace("forward", problem, name)
    (asked,) = fake.called("cudnnGetConvolutionForwardWorkspaceSize")
    assert fake.things[asked[3]]["cudnnSetConvolutionMathType"] == [expected]
    assert fake.things[asked[1]]["cudnnSetTensor4dDescriptorEx"][5:] == [168, 1, 24, 4]
    assert fake.things[asked[2]]["cudnnSetFilter4dDescriptor"][:2] == [int(dtype == "float64"), 1]
    engine.close()


def test_tensor_cores_are_for_tf32_alone(fake, tmp_path):
    engine = convolutions(fake, tmp_path)
    for problem in (PROBLEM, replace(PROBLEM, dtype="float64", math="tf32")):
        with pytest.raises(ValueError, match=r"no algorithm 'gemm.tensor_op' for forward: implicit_gemm, .*"):
            engine.workspace("forward", problem, "gemm.tensor_op")


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (Conv2d(6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2), (2, 4, 7, 6)),
        (ConvTranspose2d(4, 3, 2, 1, 1, groups=2), (2, 4, 3, 4)),
    ],
    ids=str,
)
@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
def test_layers_pass_the_check_over_the_binding(layer, x, storage, fake, tmp_path):
    fake.needs = {(title, 1): 5000 for title in TITLES}
    fake.maths = (3, 0)
    engine = convolutions(fake, tmp_path)
    products = EmulatedProducts(engine.driver, engine.stream)
    check_layer(layer, x, kernels=CudaKernels(engine.driver, engine.stream, engine, products, storage=storage))
    engine.close()
    assert not fake.things
    called = {name for name, _ in fake.calls}
    others = {"cudnnGetErrorString", "cudnnGetLastErrorString"}
    if storage == "nhwc":
        others.add("cudnnAddTensor")  # a kernel of vdnn's own adds the bias
    assert {n for n in CUDNN_FUNCTIONS if "_v7" not in n} - others == called


def test_the_second_of_two_measurements_counts(fake, tmp_path):
    found = convolutions(fake, tmp_path).candidates("forward", PROBLEM)
    assert len(fake.called("cudnnFindConvolutionForwardAlgorithmEx")) == 2
    assert [c.name for c in found] == PHASES["forward"].algorithms
    assert found[0].seconds == pytest.approx((10 + 200 - 0.75) / 1e3)


def test_measuring_uses_scratch_and_gives_it_back(fake, tmp_path):
    driver = EmulatedDriver(eager=True)
    fake.needs = {("Forward", 2): 70_000}
    found = convolutions(fake, tmp_path, driver).candidates("forward", PROBLEM)
    arguments = fake.called("cudnnFindConvolutionForwardAlgorithmEx")[-1]
    assert arguments[-1] == 70_000
    x, w, y, workspace = (arguments[i] for i in (2, 4, 7, 11))
    assert (w - x, y - w, workspace - y) == (1536, 512, 1024)  # 2*4*7*6, 6*2*3*2 and 2*6*3*6 floats, rounded up to 512
    assert driver.allocated == 0
    assert {c.name: c.workspace for c in found}["gemm"] == 70_000


def test_algorithms_that_cannot_work_are_left_out(fake, tmp_path):
    fake.refused = {("BackwardFilter", 4): 3000, ("BackwardFilter", 2): 2000}
    fake.needs = {("BackwardFilter", 5): 1 << 63 - 1}
    names = {c.name for c in convolutions(fake, tmp_path).candidates("backward_weights", PROBLEM)}
    assert names == {"algo_0", "algo_1", "algo_3", "fft_tiling"}


def test_algorithms_that_add_with_atomics_are_not_deterministic(fake, tmp_path):
    for phase in PHASES:
        found = {c.name: c.deterministic for c in convolutions(fake, tmp_path).candidates(phase, PROBLEM)}
        said = PHASES[phase].algorithms[0]  # the stub says so of this one
        assert {n for n, same in found.items() if not same} == {said, *PHASES[phase].racing}


def test_of_several_math_types_each_worth_having_is_named(fake, tmp_path):
    fake.maths = (0, 1, 2)
    fake.refused = {("Forward", n): 3000 for n in range(2, 8)}
    engine = convolutions(fake, tmp_path)
    names = [c.name for c in engine.candidates("forward", replace(PROBLEM, math="tf32"))]
    assert sorted(names) == [
        "implicit_gemm",
        "implicit_gemm.tensor_op",
        "implicit_precomp_gemm",
        "implicit_precomp_gemm.tensor_op",
    ]
    assert {c.name for c in engine.candidates("forward", PROBLEM)} == {"implicit_gemm", "implicit_precomp_gemm"}


def test_in_fp32_times_of_fused_multiply_add_count_where_there_are_others(fake, tmp_path):
    fake.maths = (
        0,
        3,
    )  # the default type, which may be of tensor cores, comes first and is faster by what the stub says
    plain = convolutions(fake, tmp_path).candidates("forward", PROBLEM)
    fake.maths = (3,)
    assert [c.name for c in plain] == [
        c.name for c in convolutions(fake, tmp_path / "a").candidates("forward", PROBLEM)
    ]
    assert plain[0].seconds == pytest.approx((10 + 200 - 0.75) / 1e3)


def test_where_no_algorithm_can_work_the_reason_is_told(fake, tmp_path):
    fake.refused = {("Forward", n): 3000 for n in range(8)}
    with pytest.raises(
        CudaError, match=r"every algorithm for forward of Problem.*: STUB_STATUS_3000 \(3000\): so it is"
    ):
        convolutions(fake, tmp_path).candidates("forward", PROBLEM)


@pytest.mark.parametrize("name", [n for n, kinds in CUDNN_FUNCTIONS.items() if ":" not in kinds])
def test_a_status_is_told_with_the_function_that_gave_it(name, fake, tmp_path):
    fake.failing = {name: 4000}
    if "WorkspaceSize" in name:
        name = "every algorithm"
    arrays = [np.ones(s, np.float32) for s in (PROBLEM.x, PROBLEM.w, PROBLEM.y)]
    x, w, y = (a.ctypes.data for a in arrays)
    with pytest.raises(CudaError, match=rf"{name}.* failed: STUB_STATUS_4000 \(4000\): so it is"):  # noqa: PT012
        engine = convolutions(fake, tmp_path)
        for phase, addresses in zip(PHASES, ((x, w, y), (w, y, x), (x, y, w)), strict=True):
            engine.candidates(phase, PROBLEM, 0)
            engine.candidates(phase, PROBLEM)
            engine.run(phase, PROBLEM, PHASES[phase].algorithms[1], *addresses, 0, 0)
        engine.bias_gradient(y, PROBLEM.y, "float32", "nchw", w)
        engine.add_bias(y, PROBLEM.y, "float32", "nchw", w)
        engine.close()


def test_descriptors_are_made_once_and_destroyed_with_their_owner(fake, tmp_path):
    engine = convolutions(fake, tmp_path)
    for _ in range(2):
        for phase in PHASES:
            engine.workspace(phase, PROBLEM, PHASES[phase].algorithms[0])
    made = [name for name, _ in fake.calls if name.startswith("cudnnCreate")]
    assert sorted(made) == sorted(["cudnnCreate", *(f"cudnnCreate{k}Descriptor" for k in (*KINDS, "Tensor"))])
    engine.close()
    assert not fake.things
    engine.close()
    assert len(fake.called("cudnnDestroy")) == 1


def test_an_output_of_another_shape_is_refused(fake, tmp_path):
    with pytest.raises(ValueError, match=r"give y \(2, 6, 3, 6\), not \(2, 6, 4, 6\)"):
        convolutions(fake, tmp_path).workspace("forward", replace(PROBLEM, y=(2, 6, 4, 6)), "gemm")


def test_images_too_large_for_c_integers_are_refused(fake):
    with pytest.raises(ValueError, match="images of up to 2147483647 elements"):
        Descriptors(Cudnn(fake.loaded)).tensor((1, 2, 1 << 15, 1 << 15), "float32", "nchw")


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
def test_a_real_cudnn_has_the_functions_and_takes_the_descriptors(storage):
    try:
        library = Cudnn()
    except CudaError as error:
        pytest.skip(str(error))
    descriptors = Descriptors(library)
    for dtype in ("float32", "float64"):
        descriptors.convolution(replace(PROBLEM, dtype=dtype, storage=storage), 3)
    with pytest.raises(CudaError, match=r"cudnnSetConvolution2dDescriptor failed: .*BAD_PARAM .*negative"):
        descriptors.convolution(replace(PROBLEM, padding=(-1, 0)), 3)
    descriptors.close()

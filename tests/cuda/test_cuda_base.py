"""How kernels are launched: grids, and arrays that hold nothing."""

import numpy as np
import pytest
from both import CUDA, call, clock, poisoned

from vdnn.kernels.cuda.base import BLOCK, WARP
from vdnn.layers import AvgPool2d, MaxPool2d

SPREADS = [
    (256, 4096),
    (32, 100352),
    (1, 5),
    (1, 33),
    (64, 31),
    (7, 1000),
    (1024, 49),
    (4096, 10),
    (3, 40),
    (100000, 1),
]
EMPTY = [(0, 3, 4, 4), (2, 0, 4, 4)]


@pytest.mark.parametrize(("rows", "columns"), SPREADS)
def test_a_warps_threads_lie_side_by_side_in_memory(rows, columns):
    _, width = CUDA.spread(rows, columns)
    assert BLOCK % width == 0
    assert width >= min(WARP, columns)


def test_as_many_threads_lie_in_a_row_as_needs_fewest_blocks():
    widths = [CUDA.spread(*sizes)[1] for sizes in [(256, 4096), (1024, 49), (8, 40), (4096, 10), (9999, 1)]]
    assert widths == [256, 64, 64, 16, 1]


@pytest.mark.parametrize(("rows", "columns"), SPREADS)
def test_a_grid_over_rows_and_columns_has_no_more_blocks_than_it_needs(rows, columns):
    (across, down), width = CUDA.spread(rows, columns)
    assert across * down <= 16  # eight for each of two multiprocessors
    assert (across - 1) * width < columns
    assert (down - 1) * BLOCK // width < rows


def test_a_thread_takes_eight_images_where_there_are_enough():
    assert CUDA.over_images(BLOCK * 100, 64) == (100, 8)
    assert CUDA.over_images(BLOCK * 100, 3) == (100, 1)
    assert CUDA.over_images(BLOCK, 64) == (1, 16)


def largest_pooling(x, y, dx):
    indices = np.zeros(y.shape, np.uint8)
    call(CUDA, "max_pool", x, y, indices, MaxPool2d(2).window)
    call(CUDA, "max_pool_backward", indices, y, dx, MaxPool2d(2).window)
    call(CUDA, "max_pool_backward_input", x, y, y, dx, MaxPool2d(2).window)


def mean_pooling(x, y, dx):
    call(CUDA, "avg_pool", x, y, AvgPool2d(2).window, True)
    call(CUDA, "avg_pool_backward", y, dx, AvgPool2d(2).window, True)
    means = poisoned((*x.shape[:2], 1, 1))
    call(CUDA, "global_avg_pool", x, means)
    call(CUDA, "global_avg_pool_backward", means, dx)


def normalising(x, y, dx):
    channels = [np.ones(x.shape[1], "float32") for _ in range(5)]
    scratch = ("float32", x.shape)
    call(CUDA, "batch_norm", x, *channels[:2], dx, *channels[2:], 1e-5, scratch=scratch)
    call(CUDA, "batch_norm_evaluate", x, *channels[:4], dx, 1e-5, scratch=scratch)
    call(CUDA, "batch_norm_backward", x, *channels[:3], x, dx, *channels[3:], scratch=scratch)


def moving(x, y, dx):
    call(CUDA, "relu", x, dx)
    call(CUDA, "dropout", clock(), x, dx, 0.5, 1)
    call(CUDA, "copy", x, dx)
    call(CUDA, "upsample_nearest", y, dx, (2, 2))
    call(CUDA, "upsample_nearest_backward", x, y, (2, 2))
    call(CUDA, "upsample_bilinear", y, dx, True)
    call(CUDA, "upsample_bilinear_backward", x, y, False)


def losses(x, y, dx):
    rows, labels, loss = np.ones(x.shape[:2], "float32"), np.zeros(len(x), "int64"), poisoned((1,))
    call(CUDA, "softmax_cross_entropy", rows, labels, rows, loss, scratch=("float32", rows.shape))
    call(CUDA, "softmax_cross_entropy_backward", rows, labels, rows)
    call(CUDA, "mean_squared_error", x, x, loss, scratch=("float32", x.shape))
    call(CUDA, "mean_squared_error_backward", x, x, dx)


@pytest.mark.parametrize("kernels", [largest_pooling, mean_pooling, normalising, moving, losses])
@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_nothing_is_done_to_arrays_that_hold_nothing(kernels, storage, shape):
    half = (*shape[:2], shape[2] // 2, shape[3] // 2)
    kernels(poisoned(shape, storage), poisoned(half, storage), poisoned(shape, storage))

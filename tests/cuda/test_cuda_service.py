import numpy as np
import pytest
from both import CUDA

DRIVER, STREAM = CUDA.driver, CUDA.stream


def launch(name, *arguments, blocks=1):
    values = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
    DRIVER.launch(name, "float32", (blocks,), 256, values, STREAM)
    DRIVER.synchronize(STREAM)


def test_spin_comes_back():
    launch("spin", 1000)


def test_only_the_last_reader_raises_the_flag():
    left, flag, seen = np.array([9, 3, 9], "int32"), np.full(4, 7, "int32"), []
    for _ in range(3):
        launch("poison_last", left, 1, flag, 2)
        seen.append(int(flag[2]))
    assert seen == [0, 0, 1]
    assert left.tolist() == [9, 0, 9]
    assert flag.tolist() == [7, 7, 1, 7]


def test_only_one_thread_of_a_launch_counts():
    left, flag = np.array([2], "int32"), np.zeros(1, "int32")
    launch("poison_last", left, 0, flag, 0, blocks=3)
    assert left.tolist() == [1]


@pytest.mark.parametrize("start", [0, 1, 15, 16, 21])
@pytest.mark.parametrize("size", [0, 1, 7, 15, 16, 17, 40, 10000])
def test_poison_fills_just_its_bytes(start, size):
    raw = np.zeros(10100, np.uint8)
    first = -raw.ctypes.data % 16 + start
    launch("poison_fill", np.array([0, 1], "int32"), 1, raw[first : first + size], size, blocks=3)
    assert (raw[first : first + size] == 0xFF).all()
    assert raw.sum() == 255 * size


def test_poison_waits_for_the_flag():
    data = np.zeros(100, np.uint8)
    launch("poison_fill", np.array([1, 0], "int32"), 1, data, 100)
    assert not data.any()

"""What is known of all tiles without a look at each is what a look at each says."""

from __future__ import annotations

import pytest

from vdnn.kernels.numpy.window import tiles


@pytest.mark.parametrize("pixels", [1, 3, 9, 60, 500, 5000])
@pytest.mark.parametrize(("H", "W"), [(1, 1), (5, 7), (13, 2), (28, 28)])
@pytest.mark.parametrize("N", [1, 3, 50])
def test_figures_of_all_tiles_are_those_of_the_list(N, H, W, pixels):
    found = tiles(N, H, W, pixels)
    each = list(found)
    assert found.pixels == sum(tile.pixels for tile in each) == N * H * W
    assert found.most_pixels == max(tile.pixels for tile in each)
    assert {tile.shape for tile in found.distinct} == {tile.shape for tile in each}

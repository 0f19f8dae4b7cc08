import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkage.formats.planes import join_planes, split_planes


@settings(deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.lists(st.integers(0, 2**64 - 1), max_size=10), st.booleans())
def test_planes_come_back(width, numbers, rotate):
    codes = np.array([number % 2 ** (8 * width) for number in numbers], f"<u{width}")
    planes = split_planes(codes, rotate=rotate)
    assert [len(plane) for plane in planes] == [len(numbers)] * width
    assert all(plane.dtype == np.uint8 and plane.flags.c_contiguous for plane in planes)
    joined = join_planes(planes, rotate=rotate)
    assert joined.dtype == codes.dtype
    assert np.array_equal(joined, codes)


@pytest.mark.parametrize("width", [2, 4])
def test_the_top_plane_of_rotated_floats_is_their_exponent(width):
    if width == 4:
        codes = np.array([1.5, -1.5, 3.0, -0.25, 0.0], "<f4").view("<u4")
    else:  # bfloat16 is the upper half of float32
        codes = (np.array([1.5, -1.5, 3.0, -0.25, 0.0], "<f4").view("<u4") >> 16).astype("<u2")
    assert split_planes(codes, rotate=True)[-1].tolist() == [127, 127, 128, 125, 0]
    assert [plane % 2 for plane in split_planes(codes, rotate=True)[0].tolist()] == [0, 1, 0, 1, 0]

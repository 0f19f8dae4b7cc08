import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkage.formats.gaps import gaps_of, pack_gaps, places_of, unpack_gaps
from shrinkage.formats.malformed import Malformed

GAPS = st.lists(st.integers(0, 5) | st.integers(0, 2000) | st.sampled_from([254, 255, 256, 509, 510, 511]), max_size=20)


def slow_bytes(gaps):
    out = []
    for gap in gaps:
        while gap >= 255:
            out.append(255)
            gap -= 255
        out.append(gap)
    return out


@settings(deadline=None)
@given(GAPS)
def test_bytes_are_those_of_the_slow_way_and_come_back(numbers):
    gaps = np.array(numbers, np.int64)
    packed = pack_gaps(gaps)
    assert packed.dtype == np.uint8
    assert packed.tolist() == slow_bytes(numbers)
    assert unpack_gaps(packed, len(numbers)).tolist() == numbers


@settings(deadline=None)
@given(st.sets(st.integers(0, 5000), max_size=30))
def test_gaps_count_the_zeros_between(chosen):
    places = np.array(sorted(chosen), np.int64)
    gaps = gaps_of(places)
    flat = [x in chosen for x in range(5001)]
    assert gaps.tolist() == [flat[a:b].count(False) for a, b in zip([0, *places], places, strict=False)]
    assert places_of(gaps, 5001).tolist() == places.tolist()


def test_a_place_beyond_the_end_is_refused():
    assert places_of(np.array([2, 0]), 4).tolist() == [2, 3]
    with pytest.raises(Malformed, match="its last index is 3, of 3 places"):
        places_of(np.array([2, 0]), 3)


@pytest.mark.parametrize(("packed", "count"), [([1, 2], 1), ([1], 2), ([255], 0), ([1, 255], 1), ([255], 1), ([], 1)])
def test_another_number_of_gaps_or_a_rest_is_refused(packed, count):
    with pytest.raises(Malformed, match="bytes of gaps hold"):
        unpack_gaps(np.array(packed, np.uint8), count)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkage.formats.index import FORMS, index_bounds, pack_index, unpack_index
from shrinkage.formats.malformed import Malformed


@settings(deadline=None)
@given(st.integers(0, 3000), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_every_form_comes_back_and_keeps_within_its_bounds(size, density, seed):
    kept = np.random.default_rng(seed).random(size) < density
    count = int(kept.sum())
    forms = dict(pack_index(kept))
    assert "mask" in forms
    for form, packed in forms.items():
        assert form in FORMS
        least, most = index_bounds(form, count, size)
        assert least <= len(packed) <= most
        found = np.zeros(size, np.bool_)
        found[unpack_index(form, packed, count, size)] = True
        assert np.array_equal(found, kept)


def test_bounds_are_tight():
    ends, start = np.arange(5099) == 5098, np.arange(5099) == 0
    for form, packed in pack_index(ends):
        assert len(packed) == index_bounds(form, 1, 5099)[1]
    for form, packed in pack_index(start):
        assert len(packed) == index_bounds(form, 1, 5099)[0]


def test_no_gaps_where_a_mask_is_smaller():
    assert [form for form, _ in pack_index(np.arange(100) % 2 == 0)] == ["mask"]
    assert [form for form, _ in pack_index(np.arange(100) % 20 == 0)] == ["mask", "gaps", "rice3"]


def test_a_mask_of_another_count_or_size_is_refused():
    (_, packed), *_ = pack_index(np.array([True, False, True]))
    with pytest.raises(Malformed, match="has 2 bits set, expected 1"):
        unpack_index("mask", packed, 1, 3)
    with pytest.raises(Malformed, match="cannot hold the 9 bits"):
        unpack_index("mask", packed, 2, 9)
    with pytest.raises(Malformed, match="fill up the last byte of its mask are not zero"):
        unpack_index("mask", packed | np.uint8(128), 2, 3)


@pytest.mark.parametrize("form", ["gaps", "rice2"])
def test_a_place_beyond_the_tensor_is_refused(form):
    packed = dict(pack_index(np.arange(12) % 5 == 4)) | {"rice2": np.array([0, 0b1010 + 0b0000], np.uint8)}
    with pytest.raises(Malformed, match="last index is"):
        unpack_index(form, packed[form], 2, 3)

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkage.formats.bits import pack_bits, unpack_bits


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=3), st.integers(0, 2**32))
def test_round_trip(shape, seed):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert packed.numel() == math.ceil(mask.numel() / 8)
    assert torch.equal(unpack_bits(packed, shape), mask)


def test_non_contiguous_masks_pack_in_logical_order():
    mask = torch.tensor([[True, False, False], [True, True, False]])
    assert torch.equal(unpack_bits(pack_bits(mask.T), (3, 2)), mask.T)


def test_least_significant_bit_comes_first():
    assert pack_bits(torch.tensor([False, True] + [False] * 7 + [True])).tolist() == [2, 2]


def test_an_unpacked_mask_can_be_written_to():
    mask = unpack_bits(pack_bits(torch.ones(3, dtype=torch.bool)), (3,))
    mask[0] = False
    assert mask.tolist() == [False, True, True]


@pytest.mark.parametrize("packed", [torch.zeros(2, dtype=torch.uint8), torch.zeros(1), torch.zeros(0).byte()])
def test_bytes_that_do_not_fit_are_refused(packed):
    with pytest.raises(ValueError, match=r"cannot hold the 5 bits of shape \(5,\)"):
        unpack_bits(packed, (5,))

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkage.formats.kbits import bits_for, pack_codes, row_bytes, unpack_codes


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 8), st.integers(0, 5), st.integers(0, 40), st.integers(0, 2**32))
def test_round_trip(bits, rows, columns, seed):
    codes = torch.randint(1 << bits, (rows, columns), generator=torch.Generator().manual_seed(seed)).byte()
    packed = pack_codes(codes, bits)
    assert packed.shape == (rows, -(-columns * bits // 8)) == (rows, row_bytes(columns, bits))
    assert torch.equal(unpack_codes(packed, columns, bits), codes)


def test_rows_that_take_several_blocks_are_the_same_as_alone():
    codes = torch.randint(8, (5, 300_000)).byte()
    packed = pack_codes(codes, 3)
    for row, alone in zip(codes, packed, strict=True):
        assert torch.equal(pack_codes(row[None], 3)[0], alone)


def test_the_layout_is_that_of_the_documentation():
    # 5, 3, 6 of three bits: 101 110 011 from the least significant bit, then zeros.
    assert pack_codes(torch.tensor([[5, 3, 6]]).byte(), 3).tolist() == [[5 | 3 << 3 | (6 & 3) << 6, 6 >> 2]]


@pytest.mark.parametrize(("count", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (16, 4), (17, 5), (256, 8)])
def test_bits(count, bits):
    assert bits_for(count) == bits


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="the code 4 needs more than 2 bits"):
        pack_codes(torch.tensor([[4]]).byte(), 2)
    with pytest.raises(ValueError, match="cannot be packed"):
        pack_codes(torch.tensor([[1.0]]), 2)
    with pytest.raises(ValueError, match="cannot hold rows of 5 codes of 2 bits"):
        unpack_codes(torch.zeros(1, 1).byte(), 5, 2)

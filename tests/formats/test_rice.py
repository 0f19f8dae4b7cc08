import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkage.formats.malformed import Malformed
from shrinkage.formats.rice import LOW_BITS, best_low_bits, pack_rice, rice_bytes, unpack_rice

NUMBERS = st.lists(st.integers(0, 40) | st.integers(0, 70_000), max_size=20)


def slow_bytes(numbers, k):
    """Bit by bit, first bit lowest."""
    low = [(number >> bit) & 1 for number in numbers for bit in range(k)]
    unary = [bit for number in numbers for bit in [0] * (number >> k) + [1]]
    return [
        sum(bit << i for i, bit in enumerate(bits[start : start + 8]))
        for bits in (low, unary)
        for start in range(0, len(bits), 8)
    ]


@settings(deadline=None)
@given(NUMBERS, st.sampled_from(LOW_BITS))
def test_the_code_is_that_of_the_slow_way_and_comes_back(given_numbers, k):
    numbers = np.array(given_numbers, np.int64)
    packed = pack_rice(numbers, k)
    assert packed.dtype == np.uint8
    assert packed.tolist() == slow_bytes(given_numbers, k)
    assert len(packed) == rice_bytes(numbers, k)
    assert unpack_rice(packed, len(numbers), k).tolist() == given_numbers


@settings(deadline=None)
@given(NUMBERS)
def test_the_best_k_is_the_shortest(given_numbers):
    numbers = np.array(given_numbers, np.int64)
    lengths = {k: len(slow_bytes(given_numbers, k)) for k in LOW_BITS}
    assert lengths[best_low_bits(numbers)] == min(lengths.values())


@pytest.mark.parametrize("density", [0.1, 0.05, 0.02])
def test_gaps_of_a_random_mask_come_near_their_entropy(density):
    gaps = np.random.default_rng(0).geometric(density, 100_000) - 1
    entropy = -(density * math.log2(density) + (1 - density) * math.log2(1 - density)) / density
    bits = 8 * len(pack_rice(gaps, best_low_bits(gaps))) / len(gaps)
    assert entropy < bits < 1.02 * entropy


@pytest.mark.parametrize("k", [1, 3, 8, 9, 16])
def test_what_does_not_fit_the_count_is_refused(k):
    numbers = np.arange(0, 90, 9)
    packed = pack_rice(numbers, k)
    for data, count in (
        (packed, 9),
        (packed, 11),
        (packed[:-1], 10),
        (np.append(packed, np.uint8(0)), 10),
        (packed[:0], 10),
        (packed, 1000),
    ):
        with pytest.raises(Malformed, match="bytes of gaps"):
            unpack_rice(data, count, k)


def test_bits_that_fill_up_a_byte_must_be_zero():
    packed = pack_rice(np.array([1, 0]), 3)
    packed[0] |= 1 << 6
    with pytest.raises(Malformed, match="fill up the last byte of its gaps are not zero"):
        unpack_rice(packed, 2, 3)

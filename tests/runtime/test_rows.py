"""Sparse weights in the kernel's order, read back by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import sparse_weight

from shrinkage.runtime.rows import NonZeros, pack_rows
from shrinkage.runtime.tile import FIRST, LAST


def read(rows, shape, places, plane, taps):
    """The dense weight, following the rows as the kernel does; and the channel of every row."""
    weight = np.zeros(shape, np.float32)
    where = {int(place): divmod(i, places.shape[1]) for i, place in enumerate(places.reshape(-1))}
    start, channels = 0, []
    for number, row in enumerate(rows.rows):
        channel = int(row >> 2 << 2) // plane
        channels.append(channel)
        for tap in range(taps):
            end = rows.ends[number * taps + tap]
            for p in range(start, end):
                place = int(rows.offsets[p]) << (rows.shift or 0)
                source, position = where[place]
                weight[channel, source, tap if taps > 1 else position] += rows.weights[p]
            start = end
    assert start == len(rows.weights)
    return weight, channels


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 4)),
    density=st.sampled_from([-1.0, 0.0, 0.2, 1.0]),
    block=st.integers(1, 10),
    unroll=st.sampled_from([1, 2, 4]),
    own_taps=st.booleans(),
    step=st.sampled_from([4, 64, 100_000]),
    seed=st.integers(0, 9),
)
def test_rows_hold_the_weight(shape, density, block, unroll, own_taps, step, seed):
    outputs, inputs, taps = shape
    weight = sparse_weight(shape, density, seed)
    bias = np.arange(outputs, dtype=np.float32)
    places = np.arange(inputs * (1 if own_taps else taps)).reshape(inputs, -1) * step
    kernel_taps = taps if own_taps else 1
    flat = places[:, 0] if own_taps and taps > 1 else places
    rows = pack_rows(NonZeros.of(weight), flat, bias, 256, block, kernel_taps, unroll)
    found, channels = read(rows, shape, places, 256, kernel_taps)
    np.testing.assert_allclose(found, weight, rtol=2e-7 if unroll > 1 else 0)
    np.testing.assert_array_equal(found != 0, weight != 0)
    assert (rows.weights != 0).all()
    np.testing.assert_array_equal(rows.bias, bias[channels])
    # each channel begins once and ends once, in this order, whatever it holds
    for channel in range(outputs):
        flags = [int(row) & 3 for row, c in zip(rows.rows, channels, strict=True) if c == channel]
        assert [bool(flag & FIRST) for flag in flags] == [True] + [False] * (len(flags) - 1)
        assert [bool(flag & LAST) for flag in flags] == [False] * (len(flags) - 1) + [True]
    counts = np.diff(np.concatenate([[0], rows.ends]))
    assert (counts % unroll == 0).all()
    assert (rows.offsets.dtype == np.uint16) == (rows.shift is not None)


@pytest.mark.parametrize(("places", "shift"), [([0, 64, 640], 6), ([4, 12], 2), ([0, 1 << 20, 4], None), ([0], 0)])
def test_offsets_take_two_bytes_where_they_fit(places, shift):
    weight = np.ones((1, len(places), 1), np.float32)
    rows = pack_rows(NonZeros.of(weight), np.array(places)[:, None], None, 4, 99)
    assert rows.shift == shift


def test_groups_read_their_own_channels():
    weight = np.ones((4, 2, 1), np.float32)
    nonzeros = NonZeros.of(weight, groups=2)
    assert nonzeros.inputs == 4
    assert nonzeros.source.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]

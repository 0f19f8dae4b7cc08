"""Sparse weights in the order in which the tile kernel reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shrinkage.runtime.tile import FIRST, LAST

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class NonZeros:
    """Entries of a weight that are not zero, one after the other.

    Attributes:
        outputs: how many output channels there are.
        inputs: how many input channels.
        channel: output channel of each.
        source: input channel of each.
        tap: place in the filter of each, counted row by row.
        value: of each.
    """

    outputs: int
    inputs: int
    channel: Ints
    source: Ints
    tap: Ints
    value: Floats

    @classmethod
    def of(cls, weight: Floats, groups: int = 1) -> NonZeros:
        """Of the weight (O, I / groups, …) of a convolution or a linear layer."""
        outputs, inside = weight.shape[:2]
        flat = weight.reshape(outputs, inside, -1)
        channel, source, tap = np.nonzero(flat)
        value = flat[channel, source, tap]
        source = source + channel // (outputs // groups) * inside
        return cls(outputs, inside * groups, channel, source, tap, value)

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True)
class Rows:
    """What the kernel walks over; see :mod:`shrinkage.runtime.tile` for the fields."""

    rows: Ints
    ends: npt.NDArray[np.int32]
    weights: Floats
    offsets: npt.NDArray[np.int32] | npt.NDArray[np.uint16]
    shift: int | None
    bias: Floats


def pack_rows(
    nonzeros: NonZeros,
    places: Ints,
    bias: Floats | None,
    plane: int,
    block: int,
    taps: int = 1,
    unroll: int = 1,
) -> Rows:
    """Order non-zeros by block of input channels, output channel, tap and place.

    Args:
        nonzeros: of the weight.
        places: bytes from the input's start to the operand of a non-zero, by input channel and by tap (where the kernel
            has taps of its own, by input channel alone).
        bias: by output channel, or None.
        plane: bytes from an output channel to the next.
        block: input channels in a block.
        taps: taps that the kernel tells apart.
        unroll: the length of a run is made a multiple of this.
    """
    n = nonzeros
    tap = n.tap if taps > 1 else np.zeros_like(n.tap)
    place = places[n.source] if places.ndim == 1 else places[n.source, n.tap]
    key = (n.source // block) * n.outputs + n.channel
    order = np.lexsort((place, tap, key))
    key, tap, place, value = key[order], tap[order], place[order], n.value[order]

    present, index = np.unique(key, return_inverse=True)
    channel = present % n.outputs
    counts = np.bincount(index * taps + tap, minlength=len(present) * taps)
    if unroll > 1:
        index, part = _filled(counts, unroll)
        value, place, counts = value[index] * part, place[index], -(-counts // unroll) * unroll
    ends = np.cumsum(counts).astype(np.int32)
    empty = np.setdiff1d(np.arange(n.outputs), channel)
    channel = np.concatenate([channel, empty])
    ends = np.concatenate([ends, np.full(len(empty) * taps, len(value), np.int32)])

    flags = np.zeros(len(channel), np.int64)
    flags[np.unique(channel, return_index=True)[1]] |= FIRST
    flags[len(channel) - 1 - np.unique(channel[::-1], return_index=True)[1]] |= LAST
    shift = _shift(place)
    offsets = np.ascontiguousarray(place, np.int32) if shift is None else (place >> shift).astype(np.uint16)
    biases = np.zeros(n.outputs, np.float32) if bias is None else bias
    return Rows(
        rows=channel * plane + flags,
        ends=ends,
        weights=np.ascontiguousarray(value, np.float32),
        offsets=offsets,
        shift=shift,
        bias=np.ascontiguousarray(biases[channel], np.float32),
    )


def _shift(places: Ints) -> int | None:
    """By how much the places can be shifted right so that 16 bits hold them; None if they cannot.

    Weights that are read once for an image come from far: six bytes a non-zero are read faster than eight.
    """
    if not len(places) or places.min() < 0:
        return None
    together = int(np.bitwise_or.reduce(places))
    shift = (together & -together).bit_length() - 1 if together else 0
    return shift if together >> shift < 1 << 16 else None


def _filled(counts: Ints, unroll: int) -> tuple[Ints, Floats]:
    """Fill runs up to a multiple of ``unroll``: which non-zero stands at each place, and how much of it.

    A run that ends with a turn of the loop costs one mispredicted branch, a remainder would cost another. The last
    non-zero of a run is spread over what is missing, as halves of halves: their sum is exact, and an infinity that
    it meets stays one, which a zero would turn into a NaN.
    """
    full = -(-counts // unroll) * unroll
    begin, number = np.cumsum(full) - full, np.cumsum(counts) - counts
    place = np.arange(full.sum()) - np.repeat(begin, full)
    last = np.repeat(counts - 1, full)
    halvings = np.clip(np.minimum(place - last + 1, np.repeat(full - counts, full)), 0, None)
    return np.repeat(number, full) + np.minimum(place, last), np.exp2(-halvings).astype(np.float32)

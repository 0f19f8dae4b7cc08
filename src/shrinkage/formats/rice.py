r"""Whole numbers in Golomb–Rice code: the low ``k`` bits as they are, the rest in unary.

A number :math:`g \ge 0` takes :math:`k + 1 + \lfloor g / 2^k \rfloor` bits. For the gaps of a random mask of density
:math:`p`, which are geometric, the best ``k`` comes within about 1 % of the entropy :math:`H(p)/p`. With ``k`` = 0
the code of gaps is the bit mask itself.

Layout: the low bits of all numbers, number after number, least significant first, filled up to a byte; then the
unary part, ``g >> k`` zeros and a one for each number, first bit in the least significant place, filled up to a byte.

Source: R. F. Rice, "Some practical universal noiseless coding techniques", JPL Publication 79-22, 1979.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shrinkage.formats.gaps import Bytes, Whole
from shrinkage.formats.malformed import Malformed

LOW_BITS = range(1, 17)
"""What ``k`` may be."""


def rice_bytes(numbers: Whole, k: int) -> int:
    """Bytes that :func:`pack_rice` needs.

    >>> rice_bytes(np.array([3, 20, 0]), 4)
    3
    """
    return (len(numbers) * k + 7) // 8 + (len(numbers) + int((numbers >> k).sum()) + 7) // 8


def best_low_bits(numbers: Whole) -> int:
    """The ``k`` with the fewest bytes.

    >>> best_low_bits(np.array([20, 30, 15]))
    4
    """
    return min(LOW_BITS, key=lambda k: rice_bytes(numbers, k))


def pack_rice(numbers: Whole, k: int) -> Bytes:
    """Write numbers that are not negative.

    >>> pack_rice(np.array([3, 20, 0]), 4)            # 3, 4 | 0, then 1 01 1
    array([67,  0, 13], dtype=uint8)
    """
    ends = np.cumsum((numbers >> k) + 1) - 1
    unary = np.zeros(ends[-1] + 1 if len(ends) else 0, np.bool_)
    unary[ends] = True
    return np.concatenate([_pack_low(numbers & ((1 << k) - 1), k), np.packbits(unary, bitorder="little")])


def unpack_rice(packed: Bytes, count: int, k: int) -> Whole:
    """The inverse of :func:`pack_rice` for ``count`` numbers.

    Raises:
        Malformed: if the bytes hold fewer or more numbers, or anything in the bits that fill up a byte.
    """
    split = (count * k + 7) // 8
    if len(packed) < split:
        raise Malformed(f"its {len(packed)} bytes of gaps cannot hold {count} of {k} bits and more")
    ends = np.flatnonzero(np.unpackbits(packed[split:], bitorder="little"))
    needed = split + (ends[-1] // 8 + 1 if len(ends) else 0)
    if len(ends) != count or len(packed) != needed:
        raise Malformed(f"its {len(packed)} bytes of gaps hold {len(ends)}, expected {count} and nothing after")
    return ((np.diff(ends, prepend=-1) - 1) << k) | _unpack_low(packed[:split], count, k)


def _width(k: int) -> np.dtype[Any]:
    return np.dtype("<u1" if k <= 8 else "<u2")


def _pack_low(low: Whole, k: int) -> Bytes:
    width = _width(k)
    bits = np.unpackbits(low.astype(width).view(np.uint8).reshape(-1, width.itemsize), axis=1, bitorder="little")
    return np.packbits(bits[:, :k], bitorder="little")


def _unpack_low(packed: Bytes, count: int, k: int) -> Whole:
    bits = np.unpackbits(packed, bitorder="little")
    if bits[count * k :].any():
        raise Malformed("the bits that fill up the last byte of its gaps are not zero")
    rows = np.packbits(bits[: count * k].reshape(count, k), axis=1, bitorder="little")
    return rows.view(_width(k)).reshape(count).astype(np.int64)

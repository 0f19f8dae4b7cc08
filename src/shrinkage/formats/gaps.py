"""Where the non-zeros are, as gaps: how many zeros lie before each.

In row-major order, since the last non-zero or the beginning. A gap cannot be negative, so a list of gaps is a
list of rising places, whatever its numbers are; only the last place has to be held against the size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shrinkage.formats.malformed import Malformed

Bytes = NDArray[np.uint8]
Whole = NDArray[np.int64]

ESCAPE = 255
"""A byte that says: so many zeros, and no non-zero yet."""


def gaps_of(places: NDArray[Any]) -> Whole:
    """The zeros before each of the rising ``places``.

    >>> gaps_of(np.array([0, 1, 5]))
    array([0, 0, 3])
    """
    return np.diff(places, prepend=-1).astype(np.int64, copy=False) - 1


def places_of(gaps: NDArray[Any], size: int) -> Whole:
    """The inverse of :func:`gaps_of`.

    Raises:
        Malformed: if a place is not below ``size``.

    >>> places_of(np.array([0, 0, 3]), 6)
    array([0, 1, 5])
    """
    places = np.cumsum(gaps + 1) - 1
    if len(places) and places[-1] >= size:
        raise Malformed(f"its last index is {places[-1]}, of {size} places")
    return places


def pack_gaps(gaps: Whole) -> Bytes:
    """A byte a gap; a longer one is broken by bytes of :data:`ESCAPE`.

    >>> pack_gaps(np.array([3, 254, 255, 600]))
    array([  3, 254, 255,   0, 255, 255,  90], dtype=uint8)
    """
    escapes = gaps // ESCAPE
    packed = np.full(len(gaps) + int(escapes.sum()), ESCAPE, np.uint8)
    packed[np.cumsum(escapes + 1) - 1] = gaps % ESCAPE
    return packed


def unpack_gaps(packed: Bytes, count: int) -> Whole:
    """The inverse of :func:`pack_gaps`.

    Raises:
        Malformed: if there are not ``count`` gaps, or there is something after the last.
    """
    ends = np.flatnonzero(packed != ESCAPE)
    if len(ends) != count or len(packed) != (ends[-1] + 1 if count else 0):
        raise Malformed(f"its {len(packed)} bytes of gaps hold {len(ends)}, expected {count} and nothing after")
    return np.diff(np.cumsum(packed, dtype=np.int64)[ends], prepend=0)

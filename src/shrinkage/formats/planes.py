"""Values to byte planes and back: first bytes together, second bytes together.

Bytes of one significance resemble each other, above all those of the exponents of floats, and compress well when
they lie side by side. A float is first rotated left by one bit, so that the sign goes to the end and the exponent fills
whole bytes from the top: of float32 and bfloat16 exactly one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shrinkage.formats.gaps import Bytes

Codes = NDArray[Any]
"""Unsigned numbers of one, two, four or eight bytes, little-endian."""


def split_planes(codes: Codes, *, rotate: bool) -> list[Bytes]:
    """The planes of unsigned numbers, least significant first; as many as a number has bytes.

    >>> split_planes(np.array([0x1234, 0x5678], np.uint16), rotate=False)
    [array([ 52, 120], dtype=uint8), array([18, 86], dtype=uint8)]
    """
    width = codes.dtype.itemsize
    if rotate:
        codes = (codes << 1) | (codes >> (8 * width - 1))
    table = codes.view(np.uint8).reshape(-1, width)
    return [np.ascontiguousarray(table[:, i]) for i in range(width)]


def join_planes(planes: list[Bytes], *, rotate: bool) -> Codes:
    """The inverse of :func:`split_planes`.

    >>> join_planes(split_planes(np.array([1, 500], np.uint16), rotate=True), rotate=True)
    array([  1, 500], dtype=uint16)
    """
    width = len(planes)
    codes: Codes = np.stack(planes, axis=1).view(f"<u{width}").reshape(-1)
    return (codes >> 1) | (codes << (8 * width - 1)) if rotate else codes

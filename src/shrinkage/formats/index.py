"""Which places of a tensor are not zero: a bit mask, or gaps in bytes or in Rice code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shrinkage.formats.bits import pack_bits, unpack_bits
from shrinkage.formats.gaps import ESCAPE, Bytes, gaps_of, pack_gaps, places_of, unpack_gaps
from shrinkage.formats.malformed import Malformed
from shrinkage.formats.rice import LOW_BITS, best_low_bits, pack_rice, unpack_rice

RICE = {f"rice{k}": k for k in LOW_BITS}
FORMS = ("mask", "gaps", *RICE)
"""``mask``: a bit a place. ``gaps``: a byte a non-zero, or more. ``rice1`` … ``rice16``: the same in Rice code."""

_DENSE = 0.4  # from here on a mask takes fewer bits than the gaps of any random pattern


def pack_index(kept: NDArray[np.bool_]) -> Iterator[tuple[str, Bytes]]:
    """Every form that can be the smallest, as it is or after zstd.

    Args:
        kept: flat, True where a value is not zero.

    >>> {form: len(packed) for form, packed in pack_index(np.arange(400) % 40 == 39)}
    {'mask': 50, 'gaps': 10, 'rice4': 9}
    """
    yield "mask", pack_bits(torch.from_numpy(kept)).numpy()
    if np.count_nonzero(kept) < _DENSE * len(kept):
        gaps = gaps_of(np.flatnonzero(kept))
        yield "gaps", pack_gaps(gaps)
        k = best_low_bits(gaps)
        yield f"rice{k}", pack_rice(gaps, k)


def index_bounds(form: str, count: int, size: int) -> tuple[int, int]:
    """The fewest and the most bytes in which ``form`` can say where ``count`` of ``size`` values are."""
    if form == "mask":
        return (size + 7) // 8, (size + 7) // 8
    if form == "gaps":
        return count, count + size // ESCAPE
    k = RICE[form]
    low = (count * k + 7) // 8
    return low + (count + 7) // 8, low + (count + (size >> k) + 7) // 8


def unpack_index(form: str, packed: Bytes, count: int, size: int) -> NDArray[Any]:
    """What selects the ``count`` places of a flat array of ``size``: booleans, or rising numbers.

    Raises:
        Malformed: if the bytes do not name ``count`` different places below ``size``.
    """
    if form != "mask":
        gaps = unpack_gaps(packed, count) if form == "gaps" else unpack_rice(packed, count, RICE[form])
        return places_of(gaps, size)
    try:
        kept: NDArray[np.bool_] = unpack_bits(torch.from_numpy(packed.copy()), (size,)).numpy()
    except ValueError as error:
        raise Malformed(str(error)) from error
    if np.count_nonzero(kept) != count:
        raise Malformed(f"its mask has {np.count_nonzero(kept)} bits set, expected {count}")
    if size % 8 and packed[-1] >> size % 8:
        raise Malformed("the bits that fill up the last byte of its mask are not zero")
    return kept

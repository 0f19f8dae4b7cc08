"""Whole numbers of k bits to bytes and back: rows of codes, each row filled up to a byte.

A row's bits lie one code after the other, the least significant bit of each first, from the least significant bit of
each byte. The bits that fill up a row are zero.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1 << 20  # codes whose bits are spread out at a time, a byte each


def bits_for(count: int) -> int:
    """Bits that tell ``count`` values apart: ⌈log₂ count⌉, at least 1.

    >>> [bits_for(count) for count in (2, 3, 4, 5, 256)]
    [1, 2, 2, 3, 8]
    """
    return max(1, (count - 1).bit_length())


def row_bytes(columns: int, bits: int) -> int:
    """Bytes of a row of ``columns`` codes.

    >>> row_bytes(784, 2), row_bytes(25, 2)
    (196, 7)
    """
    return -(-columns * bits // 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack rows of codes.

    Args:
        codes: uint8, shape (rows, columns), each below 2**bits.
        bits: of a code, from 1 to 8.

    Returns:
        uint8, shape (rows, ⌈columns·bits/8⌉), on the CPU.

    Raises:
        ValueError: if a code does not fit, or the codes are not uint8 in two dimensions.

    >>> pack_codes(torch.tensor([[1, 2, 0, 1, 2]], dtype=torch.uint8), bits=2)
    tensor([[73,   2]], dtype=torch.uint8)
    """
    if codes.dtype != torch.uint8 or codes.ndim != 2 or not 1 <= bits <= 8:
        raise ValueError(f"codes of {codes.dtype} in {codes.ndim} dimensions cannot be packed to {bits} bits")
    plain = codes.detach().cpu().contiguous().numpy()
    if plain.size and int(plain.max()) >> bits:
        raise ValueError(f"the code {int(plain.max())} needs more than {bits} bits")
    rows, columns = plain.shape
    packed = np.empty((rows, row_bytes(columns, bits)), np.uint8)
    step = max(1, _BLOCK // max(1, columns * bits))
    for first in range(0, rows, step):
        spread = plain[first : first + step, :, None] >> np.arange(bits, dtype=np.uint8) & 1
        packed[first : first + step] = np.packbits(
            spread.reshape(len(spread), columns * bits), axis=1, bitorder="little"
        )
    return torch.from_numpy(packed)


def unpack_codes(packed: Tensor, columns: int, bits: int) -> Tensor:
    """The inverse of :func:`pack_codes`, for some of the rows or all.

    Args:
        packed: uint8, shape (rows, ⌈columns·bits/8⌉), on any device.
        columns: codes of a row.
        bits: of a code.

    Returns:
        uint8, shape (rows, columns), on the same device.

    Raises:
        ValueError: if the bytes do not fit.

    >>> unpack_codes(torch.tensor([[73, 2]], dtype=torch.uint8), columns=5, bits=2)
    tensor([[1, 2, 0, 1, 2]], dtype=torch.uint8)
    """
    if packed.dtype != torch.uint8 or packed.ndim != 2 or packed.shape[1] != row_bytes(columns, bits):
        raise ValueError(
            f"{packed.dtype} of shape {tuple(packed.shape)} cannot hold rows of {columns} codes of {bits} bits"
        )
    eight = torch.arange(8, dtype=torch.uint8, device=packed.device)
    spread = (packed[:, :, None] >> eight & 1).reshape(len(packed), 8 * packed.shape[1])[:, : columns * bits]
    places = torch.tensor([1 << place for place in range(bits)], dtype=torch.uint8, device=packed.device)
    return (spread.reshape(len(packed), columns, bits) * places).sum(2, dtype=torch.uint8)

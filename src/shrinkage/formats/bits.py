"""Booleans to bytes and back, eight a byte, least significant bit first."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a boolean tensor into a uint8 tensor of ⌈n/8⌉ bytes on the CPU.

    >>> pack_bits(torch.tensor([True, False, True]))
    tensor([5], dtype=torch.uint8)
    """
    flat = mask.detach().cpu().contiguous().reshape(-1).numpy()
    return torch.from_numpy(np.packbits(flat, bitorder="little"))


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`pack_bits`.

    Raises:
        ValueError: if the number of bytes does not fit ``shape``.
    """
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != (count + 7) // 8:
        raise ValueError(
            f"{packed.numel()} bytes of {packed.dtype} cannot hold the {count} bits of shape {tuple(shape)}"
        )
    bits = np.unpackbits(packed.cpu().numpy(), count=count, bitorder="little")
    return torch.from_numpy(bits.view(np.bool_)).reshape(tuple(shape))

"""Long chains of element-wise operations, piece by piece.

A chain over a large tensor allocates, writes and reads a temporary of the tensor's size at each link. Where
the allocator hands such memory back to the system at once, that alone can cost more than the arithmetic:
on a small network a step of the method took three times as long. Temporaries of small pieces stay in the
cache and with the process, and the method needs no memory to speak of beside what it stores.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

PIECE = 1 << 16
"""Elements in a piece: 256 KiB of float32. Less, and starting operations costs more than doing them."""

LONG = 1 << 18
"""Elements in a piece where few operations, of little work each, meet many tensors at every step."""


def pieces(*tensors: Tensor | None, length: int = PIECE) -> Iterable[tuple[Any, ...]]:
    """Cut tensors of one shape into aligned flat views of at most ``length`` elements; None stays None.

    Tensors on other devices than the CPU, where a kernel's start costs more than its traffic, and tensors
    that cannot be seen as flat stay whole.

    >>> [tuple(piece.shape) for piece, _ in pieces(torch.zeros(300, 300), None)]
    [(65536,), (24464,)]
    """
    given = [tensor for tensor in tensors if tensor is not None]
    count = given[0].numel()
    if given[0].device.type != "cpu" or count <= length:
        return [tensors]
    if not all(tensor.is_contiguous() and tensor.shape == given[0].shape for tensor in given):
        return [tensors]
    none = [None] * -(-count // length)
    return zip(*(none if tensor is None else torch.split(tensor.view(-1), length) for tensor in tensors), strict=True)

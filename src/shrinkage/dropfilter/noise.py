"""Random tensors in the shape and memory layout of others, fast on the CPU.

PyTorch's own ``rand`` takes some nanoseconds an element and ``bernoulli_`` more; where a mask is as large as a layer's
output, that is as much as the layer itself in a small network. Here one draw of 64 bits serves two or four elements.
All draws come from PyTorch's global generator: seeds, checkpointing and saved random states mean what they always do.
"""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(like: Tensor, width: float = 1.0) -> Tensor:
    """Independent draws from the uniform distribution on (0, ``width``).

    On the CPU they lie on a grid of 2¹⁶ steps, with the mean exactly ``width``/2 and the variance smaller than
    ``width``²/12 by a share of 2⁻³².

    Args:
        like: gives shape, memory layout, dtype and device.
        width: > 0.

    >>> drawn = uniform(torch.empty(1000))
    >>> 0 < drawn.min() and drawn.max() < 1, drawn.shape
    (tensor(True), torch.Size([1000]))
    """
    if not _fast(like):
        return torch.rand_like(like) * width
    wide = torch.float32 if like.element_size() < 4 else like.dtype
    drawn = torch.empty_like(like, dtype=wide).copy_(_bits(like, torch.int16))
    return drawn.mul_(width * 2.0**-16).add_(width * (0.5 + 2.0**-17)).to(like.dtype)


def kept(like: Tensor, p: float) -> Tensor:
    """Independent draws of 0 with probability ``p`` and 1 otherwise; on the CPU p counts to 2⁻³³.

    Args:
        like: gives shape, memory layout, dtype and device.
        p: in [0, 1).

    >>> kept(torch.empty(4, dtype=torch.float64), 0.0)
    tensor([1., 1., 1., 1.], dtype=torch.float64)
    """
    if not _fast(like):
        return (torch.rand_like(like, dtype=torch.float32) >= p).to(like.dtype)
    least = min(round(p * 2.0**32), 2**32 - 1) - 2**31
    return torch.ge(_bits(like, torch.int32), least, out=torch.empty_like(like, requires_grad=False))


def _fast(like: Tensor) -> bool:
    """Whether 64 bits may be drawn at once.

    Compilers fuse the plain form, it is as good on a GPU, and ``vmap`` knows how to draw it for each of its elements.
    """
    plain = torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None
    return like.device.type == "cpu" and not plain


def _bits(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Whole numbers of all values of ``dtype``, laid out as ``torch.empty_like(like)`` is."""
    count, share = like.numel(), 8 // dtype.itemsize
    drawn = torch.empty(-(-count // share), dtype=torch.int64, device="cpu").random_(-(2**63), None).view(dtype)
    return drawn.as_strided(like.size(), torch.empty_like(like, device="meta").stride())

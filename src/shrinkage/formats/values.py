"""Values in fewer bits: fp16, bf16, and int8 with a scale for each output channel."""

from __future__ import annotations

import torch
from torch import Tensor

NARROW = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
"""The codes' types by name. Without one values stay as they are."""

_TOP = 127
_LARGEST = 2.0**126  # a scale times 127 must not overflow float32


def narrow(tensor: Tensor, values: str) -> tuple[Tensor, Tensor | None] | None:
    r"""Round a tensor to fewer bits.

    ``"fp16"`` and ``"bf16"`` round to the nearest, ties to even. ``"int8"`` gives each slice :math:`w_i` along
    the first dimension, which counts the output channels of linear layers and convolutions, a scale

    .. math:: s_i = \max |w_i| / 127 \qquad q_i = \operatorname{round}(w_i / s_i)

    Args:
        tensor: floating, of two dimensions or more, not empty.
        values: one of :data:`NARROW`.

    Returns:
        The codes in the tensor's shape, and float32 scales for int8. None if a value is out of range: beyond 65504 for
        fp16, beyond float32 for bf16, infinite, NaN or beyond 2¹²⁶ for int8.

    >>> codes, scales = narrow(torch.tensor([[1.0, -0.5], [0.0, 254.0]]), "int8")
    >>> codes.tolist(), scales.tolist()
    ([[127, -64], [0, 127]], [0.007874015718698502, 2.0])
    """
    if values != "int8":
        codes = tensor.to(NARROW[values])
        return (codes, None) if torch.equal(codes.isinf(), tensor.isinf()) else None
    rows = tensor.reshape(len(tensor), -1)
    rows = rows if rows.dtype == torch.float64 else rows.float()
    largest = rows.abs().amax(1)
    if not bool((largest <= _LARGEST).all()):  # NaN included
        return None
    scales = (largest / _TOP).float()
    codes = (rows / scales.where(scales > 0, 1)[:, None]).round_().clamp_(-_TOP, _TOP).to(torch.int8)
    return codes.reshape(tensor.shape), scales


def widen(codes: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The rounded values that :func:`narrow` has coded, in ``dtype``; with scales computed in float32.

    >>> widen(torch.tensor([[127, -64]], dtype=torch.int8), torch.tensor([0.5]), torch.float32)
    tensor([[ 63.5000, -32.0000]])
    """
    if scales is None:
        return codes.to(dtype)
    return (codes.float() * scales.reshape(-1, *[1] * (codes.ndim - 1))).to(dtype)

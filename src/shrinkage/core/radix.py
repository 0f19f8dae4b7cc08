"""The k-th smallest of many tensors' values at once, digit by digit, wherever they lie.

A non-negative float orders as its bit pattern does, read as an integer. So the k-th smallest of n values
is found digit by digit: count how many values carry each leading digit, step into the digit that
holds the k-th, go on with the next digit (radix select). It needs no sort, moves no data to the host,
and counts add up, so tensors on several layers, devices or ranks behave as one long array.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_DIGIT_BITS = 16
_BINS = 1 << _DIGIT_BITS
_KEYS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}

Costs = Sequence[int | Tensor]
"""For each tensor what its entries cost: one whole number > 0 for all, or an int64 tensor of its shape."""


def radix_select(parts: Sequence[Tensor], k: int, costs: Costs | None = None) -> tuple[Tensor, Tensor]:
    """The k-th smallest value and how many values lie strictly below it, both as 0-d tensors.

    With costs every value counts as often as it costs.
    """
    dtype = parts[0].dtype
    key_type = _KEYS[dtype]
    home = parts[0].device
    # Adding +0.0 turns -0.0, whose key would be negative, into +0.0.
    keys = [(part + 0.0).view(key_type) for part in parts]
    width = torch.iinfo(key_type).bits
    prefix = torch.zeros((), dtype=torch.int64, device=home)
    rank = torch.full((), k - 1, dtype=torch.int64, device=home)
    below = torch.zeros((), dtype=torch.int64, device=home)
    for shift in range(width - _DIGIT_BITS, -1, -_DIGIT_BITS):
        counts = torch.zeros(_BINS + 1, dtype=torch.int64, device=home)
        for i, key in enumerate(keys):
            digits = (key >> shift).to(torch.int64)
            if shift != width - _DIGIT_BITS:
                # Only values that share the digits found so far still count; the rest go to a spare bin.
                inside = (digits >> _DIGIT_BITS) == prefix.to(key.device)
                digits = torch.where(inside, digits & (_BINS - 1), _BINS)
            counts += _histogram(digits, 1 if costs is None else costs[i]).to(home)
        reached = counts[:_BINS].cumsum(0)
        digit = torch.searchsorted(reached, rank + 1)
        before = torch.where(digit > 0, reached[(digit - 1).clamp(min=0)], 0)
        rank, below = rank - before, below + before
        prefix = (prefix << _DIGIT_BITS) | digit
    value = prefix.to(key_type).reshape(1).view(dtype).reshape(())
    return value, below


def _histogram(digits: Tensor, cost: int | Tensor) -> Tensor:
    """What the values with each digit cost together; exact, and in no need of the host."""
    if isinstance(cost, int):
        return _counts(digits) * cost
    sums = torch.zeros(_BINS + 1, dtype=torch.int64, device=digits.device)
    return sums.scatter_add_(0, digits.reshape(-1), cost.reshape(-1))


def _counts(digits: Tensor) -> Tensor:
    if digits.device.type == "cpu":
        return torch.from_numpy(np.bincount(digits.numpy(), minlength=_BINS + 1))
    ones = torch.ones_like(digits)  # bincount would wait for the device to learn the largest digit
    return torch.zeros(_BINS + 1, dtype=torch.int64, device=digits.device).scatter_add_(0, digits, ones)

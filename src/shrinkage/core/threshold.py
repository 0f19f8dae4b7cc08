"""Exact order statistics over many tensors at once, ties and all.

Wherever the tensors lie, :mod:`shrinkage.core.radix` finds the k-th smallest of them all. On the CPU the question
"which value" has a faster answer, by sampling (Floyd and Rivest, 1975).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shrinkage.core.pieces import PIECE
from shrinkage.core.radix import radix_select

SMALL = 1 << 14  # as many values are partitioned as fast as they are sampled
NEAR = 0.03  # how far, relatively, a guess is trusted
SAMPLED = (torch.float32, torch.float64)  # what numpy can partition


def kth_smallest(values: Tensor, k: int, near: Tensor | None = None) -> Tensor:
    """The k-th smallest of ``values`` (k counts from 1), as a 0-d tensor on the same device.

    Args:
        values: non-negative, any shape; ``inf`` is allowed and sorts last.
        k: between 1 and ``values.numel()``.
        near: a guess. A good one saves time on the CPU; the answer is the same without.

    >>> kth_smallest(torch.tensor([3.0, 1.0, 2.0, 2.0]), 3)
    tensor(2.)
    """
    if not 1 <= k <= values.numel():
        raise IndexError(f"k must lie in 1..{values.numel()}, got {k}")
    flat = values.detach().reshape(-1)
    if flat.device.type == "cpu" and flat.dtype in SAMPLED:
        found = _bracketed_select(flat.numpy(), k, None if near is None else float(near))
        return torch.tensor(found, dtype=flat.dtype)
    value, _ = radix_select([flat], k)
    return value


def count_above(values: Tensor, limit: Tensor) -> Tensor:
    """How many of ``values`` are larger than the 0-d ``limit``, as a 0-d tensor."""
    if values.device.type != "cpu" or values.dtype not in SAMPLED:
        return torch.count_nonzero(values > limit)
    flat, bound = values.reshape(-1).numpy(), limit.numpy()
    return torch.tensor(sum(np.count_nonzero(flat[i : i + PIECE] > bound) for i in range(0, flat.size, PIECE)))


def smallest(parts: Sequence[Tensor], k: int, then: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Mark exactly the ``k`` smallest values over all ``parts`` together.

    Among equal values those with the smaller ``then`` go first; among those equal in both, the earlier
    part, and within a part the lower index: the answer is one and the same however values are stored.

    Args:
        parts: non-negative tensors of one dtype; empty ones are fine.
        k: between 0 and the total number of values.
        then: second keys, of the shapes of ``parts``, finite.

    Returns:
        One boolean tensor a part, of its shape; ``True`` marks a chosen value.

    >>> smallest([torch.tensor([0.0, 2.0]), torch.tensor([0.0, 1.0])], 2)
    [tensor([ True, False]), tensor([ True, False])]
    """
    total = sum(part.numel() for part in parts)
    if not 0 <= k <= total:
        raise IndexError(f"k must lie in 0..{total}, got {k}")
    if k == 0:
        return [torch.zeros_like(part, dtype=torch.bool) for part in parts]
    if k == total:
        return [torch.ones_like(part, dtype=torch.bool) for part in parts]
    flats = [part.detach().reshape(-1) for part in parts]
    sampled = all(flat.device.type == "cpu" and flat.dtype in SAMPLED for flat in flats)
    value, below = _sampled_select(flats, k) if sampled else radix_select(flats, k)
    tied = [part == value.to(part.device) for part in parts]
    ties_left = k - below
    if sampled and sum(int(mark.count_nonzero()) for mark in tied) == ties_left:  # as a rule: then all of them go
        return [part <= value for part in parts]
    if then is not None:
        # Beyond the tied values nothing competes: an infinite second key sends the rest to the back.
        seconds = [torch.where(mark, key, torch.inf) for mark, key in zip(tied, then, strict=True)]
        picked = smallest(seconds, int(ties_left))
        return [(part < value.to(part.device)) | pick for part, pick in zip(parts, picked, strict=True)]
    chosen = []
    for part, mark in zip(parts, tied, strict=True):
        rank = mark.reshape(-1).cumsum(0).reshape(mark.shape)
        fits = rank <= ties_left.to(part.device)
        chosen.append((part < value.to(part.device)) | (mark & fits))
        ties_left = ties_left - mark.sum().to(ties_left.device)
    return chosen


def _sampled_select(flats: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """What :func:`radix_select` gives, for tensors on the CPU that numpy can partition."""
    values = torch.cat(list(flats)).numpy()
    found = _bracketed_select(values, k, None)
    return torch.tensor(found, dtype=flats[0].dtype), torch.tensor(int(np.count_nonzero(values < found)))


def _bracketed_select(values: NDArray[Any], k: int, near: float | None) -> float:
    """Bracket the k-th smallest, count what lies below, and go on among what lies inside.

    Two passes over the values, whatever ties there are, and no copy of them.
    """
    while values.size > SMALL:
        low, high = _sampled_bracket(values, k) if near is None else (near * (1 - NEAR), near * (1 + NEAR))
        up_to, found = 0, []
        for start in range(0, values.size, PIECE):
            part = values[start : start + PIECE]
            inside = part > low
            up_to += part.size - int(np.count_nonzero(inside))
            inside &= part < high
            found.append(part.compress(inside))
        between = np.concatenate(found)
        if up_to < k <= up_to + between.size:
            if between.size > values.size // 2:
                break
            values, k, near = between, k - up_to, None
        elif near is not None:
            near = None  # it was not near
        elif up_to - np.count_nonzero(values == low) < k <= up_to:
            return low
        elif 0 < k - up_to - between.size <= np.count_nonzero(values == high):
            return high
        else:
            break  # a sample that misleads: one in ten thousand by chance, or in step with the values
    return float(np.partition(values, k - 1)[k - 1])


def _sampled_bracket(values: NDArray[Any], k: int) -> tuple[float, float]:
    """Two of the values between which, by a sample of them, the k-th smallest lies."""
    stride = int(values.size ** (1 / 3)) // 4 | 1  # odd, to walk through all columns of a matrix
    sample = values[::stride].copy()
    place, slack = k * sample.size / values.size, 2 * math.sqrt(sample.size)  # four standard deviations
    first, last = max(int(place - slack), 0), min(int(place + slack), sample.size - 1)
    sample.partition((first, last))
    return (
        float(sample[first]) if place > slack else -1.0,
        float(sample[last]) if place + slack < sample.size else math.inf,
    )

"""Order statistics of values that have a cost: how far up one must go until what lies below costs enough.

What :mod:`shrinkage.core.threshold` does for counts. Costs are whole numbers and are added up as such, so that the
answers are exact; with all costs equal to 1 they are those of counting.
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
from shrinkage.core.radix import Costs, radix_select
from shrinkage.core.threshold import NEAR, SAMPLED, SMALL

_SAMPLE = 1 << 12
_BINS = 1 << 10
_FEW = 1 << 7  # are sorted at once
_EXACT = 1 << 53  # up to here sums of whole numbers are exact in double precision

_Part = tuple[NDArray[Any], int | NDArray[np.int64]]


def limit_costing(parts: Sequence[Tensor], costs: Costs, need: int, near: Tensor | None = None) -> Tensor:
    """The smallest of the values up to which all together cost at least ``need``, as a 0-d tensor.

    Args:
        parts: non-negative tensors of one dtype; ``inf`` is allowed and sorts last.
        costs: of their entries.
        need: between 1 and the sum of all costs.
        near: a guess. A good one saves time on the CPU; the answer is the same without.

    >>> limit_costing([torch.tensor([1.0, 4.0]), torch.tensor([2.0, 3.0])], [1, 10], 12)
    tensor(3.)
    """
    flats = [part.detach().reshape(-1) for part in parts]
    if _on_host(flats):
        found = _bracketed_select(_as_arrays(flats, costs), need, None if near is None else float(near))
        return torch.tensor(found, dtype=flats[0].dtype)
    value, _ = radix_select(flats, need, costs)
    return value


def smallest_costing(
    parts: Sequence[Tensor], costs: Costs, need: int, then: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Mark the smallest values over all ``parts`` together, as few as cost at least ``need``.

    Among equal values those with the smaller ``then`` go first; among those equal in both, the earlier part, and
    within a part the lower index.

    Args:
        parts: non-negative tensors of one dtype; empty ones are fine.
        costs: of their entries.
        need: at most the sum of all costs; nothing is marked for 0.
        then: second keys, of the shapes of ``parts``, finite.

    Returns:
        One boolean tensor a part, of its shape; ``True`` marks a chosen value.

    >>> smallest_costing([torch.tensor([1.0, 4.0]), torch.tensor([2.0, 3.0])], [1, 10], 5)
    [tensor([ True, False]), tensor([ True, False])]
    """
    if need == 0:
        return [torch.zeros_like(part, dtype=torch.bool) for part in parts]
    value = limit_costing(parts, costs, need)
    below = [part < value.to(part.device) for part in parts]
    tied = [part == value.to(part.device) for part in parts]
    left = need - sum(cost_of(mark, cost) for mark, cost in zip(below, costs, strict=True))
    if then is not None and sum(int(mark.count_nonzero()) for mark in tied) > 1:
        # Beyond the tied values nothing competes: an infinite second key sends the rest to the back.
        seconds = [torch.where(mark, key, torch.inf) for mark, key in zip(tied, then, strict=True)]
        picked = smallest_costing(seconds, costs, left)
        return [low | pick for low, pick in zip(below, picked, strict=True)]
    chosen = []
    for low, mark, cost in zip(below, tied, costs, strict=True):
        spent = (mark * cost).reshape(-1).cumsum(0).reshape(mark.shape)
        chosen.append(low | (mark & (spent - cost < left)))
        left -= cost_of(mark, cost)
    return chosen


def cost_of(marked: Tensor, cost: int | Tensor) -> int:
    """What the marked entries of a tensor cost."""
    if isinstance(cost, int):
        return int(marked.count_nonzero()) * cost
    return int((marked * cost).sum())


def _on_host(flats: Sequence[Tensor]) -> bool:
    return all(flat.device.type == "cpu" and flat.dtype in SAMPLED for flat in flats)


def _as_arrays(flats: Sequence[Tensor], costs: Costs) -> list[_Part]:
    return [
        (flat.numpy(), cost if isinstance(cost, int) else cost.reshape(-1).numpy())
        for flat, cost in zip(flats, costs, strict=True)
    ]


def _bracketed_select(parts: list[_Part], need: int, near: float | None) -> float:
    """Bracket the value that is looked for, add up what lies below, and go on among what lies inside."""
    while (size := sum(values.size for values, _ in parts)) > SMALL:
        low, high = _sampled_bracket(parts, need) if near is None else (near * (1 - NEAR), near * (1 + NEAR))
        up_to, found = 0, []
        for values, cost in parts:
            for start in range(0, values.size, PIECE):
                part, price = values[start : start + PIECE], _piece(cost, start)
                inside = part > low
                up_to += _cost(~inside, price)
                inside &= part < high
                between = part.compress(inside)
                found.append((between, np.full(between.size, price) if isinstance(price, int) else price[inside]))
        values, prices = (np.concatenate(each) for each in zip(*found, strict=True))
        within = int(prices.sum())
        if up_to < need <= up_to + within:
            parts, need, near = [(values, prices)], need - up_to, None
            if values.size > size // 2:
                break
        elif near is not None:
            near = None  # it was not near
        elif up_to - _cost_at(parts, low) < need <= up_to:
            return low
        elif 0 < need - up_to - within <= _cost_at(parts, high):
            return high
        else:
            break  # a sample that misleads
    values = np.concatenate([values for values, _ in parts])
    prices = np.concatenate([_spread(cost, values) for values, cost in parts])
    return _binned_select(values, prices, need)


def _binned_select(values: NDArray[Any], prices: NDArray[np.int64], need: int) -> float:
    """Sort into bins of equal width, go on in the one in which it lies; sort when few are left."""
    while values.size > _FEW and int(prices.sum()) < _EXACT:
        low, high = values.min(), values.max()
        width = (float(high) - float(low)) / _BINS
        if not 1e-30 < width < math.inf:
            break
        bins = ((values - low) * (1 / width)).astype(np.int64)  # rounding keeps the order
        reached = np.bincount(bins, prices).cumsum()
        place = int(np.searchsorted(reached, need))
        need -= int(reached[place - 1]) if place else 0
        inside = bins == place
        values, prices = values[inside], prices[inside]
    order = values.argsort()
    return float(values[order[np.searchsorted(prices[order].cumsum(), need)]])


def _sampled_bracket(parts: list[_Part], need: int) -> tuple[float, float]:
    """Two of the values between which, by a sample of them, the one lies that is looked for."""
    totals = [_cost(np.ones(values.shape, np.bool_), cost) for values, cost in parts]
    found, weights = [], []
    for (values, cost), total in zip(parts, totals, strict=True):
        # As many of a tensor as it has of the cost; odd strides walk through all columns of a matrix.
        stride = int(values.size * sum(totals) / max(total * _SAMPLE, 1)) | 1
        found.append(values[::stride])
        weights.append(_spread(cost, values)[::stride] * float(stride))
    sample, prices = np.concatenate(found), np.concatenate(weights)
    order = sample.argsort()
    reached = prices[order].cumsum()
    place = need / sum(totals) * reached[-1]
    slack = 2 * math.sqrt(prices @ prices)  # four standard deviations
    first, last = np.searchsorted(reached, (place - slack, place + slack))
    return (
        float(sample[order[first]]) if place > slack else -1.0,
        float(sample[order[last]]) if last < sample.size else math.inf,
    )


def _spread(cost: int | NDArray[np.int64], values: NDArray[Any]) -> NDArray[np.int64]:
    return np.broadcast_to(np.asarray(cost, np.int64), values.shape)


def _piece(cost: int | NDArray[np.int64], start: int) -> int | NDArray[np.int64]:
    return cost if isinstance(cost, int) else cost[start : start + PIECE]


def _cost(marked: NDArray[np.bool_], cost: int | NDArray[np.int64]) -> int:
    return int(np.count_nonzero(marked)) * cost if isinstance(cost, int) else int(cost[marked].sum())


def _cost_at(parts: list[_Part], value: float) -> int:
    return sum(_cost(values == value, cost) for values, cost in parts)

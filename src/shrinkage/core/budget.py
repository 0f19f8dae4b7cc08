"""A budget of multiply–accumulates: the dial that counts what units cost in place of the units.

What a unit costs is in how many multiply–accumulates (MACs) of one call of the model its weights take part: a weight
of a convolution in as many as there are output positions, one of a linear layer in one. Of the units in the method's
order the first go until the rest fits into the budget, so that what is left is below it by less than one unit costs.

With a strength ξ on each MAC in place of each weight, ξ Σ_j c_j [w_j ≠ 0] removes unit j when its score is at most
ξ c_j: the order is by score per MAC, if the score is what the loss would miss. For a quadratic loss that is w², which
makes the order |w|/√c. What goes into it is :data:`EXPONENT`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shrinkage.core.bill import Bill
from shrinkage.core.costed import cost_of, limit_costing, smallest_costing
from shrinkage.core.dial import Dial, Pool, target_share
from shrinkage.core.distribution import afford
from shrinkage.core.errors import InputError, TargetError
from shrinkage.core.granularity import NM, Weight
from shrinkage.core.options import Options
from shrinkage.core.result import Spent
from shrinkage.core.selection import match_names

EXPONENT = 0.5
"""Scores are divided by this power of what a unit costs; measured, see the page on sparsity."""


def macs_share(sparsity: float | None, options: Options) -> float | None:
    """The share of multiply–accumulates that is asked for; None where there is no budget.

    Raises:
        InputError: if it lies outside (0, 1), lacks its example, or stands beside another target.
    """
    macs = options.get("macs")
    if macs is None:
        if options.get("example") is not None:
            raise InputError("example= is what macs= is counted on, and macs= was not given")
        return None
    if sparsity is not None:
        raise InputError(f"a target is sparsity= or macs=, not both (got sparsity={sparsity} and macs={macs})")
    if isinstance(macs, bool | str) or not 0.0 < macs < 1.0:
        raise InputError(
            f"macs is the share of multiply–accumulates that is left, between 0 and 1 (0.1 for a tenth), got {macs!r}"
        )
    if isinstance(pattern := options.get("granularity"), NM):
        raise InputError(f"{pattern.n}:{pattern.m} fixes what is left by itself; leave macs={macs} out")
    if options.get("example") is None:
        raise InputError(
            f"macs={macs} is counted on an example: give example=, one call's input for the model "
            "(a tuple or a dict if it takes several)"
        )
    return macs


def has_target(sparsity: float | None, options: Options) -> bool:
    """Whether something is asked for, in zeros, by an N:M pattern or in multiply–accumulates.

    Raises:
        InputError: if it cannot be.
    """
    if macs_share(sparsity, options) is not None:
        return True
    layers, granularity = options.get("layer_sparsity", {}), options.get("granularity", Weight())
    return target_share(sparsity, layers, granularity) is not None


class Budget(Dial):
    """A budget for a list of tensors.

    Args:
        shapes: of the per-unit tensors, by name.
        bill: what their units cost.
        macs: share of the model's multiply–accumulates that may be left, in (0, 1).
        layer_sparsity: by name pattern, the share of its own MACs that a tensor is to lose, in [0, 1).
        distribution: of the others; see :mod:`shrinkage.core.distribution`.
        floor: as in :class:`~shrinkage.core.dial.Dial`, of a pool's density in MACs.

    Raises:
        InputError: if there is no way to meet the budget.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        bill: Bill,
        macs: float,
        layer_sparsity: Mapping[str, float],
        distribution: str,
        floor: float,
    ) -> None:
        self._nm = None
        self._latest = {}
        self._check_shares(floor, layer_sparsity)
        self._costs = list(bill.costs)
        self._dense = bill.dense
        self._budget = math.floor(macs * bill.dense + 1e-9)
        names, sizes = list(shapes), [math.prod(shape) for shape in shapes.values()]
        whole = {
            name: n * cost if isinstance(cost, int) else int(cost.sum())
            for name, n, cost in zip(names, sizes, bill.costs, strict=True)
        }
        most = {
            name: cost if isinstance(cost, int) else int(cost.max())
            for name, cost in zip(names, bill.costs, strict=True)
        }
        self._fixed = bill.dense - sum(whole.values())
        own = match_names(layer_sparsity, names)
        kept = {name: whole[name] - self._own(whole[name], most[name], layer_sparsity[own[name]]) for name in own}
        left = self._budget - self._fixed - sum(kept.values())
        others = {name: shape for name, shape in shapes.items() if name not in own}
        self._check_left(macs, left, others, bool(own))
        index = {name: i for i, name in enumerate(names)}
        if distribution == "global":
            groups = [((index[name],), kept[name]) for name in own] + [(tuple(index[name] for name in others), left)]
        else:
            kept |= afford(distribution, others, whole, most, left)
            groups = [((i,), kept[name]) for name, i in index.items()]
        self.pools = []
        for members, stays in groups:
            n = [sizes[i] for i in members]
            total, dearest = sum(whole[names[i]] for i in members), [most[names[i]] for i in members]
            self.pools.append(self._costed_pool(members, n, total, dearest, stays, floor))
        self.units = sum(whole.values())
        self.zeros = sum(pool.zeros for pool in self.pools)

    @staticmethod
    def _own(whole: int, most: int, share: float) -> int:
        """What a tensor is to lose by its own share: whole units, where all cost the same."""
        return round(share * whole / most) * most if whole % most == 0 else round(share * whole)

    def _check_left(self, macs: float, left: int, others: Mapping[str, object], own: bool) -> None:
        if not others:
            raise InputError("layer_sparsity fixes every selected tensor, and nothing is left to meet macs= with")
        if left <= 0:
            taken = self._budget - left
            which = " and tensors with a share of their own take" if own else " (and products without weights) takes"
            raise InputError(
                f"macs={macs} leaves {self._budget:,} of {self._dense:,} multiply–accumulates, but what is not "
                f"selected{which} {taken:,} by itself; ask for more than {taken / self._dense:.4f}, or select more"
            )

    @staticmethod
    def _costed_pool(
        members: tuple[int, ...], units: list[int], whole: int, dearest: list[int], stays: int, floor: float
    ) -> Pool:
        density = stays / whole
        kept = [min(max(math.ceil(floor * density * n), 1), n) if floor else 0 for n in units]
        needed = sum(n * cost for n, cost in zip(kept, dearest, strict=True))
        if needed > stays:
            raise InputError(
                f"floor={floor} keeps {sum(kept)} units in {len(members)} tensors, which take {needed:,} "
                f"multiply–accumulates, more than the {stays:,} that the budget leaves them; "
                "lower the floor (0 switches it off) or ask for more macs"
            )
        return Pool(members, tuple(units), tuple(kept), max(whole - stays, 0))

    def tolls(self) -> list[float | Tensor | None]:
        """What scores are divided by: c^e relative to the mean c of all units; ``None`` where that is 1 for all."""
        units = sum(sum(pool.units) for pool in self.pools)
        mean = self.units / units
        tolls: list[float | Tensor | None] = []
        for cost in self._costs:
            if isinstance(cost, int):
                toll = (cost / mean) ** EXPONENT
                tolls.append(None if toll == 1 else toll)
            else:
                tolls.append((cost.double() / mean).pow(EXPONENT).float())
        return tolls

    # ---- what Dial asks ---------------------------------------------------------------------------

    def up_to(
        self, pool: Pool, scores: Sequence[Tensor], limit: Tensor, share: float, sizes: Sequence[Tensor]
    ) -> list[Tensor]:
        """As there; one unit at the limit may go beyond what is wanted."""
        if sum(int((score == limit).sum()) for score in scores) <= 1:
            return [score <= limit for score in scores]
        return super().up_to(pool, scores, limit, share, sizes)

    def left_out(self, i: int, order: Tensor, seconds: Tensor, active: Callable[[int], Tensor]) -> Tensor:
        """As there; what the pool has to spare may be spent."""
        (pool,) = (pool for pool in self.pools if i in pool.members)
        gone = {j: cost_of(~active(j), self._at(j, order)) for j in pool.members}
        spare = sum(gone.values()) - pool.zeros
        (lowest,) = smallest_costing([order], [self._at(i, order)], max(gone[i] - max(spare, 0), 0), [seconds])
        return lowest

    def asked(self, share: float) -> float:
        """As there, in MACs of the whole model."""
        return share * self.zeros / self._dense

    def config(self) -> dict[str, Any]:
        """As there."""
        return {"macs": [self._dense, self._budget, *(pool.zeros for pool in self.pools)]}

    def __str__(self) -> str:
        units = sum(sum(pool.units) for pool in self.pools)
        return f"{self._budget / self._dense:.2%} of {self._dense:,} MACs, {units:,} units"

    def _limit(self, pool: Pool, flat: Tensor, wanted: int, near: Tensor | None) -> Tensor:
        costs = [self._at(i, flat) for i in pool.members]
        return limit_costing(torch.split(flat, list(pool.units)), costs, wanted, near)

    def _smallest(
        self, pool: Pool, keys: Sequence[Tensor], wanted: int, seconds: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        costs = [self._at(i, key) for i, key in zip(pool.members, keys, strict=True)]
        # What is zero already went by itself beyond what is wanted, by less than a unit: none of it comes back.
        gone = self._amount(pool, [key == 0 for key in keys]) if wanted else 0
        if wanted < gone < wanted + self._dearest(pool):
            wanted = gone
        return smallest_costing(keys, costs, wanted, seconds)

    def _amount(self, pool: Pool, marked: Sequence[Tensor]) -> int:
        return sum(cost_of(mark, self._at(i, mark)) for i, mark in zip(pool.members, marked, strict=True))

    def _whole(self, pool: Pool) -> int:
        return sum(
            n * cost if isinstance(cost, int) else int(cost.sum())
            for n, cost in zip(pool.units, (self._costs[i] for i in pool.members), strict=True)
        )

    def _dearest(self, pool: Pool) -> int:
        """What one of its units costs, at most."""
        costs = [self._costs[i] for i in pool.members]
        return max(cost if isinstance(cost, int) else int(cost.max()) for cost in costs)

    def _at(self, i: int, beside: Tensor) -> int | Tensor:
        """The costs of a tensor's units, on the device of another tensor."""
        cost = self._costs[i]
        if isinstance(cost, Tensor) and cost.device != beside.device:
            cost = self._costs[i] = cost.to(beside.device)
        return cost

    # ---- what was reached -------------------------------------------------------------------------

    def spent(self, zero: Sequence[Tensor]) -> Spent:
        """What is left where these units are zero."""
        gone = sum(cost_of(mark, self._at(i, mark)) for i, mark in enumerate(zero))
        return Spent(self._dense - gone, self._budget, self._dense)

    def check_spent(self, spent: Spent) -> None:
        """Raise unless the budget is kept, and used up to less than a unit (of each pool)."""
        if spent.kept > self._budget:
            raise TargetError(
                f"{spent.kept:,} multiply–accumulates are left where {self._budget:,} were asked for: pruned weights "
                "are no longer zero: something other than the attached optimisers has written to them"
            )
        short = self._dense - self.zeros - spent.kept
        if short > 0 and short >= sum(self._dearest(pool) for pool in self.pools if pool.zeros):
            raise TargetError(
                f"{spent.kept:,} multiply–accumulates are left where {self._budget:,} were asked for: weights that "
                "were kept have become exactly zero by themselves (dead inputs or units); ask for fewer macs or leave "
                "the dead layer out"
            )

"""The dial: how many units must be zero, where, and the thresholds that make it so.

Selected tensors fall into *pools* that share one count: a tensor with a target of its own is a pool by
itself, all others form one. In each pool a floor protects every tensor's largest units, so that no
layer is emptied. Precedence: the floor over both targets, a tensor's own target over the global one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from shrinkage.core.errors import InputError, TargetError
from shrinkage.core.granularity import NM, Granularity
from shrinkage.core.selection import match_names
from shrinkage.core.threshold import count_above, kth_smallest, smallest


def target_share(sparsity: float | None, layers: Mapping[str, float], granularity: Granularity) -> float | None:
    """The share of zeros that is asked for, by the user or by an N:M pattern; None where there is no target.

    Raises:
        InputError: if it lies outside (0, 1), is at odds with the pattern, or is missing where layers refine it.
    """
    if isinstance(granularity, NM):
        if sparsity is not None and not math.isclose(sparsity, granularity.sparsity):
            raise InputError(
                f"{granularity.n}:{granularity.m} fixes the sparsity at {granularity.sparsity}; "
                f"leave sparsity out, or ask for that (got {sparsity})"
            )
        return granularity.sparsity
    if sparsity is None:
        if layers:
            raise InputError("layer_sparsity refines sparsity=, which was not given")
        return None
    if isinstance(sparsity, bool | str) or not 0.0 < sparsity < 1.0:
        raise InputError(f"sparsity is the share of zeros, between 0 and 1 (0.95 for 95 %), got {sparsity!r}")
    return sparsity


@dataclass(frozen=True)
class Pool:
    """Tensors that share one exact count of zeros.

    Attributes:
        members: indices of the tensors.
        units: units in each member.
        kept: how many of each member's largest units are protected.
        zeros: how much of the pool is to be zero: so many units or, of a budget, what they cost.
    """

    members: tuple[int, ...]
    units: tuple[int, ...]
    kept: tuple[int, ...]
    zeros: int


class Dial:
    """Exact targets for a list of tensors, in units. :class:`~shrinkage.core.budget.Budget` counts what they cost.

    Args:
        names: of the tensors.
        units: units in each.
        out_dims: output dimension of each (only N:M looks at it).
        granularity: how they are cut.
        sparsity: share of zeros of all tensors without a target of their own, in (0, 1).
        layer_sparsity: shares by name pattern, in [0, 1).
        floor: a tensor keeps at least this share of the density asked of its pool, in [0, 1],
            and at least one unit if it is positive.
    """

    def __init__(
        self,
        names: Sequence[str],
        units: Sequence[int],
        out_dims: Sequence[int],
        granularity: Granularity,
        sparsity: float,
        layer_sparsity: Mapping[str, float],
        floor: float,
    ) -> None:
        self._check_shares(floor, layer_sparsity)
        for pattern, share in layer_sparsity.items():
            if isinstance(granularity, NM) and share not in (0, granularity.sparsity):
                raise InputError(
                    f"layer_sparsity[{pattern!r}]={share} is at odds with {granularity.n}:{granularity.m}, which fixes "
                    f"the sparsity at {granularity.sparsity}; only 0, to leave a tensor dense, goes with it"
                )
        own = match_names(layer_sparsity, names)
        shared = tuple(i for i, name in enumerate(names) if name not in own)
        groups: list[tuple[tuple[int, ...], float]] = [
            ((i,), layer_sparsity[own[name]]) for i, name in enumerate(names) if name in own
        ]
        if shared:
            groups.append((shared, sparsity))
        self._nm = granularity if isinstance(granularity, NM) else None
        self._out_dims = tuple(out_dims)
        self.pools = [self._pool(members, share, [units[i] for i in members], floor) for members, share in groups]
        self._latest: dict[Pool, tuple[Tensor, ...]] = {}  # the last two limits
        self.units = sum(units)
        self.zeros = sum(pool.zeros for pool in self.pools)

    @staticmethod
    def _check_shares(floor: float, layer_sparsity: Mapping[str, float]) -> None:
        if not 0.0 <= floor <= 1.0:
            raise InputError(f"floor must lie in [0, 1], got {floor}")
        for pattern, share in layer_sparsity.items():
            if not 0.0 <= share < 1.0:
                raise InputError(f"layer_sparsity[{pattern!r}] must lie in [0, 1), got {share}")

    def _pool(self, members: tuple[int, ...], share: float, units: list[int], floor: float) -> Pool:
        total = sum(units)
        zeros = round(share * total)
        if zeros >= total:
            raise InputError(f"sparsity {share} of {total} units leaves nothing; ask for less")
        density = 1 - zeros / total
        kept = [max(math.ceil(floor * density * n), 1) if floor and self._nm is None else 0 for n in units]
        if sum(kept) > total - zeros:
            raise InputError(
                f"floor={floor} keeps {sum(kept)} units in {len(members)} tensors, more than the "
                f"{total - zeros} that sparsity {share} leaves; lower the floor (0 switches it off)"
            )
        return Pool(members, tuple(units), tuple(kept), zeros)

    def limits(self, ratios: Sequence[Tensor], flats: Sequence[Tensor], share: float) -> list[Tensor]:
        """The largest ratios that are to become zero, when ``share`` of the target is wanted.

        A unit goes exactly if its ratio is at most its limit.

        Args:
            ratios: one tensor of ratios ≥ 0 a parameter. Those of units that must stay become infinite.
            flats: for each pool the 1-d storage behind its members' ratios, in order.
            share: share of the target, in [0, 1].

        Returns:
            One 0-d tensor a parameter; −1 where nothing goes.
        """
        found: dict[int, Tensor] = {}
        for pool, flat in zip(self.pools, flats, strict=True):
            wanted = self.wanted(pool, share)
            if self._nm is not None:
                for i in pool.members:
                    ratios[i].masked_fill_(~self._nm.removable(ratios[i], self._out_dims[i]), torch.inf)
            limit = self._limit(pool, flat, wanted, self._expected(pool)) if wanted else flat.new_full((), -1.0)
            # The floor rarely binds. Where it does, protecting a tensor takes its place in the count from others.
            while short := self._short(pool, ratios, limit):
                for i, free in short:
                    _protect_largest(ratios[i], free)
                limit = self._limit(pool, flat, wanted, limit)
            self._latest[pool] = (*self._latest.get(pool, ()), limit)[-2:]
            found.update(dict.fromkeys(pool.members, limit))
        return [found[i] for i in range(len(ratios))]

    def _expected(self, pool: Pool) -> Tensor | None:
        """The next limit if it grows as it last did, which a smooth ramp keeps to a percent or so."""
        latest = self._latest.get(pool, ())
        return latest[1] * (latest[1] / latest[0]) if len(latest) == 2 else None

    @staticmethod
    def _short(pool: Pool, ratios: Sequence[Tensor], limit: Tensor) -> list[tuple[int, int]]:
        """Members that would keep less than their floor, and how many of their units may go at most."""
        guarded = [(i, n, kept) for i, n, kept in zip(pool.members, pool.units, pool.kept, strict=True) if kept]
        if not guarded:
            return []
        left = torch.stack([count_above(ratios[i], limit.to(ratios[i].device)).to(limit.device) for i, _, _ in guarded])
        return [(i, n - kept) for (i, n, kept), count in zip(guarded, left.tolist(), strict=True) if count < kept]

    def pattern(self, scores: Sequence[Tensor], seconds: Sequence[Tensor], share: float = 1.0) -> list[Tensor]:
        """Which units stay (``True``): exactly the wanted number in each pool, the largest scores.

        Args:
            scores: ≥ 0, one tensor a parameter.
            seconds: decide between equal scores; ≥ 0, finite.
            share: share of the target, in [0, 1].
        """
        kept: dict[int, Tensor] = {}
        widest = max((tensor.dtype for tensor in [*scores, *seconds]), key=lambda dtype: dtype.itemsize)
        scores, seconds = [tensor.to(widest) for tensor in scores], [tensor.to(widest) for tensor in seconds]
        for pool in self.pools:
            keys = []
            for i, n, safe in zip(pool.members, pool.units, pool.kept, strict=True):
                key = scores[i]
                if self._nm is not None:
                    key = torch.where(self._nm.removable(key, self._out_dims[i]), key, torch.inf)
                elif safe:
                    (removable,) = smallest([key], n - safe, [seconds[i]])
                    key = torch.where(removable, key, torch.inf)
                keys.append(key)
            lowest = self._smallest(pool, keys, self.wanted(pool, share), [seconds[i] for i in pool.members])
            for i, gone in zip(pool.members, lowest, strict=True):
                kept[i] = ~gone
        return [kept[i] for i in range(len(scores))]

    @staticmethod
    def wanted(pool: Pool, share: float) -> int:
        """How much of a pool is to be zero when ``share`` of the target is wanted."""
        return math.floor(share * pool.zeros + 1e-9)

    def met(self, pool: Pool, marked: Sequence[Tensor], share: float) -> bool:
        """Whether the marked units of a pool's members are exactly what is wanted."""
        return self._amount(pool, marked) == self.wanted(pool, share)

    def up_to(
        self, pool: Pool, scores: Sequence[Tensor], limit: Tensor, share: float, sizes: Sequence[Tensor]
    ) -> list[Tensor]:
        """Mark the members' units up to a limit of :meth:`limits`; of those that tie at it only the smaller ones.

        Args:
            pool: one of the pools.
            scores: of its members; those of units that must stay are infinite.
            limit: of the pool.
            share: the same as there.
            sizes: decide between equal scores.
        """
        marked = [score <= limit for score in scores]
        if self.met(pool, marked, share):
            return marked
        below = [score < limit for score in scores]
        tied = [
            torch.where(score == limit, size.to(score.device, score.dtype), torch.inf)
            for score, size in zip(scores, sizes, strict=True)
        ]
        picked = self._smallest(pool, tied, self.wanted(pool, share) - self._amount(pool, below))
        return [low | pick for low, pick in zip(below, picked, strict=True)]

    def left_out(self, i: int, order: Tensor, seconds: Tensor, active: Callable[[int], Tensor]) -> Tensor:
        """Mark the lowest units of one tensor, such that as much of it stays as does now.

        Args:
            i: which tensor.
            order: ≥ 0, a value per unit.
            seconds: decide between equal ones.
            active: which units of a tensor stay now.
        """
        (lowest,) = smallest([order], int((~active(i)).sum()), [seconds])
        return lowest

    @property
    def density(self) -> float:
        """The share that stays in the end."""
        return 1 - self.zeros / self.units

    def asked(self, share: float) -> float:
        """What is to be gone when ``share`` of the target is wanted, as a share of everything."""
        return share * self.zeros / self.units

    def thinned(self, exponent: float) -> Self:
        """The same with each pool's density raised to ``exponent``, in (0, 1]."""
        there = copy.copy(self)
        there.pools, there._latest = [], {}
        for pool in self.pools:
            whole = self._whole(pool)
            there.pools.append(replace(pool, zeros=whole - round(whole * (1 - pool.zeros / whole) ** exponent)))
        there.zeros = sum(pool.zeros for pool in there.pools)
        return there

    def config(self) -> dict[str, Any]:
        """What a checkpoint must agree in."""
        return {"zeros": [pool.zeros for pool in self.pools]}

    def __str__(self) -> str:
        return f"{self.zeros / self.units:.2%} of {self.units:,} units"

    def _limit(self, pool: Pool, flat: Tensor, wanted: int, near: Tensor | None) -> Tensor:
        """The value up to which ``wanted`` of the pool go."""
        return kth_smallest(flat, wanted, near)

    def _smallest(
        self, pool: Pool, keys: Sequence[Tensor], wanted: int, seconds: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Mark ``wanted`` of the pool, the lowest."""
        return smallest(keys, wanted, seconds)

    def _amount(self, pool: Pool, marked: Sequence[Tensor]) -> int:
        """How much of the pool is marked."""
        return sum(int(mark.sum()) for mark in marked)

    def _whole(self, pool: Pool) -> int:
        """How much there is of it."""
        return sum(pool.units)

    def check(self, zeros: int) -> None:
        """Raise unless exactly the wanted number of units is zero."""
        if zeros != self.zeros:
            more = zeros - self.zeros
            why = (
                f"{more} of the weights that were kept have become exactly zero by themselves "
                "(dead inputs or units); ask for a higher sparsity or leave the dead layer out"
                if more > 0
                else f"{-more} pruned weights are no longer zero: something other than the attached "
                "optimisers has written to them"
            )
            raise TargetError(f"{zeros} of {self.units} units are zero where {self.zeros} were asked for: {why}")


def _protect_largest(ratios: Tensor, free: int) -> None:
    """Put all but the ``free`` smallest out of reach, in place."""
    (removable,) = smallest([ratios], free)
    ratios.masked_fill_(~removable, torch.inf)

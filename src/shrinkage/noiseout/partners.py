r"""Which units go, and into which others they are folded: the best pair first, again and again.

*By correlation*, as in the paper, the best pair is the one of the largest :math:`|\rho|`; of the two the one goes that
its readers hear less of, by :math:`\operatorname{var}(h)\,\lVert w \rVert^2`. *By error* it is the pair that
leaves the smallest part of its readers' variance unexplained, :math:`(1 - \rho^2) \operatorname{var}(h)\,\lVert w
\rVert^2` as a share of the group's sum. Which of two goes, and how layers compare, the paper does not say.

A unit that has taken others over is heard with the weights that it has then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shrinkage.noiseout.correlation import Relation

By = Literal["correlation", "error"]

_ROWS = 256
"""Units that are compared with all others at a time; of the whole table only each row's best is kept."""


@dataclass(frozen=True)
class Step:
    """One unit that goes.

    Attributes:
        group: of units.
        unit: which of the group.
        partner: the one it is folded into.
        explained: the share of its variance that the partner explains, in [0, 1].
    """

    group: int
    unit: int
    partner: int
    explained: float


class Candidates:
    """The units of one group, each with its best partner among those that are left.

    Args:
        relations: at each place where the units are read.
        columns: what the units are multiplied by there, shape (units, weights), float64, on the CPU; used up.
        by: what makes a pair good.
    """

    def __init__(self, relations: Sequence[Relation], columns: Sequence[Tensor], by: By) -> None:
        self._relations = relations
        self._columns = columns
        self._by = by
        sizes = torch.stack([relation.size.cpu() for relation in relations])
        self._energy = sizes * torch.stack([each.square().sum(1) for each in columns])  # (readers, units)
        self._whole = self._energy.sum().clamp_min(torch.finfo(torch.float64).tiny)
        units = sizes.shape[1]
        self._alive = torch.ones(units, dtype=torch.bool)
        self._open = self._alive.clone()
        self._value = torch.full((units,), -torch.inf, dtype=torch.float64)
        self._partner = torch.zeros(units, dtype=torch.int64)
        self._explained = torch.zeros(units, dtype=torch.float64)
        self._seek(self._open)

    def best(self) -> tuple[float, int]:
        """The value of the best pair that is left, −∞ if there is none, and the unit that would go."""
        unit = int(self._value.argmax())
        return float(self._value[unit]), unit

    def step(self, group: int, unit: int) -> Step:
        """The unit with its partner."""
        return Step(group, unit, int(self._partner[unit]), float(self._explained[unit]))

    def spare(self, unit: int) -> None:
        """It stays for now."""
        self._open[unit] = False
        self._value[unit] = -torch.inf

    def reopen(self) -> None:
        """Those that were spared may go again."""
        anew = self._alive & ~self._open
        self._open |= anew
        self._seek(anew)

    def remove(self, unit: int) -> None:
        """It has gone: its partner is heard as much more, and those that it was the best partner of find another."""
        partner = int(self._partner[unit])
        before = self._fits(partner)
        self._alive[unit] = False
        self.spare(unit)
        for relation, column, energy in zip(self._relations, self._columns, self._energy, strict=True):
            column[partner] += relation.fold(unit, partner)[0] * column[unit]
            energy[partner] = float(relation.size[partner]) * column[partner].square().sum()
        quieter = self._fits(partner) & ~before  # than these
        anew = (self._partner == unit) | ((self._partner == partner) & quieter)
        anew[partner] = True
        self._seek(anew & self._open)
        self._offer(partner, before & ~self._fits(partner) & self._open)

    def _fits(self, units: int | Tensor) -> Tensor:
        """Which units these can be folded into, whether or not they are left: by correlation, the louder ones."""
        every = torch.arange(len(self._alive))
        if self._by == "error":
            return torch.as_tensor(units)[..., None] != every
        total = self._energy.sum(0)
        mine, index = total[units][..., None], torch.as_tensor(units)[..., None]
        return (mine < total) | ((mine == total) & (index > every))

    def _offer(self, partner: int, wanted: Tensor) -> None:
        """A unit has become louder than these: it may be a better partner than the one that they have."""
        some = wanted.nonzero().flatten()
        only = slice(partner, partner + 1)
        worst = torch.stack([relation.explained(some, only).cpu() for relation in self._relations]).amin(0).squeeze(1)
        better = worst > self._value[some]
        some, worst = some[better], worst[better]
        self._value[some], self._partner[some], self._explained[some] = worst, partner, worst

    def _seek(self, wanted: Tensor) -> None:
        for some in torch.split(wanted.nonzero().flatten(), _ROWS):
            shares = [relation.explained(some).cpu() for relation in self._relations]
            worst = torch.stack(shares).amin(0)
            if self._by == "error":
                value = ((torch.stack(shares) - 1) * self._energy[:, some, None]).sum(0) / self._whole
            else:
                value = worst
            value = value.where(self._fits(some) & self._alive, -torch.inf)
            self._value[some] = value.amax(1)
            # Of equal ones the loudest, which is the last to go: else all that are dead would share one that is dead.
            equal = self._energy.sum(0).where(value == self._value[some, None], -torch.inf)
            self._partner[some] = equal.argmax(1)
            self._explained[some] = worst.gather(1, self._partner[some, None]).squeeze(1)


class Stock:
    """What is left of a model while units go one by one.

    Args:
        sets: the number of every unit, by group.
        dimensions: sets of which one at least must stay, for each dimension of a tensor.
        fits: whether what would be left (bool, by number) can be.
        count: numbers in all.
    """

    def __init__(
        self, sets: Sequence[Tensor], dimensions: Iterable[Tensor], fits: Callable[[Tensor], bool], count: int
    ) -> None:
        self.kept = torch.ones(count, dtype=torch.bool)
        self._sets = [each.tolist() for each in sets]
        self._fits = fits
        self._left: list[int] = []
        self._of: dict[int, list[int]] = {}
        for index, dimension in enumerate(dimensions):
            self._left.append(len(dimension))
            for one in dimension.tolist():
                self._of.setdefault(one, []).append(index)

    def take(self, group: int, unit: int) -> bool:
        """Let a unit go, if it may."""
        number = self._sets[group][unit]
        if any(self._left[index] < 2 for index in self._of.get(number, ())):
            return False
        self.kept[number] = False
        if not self._fits(self.kept):
            self.kept[number] = True
            return False
        for index in self._of.get(number, ()):
            self._left[index] -= 1
        return True


def choose(
    candidates: Sequence[Candidates],
    stock: Stock,
    enough: Callable[[Sequence[Step]], bool],
    quota: Sequence[int] | None = None,
) -> list[Step]:
    """Let units go, the best pair first, until it is enough or nothing can go any more.

    Args:
        candidates: by group; used up.
        stock: what is left; changed.
        enough: told of all steps so far.
        quota: how many may go from each group; ``None``: any number.

    Returns:
        The steps in their order. A partner may itself go in a later one.
    """
    steps: list[Step] = []
    spared_at = -1
    taken = [0] * len(candidates)
    while not enough(steps):
        open_groups = [g for g in range(len(candidates)) if quota is None or taken[g] < quota[g]]
        found = [(candidates[group].best(), group) for group in open_groups]
        (value, unit), group = max(found, key=lambda each: each[0][0], default=((-torch.inf, 0), 0))
        if value == -torch.inf:
            if spared_at < 0 or spared_at == len(steps):
                break
            spared_at = -1
            for each in candidates:  # what could not go may be able to without others that have gone since
                each.reopen()
            continue
        if not stock.take(group, unit):
            candidates[group].spare(unit)
            spared_at = len(steps) if spared_at < 0 else spared_at
            continue
        steps.append(candidates[group].step(group, unit))
        candidates[group].remove(unit)
        taken[group] += 1
    return steps

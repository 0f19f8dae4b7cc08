r"""Which units go, and into which others they are folded: the best pair first, again and again.

*By correlation*, as in the paper, the best pair is the one of the largest :math:`|\rho|`; of the two the one goes that
its readers hear less of, by :math:`\operatorname{var}(h)\,\lVert w \rVert^2`. *By error* it is the pair that
leaves the smallest part of its readers' variance unexplained, :math:`(1 - \rho^2) \operatorname{var}(h)\,\lVert w
\rVert^2` as a share of the group's sum. Which of two goes, and how layers compare, the paper does not say.
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
        relations: at each place where the units are read; what counts is the worst of them.
        energy: how much of each unit its readers hear, shape (units,), float64, on the CPU.
        by: what makes a pair good.
    """

    def __init__(self, relations: Sequence[Relation], energy: Tensor, by: By) -> None:
        self._relations = relations
        self._energy = energy
        self._by = by
        self._alive = torch.ones(len(energy), dtype=torch.bool)
        self._value = torch.empty(len(energy), dtype=torch.float64)
        self._partner = torch.empty(len(energy), dtype=torch.int64)
        self._explained = torch.empty(len(energy), dtype=torch.float64)
        self._seek(torch.arange(len(energy)))

    def best(self) -> tuple[float, int]:
        """The value of the best pair that is left, −∞ if there is none, and the unit that would go."""
        unit = int(self._value.argmax())
        return float(self._value[unit]), unit

    def step(self, group: int, unit: int) -> Step:
        """The unit with its partner."""
        return Step(group, unit, int(self._partner[unit]), float(self._explained[unit]))

    def spare(self, unit: int) -> None:
        """It stays."""
        self._value[unit] = -torch.inf

    def remove(self, unit: int) -> None:
        """It has gone: those that it was the best partner of find another."""
        self._alive[unit] = False
        orphans = self._alive & (self._partner == unit) & (self._value > -torch.inf)
        self.spare(unit)
        self._seek(orphans.nonzero().flatten())

    def _seek(self, units: Tensor) -> None:
        for some in torch.split(units, _ROWS):
            explained = torch.stack([relation.explained(some).cpu() for relation in self._relations]).amin(0)
            mine, other = self._energy[some, None], self._energy[None]
            if self._by == "error":
                value = (explained - 1) * mine / self._energy.sum().clamp_min(torch.finfo(torch.float64).tiny)
                fits = some[:, None] != torch.arange(len(self._energy))
            else:
                value = explained
                fits = (mine < other) | ((mine == other) & (some[:, None] > torch.arange(len(self._energy))))
            value = torch.where(fits & self._alive, value, -torch.inf)
            self._value[some], self._partner[some] = value.max(1)
            self._explained[some] = explained.gather(1, self._partner[some, None]).squeeze(1)


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
    taken = [0] * len(candidates)
    while not enough(steps):
        open_groups = [g for g in range(len(candidates)) if quota is None or taken[g] < quota[g]]
        found = [(candidates[group].best(), group) for group in open_groups]
        (value, unit), group = max(found, key=lambda each: each[0][0], default=((-torch.inf, 0), 0))
        if value == -torch.inf:
            break
        if not stock.take(group, unit):
            candidates[group].spare(unit)
            continue
        steps.append(candidates[group].step(group, unit))
        candidates[group].remove(unit)
        taken[group] += 1
    return steps

"""A selected tensor together with the optimiser that moves it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shrinkage.core.granularity import NM, Granularity, Weight, wide
from shrinkage.core.pieces import pieces


@dataclass(frozen=True)
class Slot:
    """One parameter in work.

    Attributes:
        name: its name in the unwrapped model.
        parameter: the tensor as the model holds it now.
        out_dim: the dimension that counts outputs.
        granularity: how it is cut into units.
        optimizer: the optimiser that updates it.
        group_index: which of its parameter groups.
        toll: under a budget of multiply–accumulates, what scores are divided by: for what the units cost, relative
            to others. One number or a tensor of one a unit.
    """

    name: str
    parameter: nn.Parameter
    out_dim: int
    granularity: Granularity
    optimizer: Optimizer
    group_index: int
    toll: float | Tensor | None = None

    @property
    def group(self) -> dict[str, Any]:
        """Its parameter group as it is now: ``load_state_dict`` replaces the dictionaries."""
        return self.optimizer.param_groups[self.group_index]

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """Shape of its per-unit tensors."""
        return self.granularity.shape(self.parameter.shape, self.out_dim)

    @property
    def units(self) -> int:
        """How many units it has."""
        return math.prod(self.unit_shape)

    def sizes(self, tensor: Tensor | None = None) -> Tensor:
        """‖·‖₂ per unit of the weight, or of another tensor of its shape."""
        source = self.parameter if tensor is None else tensor
        return self.granularity.sizes(source.detach(), self.out_dim)

    @property
    def weights_a_unit(self) -> Tensor:
        """How many weights each unit has; tiles at the edge have fewer."""
        return self.sizes(torch.ones_like(self.parameter, dtype=torch.float32)).square().round()

    @property
    def single(self) -> bool:
        """Whether its units are single weights, so that per-unit tensors have the weight's shape."""
        return isinstance(self.granularity, Weight | NM)

    def parts(self, *units: Tensor | None) -> Iterable[tuple[Any, ...]]:
        """The sizes, and with them tensors of a value per unit: piece by piece where units are single weights."""
        if self.single:
            for weight, *values in pieces(self.parameter.detach(), *units):
                yield wide(weight).abs(), *values
        else:
            yield self.sizes(), *units

    def per_cost(self, units: Tensor) -> Tensor:
        """A value per unit in relation to what the unit costs."""
        return units if self.toll is None else units / self.toll

    def live_sizes(self) -> Tensor:
        """The same with its gradient, for penalties inside the loss."""
        return self.granularity.sizes(self.parameter, self.out_dim)

    def spread(self, units: Tensor) -> Tensor:
        """A value per unit, as a tensor that broadcasts against the weight."""
        return self.granularity.spread(units, self.parameter.detach(), self.out_dim)

    def direction(self, sizes: Tensor) -> Tensor:
        """∂‖w_g‖₂/∂w: the sign of a single weight, w/‖w_g‖₂ in a group, 0 where the unit is zero."""
        weight = wide(self.parameter.detach())
        if self.single:
            return weight.sgn()
        return weight * self.spread(torch.where(sizes > 0, 1 / sizes, 0))

    def scale(self, units: Tensor, factor: Callable[[Tensor], Tensor]) -> None:
        """Multiply every unit by a factor in [0, 1] of its value in ``units``, in place; zeros are written as +0.0."""
        weight = self.parameter.detach()
        if self.single:
            for part, values in pieces(weight, units):
                part.mul_(factor(values)).add_(0.0)  # −0.0 + 0.0 is +0.0
        else:
            weight.mul_(self.spread(factor(units))).add_(0.0)

    def activity(self) -> Tensor:
        """How strongly the training still pulls at each unit: from momentum or second moments, ≥ 0."""
        state = self.optimizer.state.get(self.parameter, {})
        for key in ("momentum_buffer", "exp_avg_sq"):
            if isinstance(state.get(key), Tensor):
                return torch.nan_to_num(self.sizes(state[key]))
        return torch.zeros(self.unit_shape, device=self.parameter.device)

    def second_moments(self) -> Tensor | None:
        """Adam's v per unit (its mean over the unit), from an optimiser that keeps one.

        As the optimiser stores it: see :meth:`bias_correction`.
        """
        squares = self.optimizer.state.get(self.parameter, {}).get("exp_avg_sq")
        if not isinstance(squares, Tensor) or squares.shape != self.parameter.shape:
            return None
        if self.single:
            return wide(squares)
        return self.sizes(squares.sqrt()).square() / self.weights_a_unit

    def bias_correction(self) -> float | Tensor:
        """1 − β₂ᵗ, the share of its final weight that Adam's second moment has reached."""
        step, betas = self.optimizer.state.get(self.parameter, {}).get("step"), self.group.get("betas")
        if step is None or betas is None:
            return 1.0
        share: float | Tensor = 1 - betas[1] ** step
        return share.to(self.parameter.device) if isinstance(share, Tensor) else share


def typical_roots(slots: list[Slot]) -> list[Tensor | None]:
    """For each tensor what its √v is held against: the mean over all that have a v, as far as its own has come.

    A running mean v begins at zero, and tensors with other decays or fewer steps are at another point of its way.
    """
    units, sums, reached = 0, [], list[float | Tensor | None]()
    home = slots[0].parameter.device
    for slot in slots:
        moments = slot.second_moments()
        if moments is None:
            reached.append(None)
            continue
        reached.append(slot.bias_correction() ** 0.5)
        units += slot.units
        sums += [(part.sqrt().sum() / reached[-1]).to(home) for (part,) in pieces(moments)]
    if not sums:
        return [None] * len(slots)
    typical = (torch.stack(sums).sum() / units).clamp(min=1e-30)
    homes = [slot.parameter.device for slot in slots]
    return [None if root is None else typical.to(home) * root for root, home in zip(reached, homes, strict=True)]


def by_size(slots: list[Slot]) -> tuple[list[Tensor], list[Tensor]]:
    """Rank units by sizes, under a budget over what they cost; between equals, by how the training pulls at them."""
    return [slot.per_cost(slot.sizes()) for slot in slots], [slot.activity() for slot in slots]


def root_mean_square(slots: list[Slot]) -> float:
    """Of the sizes of all units."""
    squares = sum(float(slot.sizes().square().sum(dtype=torch.float64)) for slot in slots)
    return math.sqrt(squares / sum(slot.units for slot in slots))


def learning_rate_shares(slots: list[Slot]) -> list[float]:
    """Each slot's learning rate over the largest, at least 0.001; all 1 when the groups agree or have none.

    The bound keeps a group whose rate is 0 for a while within reach of the target.
    """
    rates = [slot.group.get("lr", 1.0) for slot in slots]
    if all(rate is rates[0] for rate in rates):
        return [1.0] * len(slots)
    numbers = [float(rate) for rate in rates]
    top = max(numbers)
    return [max(number / top, 1e-3) if top > 0 else 1.0 for number in numbers]

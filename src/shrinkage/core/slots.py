"""A selected tensor together with the optimiser that moves it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shrinkage.core.granularity import Granularity, wide


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
    """

    name: str
    parameter: nn.Parameter
    out_dim: int
    granularity: Granularity
    optimizer: Optimizer
    group_index: int

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

    def live_sizes(self) -> Tensor:
        """The same with its gradient, for penalties inside the loss."""
        return self.granularity.sizes(self.parameter, self.out_dim)

    def spread(self, units: Tensor) -> Tensor:
        """A value per unit, as a tensor that broadcasts against the weight."""
        return self.granularity.spread(units, self.parameter.detach(), self.out_dim)

    def direction(self, sizes: Tensor) -> Tensor:
        """∂‖w_g‖₂/∂w: the sign of a single weight, w/‖w_g‖₂ in a group, 0 where the unit is zero."""
        weight = wide(self.parameter.detach())
        if sizes.shape == weight.shape:
            return weight.sgn()
        return weight * self.spread(torch.where(sizes > 0, 1 / sizes, 0))

    def shrink(self, amount: Tensor, sizes: Tensor) -> None:
        """Lower every unit's size by ``amount`` ≥ 0, to exact zero where it is no larger, in place."""
        weight = self.parameter.detach()
        if sizes.shape == weight.shape:
            amount = amount.to(weight.dtype).expand_as(weight)
            weight.sub_(torch.clamp(weight, -amount, amount))
        else:
            left = torch.where(sizes > amount, 1 - amount / sizes, 0)
            weight.mul_(self.spread(left).to(weight.dtype)).add_(0.0)  # −0.0 + 0.0 is +0.0

    def activity(self) -> Tensor:
        """How strongly the training still pulls at each unit: from momentum or second moments, ≥ 0."""
        state = self.optimizer.state.get(self.parameter, {})
        for key in ("momentum_buffer", "exp_avg_sq"):
            if isinstance(state.get(key), Tensor):
                return torch.nan_to_num(self.sizes(state[key]))
        return torch.zeros(self.unit_shape, device=self.parameter.device)

    def metric(self) -> Tensor | None:
        """√v per unit (root mean square over the unit) under an optimiser that keeps second moments.

        As the optimiser stores it: see :meth:`bias_correction`.
        """
        squares = self.optimizer.state.get(self.parameter, {}).get("exp_avg_sq")
        if not isinstance(squares, Tensor) or squares.shape != self.parameter.shape:
            return None
        if self.unit_shape == tuple(self.parameter.shape):
            return wide(squares).sqrt()
        return self.sizes(squares.sqrt()) * math.sqrt(self.units / self.parameter.numel())

    def bias_correction(self) -> float | Tensor:
        """1 − β₂ᵗ, the share of its final weight that Adam's second moment has reached."""
        step, betas = self.optimizer.state.get(self.parameter, {}).get("step"), self.group.get("betas")
        if step is None or betas is None:
            return 1.0
        share: float | Tensor = 1 - betas[1] ** step
        return share.to(self.parameter.device) if isinstance(share, Tensor) else share


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

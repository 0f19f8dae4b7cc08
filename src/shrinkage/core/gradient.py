"""The gradient solver: the penalty's gradient joins the loss's, and λ has an optimiser of its own.

This is the paper's way. The gradients are written out instead of going through autograd, which
costs a small part of the step where autograd doubles it. Nothing becomes exactly zero by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from shrinkage.core.granularity import wide
from shrinkage.core.pieces import LONG, pieces
from shrinkage.core.protocols import PerWeight, Prior
from shrinkage.core.scales import FixedStrength, Scales


class GradientSolver(FixedStrength):
    """Adds ∂penalty/∂w to the gradients right before each step.

    Args:
        prior: the penalty.
        scales: its λ.
        in_loss: the user adds ``penalty()`` to the loss instead, once a step, and autograd delivers the weights'
            gradients. Those of λ are written out here too: what autograd leaves at λ may be scaled, and belongs to
            passes that no step was taken for.
    """

    def __init__(self, prior: Prior, scales: Scales, *, in_loss: bool = False) -> None:
        super().__init__(prior, scales)
        self._in_loss = in_loss
        self._per_weight = prior if isinstance(prior, PerWeight) and prior.separable else None

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, scale: Tensor | None, clock: bool, once: bool) -> None:
        """Add the gradients of this optimiser's tensors, and see to λ.

        Where every unit has a λ to itself, it goes with its weight: whichever order several optimisers step
        in, each sees the λ of before the step. A λ that is shared goes with the clock.
        """
        own = [i for i, slot in enumerate(self._slots) if slot.optimizer is optimizer]
        if not own:
            return
        if self._per_weight is not None and scale is None and not self._in_loss and self._plain_case(own):
            self._in_few_passes(self._per_weight, own, once)
            return
        separable = self._per_weight is not None
        scales = [tensor.detach() for tensor in self.scales.tensors]
        every = range(len(self._slots)) if clock and not separable else own
        sizes = {i: self._slots[i].sizes() for i in every}
        for i in own:
            slot, size = self._slots[i], sizes[i]
            if slot.parameter.grad is not None and not self._in_loss:
                slope = self.prior.grad_size(i, size, scales)
                pull = slot.direction(size).mul_(slot.spread(slope.expand(size.shape)))
                slot.parameter.grad.add_(pull if scale is None else pull.mul_(scale))
        if separable:
            if self._in_loss and once:  # autograd's gradients of the others, which have their own moment
                for i in set(range(len(self._slots))) - set(own):
                    self.scales.tensors[i].grad = None
            self.scales.set_gradients([sizes[i] for i in own], [self.scales.tensors[i] for i in own])
            if once:
                self.scales.step()
        elif clock:
            self.scales.set_gradients(list(sizes.values()), self.scales.tensors)

    def _plain_case(self, own: Sequence[int]) -> bool:
        """Whether all units are single weights with gradients, and their λ have momentum and a fused optimiser."""
        slots = [self._slots[i] for i in own]
        return (
            self.scales.optimizer is not None
            and self.scales.moving
            and self.scales.optimizer.param_groups[0]["momentum"] > 0
            and self.scales.optimizer.param_groups[0]["fused"]
            and all(slot.single and slot.parameter.grad is not None for slot in slots)
        )

    def _in_few_passes(self, prior: PerWeight, own: Sequence[int], move: bool) -> None:
        """Both gradients in one go over memory, and the step of λ with them if it is time to ``move``.

        λ moves before the weights then, but neither step looks at what the other moves. Its gradient is
        not stored, which saves a tensor of the weights' size.
        """
        velocities = self.scales.velocities
        for i in own:
            slot, scale = self._slots[i], self.scales.tensors[i]
            weight, gradient = slot.parameter.detach(), slot.parameter.grad
            scale.grad = None if move else torch.empty_like(scale)
            whole = (weight, gradient, scale.detach(), velocities[i], scale.grad)
            for w, g, lam, v, stored in pieces(*whole, length=LONG):
                slope = prior.add_gradients(wide(w), lam, g)
                if stored is not None:
                    stored.copy_(slope)
                else:
                    self.scales.descend(lam, slope, v)

    def after_step(self, step: int, share: float) -> None:
        """Move λ, after the weights, on gradients taken before both."""
        self.scales.step()

    def closure_value(self, optimizer: Optimizer, loss: Any) -> Any:
        """LBFGS's line search compares losses, so there the penalty's value has to be in."""
        if not isinstance(optimizer, LBFGS) or self._in_loss:
            return loss
        if isinstance(loss, Tensor):
            return loss + self.value().detach()
        return loss + self.value().item() if isinstance(loss, int | float) else loss

"""The gradient solver: the penalty's gradient joins the loss's, and λ has an optimiser of its own.

This is the paper's way. The gradients are written out instead of going through autograd, which
costs a small part of the step where autograd doubles it. Nothing becomes exactly zero by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, SGD, Optimizer

from shrinkage.core.dial import Dial
from shrinkage.core.protocols import Prior
from shrinkage.core.slots import Slot


class Scales:
    """The trained scales λ of a penalty and the plain SGD that moves them.

    Args:
        prior: says how many scales there are and where they start.
        lr: learning rate of λ; 0 keeps λ where it is.
        momentum: of λ.
        weight_decay: of λ. With decay the method becomes another one: see the page on HALO.
    """

    def __init__(self, prior: Prior, lr: float, momentum: float, weight_decay: float) -> None:
        self._prior = prior
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay
        self._slots: Sequence[Slot] = ()
        self.tensors: list[Tensor] = []
        self.optimizer: SGD | None = None

    def start(self, slots: Sequence[Slot]) -> None:
        """Allocate λ beside the weights."""
        self._slots = slots
        shapes = self._prior.scale_shapes([slot.unit_shape for slot in slots])
        homes = [slot.parameter for slot in slots]
        self.tensors = [
            torch.full(
                shape,
                self._prior.initial_scale,
                device=homes[min(i, len(homes) - 1)].device,
                dtype=torch.float64 if homes[0].dtype == torch.float64 else torch.float32,
                requires_grad=True,
            )
            for i, shape in enumerate(shapes)
        ]
        if self.tensors:
            self.optimizer = SGD(self.tensors, lr=self._lr, momentum=self._momentum, weight_decay=self._weight_decay)

    def by_name(self) -> dict[str, Tensor]:
        """The scales that belong to single units, by parameter name."""
        return {
            slot.name: tensor.detach()
            for slot, tensor in zip(self._slots, self.tensors, strict=False)
            if tuple(tensor.shape) == slot.unit_shape
        }

    def set_gradients(self, sizes: Sequence[Tensor]) -> None:
        """∂penalty/∂λ at the present weights."""
        if self.optimizer is not None and self.optimizer.param_groups[0]["lr"]:
            gradients = self._prior.grad_scales(sizes, [tensor.detach() for tensor in self.tensors])
            for tensor, gradient in zip(self.tensors, gradients, strict=True):
                tensor.grad = gradient

    def step(self) -> None:
        """Move λ along the gradients that are there."""
        if self.optimizer is not None and self.optimizer.param_groups[0]["lr"]:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """λ and its optimiser's state."""
        state: dict[str, Any] = {"scales": [tensor.detach().clone() for tensor in self.tensors]}
        if self.optimizer is not None:
            state["optimizer"] = self.optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        with torch.no_grad():
            for tensor, saved in zip(self.tensors, state["scales"], strict=True):
                tensor.copy_(saved)
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])


class GradientSolver:
    """Adds ∂penalty/∂w to the gradients right before each step.

    Args:
        prior: the penalty.
        scales: its λ.
        in_loss: the user adds ``penalty()`` to the loss instead, and autograd delivers all gradients.
    """

    def __init__(self, prior: Prior, scales: Scales, *, in_loss: bool = False) -> None:
        self.prior = prior
        self.scales = scales
        self._in_loss = in_loss
        self._slots: list[Slot] = []

    def start(self, slots: list[Slot], dial: Dial | None) -> None:
        """Take over the tensors."""
        self._slots = slots
        self.scales.start(slots)

    def value(self) -> Tensor:
        """The penalty, differentiable in weights and λ."""
        return self.prior.value([slot.live_sizes() for slot in self._slots], self.scales.tensors)

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, scale: Tensor | None, clock: bool) -> None:
        """Add the gradients of this optimiser's tensors; the clock's call also sees to λ."""
        if self._in_loss:
            return
        scales = [tensor.detach() for tensor in self.scales.tensors]
        mine = [slot.optimizer is optimizer for slot in self._slots]
        sizes = [slot.sizes() if clock or own else torch.empty(0) for slot, own in zip(self._slots, mine, strict=True)]
        for i, (slot, size) in enumerate(zip(self._slots, sizes, strict=True)):
            gradient = slot.parameter.grad
            if gradient is None or not mine[i]:
                continue
            slope = self.prior.grad_size(i, size, scales)
            pull = slot.direction(size).mul_(slot.spread(slope.expand(size.shape)))
            gradient.add_(pull if scale is None else pull.mul_(scale))
        if clock:
            self.scales.set_gradients(sizes)

    def after_step(self, step: int, share: float) -> None:
        """Move λ, after the weights, on gradients taken before both."""
        self.scales.step()

    def closure_value(self, optimizer: Optimizer, loss: Any) -> Any:
        """LBFGS's line search compares losses, so there the penalty's value has to be in."""
        if isinstance(optimizer, LBFGS) and not self._in_loss and isinstance(loss, Tensor):
            return loss + self.value().detach()
        return loss

    @property
    def strength(self) -> float:
        """ξ, which is fixed."""
        return self.prior.xi

    @property
    def lam_optimizer(self) -> SGD | None:
        """Plain SGD on λ."""
        return self.scales.optimizer

    def lam(self) -> dict[str, Tensor]:
        """λ per unit, by parameter name."""
        return self.scales.by_name()

    def state_dict(self) -> dict[str, Any]:
        """λ and its optimiser."""
        return self.scales.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.scales.load_state_dict(state)

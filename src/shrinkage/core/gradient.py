"""The gradient solver: the penalty's gradient joins the loss's, and λ has an optimiser of its own.

This is the paper's way. The gradients are written out instead of going through autograd, which
costs a small part of the step where autograd doubles it. Nothing becomes exactly zero by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, SGD, Optimizer

from shrinkage.core.dial import Dial
from shrinkage.core.granularity import wide
from shrinkage.core.pieces import LONG, pieces
from shrinkage.core.protocols import PerWeight, Prior
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
            fused = all(tensor.device.type in ("cpu", "cuda") for tensor in self.tensors)
            self.optimizer = SGD(
                self.tensors, lr=self._lr, momentum=self._momentum, weight_decay=self._weight_decay, fused=fused
            )

    def by_name(self) -> dict[str, Tensor]:
        """The scales that belong to single units, by parameter name."""
        return {
            slot.name: tensor.detach()
            for slot, tensor in zip(self._slots, self.tensors, strict=False)
            if tuple(tensor.shape) == slot.unit_shape
        }

    @property
    def moving(self) -> bool:
        """Whether there is a λ that is trained."""
        return self.optimizer is not None and bool(self.optimizer.param_groups[0]["lr"])

    def set_gradients(self, sizes: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        """∂penalty/∂λ of these λ at the sizes of their units."""
        if self.moving:
            gradients = self._prior.grad_scales(sizes, [tensor.detach() for tensor in tensors])
            for tensor, gradient in zip(tensors, gradients, strict=True):
                tensor.grad = gradient

    def step(self) -> None:
        """Move λ along the gradients that are there, if any."""
        if self.optimizer is not None and self.moving and any(tensor.grad is not None for tensor in self.tensors):
            self.optimizer.step()
            self.optimizer.zero_grad()

    @property
    def velocities(self) -> list[Tensor]:
        """The momentum of every λ tensor, where their optimiser keeps it."""
        assert self.optimizer is not None
        if not self.optimizer.state:
            self.optimizer.step()  # moves nothing yet; schedulers look for a first call
        for tensor in self.tensors:
            state = self.optimizer.state[tensor]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(tensor, requires_grad=False)
        return [self.optimizer.state[tensor]["momentum_buffer"] for tensor in self.tensors]

    def descend(self, lam: Tensor, gradient: Tensor, velocity: Tensor) -> None:
        """What :meth:`step` does, by the same kernel, on a part of a λ tensor whose gradient is at hand."""
        assert self.optimizer is not None
        group = self.optimizer.param_groups[0]
        torch._fused_sgd_(
            [lam],
            [gradient],
            [velocity],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """λ and its optimiser's state."""
        state: dict[str, Any] = {"scales": [tensor.detach().clone() for tensor in self.tensors]}
        if self.optimizer is not None:
            state["optimizer"] = copy.deepcopy(self.optimizer.state_dict())  # a snapshot, not a view
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
        self._per_weight = prior if isinstance(prior, PerWeight) and prior.separable else None
        self._slots: list[Slot] = []

    def start(self, slots: list[Slot], dial: Dial | None) -> None:
        """Take over the tensors."""
        self._slots = slots
        self.scales.start(slots)

    def value(self) -> Tensor:
        """The penalty, differentiable in weights and λ."""
        return self.prior.value([slot.live_sizes() for slot in self._slots], self.scales.tensors)

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, scale: Tensor | None, clock: bool, once: bool) -> None:
        """Add the gradients of this optimiser's tensors, and see to λ.

        Where every unit has a λ to itself, it goes with its weight: whichever order several optimisers step
        in, each sees the λ of before the step. A λ that is shared goes with the clock.
        """
        own = [i for i, slot in enumerate(self._slots) if slot.optimizer is optimizer]
        if self._in_loss or not own:
            return
        if self._per_weight is not None and scale is None and self._plain_case(own):
            self._in_few_passes(self._per_weight, own, once)
            return
        separable = self._per_weight is not None
        scales = [tensor.detach() for tensor in self.scales.tensors]
        every = range(len(self._slots)) if clock and not separable else own
        sizes = {i: self._slots[i].sizes() for i in every}
        for i in own:
            slot, size = self._slots[i], sizes[i]
            if slot.parameter.grad is not None:
                slope = self.prior.grad_size(i, size, scales)
                pull = slot.direction(size).mul_(slot.spread(slope.expand(size.shape)))
                slot.parameter.grad.add_(pull if scale is None else pull.mul_(scale))
        if separable:
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

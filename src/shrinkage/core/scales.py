"""The trained scales λ of a penalty with fixed strengths, and what its solvers share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from shrinkage.core.dial import Dial
from shrinkage.core.errors import InputError
from shrinkage.core.protocols import Prior
from shrinkage.core.slots import Slot, by_size


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
        """The inverse of :meth:`state_dict`.

        Raises:
            InputError: if these are other scales.
        """
        if [tensor.shape for tensor in self.tensors] != [saved.shape for saved in state["scales"]]:
            raise InputError(
                f"this state has {len(state['scales'])} tensors of λ where {len(self.tensors)} are: it was saved by a "
                "method with other arguments, such as layerwise="
            )
        with torch.no_grad():
            for tensor, saved in zip(self.tensors, state["scales"], strict=True):
                tensor.copy_(saved)
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])


class FixedStrength:
    """What the solvers with fixed strengths share: a prior, its λ, and the weights they act on.

    Args:
        prior: the penalty, with its strengths.
        scales: its λ.
    """

    def __init__(self, prior: Prior, scales: Scales) -> None:
        self.prior = prior
        self.scales = scales
        self._slots: list[Slot] = []

    def start(self, slots: list[Slot], dial: Dial | None) -> None:
        """Take over the tensors."""
        self._slots = slots
        self.scales.start(slots)

    def begin(self) -> None:
        """Weights begin as they are."""

    def value(self) -> Tensor:
        """The penalty, differentiable in weights and λ."""
        return self.prior.value([slot.live_sizes() for slot in self._slots], self.scales.tensors)

    def closure_value(self, optimizer: Optimizer, loss: Any) -> Any:
        """The user's loss, as it is."""
        return loss

    def stepped(self, optimizer: Optimizer) -> None:
        """Nothing to do before the clock's step."""

    def state_loaded(self, optimizer: Optimizer) -> None:
        """Nothing here depends on it."""

    def ranking(self) -> tuple[list[Tensor], list[Tensor]]:
        """By size."""
        return by_size(self._slots)

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

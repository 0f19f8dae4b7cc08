"""The proximal solver: after a step, sizes are lowered and small ones become exactly zero.

With fixed strengths this is the textbook proximal step after every optimiser step. With a target the
strength is steered, and there the law needs no tuning: a proximal step zeroes unit j exactly when
size_j / pull_j ≤ ξ, so the ξ that leaves the wanted number of zeros is an order statistic of that ratio.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from shrinkage.core.dial import Dial
from shrinkage.core.errors import StateError
from shrinkage.core.gradient import Scales
from shrinkage.core.protocols import AdaptivePull, Prior
from shrinkage.core.slots import Slot, learning_rate_shares


class FixedProximal:
    """w ← prox(w) with step length lr after every step; λ follows its own gradient.

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

    def value(self) -> Tensor:
        """The penalty, differentiable in weights and λ."""
        return self.prior.value([slot.live_sizes() for slot in self._slots], self.scales.tensors)

    def before_step(self, optimizer: Optimizer, scale: Tensor | None, clock: bool) -> None:
        """λ's gradient belongs to the weights before the step."""
        if clock:
            self.scales.set_gradients([slot.sizes() for slot in self._slots])

    @torch.no_grad()
    def after_step(self, step: int, share: float) -> None:
        """Take the proximal step, then move λ."""
        scales = [tensor.detach() for tensor in self.scales.tensors]
        for i, slot in enumerate(self._slots):
            size = slot.sizes()
            length: float | Tensor = slot.group["lr"]
            metric = slot.metric()
            if metric is not None:
                length = length / (metric / slot.bias_correction() ** 0.5 + slot.group.get("eps", 1e-8))
            slot.shrink(size - self.prior.prox(i, size, scales, length), size)
        self.scales.step()

    def closure_value(self, optimizer: Optimizer, loss: Any) -> Any:
        """The user's loss, as it is."""
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


class SteeredProximal:
    """Proximal steps whose strength meets a growing share of the target.

    Args:
        pull: whom the penalty pulls more.
        interval: optimiser steps from one proximal step to the next. Between them zeros may move, which lets
            a weight that the loss needs come back.
    """

    def __init__(self, pull: AdaptivePull, interval: int) -> None:
        self._pull = pull
        self._interval = interval
        self._dial: Dial | None = None
        self._slots: list[Slot] = []
        self._memory: list[Tensor] = []
        self._reference = 1.0
        self._ratios: list[Tensor] = []
        self._flats: list[Tensor] = []
        self._limit = torch.zeros(())

    @torch.no_grad()
    def start(self, slots: list[Slot], dial: Dial | None) -> None:
        """Take over the tensors; their present root mean square becomes the unit of size."""
        assert dial is not None  # built only where there is a target
        self._slots, self._dial = slots, dial
        sizes = [slot.sizes() for slot in slots]
        squares = sum(float(size.square().sum(dtype=torch.float64)) for size in sizes)
        self._reference = math.sqrt(squares / sum(slot.units for slot in slots))
        if not 0 < self._reference < math.inf:
            self._refuse(0)
        if self._pull.remembers:
            self._memory = [size.clone() for size in sizes]

    def value(self) -> Tensor:
        """The steered penalty as it acts now, differentiable in the weights."""
        factors = self._factors()
        terms = [
            (self._pull_of(i, slot.sizes(), factors[i]) * slot.live_sizes()).sum() for i, slot in enumerate(self._slots)
        ]
        return self.strength * torch.stack(terms).sum()

    def before_step(self, optimizer: Optimizer, scale: Tensor | None, clock: bool) -> None:
        """Gradients are left alone."""

    def closure_value(self, optimizer: Optimizer, loss: Any) -> Any:
        """The user's loss, as it is."""
        return loss

    @torch.no_grad()
    def after_step(self, step: int, share: float) -> None:
        """Remember the sizes, and zero what ``share`` of the target asks for.

        Raises:
            StateError: if a weight has become NaN or infinite.
        """
        if step % self._interval and share < 1.0:
            return
        if not self._flats:
            self._allocate()
        factors = self._factors()
        for i, slot in enumerate(self._slots):
            size = slot.sizes()
            if self._pull.remembers:
                self._pull.remember(self._memory[i], size)
            torch.div(size, self._pull_of(i, size, factors[i]), out=self._ratios[i])
        if not all(math.isfinite(float(flat.sum())) for flat in self._flats):
            self._refuse(step)
        assert self._dial is not None
        limits = self._dial.limits(self._ratios, self._flats, share)
        for i, slot in enumerate(self._slots):
            size = slot.sizes()
            slot.shrink(self._pull_of(i, size, factors[i]).mul_(limits[i].clamp(min=0)), size)
        self._limit = torch.stack([limit.amax().to(limits[0].device) for limit in limits]).amax()
        if share >= 1.0:  # the pattern is fixed next; the working space is not needed again
            self._flats, self._ratios = [], []

    @property
    def strength(self) -> float:
        """ξ of the last proximal step, in units of the weights' root mean square."""
        return max(float(self._limit), 0.0)

    @property
    def lam_optimizer(self) -> SGD | None:
        """None: λ follows the sizes."""
        return None

    def lam(self) -> dict[str, Tensor]:
        """λ per unit, by parameter name."""
        found = {
            slot.name: self._pull.scale(memory, self._reference)
            for slot, memory in zip(self._slots, self._memory, strict=False)
        }
        return {name: lam for name, lam in found.items() if lam is not None}

    def _pull_of(self, i: int, size: Tensor, factor: float | Tensor) -> Tensor:
        memory = self._memory[i] if self._pull.remembers else size
        return self._pull.pull(memory, self._reference).mul_(factor)

    def _factors(self) -> list[float | Tensor]:
        """What the optimisers add to the pull: relative learning rates, and Adam's own metric.

        A proximal step in the metric of Adam is lr/√v long, weight by weight. The metric is taken
        relative to its mean over the model, and bounded away from 0.
        """
        factors: list[float | Tensor] = list(learning_rate_shares(self._slots))
        metrics = [slot.metric() for slot in self._slots]
        known = [metric for metric in metrics if metric is not None]
        if not known:
            return factors
        total = torch.stack([metric.sum().to(known[0].device) for metric in known]).sum()
        mean = total / sum(metric.numel() for metric in known)
        for i, metric in enumerate(metrics):
            if metric is not None:
                relative = metric.div_(mean.to(metric.device).clamp(min=1e-30)).add_(1e-3)
                factors[i] = relative.reciprocal_().mul_(factors[i])
        return factors

    def _allocate(self) -> None:
        """One buffer a pool, so that the ratios of its tensors lie side by side."""
        views: dict[int, Tensor] = {}
        assert self._dial is not None
        for pool in self._dial.pools:
            first = self._slots[pool.members[0]].sizes()
            flat = torch.zeros(sum(pool.units), dtype=first.dtype, device=first.device)
            self._flats.append(flat)
            for i, part in zip(pool.members, torch.split(flat, list(pool.units)), strict=True):
                views[i] = part.view(self._slots[i].unit_shape)
        self._ratios = [views[i] for i in range(len(self._slots))]

    def _refuse(self, step: int) -> NoReturn:
        for slot in self._slots:
            if not bool(torch.isfinite(slot.parameter).all()):
                raise StateError(
                    f"{slot.name!r} holds NaN or infinite weights at step {step}: the training has "
                    "diverged; lower the learning rate or clip the gradients"
                )
        raise StateError(f"at step {step} every selected weight is zero, or too large to square")

    def state_dict(self) -> dict[str, Any]:
        """The memory of sizes and their unit."""
        return {
            "memory": [memory.clone() for memory in self._memory],
            "reference": self._reference,
            "limit": float(self._limit),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        for memory, saved in zip(self._memory, state["memory"], strict=True):
            memory.copy_(saved)
        self._reference = float(state["reference"])
        self._limit = torch.tensor(float(state["limit"]))

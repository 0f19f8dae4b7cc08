"""The proximal solver: after a step, sizes are lowered and small ones become exactly zero.

With fixed strengths this is the textbook proximal step after every optimiser step. With a target the
strength is steered, and there the law needs no tuning: a proximal step zeroes unit j exactly when
size_j / pull_j ≤ ξ, so the ξ that leaves the wanted number of zeros is an order statistic of that ratio.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from shrinkage.core.dial import Dial
from shrinkage.core.errors import DivergedError
from shrinkage.core.hold import INTS, Held, Holder
from shrinkage.core.pieces import pieces
from shrinkage.core.protocols import AdaptivePull
from shrinkage.core.scales import FixedStrength
from shrinkage.core.slots import Slot, by_size, learning_rate_shares, root_mean_square, typical_roots
from shrinkage.formats.bits import pack_bits, unpack_bits

# Adam's second moments move nothing, and over zeros their square root takes five times as long on x86.
_SPARED = "exp_avg_sq"


class FixedProximal(FixedStrength):
    """w ← prox(w) with step length lr after every step; λ follows its own gradient."""

    def before_step(self, optimizer: Optimizer, scale: Tensor | None, clock: bool, once: bool) -> None:
        """λ's gradient belongs to the weights before the step."""
        if clock:
            self.scales.set_gradients([slot.sizes() for slot in self._slots], self.scales.tensors)

    @torch.no_grad()
    def after_step(self, step: int, share: float) -> None:
        """Take the proximal step, then move λ."""
        scales = [tensor.detach() for tensor in self.scales.tensors]
        for i, slot in enumerate(self._slots):
            size = slot.sizes()
            length: float | Tensor = slot.group["lr"]
            moments = slot.second_moments()
            if moments is not None:
                length = length / ((moments / slot.bias_correction()).sqrt() + slot.group.get("eps", 1e-8))
            left = self.prior.prox(i, size, scales, length)
            slot.scale(left / size, lambda factor: factor.nan_to_num_(0.0))  # 0/0 where there was nothing
        self.scales.step()


class SteeredProximal:
    """Proximal steps whose strength meets a growing share of the target.

    Args:
        pull: whom the penalty pulls more.
        interval: optimiser steps from one proximal step to the next.
        hold: whether zeros stay zero between them, and so for good. Otherwise they may move, which lets a weight
            that the loss needs come back, in a network that is not quite the sparse one.
    """

    def __init__(self, pull: AdaptivePull, interval: int, *, hold: bool = False) -> None:
        self._pull = pull
        self._interval = interval
        self._hold = hold
        self._held: list[Held] = []  # one a tensor, from the first zero on
        self._holder = Holder({})
        self._dial: Dial | None = None
        self._slots: list[Slot] = []
        self._memory: list[Tensor] = []
        self._reference = 1.0
        self._ratios: list[Tensor] = []
        self._flats: list[Tensor] = []
        self._limit = torch.zeros(())
        self._full = False  # whether a proximal step has zeroed all of the target
        self._masks_due = False  # whether what it left still has to be made into masks

    @torch.no_grad()
    def start(self, slots: list[Slot], dial: Dial | None) -> None:
        """Take over the tensors; their present root mean square becomes the unit of size."""
        assert dial is not None  # built only where there is a target
        self._slots, self._dial = slots, dial
        self._full, self._masks_due = False, False
        self._held, self._holder = [], Holder({})
        self._reference = root_mean_square(slots)
        if not 0 < self._reference < math.inf:
            self._refuse(0)
        if self._pull.remembers:
            self._memory = [slot.sizes().clone() for slot in slots]

    def begin(self) -> None:
        """Weights begin as they are."""

    def value(self) -> Tensor:
        """The steered penalty as it acts now, differentiable in the weights."""
        shares, typical = learning_rate_shares(self._slots), typical_roots(self._slots)
        terms = []
        for i, slot in enumerate(self._slots):
            memory = self._memory[i] if self._memory else slot.sizes()
            slope = self._slope(memory, slot.second_moments(), typical[i], shares[i], slot.toll)
            terms.append((slope * slot.live_sizes()).sum().to(self._limit.device))
        return self.strength * torch.stack(terms).sum()

    def before_step(self, optimizer: Optimizer, scale: Tensor | None, clock: bool, once: bool) -> None:
        """Gradients are left alone, but for those of zeros that are held."""
        self._make_due_masks()
        self._holder.before_step(optimizer)

    def closure_value(self, optimizer: Optimizer, loss: Any) -> Any:
        """The user's loss, as it is."""
        return loss

    @torch.no_grad()
    def after_step(self, step: int, share: float) -> None:
        """Remember the sizes, and zero what ``share`` of the target asks for.

        Raises:
            DivergedError: if a weight has become NaN or infinite.
        """
        if step % self._interval and (share < 1.0 or self._full):
            return
        self._make_due_masks()
        if not self._flats:
            self._allocate()
        shares, typical = learning_rate_shares(self._slots), typical_roots(self._slots)
        sums = []
        for i, slot in enumerate(self._slots):
            memories = self._memory[i] if self._memory else None
            toll = slot.toll if isinstance(slot.toll, Tensor) else None
            for size, ratio, memory, moment, each in slot.parts(self._ratios[i], memories, slot.second_moments(), toll):
                if memory is not None:
                    self._pull.remember(memory, size)
                rate = slot.toll if each is None else each
                slope = self._slope(size if memory is None else memory, moment, typical[i], shares[i], rate)
                sums.append(torch.div(size, slope, out=ratio).sum())
        if not math.isfinite(float(torch.stack([part.to(self._limit.device) for part in sums]).sum())):
            self._refuse(step)
        limits = self._limits(share)
        for slot, ratios, limit in zip(self._slots, self._ratios, limits, strict=True):
            slot.scale(ratios, partial(lowered, limit=limit.clamp(min=1e-30), bias=self._pull.bias))
        self._limit = torch.stack([limit.to(limits[0].device) for limit in limits]).amax()
        self._full, self._masks_due = share >= 1.0, self._hold and share > 0
        if not self._full:  # else the pattern may be fixed next, and no mask is needed
            self._make_due_masks()

    def _limits(self, share: float) -> list[Tensor]:
        """ξ for each tensor: what is at most that becomes zero."""
        assert self._dial is not None
        limits = self._dial.limits(self._ratios, self._flats, share)
        if share >= 1.0:  # before, a tie may let some units go early
            self._spare_ties(limits, share)
        return limits

    def _spare_ties(self, limits: list[Tensor], share: float) -> None:
        """Of units that tie at the limit only as many go as are wanted: put the others out of reach."""
        assert self._dial is not None
        for pool in self._dial.pools:
            limit, ratios = limits[pool.members[0]], [self._ratios[i] for i in pool.members]
            if self._dial.met(pool, [ratio <= limit for ratio in ratios], share):
                continue
            gone = self._dial.up_to(pool, ratios, limit, share, [self._slots[i].sizes() for i in pool.members])
            for ratio, marked in zip(ratios, gone, strict=True):
                ratio.masked_fill_((ratio <= limit) & ~marked, torch.inf)

    def stepped(self, optimizer: Optimizer) -> None:
        """Clear held zeros that the step may have moved."""
        self._holder.after_step(optimizer)

    def state_loaded(self, optimizer: Optimizer) -> None:
        """What it holds for pruned units must not move them."""
        self._holder.state_loaded(optimizer)

    @torch.no_grad()
    def _make_due_masks(self) -> None:
        """Make masks of what the proximal step has left of every unit, which lies where the ratios were."""
        if not self._masks_due:
            return
        self._masks_due = False
        if not self._held:
            self._make_masks()
        for slot, left, held in zip(self._slots, self._ratios, self._held, strict=True):
            if slot.single:
                for part, bits in pieces(left, held.mask):
                    bits.copy_(part != 0).neg_()
            else:
                held.mask.copy_(slot.spread(left != 0)).neg_()
            held.clear_state(slot.optimizer, _SPARED)

    def _make_masks(self) -> None:
        """Of single weights, they take the room of the ratios, which is needed in proximal steps only."""
        for slot, ratio in zip(self._slots, self._ratios, strict=True):
            weight = slot.parameter.detach()
            mask = (
                ratio.view(INTS[ratio.element_size()])
                if slot.single
                else torch.zeros_like(weight, dtype=INTS[weight.element_size()])
            )
            self._held.append(Held(slot.parameter, mask))
        self._holder = Holder.of(zip((slot.optimizer for slot in self._slots), self._held, strict=True), _SPARED)

    def ranking(self) -> tuple[list[Tensor], list[Tensor]]:
        """By size. The pattern is fixed next; the working space is not needed again."""
        self._flats, self._ratios, self._held, self._holder = [], [], [], Holder({})
        self._masks_due = False
        return by_size(self._slots)

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

    def _slope(
        self,
        memory: Tensor,
        moment: Tensor | None,
        typical: Tensor | None,
        share: float,
        toll: float | Tensor | None,
    ) -> Tensor:
        """The penalty's relative slope, times the units' costs, and what the optimisers add: learning rates, a metric.

        A proximal step in the metric of Adam is lr/√v long, weight by weight. The metric is taken
        relative to its mean over the model, and bounded away from 0.
        """
        slope = self._pull.pull(memory, self._reference)
        if share != 1.0:
            slope.mul_(share)
        if toll is not None:
            slope.mul_(toll)
        if moment is not None and typical is not None:
            slope.div_(moment.sqrt().div_(typical).add_(1e-3))
        return slope

    def _allocate(self) -> None:
        """One buffer a pool, so that the ratios of its tensors lie side by side."""
        self._flats = []
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
                raise DivergedError(
                    f"{slot.name!r} holds NaN or infinite weights at step {step}: the training has "
                    "diverged; lower the learning rate or clip the gradients"
                )
        raise DivergedError(f"at step {step} every selected weight is zero, or too large to square")

    def state_dict(self) -> dict[str, Any]:
        """The memory of sizes and their unit, and who is held."""
        self._make_due_masks()
        return {
            "full": self._full,
            "memory": [memory.clone() for memory in self._memory],
            "kept": [pack_bits(held.mask != 0) for held in self._held],
            "reference": self._reference,
            "limit": float(self._limit),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        for memory, saved in zip(self._memory, state["memory"], strict=True):
            memory.copy_(saved)
        self._reference = float(state["reference"])
        self._limit = torch.tensor(float(state["limit"]))
        self._full, self._masks_due = bool(state["full"]), False
        self._held, self._holder = [], Holder({})
        if state["kept"]:
            self._allocate()
            self._make_masks()
            for slot, held, bits in zip(self._slots, self._held, state["kept"], strict=True):
                held.mask.copy_(unpack_bits(bits, slot.parameter.shape)).neg_()


def lowered(ratios: Tensor, limit: float | Tensor, bias: float) -> Tensor:
    """What a proximal step leaves of every unit, as a factor; in the storage of ``ratios``.

    A survivor loses ``bias`` times its slope p times the limit: s − bias·p·limit = s·(1 − bias·limit/ratio).
    """
    if bias == 0:
        return ratios.gt_(limit)
    left = torch.div(-bias * limit, ratios, out=ratios).add_(1)
    return torch.threshold_(left, 1 - bias, 0)

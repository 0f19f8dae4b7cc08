"""The masked solver: a mask that is held during training and changes now and then.

Between two changes pruned units stay zero, with their gradient and optimiser state. A change is one of two kinds:

- The mask follows the ramp: after a step the units with the lowest scores go, and none comes back.
- The network is sparse from the start, and right before a step every tensor *exchanges* units: some active ones
  with the lowest scores go, as many others grow. Gradients of pruned units are looked at for this alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from shrinkage.core.budget import has_target
from shrinkage.core.checkpoint import pack_masks, unpack_masks
from shrinkage.core.dial import Dial
from shrinkage.core.errors import InputError
from shrinkage.core.granularity import NM
from shrinkage.core.hold import Held, Holder, bit_mask
from shrinkage.core.options import Options, check_options
from shrinkage.core.schedules import Ramp, full, interval
from shrinkage.core.slots import Slot
from shrinkage.core.threshold import smallest

# Optimiser steps between exchanges, where nothing else is asked for: RigL's ΔT.
EXCHANGE_INTERVAL = 100


class Score(Protocol):
    """Who goes: the units with the lowest scores."""

    def units(self, slot: Slot) -> Tensor:
        """A score ≥ 0 per unit, comparable between tensors; also asked for at the start, before the first step.

        Raises:
            InputError: if the tensor's optimiser does not keep what the score needs.
        """
        ...


class Growth(Protocol):
    """Who comes in an exchange."""

    def share(self, progress: float) -> float:
        """The share of active units that is exchanged, in [0, 1]; ``progress`` is 1 when the exchanges end."""
        ...

    def worth(self, slot: Slot, chance: torch.Generator) -> Tensor:
        """A value ≥ 0 per unit; the largest grow, and 0 does not grow while anything else can be done."""
        ...

    def values(self, slot: Slot, gone: Tensor, chance: torch.Generator) -> Tensor:
        """What grown weights start from: broadcasts against the weight; ``gone`` marks the weights that go."""
        ...


@dataclass(frozen=True)
class Magnitude:
    """‖w_g‖₂ of a unit."""

    def units(self, slot: Slot) -> Tensor:
        """The sizes."""
        return slot.sizes()


@dataclass(frozen=True)
class Exchange:
    """A network that is sparse from the start and whose pattern moves.

    Args:
        growth: how much is exchanged, and what grows.
        until: the step from which on the pattern stays.
        seed: of everything random. Each draw comes from the seed, the step and the tensor, so that nothing of it
            needs to be saved and the global random state is left alone.
    """

    growth: Growth
    until: int
    seed: int

    def chance(self, step: int, tensor: int) -> torch.Generator:
        """A generator of its own for every step and tensor; on the CPU, so that all devices agree."""
        seed = np.random.SeedSequence((self.seed, step, tensor)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(seed[0]))


class MaskedSolver:
    """Holds a mask and changes it every few steps.

    Args:
        score: who goes.
        interval: optimiser steps from one change to the next.
        exchange: ``None`` for a mask that follows the ramp.
    """

    def __init__(self, score: Score, interval: int, exchange: Exchange | None = None) -> None:
        self._score = score
        self._interval = interval
        self._exchange = exchange
        self._dial: Dial | None = None
        self._slots: list[Slot] = []
        self._held: list[Held] = []
        self._holder = Holder({})
        self._step = 0
        self._due: set[int] = set()  # tensors that exchange at their optimiser's next step

    @torch.no_grad()
    def start(self, slots: list[Slot], dial: Dial | None) -> None:
        """Take over the tensors, with everything active.

        Raises:
            InputError: if the score cannot be had from these optimisers.
        """
        self._slots, self._dial = slots, dial
        self._step, self._due = 0, set()
        for slot in slots:
            self._score.units(slot)
        self._hold([torch.ones_like(slot.parameter, dtype=torch.bool, requires_grad=False) for slot in slots])

    @torch.no_grad()
    def begin(self) -> None:
        """Where units are exchanged, draw the first pattern, which keeps as many non-zero units as it can.

        So a model that is sparse already, by another method or in an earlier life, begins with its own pattern.
        """
        if self._exchange is None:
            return
        assert self._dial is not None  # methods with masks have a target
        scores = []
        for i, slot in enumerate(self._slots):
            drawn = torch.rand(slot.unit_shape, generator=self._exchange.chance(0, i)).to(slot.parameter.device)
            scores.append(drawn + (slot.sizes() > 0))
        for i, kept in enumerate(self._dial.pattern(scores, scores)):
            self._change(i, kept)

    def value(self) -> Tensor:
        """Zero, whatever the weights: nothing pulls at those that are active."""
        home = self._slots[0].parameter.device
        return torch.stack([(0 * slot.live_sizes()).sum().to(home) for slot in self._slots]).sum()

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, scale: Tensor | None, clock: bool, once: bool) -> None:
        """Exchange what is due, with the gradients at hand, then clear those of pruned units.

        A common factor of the gradients does not matter: tensors are looked at one by one.
        """
        for i in sorted(self._due):
            if self._slots[i].optimizer is optimizer:
                self._due.discard(i)
                self._exchange_units(i)
        self._holder.before_step(optimizer)

    def stepped(self, optimizer: Optimizer) -> None:
        """Clear weights that the step may have moved."""
        self._holder.after_step(optimizer)

    @torch.no_grad()
    def after_step(self, step: int, share: float) -> None:
        """Follow the ramp, or see whether an exchange is due at the next step."""
        self._step = step
        if self._exchange is not None:
            if (step + 1) % self._interval == 0 and step + 1 < self._exchange.until:
                self._due = set(range(len(self._slots)))
        elif share > 0 and (step % self._interval == 0 or share >= 1):
            self._prune(share)

    def closure_value(self, optimizer: Optimizer, loss: Any) -> Any:
        """The user's loss, as it is."""
        return loss

    def state_loaded(self, optimizer: Optimizer) -> None:
        """What it holds for pruned units must not revive them."""
        self._holder.state_loaded(optimizer)

    def ranking(self) -> tuple[list[Tensor], list[Tensor]]:
        """Active units stay. Sizes come second: one that has just grown may still be zero."""
        return [self._active(i).float() for i in range(len(self._slots))], [slot.sizes() for slot in self._slots]

    @property
    def strength(self) -> float:
        """0: there is no penalty."""
        return 0.0

    @property
    def lam_optimizer(self) -> SGD | None:
        """None: there is no λ."""
        return None

    def lam(self) -> dict[str, Tensor]:
        """Empty: there is no λ."""
        return {}

    # ---- changing the mask ----------------------------------------------------------------------

    def _prune(self, share: float) -> None:
        """Leave no more than ``share`` of the target asks for."""
        assert self._dial is not None
        scores = []
        for i, slot in enumerate(self._slots):
            score = slot.per_cost(self._score.units(slot))
            # An active unit may be worth nothing, but what is pruned is worth less and never comes back.
            scores.append(score.clamp(min=torch.finfo(score.dtype).tiny).masked_fill(~self._active(i), 0))
        for i, kept in enumerate(self._dial.pattern(scores, [slot.activity() for slot in self._slots], share)):
            self._change(i, kept)

    def _exchange_units(self, i: int) -> None:
        """Drop the active units with the lowest scores and grow as many others, in one tensor."""
        assert self._exchange is not None
        slot, active, growth = self._slots[i], self._active(i), self._exchange.growth
        count = int(active.sum())
        moving = int(growth.share(min((self._step + 1) / self._exchange.until, 1.0)) * count + 1e-9)
        if moving == 0 or count == slot.units:
            return
        score, chance = self._score.units(slot), self._exchange.chance(self._step + 1, i)
        (going,) = smallest([score.masked_fill(~active, torch.inf)], moving)
        worth = torch.nan_to_num(growth.worth(slot, chance))
        # Who is left out first: worth nothing; going, who stay for want of others; worth something; the rest stays.
        order = worth.masked_fill(active, torch.inf).masked_fill(going, torch.finfo(worth.dtype).tiny)
        if isinstance(slot.granularity, NM):
            left_out = slot.granularity.removable(order, slot.out_dim)
        else:
            assert self._dial is not None
            left_out = self._dial.left_out(i, order, score, self._active)
        weight, grown = slot.parameter.detach(), ~left_out & ~active
        values = growth.values(slot, slot.spread(active & left_out), chance)
        self._change(i, ~left_out)
        weight.copy_(torch.where(slot.spread(grown), values.to(weight), weight))

    def _active(self, i: int) -> Tensor:
        """Which units are not pruned."""
        return self._slots[i].sizes((self._held[i].mask != 0).float()) > 0

    def _change(self, i: int, kept: Tensor) -> None:
        """Another mask for one tensor; what is pruned becomes zero."""
        slot, held = self._slots[i], self._held[i]
        held.mask = bit_mask(slot.spread(kept), slot.parameter.detach())
        held.clear_weight(slot.optimizer)

    def _hold(self, masks: Sequence[Tensor]) -> None:
        self._held = [
            Held(slot.parameter, bit_mask(mask, slot.parameter.detach()))
            for slot, mask in zip(self._slots, masks, strict=True)
        ]
        self._holder = Holder.of(zip((slot.optimizer for slot in self._slots), self._held, strict=True))

    # ---- checkpoints ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The masks, at a bit a weight, and which tensors are about to exchange."""
        held = {slot.name: held for slot, held in zip(self._slots, self._held, strict=True)}
        return {"step": self._step, "due": sorted(self._due), "masks": pack_masks(held)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._step, self._due = state["step"], set(state["due"])
        masks = unpack_masks(state["masks"], {slot.name: slot.parameter for slot in self._slots})
        self._hold([masks[slot.name] for slot in self._slots])


def check_target(method: type, sparsity: float | None, steps: int | None, options: Options) -> None:
    """Refuse a target that is missing or cannot be, and a length that is missing.

    Raises:
        InputError: if so, or for unknown options.
    """
    check_options(method, options)
    if not has_target(sparsity, options):
        raise InputError(f"{method.__name__} needs a target: sparsity=, the share of zeros, or macs=")
    if steps is None:
        raise InputError(f"{method.__name__} needs steps=, the number of optimiser steps of the whole training")


def exchanging(
    method: type,
    growth: Growth,
    sparsity: float | None,
    steps: int | None,
    asked: int | None,
    seed: int,
    end: float,
    options: Options,
) -> tuple[MaskedSolver, Options]:
    """The solver and options of a method that exchanges units.

    Args:
        method: for messages.
        growth: how much is exchanged, and what grows.
        sparsity: as in :class:`~shrinkage.core.engine.Sparsifier`.
        steps: as there.
        asked: the interval that the user wants, if any.
        seed: ≥ 0.
        end: the default share of ``steps`` at which the pattern is fixed.
        options: what the user gave beside.

    Raises:
        InputError: for arguments that cannot work.
    """
    check_target(method, sparsity, steps, options)
    if given := [word for word in ("ramp", "start") if word in options]:
        raise InputError(f"{method.__name__} is sparse all along and has no ramp: leave {given[0]!r} out")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed must be a whole number of at least 0, got {seed!r}")
    # An N:M pattern is the same in every layer.
    spread = "global" if isinstance(options.get("granularity"), NM) else "erk"
    options = Options(**{"distribution": spread, "end": end, **options, "ramp": full, "start": 0.0})
    assert steps is not None  # checked above
    until = Ramp(full, 0.0, options["end"], steps).last_step
    return MaskedSolver(Magnitude(), interval(steps, EXCHANGE_INTERVAL, asked), Exchange(growth, until, seed)), options

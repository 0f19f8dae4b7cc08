"""The latent solver: what is trained is one tensor, and what the network uses is a function of it.

The Parameter always holds the effective weight w = θ · f(θ), so that forward passes, copies and files see the sparse
network. The latent θ lies here. Right before a step it takes the Parameter's place, and the gradient with respect to w
is turned into that with respect to θ; the optimiser moves θ as it would move any weight, with its own momentum, decay
and metric; right after the step θ comes out and the new w goes in. A step that is skipped changes nothing.

What f is makes the method: a :class:`LatentForm`. Which units are zero follows from its scores, exactly as many as the
ramp asks for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import LBFGS, SGD, Optimizer

from shrinkage.core.dial import Dial, Pool
from shrinkage.core.errors import DivergedError, InputError, StateError
from shrinkage.core.granularity import wide
from shrinkage.core.masked import check_target
from shrinkage.core.options import STEERED, Options
from shrinkage.core.slots import Slot, by_size
from shrinkage.formats.bits import pack_bits, unpack_bits


@dataclass(frozen=True)
class Choice:
    """Which units of one tensor are zero now.

    Attributes:
        kept: boolean, per unit.
        safe: kept whatever their score, because of the floor or an N:M pattern; ``None`` where there are none.
        limit: units up to this score went; −1 if nothing did.
    """

    kept: Tensor
    safe: Tensor | None
    limit: float


class LatentForm(Protocol):
    """What makes one latent method differ from another; a class of its own inherits what it does not need to say.

    The effective weight is θ times a factor per unit, which depends on the unit's size ‖θ_g‖₂ and on the choice made
    last. Under a budget, sizes are in relation to what units cost.
    """

    slots: list[Slot]
    straight: bool = False
    """Whether gradients pass to θ as they are, so that :meth:`gradients` need not be asked."""

    def start(self, slots: list[Slot]) -> None:
        """Take over the tensors, and allocate what is trained beside them."""
        self.slots = slots

    def choosing(self, counted: bool) -> None:
        """Scores are about to be asked for, of all tensors: to count zeros, or between two counts."""
        return

    def score(self, index: int, size: Tensor) -> Tensor:
        """What decides who goes: ≥ 0, the lowest first, comparable between tensors. By default the size."""
        return size

    def chosen(self, step: int, pool: Pool, scores: Tensor, gone: int, limit: float) -> None:
        """``gone`` units of a pool were chosen, up to ``limit``, by flat scores; those of safe units are infinite."""
        return

    def factor(self, index: int, size: Tensor, choice: Choice) -> Tensor:
        """f: 0 exactly where units are not kept."""
        ...

    def gradients(
        self,
        own: Sequence[int],
        sizes: Sequence[Tensor],
        choices: Sequence[Choice],
        pulls: Sequence[Tensor],
        scale: Tensor | None,
    ) -> list[tuple[Tensor, Tensor | None]]:
        """How the gradient passes: ∂L/∂θ = gate · ∂L/∂w + turn · θ, two values per unit for each of these tensors.

        Args:
            own: which tensors.
            sizes: of their units.
            choices: made last.
            pulls: Σ ∂L/∂w · θ over each unit.
            scale: what gradients and pulls are multiplied by; the form's own parameters need them without.
        """
        return [(torch.ones_like(size), None) for size in sizes]

    def stepped(self, own: Sequence[int]) -> None:
        """These tensors were moved; so may be what belongs to them."""
        return

    def finish(self) -> None:
        """The pattern is about to be fixed: what was allocated is not needed again."""
        return

    def slope(self, index: int, size: Tensor) -> Tensor | None:
        """Of the penalty that the strength multiplies, per unit; ``None`` if there is no penalty."""
        return None

    def lam(self, size: Tensor) -> Tensor | None:
        """The λ that belongs to these sizes, if the form has one."""
        return None

    def strength(self, choices: Sequence[Choice]) -> float:
        """A number that tells how hard the form presses now; 0 if it has none."""
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        """What the form keeps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        return


class LatentSolver:
    """Trains latent weights, and writes the effective ones.

    Args:
        form: how one comes from the other.
        interval: optimiser steps from one count of the zeros to the next. In between the limits stay, and what is above
            them is kept.
    """

    def __init__(self, form: LatentForm, interval: int = 1) -> None:
        self.form = form
        self._interval = interval
        self._slots: list[Slot] = []
        self._dial: Dial | None = None
        self._latents: list[Tensor] = []
        self._choices: list[Choice] = []
        self._written: list[Tensor] = []  # the weights as they were left
        self._inside: set[Optimizer] = set()  # those whose Parameters hold latent weights at this moment
        self._clock: Optimizer | None = None

    def start(self, slots: list[Slot], dial: Dial | None) -> None:
        """Take over the tensors; the latent weights begin as what the weights are.

        Raises:
            InputError: for an optimiser that looks at the loss more than once a step.
        """
        if any(isinstance(slot.optimizer, LBFGS) for slot in slots):
            raise InputError(
                "LBFGS evaluates the loss several times within a step, at the weights that it moves; this method moves "
                "latent weights, which are not what the network uses: take SGD, AdamW or another that looks once"
            )
        self._slots, self._dial = slots, dial
        self._latents = [slot.parameter.detach().clone() for slot in slots]
        self._choices = [
            Choice(torch.ones(slot.unit_shape, dtype=torch.bool, device=slot.parameter.device), None, -1.0)
            for slot in slots
        ]
        self._written = [slot.parameter.detach().clone() for slot in slots]
        self._inside = set()
        self._lam = dict[str, Tensor]()  # at the end
        self.form.start(slots)

    def begin(self) -> None:
        """Weights begin as they are."""

    def value(self) -> Tensor:
        """The penalty as it acts now, differentiable in the effective weights; zero where there is none."""
        home, terms = self._slots[0].parameter.device, []
        for i, slot in enumerate(self._slots):
            slope = self.form.slope(i, self._size(i)) if self._latents else None
            term = slot.parameter * 0 if slope is None else slope * slot.per_cost(slot.live_sizes())
            terms.append(term.sum().to(home))
        return self.strength * torch.stack(terms).sum()

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, scale: Tensor | None, clock: bool, once: bool) -> None:
        """Put the latent weights in place, with their gradients.

        Raises:
            StateError: if the optimiser's last step did not come to its end.
        """
        own = [i for i, slot in enumerate(self._slots) if slot.optimizer is optimizer]
        if optimizer in self._inside:
            self._inside.discard(optimizer)
            self._write(own)
            raise StateError(
                f"a step of {type(optimizer).__name__} was not finished: it was broken off by an error, or it "
                "evaluates its closure more than once, which latent weights do not allow. The weights are again those "
                "of before it; compute the gradients anew to go on"
            )
        for i in own:
            self._adopt(i)
        self._turn_gradients([i for i in own if self._slots[i].parameter.grad is not None], scale)
        self._inside.add(optimizer)
        for i in own:
            self._slots[i].parameter.detach().copy_(self._latents[i])
        if clock:
            self._clock = optimizer

    def _adopt(self, index: int) -> None:
        """Somebody may have written to the weight since, to load another: then it becomes the latent one as well.

        Values are compared, since what is written through ``.data`` leaves no other trace.
        """
        weight, latent, written = self._slots[index].parameter.detach(), self._latents[index], self._written[index]
        if not torch.equal(weight, written):
            latent.copy_(torch.where(weight == written, latent, weight))

    def _turn_gradients(self, own: list[int], scale: Tensor | None) -> None:
        if self.form.straight:
            return
        slots, latents = [self._slots[i] for i in own], [wide(self._latents[i]) for i in own]
        gradients = [wide(slot.parameter.grad) for slot in slots if slot.parameter.grad is not None]
        pulls = [totals(slot, g * latent) for slot, g, latent in zip(slots, gradients, latents, strict=True)]
        sizes, choices = [self._size(i) for i in own], self._choices
        passed = self.form.gradients(own, sizes, [choices[i] for i in own], pulls, scale)
        for slot, latent, gradient, (gate, turn) in zip(slots, latents, gradients, passed, strict=True):
            turned = gradient * slot.spread(gate)
            if turn is not None:  # two factors of θ come with it, each through the size
                turned.addcmul_(latent, slot.spread(slot.per_cost(slot.per_cost(turn))))
            assert slot.parameter.grad is not None
            slot.parameter.grad.copy_(turned)

    @torch.no_grad()
    def stepped(self, optimizer: Optimizer) -> None:
        """Take the latent weights out again."""
        if optimizer not in self._inside:
            return
        own = [i for i, slot in enumerate(self._slots) if slot.optimizer is optimizer]
        for i in own:
            self._latents[i].copy_(self._slots[i].parameter.detach())
        self.form.stepped(own)
        if optimizer is not self._clock:  # after the clock's step everything is written anyway
            self._write(own)
        self._inside.discard(optimizer)

    @torch.no_grad()
    def after_step(self, step: int, share: float) -> None:
        """Choose anew which units are zero, and write the effective weights.

        Raises:
            DivergedError: if a latent weight or a score has become NaN or infinite.
        """
        if step % self._interval and share < 1.0:
            self._choose_by_limits()
        else:
            self._choose(step, share)
        self._write(range(len(self._slots)))

    def _choose(self, step: int, share: float) -> None:
        assert self._dial is not None  # these methods have a target
        sizes = [self._size(i) for i in range(len(self._slots))]
        self.form.choosing(True)
        scores, flats = self._side_by_side([self.form.score(i, size) for i, size in enumerate(sizes)])
        self._check(step, scores, flats)
        limits = self._dial.limits(scores, flats, share)
        for pool, flat in zip(self._dial.pools, flats, strict=True):
            limit, guarded = limits[pool.members[0]], math.isinf(float(flat.amax()))
            own = [scores[i] for i in pool.members], limit, share, [sizes[i] for i in pool.members]
            gone = self._dial.up_to(pool, *own)
            for i, part in zip(pool.members, gone, strict=True):
                home = self._slots[i].parameter.device
                safe = scores[i].isinf().to(home) if guarded else None
                self._choices[i] = Choice(~part.to(home), safe, float(limit))
            self.form.chosen(step, pool, flat, sum(int(part.sum()) for part in gone), float(limit))

    def _choose_by_limits(self) -> None:
        self.form.choosing(False)
        for i, choice in enumerate(self._choices):
            above = self.form.score(i, self._size(i)) > choice.limit
            kept = above if choice.safe is None else above.logical_or_(choice.safe)
            self._choices[i] = replace(choice, kept=kept)

    def _check(self, step: int, scores: list[Tensor], flats: list[Tensor]) -> None:
        if all(math.isfinite(float(flat.amax())) for flat in flats):
            return
        (name, *_) = (
            slot.name for slot, score in zip(self._slots, scores, strict=True) if not bool(score.isfinite().all())
        )
        raise DivergedError(
            f"the latent weights of {name!r}, or their scores, are NaN or infinite at step {step}: the training has "
            "diverged; lower the learning rate or clip the gradients"
        )

    def _side_by_side(self, scores: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The scores as views of one flat tensor a pool, and these."""
        assert self._dial is not None
        views: dict[int, Tensor] = {}
        flats = []
        for pool in self._dial.pools:
            home = scores[pool.members[0]].device
            flat = torch.cat([scores[i].reshape(-1).to(home) for i in pool.members])
            flats.append(flat)
            for i, part in zip(pool.members, torch.split(flat, list(pool.units)), strict=True):
                views[i] = part.view(scores[i].shape)
        return [views[i] for i in range(len(scores))], flats

    def _size(self, index: int) -> Tensor:
        """‖θ_g‖₂ of the units, over what they cost where there is a budget."""
        slot = self._slots[index]
        return slot.per_cost(slot.sizes(self._latents[index]))

    def _write(self, indices: Sequence[int]) -> None:
        for i in indices:
            slot, latent = self._slots[i], self._latents[i]
            factor = self.form.factor(i, self._size(i), self._choices[i])
            weight, nothing = slot.parameter.detach(), latent.new_zeros(())
            torch.addcmul(nothing, wide(latent), slot.spread(factor), out=weight)  # 0.0 + −0.0 is +0.0
            self._written[i].copy_(weight)

    def closure_value(self, optimizer: Optimizer, loss: Any) -> Any:
        """The user's loss, as it is."""
        return loss

    def state_loaded(self, optimizer: Optimizer) -> None:
        """Nothing here depends on it."""

    def ranking(self) -> tuple[list[Tensor], list[Tensor]]:
        """By effective size: the chosen units are zero already. From here on survivors train from these sizes."""
        self._lam = self.lam()
        self._latents, self._choices, self._written = [], [], []
        self.form.finish()
        return by_size(self._slots)

    @property
    def strength(self) -> float:
        """As the form says."""
        return self.form.strength(self._choices)

    @property
    def lam_optimizer(self) -> SGD | None:
        """None: if there is a λ, it follows the sizes."""
        return None

    def lam(self) -> dict[str, Tensor]:
        """λ per unit of the latent weights, by parameter name; of the last ones once the pattern is fixed."""
        if not self._latents:
            return dict(self._lam)
        pairs = zip(self._slots, self._latents, strict=True)
        found = {slot.name: self.form.lam(slot.sizes(latent)) for slot, latent in pairs}
        return {name: lam for name, lam in found.items() if lam is not None}

    def state_dict(self) -> dict[str, Any]:
        """Latent weights, the choice made last, and what the form keeps; nothing of it once the pattern is fixed."""
        return {
            "latents": [latent.clone() for latent in self._latents],
            "kept": [pack_bits(choice.kept) for choice in self._choices],
            "safe": [None if choice.safe is None else pack_bits(choice.safe) for choice in self._choices],
            "limits": [choice.limit for choice in self._choices],
            "lam": dict(self._lam),
            "form": self.form.state_dict() if self._latents else {},
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; the effective weights are written."""
        self._inside = set()
        self._latents, self._choices, self._written = [], [], []
        self._lam = dict(state["lam"])
        if not state["latents"]:
            return
        self._written = [slot.parameter.detach().clone() for slot in self._slots]
        for i, slot in enumerate(self._slots):
            home = slot.parameter.device
            self._latents.append(state["latents"][i].to(home, slot.parameter.dtype, copy=True))
            kept, safe = (
                None if bits is None else unpack_bits(bits, slot.unit_shape).to(home)
                for bits in (state["kept"][i], state["safe"][i])
            )
            assert kept is not None
            self._choices.append(Choice(kept, safe, state["limits"][i]))
        self.form.load_state_dict(state["form"])
        self._write(range(len(self._slots)))


def totals(slot: Slot, tensor: Tensor) -> Tensor:
    """The sum over each unit of a tensor shaped like the weight: what :meth:`Slot.spread` does, transposed."""
    if slot.single:
        return tensor
    with torch.enable_grad():
        units = torch.zeros(slot.unit_shape, dtype=tensor.dtype, device=tensor.device, requires_grad=True)
        (summed,) = torch.autograd.grad(slot.spread(units).expand_as(tensor), units, tensor)
    return summed


def latent(
    method: type, form: LatentForm, sparsity: float | None, steps: int | None, options: Options
) -> tuple[LatentSolver, Options]:
    """The solver and options of a method with latent weights.

    Raises:
        InputError: if the target or the length of the training is missing.
    """
    check_target(method, sparsity, steps, options)
    return LatentSolver(form), Options(**{**STEERED, **options})

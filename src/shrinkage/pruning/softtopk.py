r"""SoftTopK: a top-k mask that is soft in the backward pass and becomes hard over the training.

Idea: a hard mask tells a weight nothing about how near it is to being taken or dropped. A soft one does. With the mask

.. math:: m_j = \sigma\bigl( (|\theta_j| - \tau)/T \bigr), \qquad \tau \text{ such that } \sum_j m_j = k

the network uses the k largest of :math:`\theta \odot m` and zeros elsewhere; in the backward pass that last cut is
passed over (straight-through), and the gradient goes through the soft mask to every weight, dropped ones too. T falls
over the training: first weights change places freely, in the end the mask is all but hard.

With :math:`h_j = \theta_j\, \partial L/\partial w_j` the gradient is

.. math:: \frac{\partial L}{\partial \theta_j} = m_j \frac{\partial L}{\partial w_j}
   + \frac{\operatorname{sign} \theta_j}{T} m_j (1 - m_j) (h_j - \bar h), \qquad
   \bar h = \frac{\sum_j m_j (1 - m_j) h_j}{\sum_j m_j (1 - m_j)}

where the mean is what τ, moving along, takes back.

Source: Tai, Tian, Lim, "Spartan: Differentiable Sparsity via Regularized Transportation", NeurIPS 2022, arXiv
2205.14107. Theirs are the soft mask (found there by Sinkhorn iterations, as entropy-regularised transport with
sharpness β = 1/T), its implicit gradient, the hard cut in the forward pass with the identity behind it, and a β that
grows linearly until the pattern is fixed.

Choices here: τ by safeguarded Newton steps, to rounding. T in units of the root mean square size in its pool, so that
it means the same in every network, :math:`T = \text{rms}/\beta`. With several optimisers, the mean of h is over the
tensors of the one that steps. In groups ‖θ_g‖₂ takes the place of |θ| and a group has one m. Units that the floor or an
N:M pattern keeps have m = 1. Spartan's ramp is linear and short, this library's default cubic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from shrinkage.core.dial import Pool
from shrinkage.core.engine import Sparsifier
from shrinkage.core.errors import InputError
from shrinkage.core.latent import Choice, LatentForm, latent
from shrinkage.core.options import Options
from shrinkage.core.schedules import Ramp
from shrinkage.core.slots import Slot


@dataclass(frozen=True)
class Level:
    """The soft mask of one pool: σ((size − middle)/temperature). A ``middle`` of −∞ keeps everything."""

    members: tuple[int, ...]
    middle: float = -math.inf
    temperature: float = 1.0


class SoftMask(LatentForm):
    """w = θ · m(size), cut to the k largest.

    Args:
        sharpness: β at the start and where the pattern is fixed, > 0.
        clock: the share of the way from one to the other, by step.
    """

    clock: Ramp

    def __init__(self, sharpness: tuple[float, float]) -> None:
        self._sharpness = sharpness
        self._levels: dict[int, Level] = {}

    def start(self, slots: list[Slot]) -> None:
        """Nothing is masked yet."""
        super().start(slots)
        self._levels = {i: Level((i,)) for i in range(len(slots))}

    def chosen(self, step: int, pool: Pool, scores: Tensor, gone: int, limit: float) -> None:
        """Find τ and T for the pool."""
        first, last = self._sharpness
        sharpness = first + (last - first) * self.clock(step)
        level = Level(pool.members)
        if gone:
            free = scores if math.isfinite(float(scores.amax())) else scores[scores.isfinite()]
            temperature = max(float(free.square().mean(dtype=torch.float64).sqrt()) / sharpness, 1e-30)
            middle = balance(free, free.numel() - gone, temperature, self._levels[pool.members[0]].middle)
            level = Level(pool.members, middle, temperature)
        self._levels.update(dict.fromkeys(pool.members, level))

    def mask(self, index: int, size: Tensor, choice: Choice) -> Tensor:
        """m."""
        level = self._levels[index]
        soft = size.sub(level.middle).div_(level.temperature).sigmoid_()
        return soft if choice.safe is None else soft.masked_fill_(choice.safe, 1)

    def factor(self, index: int, size: Tensor, choice: Choice) -> Tensor:
        """m where it is kept."""
        return self.mask(index, size, choice).masked_fill_(~choice.kept, 0)

    def gradients(
        self,
        own: Sequence[int],
        sizes: Sequence[Tensor],
        choices: Sequence[Choice],
        pulls: Sequence[Tensor],
        scale: Tensor | None,
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Through the soft mask, with τ moving along."""
        masks = [self.mask(i, size, choice) for i, size, choice in zip(own, sizes, choices, strict=True)]
        steep = [mask * (1 - mask) for mask in masks]
        totals: dict[tuple[int, ...], list[float]] = {}
        for i, slope, pull in zip(own, steep, pulls, strict=True):
            total = totals.setdefault(self._levels[i].members, [0.0, 0.0])
            total[0] += float((slope * pull).sum(dtype=torch.float64))
            total[1] += float(slope.sum(dtype=torch.float64))
        passed: list[tuple[Tensor, Tensor | None]] = []
        for i, size, mask, slope, pull in zip(own, sizes, masks, steep, pulls, strict=True):
            level = self._levels[i]
            along, weight = totals[level.members]
            turn = slope.mul_(pull - along / max(weight, 1e-30)).div_(level.temperature * size)
            passed.append((mask, turn.nan_to_num_(0.0)))  # 0/0 where there is nothing
        return passed

    def strength(self, choices: Sequence[Choice]) -> float:
        """The largest τ."""
        return max((level.middle for level in self._levels.values() if 0 < level.middle < math.inf), default=0.0)

    def state_dict(self) -> dict[str, Any]:
        """τ and T, with the tensors that share them."""
        return {"levels": [(list(level.members), level.middle, level.temperature) for level in self._levels.values()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        for members, middle, temperature in state["levels"]:
            level = Level(tuple(members), middle, temperature)
            self._levels.update(dict.fromkeys(level.members, level))


def balance(sizes: Tensor, keep: int, temperature: float, guess: float = math.nan) -> float:
    """τ such that Σ σ((size − τ)/T) = keep, to rounding.

    Args:
        sizes: ≥ 0, of any shape.
        keep: between 0 and one less than their number.
        temperature: T, > 0.
        guess: where to begin.

    >>> round(balance(torch.tensor([0.0, 1.0, 2.0, 3.0]), 2, 0.1), 3)
    1.5
    """
    if keep == 0:
        return math.inf
    offset = temperature * math.log(keep / (sizes.numel() - keep))
    low, high = float(sizes.min()) - offset, float(sizes.max()) - offset
    middle = guess if low <= guess <= high else (low + high) / 2
    slack = 8 * torch.finfo(sizes.dtype).eps * sizes.numel()
    for _ in range(60):
        mask = sizes.sub(middle).div_(temperature).sigmoid_()
        excess = float(mask.sum(dtype=torch.float64)) - keep
        if abs(excess) <= slack:
            break
        low, high = (middle, high) if excess > 0 else (low, middle)
        slope = float((mask * (1 - mask)).sum(dtype=torch.float64)) / temperature
        newton = middle + excess / max(slope, 1e-300)
        middle = newton if low < newton < high else (low + high) / 2
    return middle


class SoftTopK(Sparsifier):
    """Train a network through a soft top-k mask that hardens, to an exact share of zeros.

    Args:
        model: the network to train.
        sparsity: share of zeros wanted, in (0, 1); ``None`` only with an N:M granularity, which fixes it.
        steps: optimiser steps of the whole training.
        sharpness: β at the first step and where the pattern is fixed, > 0; grows linearly between. A mask of small β
            tells weights little apart.
        **options: see :class:`~shrinkage.core.engine.Sparsifier`. ``start`` and ``end`` default to 0.1 and 0.8.

    Raises:
        InputError: for arguments that cannot work; from ``attach`` for LBFGS.

    >>> import torch
    >>> from shrinkage.pruning.softtopk import SoftTopK
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.ReLU(), torch.nn.Linear(50, 2))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    >>> method = SoftTopK(net, sparsity=0.9, steps=100).attach(optimizer)
    >>> x = torch.randn(64, 20)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     torch.nn.functional.cross_entropy(net(x), (x[:, 0] > 0).long()).backward()
    ...     optimizer.step()
    >>> method.finalize().zeros
    990
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float | None = None,
        steps: int | None = None,
        *,
        sharpness: tuple[float, float] = (1.0, 10.0),
        **options: Unpack[Options],
    ) -> None:
        if not all(0.0 < value < math.inf for value in sharpness):
            raise InputError(f"sharpness must be two finite numbers above 0, got {sharpness}")
        form = SoftMask(sharpness)
        solver, options = latent(type(self), form, sparsity, steps, options)
        super().__init__(model, sparsity, steps, solver=solver, **options)
        assert self._ramp is not None  # there are steps
        form.clock = Ramp("linear", 0.0, self._ramp.end, self._ramp.steps)

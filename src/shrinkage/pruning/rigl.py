r"""RigL: sparse from the first step, and growing where the gradient asks for it.

Idea: as in SET, a fixed number of weights moves about. But the gradient of the weights that are not there says which
of them would lower the loss fastest, and it is needed only at the rare steps when the pattern changes. Every ΔT steps,
in a layer with :math:`n` active weights and the dense gradient :math:`g`:

.. math::
    k = \Bigl\lfloor \frac{\alpha}{2} \Bigl( 1 + \cos \frac{\pi t}{T_{\text{end}}} \Bigr) n \Bigr\rfloor, \qquad
    \text{drop the } k \text{ smallest } |w_j|, \quad \text{grow the } k \text{ largest } |g_j| \text{ of the others}

New weights start from zero, so that growing them does not change the network's output.

Source: Evci, Gale, Menick, Castro, Elsen, "Rigging the Lottery: Making All Tickets Winners", ICML 2020,
arXiv 1911.11134.

Choices made here: an exchange comes right before the optimiser's step, which is then taken, so that a new weight
moves at once by the very gradient that chose it (in the paper an update takes the place of a step); those just
dropped do not grow again in the same exchange; weights without any gradient (a dead input) do not grow, and fewer are
dropped if no others are left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from shrinkage.core.engine import Sparsifier
from shrinkage.core.errors import InputError
from shrinkage.core.masked import exchanging
from shrinkage.core.options import Options
from shrinkage.core.slots import Slot


@dataclass(frozen=True)
class GradientGrowth:
    """A share that falls along a cosine, where the gradient is largest.

    Args:
        alpha: the share at the start, in (0, 1).
    """

    alpha: float

    def share(self, progress: float) -> float:
        """α/2 · (1 + cos πt/T_end)."""
        return self.alpha / 2 * (1 + math.cos(math.pi * progress))

    def worth(self, slot: Slot, chance: torch.Generator) -> Tensor:
        """‖g‖₂ of the unit's gradient."""
        gradient = slot.parameter.grad
        return torch.zeros_like(slot.sizes()) if gradient is None else slot.sizes(gradient)

    def values(self, slot: Slot, gone: Tensor, chance: torch.Generator) -> Tensor:
        """0."""
        return slot.parameter.new_zeros(())


class RigL(Sparsifier):
    """Train a network that is sparse from the start, growing weights by their gradients.

    ``attach`` draws a random pattern and makes the weights sparse at once, to the exact count, which then holds at
    every step. A model that is sparse already keeps its own pattern.

    Args:
        model: the network to train.
        sparsity: share of zeros wanted, in (0, 1).
        steps: optimiser steps of the whole training.
        alpha: α, the share of active units that an exchange replaces at first, in (0, 1).
        interval: ΔT, optimiser steps between exchanges, ≥ 1; default 100, less in trainings of under 10,000 steps.
        seed: of the first pattern, ≥ 0; the global random state is not touched.
        **options: see :class:`~shrinkage.core.engine.Sparsifier`, but for ``ramp`` and ``start``. ``distribution``
            is ``"erk"``, and exchanges end at ``end``, 0.75 of the steps, which gives T_end.

    Raises:
        InputError: for arguments that cannot work.

    >>> import torch
    >>> from shrinkage.pruning.rigl import RigL
    >>> net = torch.nn.Linear(20, 5)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> rigl = RigL(net, sparsity=0.9, steps=1000).attach(optimizer)
    >>> rigl.zeros, rigl.units
    (90, 100)
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float | None = None,
        steps: int | None = None,
        *,
        alpha: float = 0.3,
        interval: int | None = None,
        seed: int = 0,
        **options: Unpack[Options],
    ) -> None:
        if not 0.0 < alpha < 1.0:
            raise InputError(f"alpha is the share of active units that is replaced, between 0 and 1, got {alpha}")
        growth = GradientGrowth(alpha)
        solver, options = exchanging(type(self), growth, sparsity, steps, interval, seed, 0.75, options)
        super().__init__(model, sparsity, steps, solver=solver, **options)

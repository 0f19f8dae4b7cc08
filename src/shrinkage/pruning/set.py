r"""SET: sparse from the first step, with a pattern that evolves.

Idea: which weights a network needs can be found by trial. Start from a random sparse pattern; now and then drop the
share ζ of each layer's active weights that lie closest to zero, and grow as many at random places. The number of
weights never changes, and no dense network is ever trained. With :math:`n` active weights in a layer, every ΔT steps

.. math::
    \text{drop the } \lfloor \zeta n \rfloor \text{ smallest } |w_j|, \qquad
    \text{grow } \lfloor \zeta n \rfloor \text{ others, drawn evenly}

The density of a layer is proportional to the sum of its dimensions over their product (``"erk"``).

Source: Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta, "Scalable training of artificial neural networks with adaptive
sparse connectivity inspired by network science", Nature Communications 9, 2018, arXiv 1707.04780.

Choices made here: exchanges come every ΔT steps, not every epoch, and right before the optimiser's step; those just
dropped are not drawn again in the same exchange; a new weight gets a random sign and a size between a half and
one and a half of the root mean square of the weights dropped with it, so that an exchange hardly moves the layer's
scale; the pattern is fixed for the last fifth of the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from shrinkage.core.engine import Sparsifier
from shrinkage.core.errors import InputError
from shrinkage.core.granularity import wide
from shrinkage.core.masked import exchanging
from shrinkage.core.options import STEERED, Options
from shrinkage.core.slots import Slot


@dataclass(frozen=True)
class RandomGrowth:
    """The same share at every exchange, at places drawn evenly.

    Args:
        zeta: the share, in (0, 1).
    """

    zeta: float

    def share(self, progress: float) -> float:
        """ζ."""
        return self.zeta

    def worth(self, slot: Slot, chance: torch.Generator) -> Tensor:
        """Evenly in (0, 1]."""
        return (1 - torch.rand(slot.unit_shape, generator=chance)).to(slot.parameter.device)

    def values(self, slot: Slot, gone: Tensor, chance: torch.Generator) -> Tensor:
        """Of random sign, as large as the weights that go; as all weights if those are zero."""
        weight = slot.parameter.detach()
        squares = wide(weight).square()
        typical = (squares * gone).sum() / gone.expand_as(weight).sum()
        typical = torch.where(typical > 0, typical, squares.mean()).sqrt()
        drawn = 2 * torch.rand(weight.shape, generator=chance).to(typical) - 1
        return typical * torch.where(drawn < 0, drawn - 0.5, drawn + 0.5)


class SET(Sparsifier):
    """Train a network that is sparse from the start, by sparse evolutionary training.

    ``attach`` draws the pattern and makes the weights sparse at once, to the exact count, which then holds at
    every step. A model that is sparse already keeps its own pattern.

    Args:
        model: the network to train.
        sparsity: share of zeros wanted, in (0, 1).
        steps: optimiser steps of the whole training.
        zeta: ζ, the share of active units that an exchange replaces, in (0, 1).
        interval: ΔT, optimiser steps between exchanges, ≥ 1; default 100, less in trainings of under 10,000 steps.
        seed: of the first pattern and of all that grows, ≥ 0; the global random state is not touched.
        **options: see :class:`~shrinkage.core.engine.Sparsifier`, but for ``ramp`` and ``start``. ``distribution``
            is ``"erk"``, and exchanges end at ``end``, 0.8 of the steps.

    Raises:
        InputError: for arguments that cannot work.

    >>> import torch
    >>> from shrinkage.pruning.set import SET
    >>> net = torch.nn.Linear(20, 5)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> evolution = SET(net, sparsity=0.9, steps=1000).attach(optimizer)
    >>> evolution.zeros, evolution.units
    (90, 100)
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float | None = None,
        steps: int | None = None,
        *,
        zeta: float = 0.3,
        interval: int | None = None,
        seed: int = 0,
        **options: Unpack[Options],
    ) -> None:
        if not 0.0 < zeta < 1.0:
            raise InputError(f"zeta is the share of active units that is replaced, between 0 and 1, got {zeta}")
        growth = RandomGrowth(zeta)
        solver, options = exchanging(type(self), growth, sparsity, steps, interval, seed, STEERED["end"], options)
        super().__init__(model, sparsity, steps, solver=solver, **options)

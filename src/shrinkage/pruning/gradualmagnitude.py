r"""Gradual magnitude pruning: the smallest weights go, a few at a time, while the network trains.

Idea: small weights matter least, and a network bears losing them if it can adapt in between. The share of zeros
follows a ramp that is steep at first, when there is much to spare, and flat at the end:

.. math:: s_t = s \, \Bigl( 1 - \Bigl( 1 - \frac{t - t_0}{t_1 - t_0} \Bigr)^3 \Bigr)

Every few steps the units with the lowest scores are pruned until :math:`s_t` is met. What is pruned stays zero and
never comes back.

The score is |w|. Under Adam the better one is :math:`|w| \, \hat v^{1/4}`, with Adam's second moment: a weight with
large gradients is harder to do without, and the fourth root is half of the exponent that Adam's own metric would have.
In small trials it gained most on a Transformer at high sparsity; under SGD it gained nothing.

Source: Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017,
arXiv 1710.01878. There every layer gets the same sparsity (``distribution="uniform"``); that all layers share one
count is a choice made here, and so is the second score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from shrinkage.core.engine import Sparsifier
from shrinkage.core.errors import InputError
from shrinkage.core.masked import Magnitude, MaskedSolver, Score, check_target
from shrinkage.core.options import STEERED, Options
from shrinkage.core.schedules import interval as steps_between
from shrinkage.core.slots import Slot


@dataclass(frozen=True)
class Moment:
    """size · v̂^¼ with the second moment v̂ of the tensor's Adam, its mean over a group."""

    def units(self, slot: Slot) -> Tensor:
        """The scores; 0 where there was no step yet, or never a gradient.

        Raises:
            InputError: for an optimiser without second moments.
        """
        moments = slot.second_moments()
        if moments is not None:
            return slot.sizes() * (moments / slot.bias_correction()).pow(0.25)
        if "betas" not in slot.group or slot.optimizer.state.get(slot.parameter):
            raise InputError(
                f"score='moment' needs Adam's second moments, but {slot.name!r} is updated by "
                f"{type(slot.optimizer).__name__}; use Adam or AdamW, or score='magnitude'"
            )
        return torch.zeros_like(slot.sizes())


SCORES: dict[str, Score] = {"magnitude": Magnitude(), "moment": Moment()}


class GradualMagnitude(Sparsifier):
    """Train a network to an exact share of zeros, by pruning the smallest weights on the way.

    Args:
        model: the network to train.
        sparsity: share of zeros wanted, in (0, 1).
        steps: optimiser steps of the whole training.
        score: ``"magnitude"``, the size; or ``"moment"``, size · v̂^¼, for optimisers of Adam's family.
        interval: optimiser steps from one pruning to the next, ≥ 1; default 12, less in trainings of under 1200 steps.
        **options: see :class:`~shrinkage.core.engine.Sparsifier`; the ramp goes from 0.1 to 0.8 of the steps.

    Raises:
        InputError: for arguments that cannot work; from ``attach``, or from the first pruning, if the optimiser
            keeps no second moments.

    >>> import torch
    >>> from shrinkage.pruning.gradualmagnitude import GradualMagnitude
    >>> net = torch.nn.Linear(20, 5)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> pruning = GradualMagnitude(net, sparsity=0.9, steps=50).attach(optimizer)
    >>> for _ in range(50):
    ...     optimizer.zero_grad()
    ...     net(torch.ones(1, 20)).square().sum().backward()
    ...     optimizer.step()
    >>> print(pruning.finalize())
    GradualMagnitude
    tensor  units  kept   zeros
    ...
    total     100    10  90.00%
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float | None = None,
        steps: int | None = None,
        *,
        score: Literal["magnitude", "moment"] = "magnitude",
        interval: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        check_target(type(self), sparsity, steps, options)
        if score not in SCORES:
            raise InputError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
        solver = MaskedSolver(SCORES[score], steps_between(steps, asked=interval))
        super().__init__(model, sparsity, steps, solver=solver, **Options(**{**STEERED, **options}))

r"""Random pruning: whatever the dice say.

.. math:: \text{score}_g \sim U(0, 1)

Not so much a method as one to compare with: a criterion that does no better has found nothing.

Regime: at initialisation, best with ``distribution="erk"``; then an ordinary training with
:func:`~shrinkage.keep_zeros`.

Source: Liu et al., "The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline for Sparse
Training", ICLR 2022, arXiv 2202.02643, where large networks pruned so train as well as dense ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

import torch
from torch import Tensor, nn

from shrinkage.core.errors import InputError
from shrinkage.core.options import Options
from shrinkage.core.plan import Plan
from shrinkage.core.pruner import Pruner
from shrinkage.core.sensitivity import Batch, Loss


class Random(Pruner):
    """Prune units at random.

    Args:
        sparsity: share of zeros wanted, in (0, 1).
        seed: the same seed prunes the same units, on every device. The global random state is left alone.
        **options: ``include``, ``exclude``, ``biases``, ``granularity``, ``distribution``, ``layer_sparsity``,
            ``floor``, ``macs`` and ``example``, as in :class:`~shrinkage.core.engine.Sparsifier`.

    Raises:
        InputError: for arguments that cannot work.

    >>> import torch
    >>> from shrinkage.pruning import Random
    >>> net = torch.nn.Linear(10, 10)
    >>> Random(sparsity=0.9, seed=1).prune(net).zeros
    90
    """

    per_cost = False  # all units are equally likely to go

    def __init__(self, sparsity: float | None = None, seed: int = 0, **options: Unpack[Options]) -> None:
        super().__init__(sparsity, **options)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise InputError(f"seed must be a whole number, got {seed!r}")
        self._seed = seed

    def scores(self, model: nn.Module, plan: Plan, batches: Iterable[Batch], loss: Loss) -> list[Tensor]:
        """Uniform in [0, 1), in double precision: ties, which size would decide, all but never happen."""
        dice = torch.Generator().manual_seed(self._seed)
        return [
            torch.rand(plan.shapes[name], generator=dice, dtype=torch.float64).to(weight.device)
            for name, weight in plan.weights(model).items()
        ]

r"""Magnitude pruning: the smallest weights go.

.. math:: \text{score}_g = \lVert w_g \rVert_2

which is :math:`|w|` for single weights. The baseline that every other criterion has to beat.

Regime: after a training, without data; then more training with :func:`~shrinkage.keep_zeros`.

Source: Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015,
arXiv 1506.02626. It cuts layer by layer; that all layers compete for one count is the default here.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from shrinkage.core.plan import Plan
from shrinkage.core.pruner import Pruner
from shrinkage.core.sensitivity import Batch, Loss


class Magnitude(Pruner):
    """Prune the smallest units.

    Args:
        sparsity: share of zeros wanted, in (0, 1).
        **options: ``include``, ``exclude``, ``biases``, ``granularity``, ``distribution``, ``layer_sparsity``,
            ``floor``, ``macs`` and ``example``, as in :class:`~shrinkage.core.engine.Sparsifier`. With
            ``granularity=Row()`` or ``Block(…)`` long rows have the larger norms: ``distribution="uniform"`` compares
            within each tensor only.

    Raises:
        InputError: for arguments that cannot work.

    >>> import torch
    >>> from shrinkage.pruning import Magnitude
    >>> net = torch.nn.Linear(4, 1, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[1.0, -3.0, 0.5, 2.0]]))
    >>> print(Magnitude(sparsity=0.5).prune(net))
    Magnitude
    tensor  units  kept   zeros
    ...
    total       4     2  50.00%
    >>> net.weight.tolist()
    [[0.0, -3.0, 0.0, 2.0]]
    """

    def scores(self, model: nn.Module, plan: Plan, batches: Iterable[Batch], loss: Loss) -> list[Tensor]:
        """‖w_g‖₂."""
        return plan.sizes(dict(plan.weights(model)))

r"""SNIP: the connections go that the loss would miss least, before any training.

Idea: put a gate :math:`c_g = 1` before every unit and ask how the loss changes as it begins to close:

.. math:: \text{score}_g = \Bigl| \frac{\partial L}{\partial c_g} \Bigr|
   = \Bigl| \sum_{j \in g} w_j \frac{\partial L}{\partial w_j} \Bigr|

For single weights this is the paper's connection sensitivity, without its normalisation to a sum of 1, which changes no
order. For rows and blocks it is the same derivative, of a gate that the whole unit shares; that is a choice made here.

Regime: at initialisation, with one mini-batch; then an ordinary training with :func:`~shrinkage.keep_zeros`. At extreme
sparsities it would empty whole layers, from which ``floor=`` keeps it.

Source: Lee, Ajanthan, Torr, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019, arXiv
1810.02340.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from shrinkage.core.granularity import wide
from shrinkage.core.plan import Plan
from shrinkage.core.pruner import Pruner
from shrinkage.core.sensitivity import Batch, Loss, mean_over_batches, unit_sums


class SNIP(Pruner):
    """Prune the units to whose removal the loss on some batches is least sensitive.

    The model is run in the mode it is in, BatchNorm's statistics are not updated, and ``.grad`` is not touched.
    Gradients are averaged over the batches, each of which counts the same.

    Args:
        sparsity: share of zeros wanted, in (0, 1).
        **options: ``include``, ``exclude``, ``biases``, ``granularity``, ``distribution``, ``layer_sparsity``,
            ``floor``, ``macs`` and ``example``, as in :class:`~shrinkage.core.engine.Sparsifier`.

    Raises:
        InputError: for arguments that cannot work; by ``prune``, if there are no batches.

    >>> import torch
    >>> from shrinkage.pruning import SNIP
    >>> net = torch.nn.Linear(3, 2)
    >>> x, y = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0])  # only the first input is ever seen
    >>> SNIP(sparsity=2 / 3).prune(net, [(x, y)]).zeros
    4
    >>> (net.weight != 0).tolist()
    [[True, False, False], [True, False, False]]
    """

    def scores(self, model: nn.Module, plan: Plan, batches: Iterable[Batch], loss: Loss) -> list[Tensor]:
        """abs Σ_g w·∂L/∂w."""
        weights = list(plan.weights(model).values())
        gradient = partial(torch.autograd.grad, inputs=weights, allow_unused=True, materialize_grads=True)
        gradients = mean_over_batches(type(self).__name__, model, batches, loss, gradient)
        products = [wide(weight.detach()) * slope for weight, slope in zip(weights, gradients, strict=True)]
        return [total.abs() for total in unit_sums(plan, products)]

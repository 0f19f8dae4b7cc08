r"""GraSP: what goes is what the gradient flow can spare, before any training.

Idea: a step of gradient descent lowers the loss by :math:`\lVert g \rVert^2` times its length. Removing the weights of
a unit, :math:`w \leftarrow w + \delta`, changes that, to first order, by

.. math:: S(\delta) = 2\, \delta^\top H g, \qquad S(-w_g) = -2 \sum_{j \in g} w_j (Hg)_j

with the gradient g and the Hessian H of the loss by the selected weights. A positive S means more gradient flow after
the removal, a negative one less. So the units with the largest S go, and what a unit is worth is the opposite:

.. math:: \text{score}_g = \sum_{j \in g} w_j (Hg)_j

A signed one, unlike SNIP's: what hampers the flow goes first, however strongly. The sum over a unit is the same first
order for rows and blocks; the paper has single weights only.

Regime: at initialisation, then an ordinary training with :func:`~shrinkage.keep_zeros`. The authors' code divides the
logits by a temperature of 200, which makes the outputs of a fresh classifier alike; here the loss is yours, so
``loss=lambda logits, y: cross_entropy(logits / 200, y)`` does that.

Source: Wang, Zhang, Grosse, "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020, arXiv
2002.07376.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from shrinkage.core.granularity import wide
from shrinkage.core.plan import Plan
from shrinkage.core.pruner import Pruner
from shrinkage.core.sensitivity import Batch, Loss, mean_over_batches, pairs, unit_sums


class GraSP(Pruner):
    """Prune the units whose removal leaves most gradient flow.

    The model is run in the mode it is in, BatchNorm's statistics are not updated, and ``.grad`` is not touched.
    Gradients are averaged over the batches, each of which counts the same. Everything is differentiated twice, and all
    batches are held at once.

    Args:
        sparsity: share of zeros wanted, in (0, 1).
        **options: ``include``, ``exclude``, ``biases``, ``granularity``, ``distribution``, ``layer_sparsity``,
            ``floor``, ``macs`` and ``example``, as in :class:`~shrinkage.core.engine.Sparsifier`.

    Raises:
        InputError: for arguments that cannot work; by ``prune``, if there are no batches.

    >>> import torch
    >>> from shrinkage.pruning import GraSP
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[0.1, -0.2]]))
    >>> x, y = torch.eye(2), torch.tensor([[1.0], [1.0]])  # loss ½ Σ (w − 1)²: the gradient w − 1, the Hessian 1
    >>> half = lambda output, y: (output - y).square().sum() / 2
    >>> _ = GraSP(sparsity=0.5).prune(net, [(x, y)], half)
    >>> [round(w, 3) for w in net.weight[0].tolist()]  # without 0.1 the gradient is larger, without −0.2 smaller
    [0.0, -0.2]
    """

    def scores(self, model: nn.Module, plan: Plan, batches: Iterable[Batch], loss: Loss) -> list[Tensor]:
        """Σ_g w·(Hg)."""
        name = type(self).__name__
        seen = list(pairs(name, batches))  # looked at twice, while an iterable may give them once
        weights = list(plan.weights(model).values())
        gradient = partial(torch.autograd.grad, inputs=weights, allow_unused=True, materialize_grads=True)
        with sdpa_kernel(SDPBackend.MATH):  # torch's fast attention cannot be differentiated twice
            flow = mean_over_batches(name, model, seen, loss, gradient)
            bend = partial(_hessian_product, weights=weights, along=flow)
            products = mean_over_batches(name, model, seen, loss, bend)
        return unit_sums(plan, [wide(w.detach()) * product for w, product in zip(weights, products, strict=True)])


def _hessian_product(loss: Tensor, weights: Sequence[Tensor], along: Sequence[Tensor]) -> Sequence[Tensor]:
    """The Hessian of ``loss`` times a direction: the gradient of the slope in that direction."""
    gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True, materialize_grads=True)
    slope = 0 * loss  # has a graph even where the loss bends nowhere
    for gradient, direction in zip(gradients, along, strict=True):
        slope = slope + (wide(gradient) * direction).sum().to(loss.device)
    return torch.autograd.grad(slope, weights, allow_unused=True, materialize_grads=True)

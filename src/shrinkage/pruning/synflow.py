r"""SynFlow: pruning without data, by how much can flow through a weight from the inputs to the outputs.

Idea: make all weights positive and send ones through the network. What arrives,

.. math:: R = \mathbf{1}^\top \Bigl( \prod_l |W_l| \Bigr) \mathbf{1}, \qquad
   \text{score}_g = \sum_{j \in g} \frac{\partial R}{\partial |w_j|} |w_j|

counts every path by the product of its weights, and the score is what flows through a unit. The flow is the same
through every layer, so the weights of a small layer score high; and if few are removed at a time and the scores taken
anew, no layer is emptied before it must be. With the density d to be reached, round k of n leaves :math:`d^{k/n}`.

Regime: at initialisation, networks of ReLUs without attention or LayerNorm, which subtracts. Costs n
passes of one example. Then an ordinary training with :func:`~shrinkage.keep_zeros`.

Source: Tanaka, Kunin, Yamins, Ganguli, "Pruning neural networks without any data by iteratively conserving synaptic
flow", NeurIPS 2020, arXiv 2006.05467.

As in the authors' code, the model runs in evaluation mode, where a fresh BatchNorm does nothing, and all parameters,
biases too, count by their absolute values. Choices made here: a running mean counts as 0, since subtracting one could
turn the signal negative; what flows through a row or block is the sum of what flows through its weights; the model is a
copy in double precision, so that deep products do not overflow; layers with shares of their own are, in every round,
equally far on the way to them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from shrinkage.core.errors import InputError, StateError
from shrinkage.core.options import Options
from shrinkage.core.plan import Plan
from shrinkage.core.pruner import Pruner, ranking
from shrinkage.core.sensitivity import Batch, Loss, pairs, unit_sums


class SynFlow(Pruner):
    """Prune the units through which least can flow, a few at a time.

    Give ``prune`` one batch: the shape of its x is looked at, not its values, and the loss not at all.

    Args:
        sparsity: share of zeros wanted, in (0, 1).
        rounds: how often scores are taken, at least 1.
        **options: ``include``, ``exclude``, ``biases``, ``granularity``, ``distribution``, ``layer_sparsity``,
            ``floor``, ``macs`` and ``example``, as in :class:`~shrinkage.core.engine.Sparsifier`.

    Raises:
        InputError: for arguments that cannot work; by ``prune``, if there is no batch, or its x is no tensor of
            floating-point numbers.
        StateError: by ``prune``, if no signal passes through a selected tensor.

    >>> import torch
    >>> from shrinkage.pruning import SynFlow
    >>> net = torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.ReLU(), torch.nn.Linear(50, 2))
    >>> print(SynFlow(sparsity=0.95, rounds=10).prune(net, [(torch.empty(1, 20), None)]))
    SynFlow
    tensor    units  kept   zeros
    ...
    total     1,100    55  95.00%
    """

    per_cost = False  # the ranks have it in them

    def __init__(self, sparsity: float | None = None, rounds: int = 100, **options: Unpack[Options]) -> None:
        super().__init__(sparsity, **options)
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise InputError(f"rounds is how often scores are taken, a whole number of at least 1, got {rounds!r}")
        self._rounds = rounds

    def scores(self, model: nn.Module, plan: Plan, batches: Iterable[Batch], loss: Loss) -> list[Tensor]:
        """The round in which a unit is removed; more than all rounds for those that stay."""
        assert plan.dial is not None  # there is a target
        ones = self._ones(batches)
        twin = _positive(model)
        weights = plan.weights(twin)
        sizes = plan.sizes(dict(weights))
        alive = [(size > 0).double() for size in sizes]
        ranks = [torch.full_like(size, self._rounds + 1) for size in sizes]
        density = plan.dial.density
        before = 0
        for done in range(1, self._rounds + 1):
            share = (1 - density ** (done / self._rounds)) / (1 - density) if density < 1 else 1.0
            zeros = math.floor(share * plan.dial.zeros + 1e-9)
            if zeros == before:
                continue  # too few units for so many rounds
            flows = _flows(twin, plan, ones)
            if before == 0:
                self._check(plan, flows)
            before = zeros
            kept = plan.dial.pattern(ranking(plan.per_cost(flows), alive), sizes, share)
            for rank, here, stays in zip(ranks, alive, kept, strict=True):
                rank.masked_fill_((here > 0) & ~stays, done)
                here.mul_(stays)
            with torch.no_grad():
                for name, mask in plan.spread(alive, weights).items():
                    weights[name].mul_(mask)
        return ranks

    def _ones(self, batches: Iterable[Batch]) -> Tensor:
        """One example of ones."""
        name = type(self).__name__
        x, _ = next(pairs(name, batches))
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim == 0:
            got = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"{name} sends ones through the model in place of x, a tensor of floats, got {got}")
        return x.new_ones((1, *x.shape[1:]), dtype=torch.float64)

    def _check(self, plan: Plan, flows: list[Tensor]) -> None:
        for name, flow in zip(plan.shapes, flows, strict=True):
            lowest, total = float(flow.min()), float(flow.sum())
            if not (lowest >= 0 and 0 < total < math.inf):
                raise StateError(
                    f"{type(self).__name__} needs a positive signal through {name!r} and finds {total:g}, "
                    f"{lowest:g} at the lowest: it is not used in evaluation mode, or weights in or behind it are "
                    "zero, or something behind it subtracts, as LayerNorm does with means; leave it out with exclude="
                )


def _positive(model: nn.Module) -> nn.Module:
    """A copy for evaluation, in double precision, that maps positive signals to positive ones."""
    twin = copy.deepcopy(model).double().eval()
    for parameter in twin.parameters():
        parameter.detach().abs_()
    for module in twin.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            module.running_mean.zero_()
    return twin


def _flows(twin: nn.Module, plan: Plan, ones: Tensor) -> list[Tensor]:
    """What flows through every unit: Σ_g w·∂R/∂w."""
    weights = list(plan.weights(twin).values())
    with torch.enable_grad():
        output = twin(ones)
        if not isinstance(output, Tensor):
            raise InputError(f"the model must return one tensor, got {type(output).__name__}: its sum is the signal")
        slopes = torch.autograd.grad(output.sum(), weights, allow_unused=True, materialize_grads=True)
    return unit_sums(plan, [weight.detach() * slope for weight, slope in zip(weights, slopes, strict=True)])

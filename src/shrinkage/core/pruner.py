"""Pruning at one moment: scores in, zeros out, and from then on the user's own training.

A pruner is called on a model, between or before trainings, and holds nothing afterwards. What it made zero is
kept at zero by :func:`shrinkage.keep_zeros`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from shrinkage.core.budget import has_target
from shrinkage.core.errors import DivergedError, InputError
from shrinkage.core.hold import bit_mask, clear
from shrinkage.core.options import Options, check_options
from shrinkage.core.plan import Plan
from shrinkage.core.result import Sparsified
from shrinkage.core.selection import unwrap
from shrinkage.core.sensitivity import Batch, Loss, random_state_kept


class Pruner(ABC):
    """A method that sets weights to zero when it is called. Built by ``Magnitude``, ``SNIP``, ``SynFlow`` …

    A pruner of your own overrides :meth:`scores` and nothing else.

    Args:
        sparsity: share of zeros among the selected units, in (0, 1), met exactly. ``None`` only with ``macs=``, or
            an N:M granularity, which fixes it.
        **options: ``include``, ``exclude``, ``biases``, ``granularity``, ``distribution``, ``layer_sparsity``,
            ``floor``, ``macs`` and ``example``, as in :class:`~shrinkage.core.engine.Sparsifier`.

    Raises:
        InputError: for a target that cannot be, or options that do not exist.
    """

    per_cost = True
    """Whether a budget of multiply–accumulates divides the scores by what units cost."""

    def __init__(self, sparsity: float | None = None, **options: Unpack[Options]) -> None:
        check_options(type(self), options)
        name = type(self).__name__
        if late := [word for word in ("ramp", "start", "end") if word in options]:
            raise InputError(f"{name} prunes at one moment and has no ramp: leave {late[0]!r} out")
        if not has_target(sparsity, options):
            raise InputError(f"{name} needs a target: sparsity=0.95 for 95 % zeros, or macs= and example=")
        self._sparsity = sparsity
        self._options = options

    def prune(
        self, model: nn.Module, batches: Iterable[Batch] = (), loss: Loss = functional.cross_entropy
    ) -> Sparsified:
        """Set the units with the lowest scores to zero. Units that are zero already go first.

        Args:
            model: the network, changed in place; wrappers of ``torch.compile`` and DDP are looked through.
            batches: pairs ``(x, y)``, on the model's device, for methods that look at data.
            loss: ``loss(model(x), y)``, a scalar.

        Returns:
            What was reached, per layer.

        Raises:
            InputError: for a target that cannot be, nothing to select, or data that is missing.
            DivergedError: if a weight or a score is NaN or infinite.
            TargetError: if the count of zeros is not what was asked for.
        """
        name = type(self).__name__
        model = unwrap(model)
        plan = Plan(model, self._sparsity, self._options)
        assert plan.dial is not None  # there is a target
        weights = plan.weights(model)
        for key, weight in weights.items():
            if not bool(torch.isfinite(weight).all()):
                raise DivergedError(f"{key!r} holds NaN or infinite weights: {name} cannot rank them")
        with random_state_kept(model):
            scores = [score.detach() for score in self.scores(model, plan, batches, loss)]
        for (key, shape), score in zip(plan.shapes.items(), scores, strict=True):
            if score.shape != shape:
                raise InputError(
                    f"{name}.scores() gave shape {tuple(score.shape)} for {key!r}, whose units are {shape}"
                )
            if not bool(torch.isfinite(score).all()):
                raise DivergedError(
                    f"{name} found scores of {key!r} that are NaN or infinite; look at its data and loss"
                )
        sizes = plan.sizes(dict(weights))
        if self.per_cost:
            scores = plan.per_cost(scores)
        kept = plan.dial.pattern(ranking(scores, sizes), sizes)
        for key, mask in plan.spread(kept, weights).items():
            clear(weights[key], bit_mask(mask, weights[key].detach()))
        return plan.result(name, model)

    @abstractmethod
    def scores(self, model: nn.Module, plan: Plan, batches: Iterable[Batch], loss: Loss) -> list[Tensor]:
        """How much each unit is worth: one tensor of shape ``plan.shapes[name]`` for every selected tensor.

        Any finite numbers; the lowest go, and among equals the smaller units. The model may be run, and must be left
        as it was: its weights, buffers, gradients, and the mode it is in. Random numbers may be drawn.
        """


def ranking(scores: Sequence[Tensor], sizes: Sequence[Tensor]) -> list[Tensor]:
    """Scores of any sign as keys ≥ 0 in the very same order; a unit of size 0 gets 0, every other one more.

    Negative scores are replaced by their ranks over all tensors, equals sharing one: subtracting the lowest instead
    would round small differences away.

    >>> ranking([torch.tensor([-1.0, 2.0]), torch.tensor([2.0, 0.0])], [torch.ones(2), torch.tensor([1.0, 0.0])])
    [tensor([1., 3.], dtype=torch.float64), tensor([3., 0.], dtype=torch.float64)]
    """
    keys = list(scores)
    if any(bool((score < 0).any()) for score in keys):
        flat = torch.cat([score.double().flatten().to(keys[0].device) for score in keys])
        ranks = torch.unique(flat, return_inverse=True)[1].double() + 1
        parts = torch.split(ranks, [score.numel() for score in keys])
        keys = [part.view(score.shape).to(score.device) for part, score in zip(parts, keys, strict=True)]
    return [
        torch.where(size > 0, key.clamp(min=torch.finfo(key.dtype).tiny), 0)
        for key, size in zip(keys, sizes, strict=True)
    ]

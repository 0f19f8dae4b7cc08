"""Pruning at one moment: scores in, zeros out, and from then on the user's own training.

A pruner is called on a model, between or before trainings, and holds nothing afterwards. What it made zero is
kept at zero by :func:`shrinkage.keep_zeros`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from shrinkage.core.errors import InputError, StateError
from shrinkage.core.hold import bit_mask, clear
from shrinkage.core.options import Options, check_options
from shrinkage.core.plan import Plan
from shrinkage.core.result import Sparsified
from shrinkage.core.selection import unwrap

Batch = tuple[Any, Any]
Loss = Callable[[Any, Any], Tensor]


class Pruner(ABC):
    """A method that sets weights to zero when it is called. Built by ``Magnitude``, ``SNIP``, ``SynFlow`` …

    A pruner of your own overrides :meth:`scores` and nothing else.

    Args:
        sparsity: share of zeros among the selected units, in (0, 1), met exactly.
        **options: ``include``, ``exclude``, ``biases``, ``granularity``, ``distribution``, ``layer_sparsity`` and
            ``floor``, as in :class:`~shrinkage.core.engine.Sparsifier`.

    Raises:
        InputError: for options that do not exist.
    """

    def __init__(self, sparsity: float, **options: Unpack[Options]) -> None:
        check_options(type(self), options)
        if late := [word for word in ("ramp", "start", "end") if word in options]:
            raise InputError(f"{type(self).__name__} prunes at one moment and has no ramp: leave {late[0]!r} out")
        self._sparsity = sparsity
        self._options = options

    def prune(
        self, model: nn.Module, batches: Iterable[Batch] = (), loss: Loss = functional.cross_entropy
    ) -> Sparsified:
        """Set the units with the lowest scores to zero.

        Args:
            model: the network, changed in place; wrappers of ``torch.compile`` and DDP are looked through.
            batches: pairs ``(x, y)``, on the model's device, for methods that look at data.
            loss: ``loss(model(x), y)``, a scalar.

        Returns:
            What was reached, per layer.

        Raises:
            InputError: for a target that cannot be, nothing to select, or data that is missing.
            StateError: if a weight or a score is NaN or infinite.
            TargetError: if the count of zeros is not what was asked for.
        """
        name = type(self).__name__
        model = unwrap(model)
        plan = Plan(model, self._sparsity, self._options)
        assert plan.dial is not None  # there is a sparsity
        weights = plan.weights(model)
        for key, weight in weights.items():
            if not bool(torch.isfinite(weight).all()):
                raise StateError(f"{key!r} holds NaN or infinite weights: {name} cannot rank them")
        scores = self.scores(model, plan, batches, loss)
        for key, score in zip(weights, scores, strict=True):
            if not bool(torch.isfinite(score).all()):
                raise StateError(f"{name} found scores of {key!r} that are NaN or infinite; look at its data and loss")
        kept = plan.dial.pattern(scores, plan.sizes(dict(weights)))
        for key, mask in plan.spread(kept, weights).items():
            clear(weights[key], bit_mask(mask, weights[key].detach()))
        return plan.result(name, model)

    @abstractmethod
    def scores(self, model: nn.Module, plan: Plan, batches: Iterable[Batch], loss: Loss) -> list[Tensor]:
        """How much each unit is worth: one tensor ≥ 0 of shape ``plan.shapes[name]`` for every selected tensor.

        The model may be run, and must be left as it was: its weights, buffers, gradients, and the mode it is in.
        """

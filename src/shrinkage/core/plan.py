"""What is to become sparse: the selected tensors of a model, cut into units, and how many must be zero.

Everything about a target that does not depend on how it is reached. Tensors are known by name, since wrappers
may replace a model's Parameter objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.core.bill import make_bill
from shrinkage.core.budget import Budget, macs_share
from shrinkage.core.dial import Dial, target_share
from shrinkage.core.distribution import spread
from shrinkage.core.errors import InputError
from shrinkage.core.granularity import NM, Granularity, Weight
from shrinkage.core.options import Options
from shrinkage.core.result import Layer, Sparsified, Spent
from shrinkage.core.selection import Selected, match_names, resolve, select


class Plan:
    """The selected units of a model and the target for them.

    Args:
        model: the network.
        sparsity: share of zeros among the selected units, in (0, 1); ``None`` for no target, or a budget.
        options: see :class:`~shrinkage.core.engine.Sparsifier`.

    Raises:
        InputError: for arguments that cannot work.
    """

    def __init__(self, model: nn.Module, sparsity: float | None, options: Options) -> None:
        self.selected: list[Selected] = select(
            model, options.get("include"), options.get("exclude"), biases=options.get("biases", False)
        )
        self.granularity: Granularity = options.get("granularity", Weight())
        weights = resolve(model, [item.name for item in self.selected])
        for item in self.selected:
            self.granularity.check(item.name, weights[item.name].shape, item.out_dim)
        self.shapes = {
            item.name: self.granularity.shape(weights[item.name].shape, item.out_dim) for item in self.selected
        }
        macs = macs_share(sparsity, options)
        self._tolls: list[float | Tensor | None] = [None] * len(self.selected)
        if macs is None:
            self.dial = self._make_dial(sparsity, options)
        else:
            layers = options.get("layer_sparsity", {})
            bill = make_bill(model, options["example"], self.selected, self.granularity)
            rest = options.get("distribution", "global"), options.get("floor", 0.05)
            self.dial = budget = Budget(self.shapes, bill, macs, layers, *rest)
            self._tolls = budget.tolls()

    def _make_dial(self, sparsity: float | None, options: Options) -> Dial | None:
        layers = dict(options.get("layer_sparsity", {}))
        share = target_share(sparsity, layers, self.granularity)
        if share is None:
            return None
        own = match_names(layers, self.shapes)
        shared = {name: shape for name, shape in self.shapes.items() if name not in own}
        distribution = options.get("distribution", "global")
        if isinstance(self.granularity, NM):
            if distribution != "global":
                raise InputError(
                    f"{self.granularity} fixes every tensor's share: leave distribution={distribution!r} out"
                )
        else:
            layers |= spread(distribution, shared, share)
        units = [math.prod(shape) for shape in self.shapes.values()]
        out_dims = [item.out_dim for item in self.selected]
        return Dial(list(self.shapes), units, out_dims, self.granularity, share, layers, options.get("floor", 0.05))

    @property
    def units(self) -> int:
        """How many units are selected."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The selected tensors as the model holds them now."""
        return resolve(model, list(self.shapes))

    def sizes(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        """‖·‖₂ of every unit of tensors shaped like the selected ones, in their order."""
        return [self.granularity.sizes(tensors[item.name].detach(), item.out_dim) for item in self.selected]

    def toll(self, index: int, device: torch.device) -> float | Tensor | None:
        """What scores of a tensor are divided by under a budget; see :class:`~shrinkage.core.slots.Slot`."""
        toll = self._tolls[index]
        return toll.to(device) if isinstance(toll, Tensor) else toll

    def per_cost(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """Scores of the units in relation to what these cost."""
        tolls = [self.toll(i, score.device) for i, score in enumerate(scores)]
        return [score if toll is None else score / toll for score, toll in zip(scores, tolls, strict=True)]

    def spread(self, units: list[Tensor], weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        """A value per unit as tensors of the weights' shapes, by name."""
        return {
            item.name: self.granularity.spread(part, weights[item.name].detach(), item.out_dim).expand_as(
                weights[item.name]
            )
            for item, part in zip(self.selected, units, strict=True)
        }

    def measure(self, model: nn.Module) -> dict[str, tuple[int, int]]:
        """Zero units and all units of every selected tensor, by name."""
        sizes = self.sizes(dict(self.weights(model)))
        return {
            item.name: (int((size == 0).sum()), size.numel()) for item, size in zip(self.selected, sizes, strict=True)
        }

    def result(self, method: str, model: nn.Module) -> Sparsified:
        """What stands now, per layer.

        Raises:
            TargetError: if it is not what was asked for.
        """
        layers = [Layer(name, zeros, units) for name, (zeros, units) in self.measure(model).items()]
        if isinstance(self.dial, Budget):
            self.dial.check_spent(spent := self.dial.spent(self._zero(model)))
            return Sparsified(method, tuple(layers), None, spent)
        result = Sparsified(method, tuple(layers), self.dial.zeros if self.dial is not None else None)
        if self.dial is not None:
            self.dial.check(result.zeros)
        return result

    def spent(self, model: nn.Module) -> Spent | None:
        """What is left of the multiply–accumulates now, where there is a budget of them."""
        return self.dial.spent(self._zero(model)) if isinstance(self.dial, Budget) else None

    def _zero(self, model: nn.Module) -> list[Tensor]:
        return [size == 0 for size in self.sizes(dict(self.weights(model)))]

    def config(self) -> dict[str, Any]:
        """What a checkpoint must agree in."""
        config: dict[str, Any] = {"granularity": repr(self.granularity)}
        if self.dial is not None:
            config |= self.dial.config()
        return config

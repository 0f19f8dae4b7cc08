"""The neurons of a model that can go: how they correlate, and how they leave it and its optimisers."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree

from shrinkage.core.errors import InputError, StateError, TargetError
from shrinkage.deploy.rework import Arguments
from shrinkage.deploy.surgery import reshape_like
from shrinkage.deploy.tracing import stored
from shrinkage.noiseout.correlation import Relation, mean_correlation
from shrinkage.noiseout.foldable import Foldable, Group, removable
from shrinkage.noiseout.measure import measure
from shrinkage.noiseout.noise import NoiseOutputs
from shrinkage.noiseout.partners import By, Candidates, Step, Stock, choose
from shrinkage.noiseout.quota import quota_of
from shrinkage.noiseout.removal import columns, remove, taken_over
from shrinkage.noiseout.shrunk import Fold


class Neurons:
    """Neurons and channels by layer, as many as the model has now.

    Args:
        model: out of its wrappers, changed in place.
        inputs: an example.
        by: how pairs compare.
        exclude: layers that keep theirs, by name or shell pattern.

    Attributes:
        fixed: layers that stay as they are, by name.

    Raises:
        InputError: if the model cannot be traced, no layer can lose any, or a pattern matches none.
    """

    def __init__(self, model: nn.Module, inputs: Arguments, by: By, exclude: Sequence[str]) -> None:
        self._model, self._inputs, self._by = model, inputs, by
        self._found: Foldable | None
        self._found, names = removable(model, inputs)
        stay = [group.name for group in self._found.groups if group.name not in names]
        self.fixed = [*stay, *self._found.fixed]
        self._names = self._without(names, exclude)
        self._shapes = {name: tensor.shape for name, tensor in stored(model).items()}
        self._sizes = self._counted()

    @property
    def sizes(self) -> dict[str, int]:
        """How many each layer has."""
        return dict(self._sizes)

    @property
    def parameters(self) -> int:
        """How many the model has."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    @property
    def fewest(self) -> int:
        """How many parameters are left when all neurons have gone that can."""
        return self._emptied()[1]

    def check_reach(self, neurons: int | None, parameters: int | None) -> None:
        """Raise ``TargetError`` if fewer neurons can go than asked for, or more parameters are left in the end."""
        most, fewest = self._emptied()
        if parameters is not None and fewest > parameters:
            raise TargetError(
                f"{fewest:,} parameters are left where every layer has one neuron: {parameters:,} cannot be reached"
            )
        if neurons is not None and neurons > most:
            raise _too_few(most, neurons)

    def _emptied(self) -> tuple[int, int]:
        """How many neurons can go, and how many parameters are left then."""
        foldable, groups = self._look()
        stock = self._stock(foldable, groups)
        units = [(index, unit) for index, group in enumerate(groups) for unit in range(len(group.sets))]
        count = len(units)
        while stay := [(index, unit) for index, unit in units if not stock.take(index, unit)]:
            if len(stay) == len(units):
                break
            units = stay  # what could not go may be able to without others that have gone since
        return count - len(stay), foldable.parameters_left(self._model)(stock.kept)

    def correlation(self, batches: Iterable[Any]) -> dict[str, float]:
        """The mean of :math:`|ρ|` over all pairs of a layer that are not constant; NaN where fewer than two vary."""
        _, groups = self._look()
        moments = measure(self._model, groups, batches, len(self._inputs[0]), readers=1)
        return {group.name: mean_correlation(sums[0]) for group, sums in zip(groups, moments, strict=True)}

    def prune(
        self,
        batches: Iterable[Any],
        neurons: int | Mapping[str, int] | None,
        parameters: int | None,
        optimizers: Sequence[Optimizer],
        beside: NoiseOutputs | None,
    ) -> list[Fold]:
        """Fold exactly as many into others as are asked for, and remove them.

        Args:
            batches: what correlations are measured on.
            neurons: how many go, in all or by layer.
            parameters: in place of them, how many of the model's may be left.
            optimizers: whose memory follows.
            beside: noise outputs, which hear the same neurons.

        Raises:
            InputError: for a target that cannot be, too few examples, or an optimiser whose state cannot be cut.
            StateError: if an activation is NaN or infinite, or in inference mode.
            TargetError: if fewer can go; nothing is changed then.
        """
        quota = quota_of(self._sizes, self.parameters, neurons, parameters)
        if parameters is not None:
            self.check_reach(None, parameters)
        wanted = sum(quota or ()) if isinstance(neurons, Mapping) else neurons
        foldable, groups, relations, steps = self._chosen(batches, wanted, quota, parameters)
        if wanted is not None and len(steps) < wanted:
            raise _too_few(len(steps), wanted)
        return self._remove(foldable, groups, relations, steps, optimizers, beside)

    def prune_up_to(
        self, batches: Iterable[Any], neurons: int, optimizers: Sequence[Optimizer], beside: NoiseOutputs | None
    ) -> list[Fold]:
        """The same for as many as can go."""
        return self._remove(*self._chosen(batches, neurons, None, None), optimizers, beside)

    def restored(self, sizes: Mapping[str, int]) -> None:
        """Take note that the model has these numbers again."""
        self._sizes, self._found = dict(sizes), None

    def reshape(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Shrink the model to these shapes of its parameters and buffers.

        Raises:
            InputError: if it cannot be shrunk to them.
        """
        reshape_like(self._model, shapes)
        self._found = None
        self._sizes = self._counted()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_found": None}  # a trace is looked up anew

    # ---- parts ----------------------------------------------------------------------------------

    def _without(self, names: Sequence[str], patterns: Sequence[str]) -> list[str]:
        assert self._found is not None
        known = {group.name: [group.name, *group.layers] for group in self._found.groups if group.name in names}
        out = {pattern: {n for n, mine in known.items() if fnmatch.filter(mine, pattern)} for pattern in patterns}
        for pattern, found in out.items():
            if not found:
                raise InputError(f"exclude={pattern!r} matches no layer that can lose neurons: {', '.join(names)}")
        left = [name for name in names if not any(name in found for found in out.values())]
        if not left:
            stay = f" ({', '.join(self.fixed)} cannot)" if self.fixed else ""
            raise InputError(
                f"{type(self._model).__name__} has no layer that can lose neurons{stay}: neurons and channels can go "
                "that linear layers and convolutions write and read, with element-wise operations, BatchNorm and "
                "pooling between"
            )
        return left

    def _counted(self) -> dict[str, int]:
        return {group.name: len(group.sets) for group in self._look()[1]}

    def _look(self) -> tuple[Foldable, list[Group]]:
        foldable = self._found or Foldable(self._model, _moved(self._inputs, self._model))
        self._found = foldable  # as long as nothing is removed
        groups = {group.name: group for group in foldable.groups}
        return foldable, [groups[name] for name in self._names]

    def _stock(self, foldable: Foldable, groups: Sequence[Group]) -> Stock:
        return Stock(
            [group.sets for group in groups],
            foldable.dimensions(),
            lambda kept: foldable.fits(kept, self._shapes),
            foldable.count,
        )

    def _chosen(
        self, batches: Iterable[Any], neurons: int | None, quota: Sequence[int] | None, parameters: int | None
    ) -> tuple[Foldable, list[Group], list[list[Relation]], list[Step]]:
        if torch.is_inference_mode_enabled():
            raise StateError(
                "prune() changes parameters that are to be trained on: call it outside torch.inference_mode"
            )
        foldable, groups = self._look()
        found = measure(self._model, groups, batches, len(self._inputs[0]))
        relations = []
        for group in groups:  # the moments go as relations come
            moments = found.pop(0)
            relations.append([Relation(moments.pop(0), reader.home is not None) for reader in group.readers])
        candidates = [
            Candidates(some, columns(self._model, group), self._by)
            for group, some in zip(groups, relations, strict=True)
        ]
        stock = self._stock(foldable, groups)
        left = foldable.parameters_left(self._model)

        def enough(steps: Sequence[Step]) -> bool:
            return len(steps) == neurons if parameters is None else left(stock.kept) <= parameters

        return foldable, groups, relations, choose(candidates, stock, enough, quota)

    def _remove(
        self,
        foldable: Foldable,
        groups: Sequence[Group],
        relations: Sequence[Sequence[Relation]],
        steps: Sequence[Step],
        optimizers: Sequence[Optimizer],
        beside: NoiseOutputs | None,
    ) -> list[Fold]:
        path, weight = (None, None) if beside is None else (beside.path, beside.weight)
        found = taken_over(self._model, groups, relations, steps, path, weight)
        gone = [int(groups[step.group].sets[step.unit]) for step in steps]
        plan = foldable.plan(gone, found.shifts)
        remove(self._model, plan, optimizers)
        self._found = None
        if beside is not None and found.beside is not None:
            beside.shrink(*found.beside, plan.cuts[f"{beside.path}.weight"][1], optimizers)
        names = [group.name for group in groups]
        for step in steps:
            self._sizes[names[step.group]] -= 1
        return [Fold(names[s.group], s.unit, s.partner, math.sqrt(s.explained)) for s in steps]


def _too_few(found: int, wanted: int) -> TargetError:
    return TargetError(
        f"only {found} of {wanted} neurons can go: every layer keeps one, and groups of a convolution stay alike"
    )


def _moved(inputs: Arguments, model: nn.Module) -> Arguments:
    """The example where the model is now."""
    device = next(model.parameters()).device
    moved: Arguments = _pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, inputs)
    return moved

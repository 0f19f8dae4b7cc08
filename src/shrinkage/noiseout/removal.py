"""Folding units into others and cutting them out, of a model and of the optimisers that train it, in place.

Parameters stay the same objects, so that optimisers and their groups go on. What an optimiser remembers of a
weight (momentum, the moments of Adam) loses the same rows and columns; what it remembers of a partner stays, since the
gradient of a partner's weights is what it was.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from shrinkage.core.errors import InputError
from shrinkage.deploy.dead import Cut, Plan
from shrinkage.deploy.surgery import apply, cut_to, refresh
from shrinkage.deploy.tracing import stored
from shrinkage.noiseout.correlation import Relation
from shrinkage.noiseout.foldable import Group, Reader
from shrinkage.noiseout.partners import Step


def folded(
    weight: Tensor, dim: int, columns: Tensor, steps: Iterable[Step], relation: Relation
) -> tuple[Tensor, Tensor]:
    """What to add to a weight so that partners take units over, and what constants come to, per output.

    Args:
        weight: that reads the units.
        dim: its dimension that counts inputs.
        columns: where each unit is in it, shape (units, places).
        steps: which unit goes into which, in order: a partner may go later, with all that it has taken over.
        relation: of the units where this weight reads them.

    Returns:
        The change of the weight, of its shape, and the constant, shape (outputs,); float64.
    """
    before = weight.detach().double().movedim(dim, -1)
    after = before.clone()
    constant = after.new_zeros(len(after))
    for step in steps:
        factor, offset = relation.fold(step.unit, step.partner)
        gone, heir = columns[step.unit].to(after.device), columns[step.partner].to(after.device)
        taken = after[..., gone]
        constant += offset * taken.flatten(1).sum(1)
        after[..., heir] += factor * taken
        after[..., gone] = 0
    return (after - before).movedim(-1, dim), constant


def shifts_of(
    model: nn.Module, readers: Iterable[Reader], steps: Sequence[Step], relations: Iterable[Relation]
) -> dict[str, Tensor]:
    """What to add to which parameter or buffer, for one group of units."""
    held = stored(model)
    shifts: dict[str, Tensor] = {}
    for reader, relation in zip(readers, relations, strict=True):
        change, constant = folded(held[reader.weight], reader.dim, reader.columns, steps, relation)
        shifts[reader.weight] = change
        if reader.home is not None:
            name, sign = reader.home
            shifts[name] = shifts.get(name, 0) + sign * constant
    return shifts


@dataclass(frozen=True)
class Readers:
    """What is to be added where neurons leave.

    Attributes:
        shifts: to which parameter or buffer of the model.
        beside: to the weight and the bias of noise outputs; None where they hear of nothing that leaves.
    """

    shifts: Mapping[str, Tensor]
    beside: tuple[Tensor, Tensor] | None


def taken_over(
    model: nn.Module,
    groups: Sequence[Group],
    relations: Sequence[Sequence[Relation]],
    steps: Sequence[Step],
    path: str | None,
    weight: Tensor | None,
) -> Readers:
    """What partners take over, in all readers.

    Args:
        model: the network.
        groups: its neurons.
        relations: of each group's neurons, one a reader.
        steps: which neuron goes into which.
        path: of the layer beside which noise outputs live.
        weight: theirs.
    """
    shifts: dict[str, Tensor] = {}
    beside: tuple[Tensor, Tensor] | None = None
    for index, (group, some) in enumerate(zip(groups, relations, strict=True)):
        mine = [step for step in steps if step.group == index]
        if not mine:
            continue
        for name, shift in shifts_of(model, group.readers, mine, some).items():
            shifts[name] = shifts.get(name, 0) + shift
        for reader, relation in zip(group.readers, some, strict=True):
            if weight is not None and reader.path == path:
                change, constant = folded(weight, reader.dim, reader.columns, mine, relation)
                beside = (change, constant) if beside is None else (beside[0] + change, beside[1] + constant)
    return Readers(shifts, beside)


def columns(model: nn.Module, group: Group) -> list[Tensor]:
    """What each reader multiplies each unit by, a tensor a reader, shape (units, weights), float64, on the CPU."""
    held = stored(model)
    found = []
    for reader in group.readers:
        weight = held[reader.weight].detach().movedim(reader.dim, 0).cpu().double()
        found.append(weight[reader.columns].flatten(1))
    return found


def remove(model: nn.Module, plan: Plan, optimizers: Sequence[Optimizer]) -> None:
    """Do what is planned to the model, its gradients, and all that the optimisers remember.

    Raises:
        InputError: if an optimiser remembers something that cannot be cut; nothing is changed then.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    cuts = {parameters[name]: places for name, places in plan.cuts.items() if name in parameters}
    check_states(optimizers)
    sizes = {parameter: parameter.shape for parameter in cuts}
    gradients = {parameter: parameter.grad for parameter in cuts}
    for parameter in cuts:
        forget(parameter)
    apply(model, plan)
    for parameter, places in cuts.items():
        gradient = gradients[parameter]
        if gradient is not None:
            parameter.grad = cut_to(gradient, places)
        follow(optimizers, parameter, sizes[parameter], places)


def follow(optimizers: Iterable[Optimizer], parameter: nn.Parameter, size: torch.Size, places: Cut) -> None:
    """Cut what optimisers remember of a parameter that was of this size."""
    for optimizer in optimizers:
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.ndim == len(size) > 0:
                own = tuple(
                    place if value.shape[dim] == size[dim] else None for dim, place in enumerate(places)
                )  # a factored moment has one entry for a whole dimension
                state[key] = cut_to(value, own)


def check_states(optimizers: Iterable[Optimizer]) -> None:
    """Raise if something is remembered that has not the parameter's shape.

    Raises:
        InputError: naming the optimiser and its entry.
    """
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if not _fits(value, parameter):
                    raise InputError(
                        f"{type(optimizer).__name__} keeps {key!r} of another form than its parameters, which cannot "
                        "lose neurons with them: train with SGD, Adam, AdamW, RMSprop or another optimiser of one "
                        "entry a weight"
                    )


def _fits(value: object, parameter: Tensor) -> bool:
    if isinstance(value, Tensor):
        whole = value.ndim == parameter.ndim and all(
            mine in (1, size) for mine, size in zip(value.shape, parameter.shape, strict=True)
        )
        return whole or value.numel() <= 1
    return not isinstance(value, list | tuple | dict)


def forget(parameter: nn.Parameter) -> None:
    """Let autograd forget the size of a parameter.

    The node that collects its gradient lives on with any loss that is still at hand, and would refuse gradients of
    another size. A change of type makes it go.
    """
    data = parameter.data
    other = torch.float32 if data.dtype == torch.float64 else torch.float64
    parameter.grad = None
    parameter.data = torch.empty(0, dtype=other, device=data.device)
    parameter.data = data


@dataclass(frozen=True)
class Snapshot:
    """A model and what optimisers remember, to go back to.

    Attributes:
        tensors: parameters and buffers by name.
        groups: of convolutions, by path.
        states: by optimiser, then by parameter.
    """

    tensors: Mapping[str, Tensor]
    groups: Mapping[str, int]
    states: Sequence[Mapping[Tensor, dict[str, Any]]]

    @classmethod
    def of(cls, model: nn.Module, optimizers: Sequence[Optimizer]) -> Snapshot:
        """Take one."""
        return cls(
            {name: tensor.detach().clone() for name, tensor in stored(model).items()},
            {path: module.groups for path, module in model.named_modules() if isinstance(module, _ConvNd)},
            [{key: copy.deepcopy(value) for key, value in each.state.items()} for each in optimizers],
        )

    def restore(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Go back."""
        for name, tensor in stored(model).items():
            if isinstance(tensor, nn.Parameter):
                forget(tensor)
            tensor.data = self.tensors[name].clone()
        for path, groups in self.groups.items():
            model.get_submodule(path).groups = groups  # type: ignore[assignment]
        refresh(model)
        for optimizer, states in zip(optimizers, self.states, strict=True):
            optimizer.state.clear()
            for key, value in states.items():
                optimizer.state[key] = copy.deepcopy(value)

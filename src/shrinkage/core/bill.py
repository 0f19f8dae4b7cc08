"""What the units of selected tensors cost in one call of a model, in multiply–accumulates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.core.errors import InputError
from shrinkage.core.footprint import macs_with, trace
from shrinkage.core.granularity import Granularity
from shrinkage.core.selection import Selected, resolve, unwrap


@dataclass(frozen=True)
class Usage:
    """How often the weights of a model are used in one call.

    Attributes:
        weights: in how many multiply–accumulates each entry of a parameter takes part, by the parameter's name: one
            number for all entries, or an integer tensor that broadcasts against it. Those that are not counted are
            missing.
        total: all multiply–accumulates of the call with nothing zero, those without a weight included.
    """

    weights: dict[str, int | Tensor]
    total: int


def usage(model: nn.Module, example: Any) -> Usage:
    """Count what :func:`shrinkage.footprint` counts, by parameter; uses by several modules add up.

    Raises:
        InputError: as it does.

    >>> layer = nn.Linear(20, 20)
    >>> usage(nn.Sequential(layer, layer), torch.zeros(3, 20))
    Usage(weights={'0.weight': 6}, total=2400)
    """
    model = unwrap(model)
    notes = trace(model, example)
    names = {parameter: name for name, parameter in model.named_parameters()}
    weights: dict[str, int | Tensor] = {}
    total = sum(notes.others.values())
    for module, uses_by_name in notes.uses.items():
        for own_name, uses in uses_by_name.items():
            weight = getattr(module, own_name)
            total += macs_with(weight, uses)
            if weight in names:  # and not, say, computed from others by a parametrization
                name = names[weight]
                weights[name] = weights.get(name, 0) + uses
    return Usage(weights, total)


@dataclass(frozen=True)
class Bill:
    """The costs.

    Attributes:
        costs: of the units of each tensor, in MACs: one number > 0 for all, or an int64 tensor of a number per unit.
        dense: MACs of the whole model with nothing zero, as :func:`shrinkage.footprint` counts them.
    """

    costs: tuple[int | Tensor, ...]
    dense: int


def make_bill(model: nn.Module, example: Any, selected: Sequence[Selected], granularity: Granularity) -> Bill:
    """Run the model once on the example, and see how often each weight is used.

    A unit costs what its weights cost together.

    Args:
        model: the network; left as it was, see :func:`shrinkage.footprint`.
        example: one call's input, as :func:`shrinkage.footprint` takes it.
        selected: which tensors.
        granularity: how they are cut into units.

    Raises:
        InputError: if the model cannot run on the example, or a weight is used in no multiplication that is counted.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 6 * 6, 10))
    >>> chosen = [Selected("0.weight", 0), Selected("2.weight", 0)]
    >>> from shrinkage import Row
    >>> make_bill(net, torch.zeros(1, 1, 8, 8), chosen, Row()).costs      # 9 weights at 36 places, 72 at one
    (324, 72)
    """
    used = usage(model, example)
    costs = []
    for item in selected:
        weight = resolve(model, [item.name])[item.name].detach()
        uses = used.weights.get(item.name, 0)
        if not (uses > 0 if isinstance(uses, int) else bool((uses > 0).all())):
            raise InputError(
                f"macs= counts multiplications, and {item.name!r} (or a part of it) takes part in none that is "
                "counted on this example: give an example that uses it, a formula for its layer (see "
                f"shrinkage.register_cost), or leave it out with exclude={item.name!r}"
            )
        costs.append(_unit_cost(uses, weight, item.out_dim, granularity))
    return Bill(tuple(costs), used.total)


def _unit_cost(uses: int | Tensor, weight: Tensor, out_dim: int, granularity: Granularity) -> int | Tensor:
    """What each unit costs; one number if that is the same for all."""
    shape = granularity.shape(weight.shape, out_dim)
    if isinstance(uses, int) and math.prod(shape) == weight.numel():
        return uses
    each = torch.as_tensor(uses, device=weight.device).expand_as(weight)
    if math.prod(shape) == weight.numel():
        cost = each.reshape(shape).to(torch.int64)
    else:  # a sum over each unit is what spreading a value over it does, transposed; exact for whole numbers
        with torch.enable_grad():
            units = torch.zeros(shape, dtype=torch.float64, device=weight.device, requires_grad=True)
            (sums,) = torch.autograd.grad(
                granularity.spread(units, weight, out_dim).expand_as(weight), units, each.to(torch.float64)
            )
        cost = sums.round().to(torch.int64)
    first = int(cost.flatten()[0])
    return first if bool((cost == first).all()) else cost.contiguous()

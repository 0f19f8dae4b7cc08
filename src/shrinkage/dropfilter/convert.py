"""Switching DropFilter on and off in a model that exists, layer by layer."""

from __future__ import annotations

import difflib
import fnmatch
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shrinkage.core.errors import InputError
from shrinkage.core.selection import unwrap
from shrinkage.core.tables import render
from shrinkage.dropfilter.layers import _Dropping
from shrinkage.dropfilter.masks import FilterRule, PlusRule, Rule, check_rate, rule_of

Choice = str | type[nn.Module] | Callable[[str, nn.Module], bool]

# Transposed convolutions do not derive from these.
CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Dropped:
    """One layer that drops parts of its filter.

    Attributes:
        name: the layer's path in the model.
        layer: the name of its class.
        form: ``DropFilter`` or ``DropFilter-PLUS``.
        p: its drop rate.
        scaling: how training and evaluation are made to agree.
        elements: of filter and bias.
    """

    name: str
    layer: str
    form: str
    p: float
    scaling: str
    elements: int


@dataclass(frozen=True)
class Dropping:
    """The layers of a model that drop parts of their filters; prints as a table."""

    layers: tuple[Dropped, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers, texts and dicts, by layer."""
        return {
            layer.name: {key: value for key, value in vars(layer).items() if key != "name"} for layer in self.layers
        }

    def __str__(self) -> str:
        rows = [[x.name or "(model)", x.layer, x.form, x.p, x.scaling, x.elements] for x in self.layers]
        return render(["layer", "kind", "form", "p", "scaling", "elements"], rows)


def convert(
    model: nn.Module,
    p: float,
    layers: Choice | Iterable[Choice] | None = None,
    *,
    plus: bool = False,
    scaling: str = "inverted",
) -> Dropping:
    """Let layers of a model drop parts of their filters while it is trained.

    No module is replaced and none changes its class; parameters, their names and the ``state_dict`` stay as they are.
    The layers get hooks, which travel with copies and pickles of the model; :func:`revert` takes them away. Call it
    before ``torch.compile``; what was compiled before, of whatever model, is compiled anew when it is next called.

    Args:
        model: any module; wrappers of DDP are looked through.
        p: drop rate, in [0, 1); see :func:`set_rate` to change it later.
        layers: which. A string is a shell pattern over the layers' paths (``"features.*"``), a module type takes its
            instances, a callable receives ``(path, module)``; several may be given. Of what is matched, convolutions
            (``nn.Conv1d``, ``2d`` and ``3d``) and linear layers are taken. None: all convolutions.
        plus: DropFilter-PLUS in place of DropFilter; for convolutions.
        scaling: one of :data:`~shrinkage.dropfilter.masks.SCALINGS`.

    Returns:
        The layers that were chosen.

    Raises:
        InputError: for a rate or scaling out of range, a choice that matches nothing, a layer that cannot (transposed
            convolutions, layers whose weight is computed, layers that drop already), or a model that is compiled.

    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    >>> print(convert(net, 0.1))
    layer  kind    form        p    scaling   elements
    ─────  ──────  ──────────  ───  ────────  ────────
    0      Conv2d  DropFilter  0.1  inverted        80
    >>> type(net[0]).__name__, revert(net)
    ('Conv2d', 1)
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    inner = unwrap(model)
    if _is_compiled(model) or any(map(_is_compiled, inner.modules())):
        raise InputError(
            "the model is compiled, and compiled code does not see what is added later: convert the model first, then "
            "compile it"
        )
    make = PlusRule if plus else FilterRule
    chosen = [(name, module, make(p, scaling)) for name, module in _chosen(inner, layers, plus)]
    for _, module, rule in chosen:
        rule.attach(module)
    if "torch._dynamo" in sys.modules:  # code compiled for a plain model would run for this one, without hooks
        torch.compiler.reset()
    return Dropping(tuple(_dropped(*item) for item in chosen))


def dropping(model: nn.Module) -> Dropping:
    """The layers of a model that drop parts of their filters now, converted or made so."""
    return Dropping(tuple(_dropped(*found) for found in _ruled(model)))


def set_rate(model: nn.Module, p: float) -> None:
    """Change the drop rate of all layers that drop parts of their filters, such as at the beginning of an epoch.

    Compiled models follow: one more compilation when the rate first changes, none after that, but one for 0.

    Args:
        model: with layers that drop; wrappers of ``torch.compile`` and DDP are looked through.
        p: in [0, 1); 0 makes them plain.

    Raises:
        InputError: if the rate is out of range, or no layer drops.

    >>> net = nn.Sequential(nn.Conv1d(1, 2, 3))
    >>> _ = convert(net, 0.06)
    >>> set_rate(net, 0.3)
    >>> dropping(net).layers[0].p
    0.3
    """
    rate = check_rate(p)
    found = list(_ruled(model))
    if not found:
        raise InputError(
            f"no layer of {type(unwrap(model)).__name__} drops parts of its filter: convert the model first"
        )
    for _, _, rule in found:
        rule.p = rate


def revert(model: nn.Module) -> int:
    """Make converted layers plain again; those made as :class:`DropFilterConv2d` and the like stay what they are.

    Args:
        model: a converted model, or a copy of one.

    Returns:
        How many layers were converted.
    """
    converted = [(module, rule) for _, module, rule in _ruled(model) if not isinstance(module, _Dropping)]
    for module, rule in converted:
        rule.p = 0.0  # compiled code looks at the rate, not at which hooks are there
        rule.detach(module)
    return len(converted)


def _ruled(model: nn.Module) -> Iterator[tuple[str, nn.Module, Rule]]:
    for name, module in unwrap(model).named_modules():
        rule = rule_of(module)
        if rule is not None:
            yield name, module, rule


def _dropped(name: str, module: nn.Module, rule: Rule) -> Dropped:
    elements = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    return Dropped(name, type(module).__name__, rule.title, rule.p, rule.scaling, elements)


def _chosen(model: nn.Module, layers: Choice | Iterable[Choice] | None, plus: bool) -> Iterator[tuple[str, nn.Module]]:
    modules = list(model.named_modules())
    able = (*CONVOLUTIONS,) if plus else (*CONVOLUTIONS, nn.Linear)
    choices = [_is_convolution] if layers is None else _as_choices(layers)
    for choice in choices:
        matched = [(name, module) for name, module in modules if _matches(choice, name, module)]
        if not matched and layers is None:
            raise InputError(f"{type(model).__name__} has no convolution: say which layers you mean by layers=")
        if not matched:
            raise InputError(f"layers={_describe(choice)} matches no layer{_nearest(choice, modules)}")
        if not any(_is_able(module, able) for _, module in matched):
            name, module = next((item for item in matched if item[1]._parameters), matched[0])
            why = (
                "has one position only, and DropFilter-PLUS tells positions apart: use plus=False"
                if isinstance(module, nn.Linear) and plus
                else "cannot drop parts of its filter"
            )
            known = ", ".join(kind.__name__ for kind in able)
            raise InputError(f"{_kind(name, module)} {why} (able are {known})")
    for name, module in modules:
        if _is_able(module, able) and any(_matches(choice, name, module) for choice in choices):
            _check(name, module)
            yield name, module


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def _is_convolution(name: str, module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS)


def _as_choices(layers: Choice | Iterable[Choice]) -> list[Choice]:
    if isinstance(layers, str | type) or callable(layers):
        return [layers]
    choices = list(layers) if isinstance(layers, Iterable) else []
    if not choices or not all(isinstance(choice, str | type) or callable(choice) for choice in choices):
        raise InputError(f"layers must be a pattern, a type, a function of (path, module) or several, got {layers!r}")
    return choices


def _is_able(module: nn.Module, able: tuple[type[nn.Module], ...]) -> bool:
    # The output projection of attention is a linear layer that is never called.
    return isinstance(module, able) and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


def _matches(choice: Choice, name: str, module: nn.Module) -> bool:
    if isinstance(choice, str):
        return fnmatch.fnmatchcase(name, choice)
    if isinstance(choice, type):
        return isinstance(module, choice)
    return choice(name, module)


def _describe(choice: Choice) -> str:
    return choice.__name__ if isinstance(choice, type) else repr(choice)


def _nearest(choice: Choice, modules: list[tuple[str, nn.Module]]) -> str:
    if not isinstance(choice, str):
        return ""
    near = difflib.get_close_matches(choice, [name for name, _ in modules if name], 1, 0.0)
    return f"; the nearest is {near[0]!r}" if near else ""


def _kind(name: str, module: nn.Module) -> str:
    return f"{name or '(model)'!r} ({type(module).__name__})"


def _check(name: str, module: nn.Module) -> None:
    """Raise unless the layer can drop now."""
    weight, rule = module._parameters.get("weight"), rule_of(module)
    if weight is None:
        raise InputError(
            f"the weight of {_kind(name, module)} is computed from others (a parametrization, or pruning): make it a "
            "Parameter again, or leave the layer out by layers="
        )
    if isinstance(weight, nn.UninitializedParameter):
        raise InputError(f"{_kind(name, module)} has no shape yet: run the model on one batch first")
    if rule is not None:
        raise InputError(
            f"{_kind(name, module)} drops parts of its filter already (p={rule.p:g}): use set_rate, or revert it first"
        )

"""Which tensors of a model a method works on.

By default the weights of convolutions, linear layers, attention and recurrent modules, and of Hugging
Face's ``Conv1D``; not biases, norms or embeddings, nothing frozen, and a shared tensor once.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import cast

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized
from torch.optim.swa_utils import AveragedModel

from shrinkage.core.errors import InputError

Predicate = Callable[[str, nn.Parameter], bool]
Rule = str | type[nn.Module] | Predicate
Rules = Rule | Iterable[Rule]
Matcher = Callable[[str, nn.Module, nn.Parameter], bool]

DEFAULT_TYPES: tuple[type[nn.Module], ...] = (_ConvNd, nn.Linear, nn.MultiheadAttention, nn.RNNBase)


@dataclass(frozen=True)
class Selected:
    """One chosen parameter.

    Attributes:
        name: the parameter's name in the unwrapped model.
        out_dim: the dimension that counts output units (rows, channels).
    """

    name: str
    out_dim: int


def unwrap(model: nn.Module) -> nn.Module:
    """The user's module inside ``torch.compile``'s, data-parallel and weight-averaging wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel | AveragedModel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = cast(nn.Module, model._orig_mod)
        else:
            return model


def select(
    model: nn.Module,
    include: Rules | None = None,
    exclude: Rules | None = None,
    *,
    biases: bool = False,
) -> list[Selected]:
    """Choose the parameters of ``model`` that a method works on, in the model's own order.

    Args:
        model: any module; wrappers of ``torch.compile`` and DDP are looked through.
        include: what to take instead of the default. A module type takes the weights of its instances; a
            string is a shell pattern over the parameters' names (``"encoder.*.weight"``); a
            callable receives ``(name, parameter)``. Several may be given.
        exclude: what to leave out, by the same rules.
        biases: also take the biases of the modules that are taken by type.

    Raises:
        InputError: if nothing is selected, or a pattern or type matches no parameter.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    >>> [chosen.name for chosen in select(net)]
    ['0.weight', '2.weight']
    >>> [chosen.name for chosen in select(net, exclude="2.*")]
    ['0.weight']
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    model = unwrap(model)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise InputError(f"{name!r} has no shape yet: run the model on one batch before choosing weights")
        if hasattr(parameter, "device_mesh"):
            raise InputError(
                f"{name!r} is spread over devices (FSDP, tensor parallelism): no process sees all of it, so that sizes "
                "cannot be compared. Use DistributedDataParallel"
            )
    owned = list(_parameters(model))
    named, unwanted = _as_rules(include or ()), _as_rules(exclude or ())
    takers = [_matcher(rule, biases) for rule in named]
    leavers = [_matcher(rule, True) for rule in unwanted]
    for rule, matcher in zip([*named, *unwanted], [*takers, *leavers], strict=True):
        if not any(matcher(*item) for item in owned):
            raise InputError(f"{_describe(rule)} matches no parameter{_nearest(rule, owned)}")
    if include is None:
        _refuse_computed(model, lambda *item: any(leaves(*item) for leaves in leavers))
        takers = [_untied(matcher, model) for matcher in _default_matchers(biases)]
    chosen: list[Selected] = []
    for name, module, parameter in owned:
        if not parameter.requires_grad or not parameter.is_floating_point() or not parameter.numel():
            continue
        if not any(takes(name, module, parameter) for takes in takers):
            continue
        if any(leaves(name, module, parameter) for leaves in leavers):
            continue
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise InputError(f"{name!r} has sparse gradients: build the embedding with sparse=False, or leave it out")
        chosen.append(Selected(name, _out_dim(module)))
    if not chosen:
        raise InputError(
            f"nothing to select in {type(model).__name__}: no trainable weight of a convolution, linear, "
            "attention or recurrent layer remains; name what you mean with include="
        )
    return chosen


def _refuse_computed(model: nn.Module, left_out: Matcher) -> None:
    """Raise for layers whose weight is computed from other parameters: zeros there need not be zeros of the weight."""
    for path, layer in model.named_modules():
        own = {name for name, _ in layer.named_parameters(recurse=False)}
        if not isinstance(layer, DEFAULT_TYPES) or not (is_parametrized(layer, "weight") or "weight_g" in own):
            continue
        place = f"{path}." if path else ""
        parts = [
            item
            for item in _parameters(layer)
            if item[0].startswith(("parametrizations.weight.", "weight_g", "weight_v"))
        ]
        if not all(left_out(place + name, module, parameter) for name, module, parameter in parts):
            raise InputError(
                f"the weight of {path or type(layer).__name__!r} is computed from other parameters, as by weight_norm "
                "or another parametrization, and zeros in those are no zeros of the weight: leave it out with "
                f"exclude={place + '*'!r}, or name what you mean with include="
            )


def match_names(patterns: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Map each name to the first pattern that fits it; a pattern that fits none is an error."""
    names = list(names)
    found: dict[str, str] = {}
    for pattern in patterns:
        hits = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            near = difflib.get_close_matches(pattern, names, 1, 0.0)
            raise InputError(f"pattern {pattern!r} matches no selected weight; the nearest name is {near[0]!r}")
        for name in hits:
            found.setdefault(name, pattern)
    return found


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield (f"{path}.{name}" if path else name), module, parameter


def _matcher(rule: Rule, biases: bool) -> Matcher:
    if isinstance(rule, str):
        return lambda name, module, parameter: fnmatch.fnmatchcase(name, rule)
    if isinstance(rule, type):
        return lambda name, module, parameter: isinstance(module, rule) and (biases or not _is_bias(name, parameter))
    return lambda name, module, parameter: rule(name, parameter)


def _default_matchers(biases: bool) -> list[Matcher]:
    return [
        *(_matcher(kind, biases) for kind in DEFAULT_TYPES),
        lambda name, module, parameter: is_hf_conv1d(module) and (biases or not _is_bias(name, parameter)),
    ]


def _untied(matcher: Matcher, model: nn.Module) -> Matcher:
    """The same without what an embedding shares with the layer, such as a language model's head."""
    tied = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    return lambda name, module, parameter: id(parameter) not in tied and matcher(name, module, parameter)


def _is_bias(name: str, parameter: nn.Parameter) -> bool:
    return "bias" in name.rpartition(".")[2] or parameter.ndim < 2


def is_hf_conv1d(module: nn.Module) -> bool:
    """Hugging Face's ``Conv1D`` is a linear layer with a transposed weight; known by its looks."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _out_dim(module: nn.Module) -> int:
    return 1 if isinstance(module, _ConvTransposeNd) or is_hf_conv1d(module) else 0


def _as_rules(rules: Rules) -> list[Rule]:
    if isinstance(rules, str | type) or callable(rules):
        return [rules]
    return list(rules)


def _describe(rule: Rule) -> str:
    if isinstance(rule, str):
        return f"the pattern {rule!r}"
    return f"the type {rule.__name__}" if isinstance(rule, type) else f"the predicate {rule!r}"


def _nearest(rule: Rule, owned: list[tuple[str, nn.Module, nn.Parameter]]) -> str:
    if not isinstance(rule, str):
        return ""
    near = difflib.get_close_matches(rule, [name for name, _, _ in owned], 1, 0.0)
    return f"; the nearest name is {near[0]!r}" if near else ""


def resolve(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """The tensors behind the names, as the model holds them now (wrappers may have replaced them)."""
    model = unwrap(model)
    found: dict[str, nn.Parameter] = {}
    for name in names:
        try:
            found[name] = model.get_parameter(name)
        except AttributeError as error:
            raise InputError(f"the model has no parameter {name!r}") from error
    return found

"""What one call of a layer costs in multiply–accumulates: a registry that new layers join.

A formula says how often each entry of a weight is multiplied in one call. That is enough for both
counts of :func:`shrinkage.footprint`: the dense one (all entries) and the effective one (entries that
are not zero). Multiplications by padded zeros count, as is usual; biases are additions and do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.rnn import PackedSequence

from shrinkage.core.selection import is_hf_conv1d


@dataclass(frozen=True)
class Cost:
    """Multiply–accumulates (MACs) of one call of a module.

    Attributes:
        uses: for each weight, by its name within the module (``"weight"``, ``"out_proj.weight"``), in how
            many MACs an entry of it takes part: one number for all entries, or an integer tensor that
            broadcasts against the weight.
        others: MACs without a weight, such as the products of queries with keys.
        additions: those that no multiplication goes with.
    """

    uses: Mapping[str, int | Tensor] = field(default_factory=dict)
    others: int = 0
    additions: int = 0


@dataclass(frozen=True)
class Packed:
    """The weights of a module that keeps them in a form of its own, in buffers.

    Attributes:
        parameters: how many numbers they stand for, biases included.
        nonzeros: how many of those are not zero.
        bytes: of the form.
        bits: of a weight in it.
    """

    parameters: int
    nonzeros: int
    bytes: int
    bits: int


@runtime_checkable
class KeepsPacked(Protocol):
    """A module that tells what it keeps beside its parameters."""

    def packed_form(self) -> Packed:
        """What it keeps."""
        ...


Formula = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], Cost]
_F = TypeVar("_F", bound=Formula)


@singledispatch
def cost(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Cost | None:
    """The cost of a call ``module(*args, **kwargs)`` that gave ``output``; None if no formula is known.

    Chosen by the module's type, or else the nearest type it derives from.

    >>> layer = nn.Conv2d(3, 8, 5)
    >>> x = torch.zeros(1, 3, 32, 32)
    >>> cost(layer, (x,), {}, layer(x)).uses        # 28 × 28 positions
    {'weight': 784}
    """
    return _hf_conv1d(module, output) if is_hf_conv1d(module) else None


def has_formula(module: nn.Module) -> bool:
    """Whether :func:`cost` knows modules of this type."""
    return cost.dispatch(type(module)) is not cost.dispatch(object) or is_hf_conv1d(module)


def own_forward(module: nn.Module) -> bool:
    """Whether a module of a type that derives from one with a formula computes otherwise than PyTorch's."""
    return type(module) not in cost.registry and not type(module).forward.__module__.startswith("torch.")


def register_cost(*types: type[nn.Module]) -> Callable[[_F], _F]:
    """Enter a formula for module types and everything derived from them.

    The formula is called as ``formula(module, args, kwargs, output)`` after each forward call and
    returns a :class:`Cost`. Submodules that are called as modules are counted by themselves: leave them out.

    >>> class Scale(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.gain = nn.Parameter(torch.ones(()))
    ...     def forward(self, x):
    ...         return self.gain * x
    >>> @register_cost(Scale)
    ... def scale(module, args, kwargs, output):
    ...     return Cost({"gain": output.numel()})
    >>> cost(Scale(), (), {}, torch.zeros(2, 3)).uses
    {'gain': 6}
    """

    def enter(formula: _F) -> _F:
        for kind in types:
            cost.register(kind, formula)
        return formula

    return enter


def _hf_conv1d(module: nn.Module, output: Tensor) -> Cost:
    return Cost({"weight": output.numel() // module.get_parameter("weight").shape[1]})


@register_cost(nn.Linear)
def _linear(module: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Cost:
    return Cost({"weight": output.numel() // module.out_features})


@register_cost(_ConvNd)
def _conv(module: _ConvNd, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Cost:
    return Cost({"weight": output.numel() // module.out_channels})


@register_cost(_ConvTransposeNd)
def _conv_transpose(module: _ConvTransposeNd, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Cost:
    (x,) = _arguments(args, kwargs, "input")
    return Cost({"weight": x.numel() // module.in_channels})


@register_cost(_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
def _scale(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Cost:
    """One MAC an element for scale and shift; the statistics of a norm are not counted."""
    weight = getattr(module, "weight", None)
    return Cost() if weight is None else Cost({"weight": output.numel() // weight.numel()})


@register_cost(nn.Embedding, nn.EmbeddingBag)
def _lookup(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Cost:
    return Cost()


@register_cost(nn.RNNBase)
def _recurrent(module: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Cost:
    """The matrices at every time step; the elementwise gates are not counted."""
    (x,) = _arguments(args, kwargs, "input")
    steps = len(x.data) if isinstance(x, PackedSequence) else math.prod(x.shape[:-1])
    return Cost({name: steps for name, _ in module.named_parameters() if name.startswith("weight_")})


@register_cost(nn.RNNCellBase)
def _cell(module: nn.RNNCellBase, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Cost:
    (x,) = _arguments(args, kwargs, "input")
    steps = math.prod(x.shape[:-1])
    return Cost({"weight_ih": steps, "weight_hh": steps})


@register_cost(nn.MultiheadAttention)
def _attention(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Cost:
    query, key = _arguments(args, kwargs, "query", "key")
    batch = 1 if query.ndim == 2 else query.shape[0 if module.batch_first else 1]
    queries, keys = (x.numel() // x.shape[-1] for x in (query, key))
    uses: dict[str, int | Tensor] = {"out_proj.weight": queries}
    if getattr(module, "in_proj_weight", None) is None:  # keys or values of another size than the queries
        uses |= {"q_proj_weight": queries, "k_proj_weight": keys, "v_proj_weight": keys}
    else:  # the rows of the three projections lie in one matrix
        rows = torch.tensor([queries, keys, keys], device=module.in_proj_weight.device)
        uses["in_proj_weight"] = rows.repeat_interleave(module.embed_dim).unsqueeze(1)
    attended = keys // batch + (module.bias_k is not None) + module.add_zero_attn
    # Queries by keys, then the weights by values; the heads share embed_dim among them.
    return Cost(uses, others=2 * queries * attended * module.embed_dim)


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any], *names: str) -> list[Any]:
    """The leading arguments of a call, however they were passed."""
    return [args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names)]

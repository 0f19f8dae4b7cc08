"""A network as a chain of layers, so that what lies downstream of a weight is known."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from shrinkage.core.errors import InputError
from shrinkage.core.selection import unwrap

Layer = nn.Linear | nn.Conv2d

_POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.Softsign,
)  # fmt: skip
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_SKIPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
_KNOWN = (*_POINTWISE, *_POOLS, *_NORMS, *_SKIPPED, nn.Linear, nn.Conv2d, nn.Flatten)

_FEW = 16  # outputs up to which W·xᵀ is faster than x·Wᵀ: 2.5 times with 10 of them, 100 inputs and 5,000 examples


@dataclass(frozen=True)
class Stage:
    """A layer with discrete weights, and what its outputs go through, each channel by itself.

    Attributes:
        name: the layer's path in the model.
        layer: a linear layer or a convolution.
        after: activations, pools, norms (by their running statistics) and flattening up to the next layer.
    """

    name: str
    layer: Layer
    after: tuple[nn.Module, ...]

    @property
    def fan_in(self) -> int:
        """Inputs of one output."""
        return math.prod(self.layer.weight.shape[1:])

    def multiply(self, x: Tensor, first: int, last: int) -> Tensor:
        """The layer without its bias, on the channels (or features) from ``first`` to ``last`` of its input."""
        weight = self.layer.weight[:, first:last]
        if isinstance(self.layer, nn.Linear):
            return functional.linear(x, weight)
        layer = self.layer
        return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)

    def forward(self, x: Tensor) -> Tensor:
        """The layer on all of its input."""
        if isinstance(self.layer, nn.Linear):
            weight, bias = self.layer.weight, self.layer.bias
            if x.ndim != 2 or len(weight) > _FEW:
                return functional.linear(x, weight, bias)
            z = torch.mm(weight, x.t()).t().contiguous()
            return z if bias is None else z.add_(bias)
        layer = self.layer
        return functional.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation)

    def outputs(self, z: Tensor, channel: int | None = None) -> Tensor:
        """What the next layer gets for outputs ``z`` of the layer: of all channels, or of one alone.

        Args:
            z: shape (M, channels, …), or (M, 1, …) of one channel.
            channel: which one it is.
        """
        for module in self.after:
            if getattr(module, "inplace", False):
                z = z.clone()  # what is given is kept by whoever gives it
            z = _norm(module, z, channel) if isinstance(module, _NORMS) else module(z)
        return z


@dataclass(frozen=True)
class Chain:
    """A network that is a row of layers.

    Attributes:
        before: what the input goes through first.
        stages: the layers with discrete weights.
    """

    before: tuple[nn.Module, ...]
    stages: tuple[Stage, ...]

    def first(self, x: Tensor) -> Tensor:
        """What the first layer gets."""
        for module in self.before:
            if getattr(module, "inplace", False):
                x = x.clone()
            x = _norm(module, x, None) if isinstance(module, _NORMS) else module(x)
        return x

    def forward(self, x: Tensor, begin: int = 0) -> Tensor:
        """The network, in evaluation mode, from the input of stage ``begin`` on."""
        for stage in self.stages[begin:]:
            x = stage.outputs(stage.forward(x))
        return x


def chain(model: nn.Module) -> Chain:
    """Read a model as a chain.

    Args:
        model: ``nn.Sequential``, nested or not, of ``Linear``, ``Conv2d``, activations that act value by value, pools,
            ``BatchNorm``, ``Dropout``, ``Flatten`` and ``Identity``.

    Raises:
        InputError: if there is any other module, or one with a forward, hooks or parametrizations of its own, or with
            weights that are used twice, which is named; or no layer.

    >>> [stage.name for stage in chain(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))).stages]
    ['0', '2']
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    before: list[nn.Module] = []
    found: list[tuple[str, Layer, list[nn.Module]]] = []
    seen: set[int] = set()
    for name, module in _leaves(unwrap(model), ""):
        if isinstance(module, nn.Linear | nn.Conv2d):
            _check_layer(name, module, seen)
            seen.update(map(id, module.parameters()))
            found.append((name, module, []))
        elif not isinstance(module, _SKIPPED):
            (found[-1][2] if found else before).append(module)
        _check_hooks(name, module)
    if not found:
        raise InputError(f"{type(model).__name__} has no Linear or Conv2d whose weights CoNNTrA could choose")
    return Chain(tuple(before), tuple(Stage(name, layer, tuple(after)) for name, layer, after in found))


def _leaves(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules with their paths, in the order in which they are called: one that is used twice comes twice."""
    if isinstance(module, nn.Sequential) and _has_forward_of(module, nn.Sequential):
        _check_hooks(path, module)
        for name, child in module._modules.items():
            if child is not None:
                yield from _leaves(child, f"{path}.{name}" if path else name)
        return
    fine = any(isinstance(module, kind) and _has_forward_of(module, kind) for kind in _KNOWN)
    if not fine or (isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1)):
        raise InputError(
            f"CoNNTrA cannot look through {path or 'the model'!r} ({type(module).__name__}): it trains nn.Sequential "
            "of Linear, Conv2d, activations, pools, BatchNorm, Dropout and Flatten(), none with a forward of its own"
        )
    if isinstance(module, _NORMS) and not module.track_running_stats:
        raise InputError(f"{path!r} ({type(module).__name__}) keeps no running statistics, which CoNNTrA would need")
    yield path, module


def _has_forward_of(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether neither a class in between nor the module itself has put another ``forward`` in its place."""
    return getattr(module.forward, "__func__", module.forward) is kind.forward


def _check_hooks(path: str, module: nn.Module) -> None:
    if module._forward_hooks or module._forward_pre_hooks:
        raise InputError(
            f"{path or 'the model'!r} ({type(module).__name__}) has forward hooks, which CoNNTrA would pass by: remove "
            "them first, with shrinkage.dropfilter.revert if they are DropFilter's"
        )


def _check_layer(name: str, layer: Layer, seen: Collection[int]) -> None:
    if isinstance(layer._parameters.get("weight"), nn.UninitializedParameter):
        raise InputError(f"{name!r} has no shape yet: run the model on one batch first")
    own = {kind for kind, _ in layer.named_parameters()}
    if "weight" not in own or own - {"weight", "bias"}:
        raise InputError(
            f"{name!r} ({type(layer).__name__}) has the parameters {', '.join(sorted(own))}, of which its weight is "
            "made: make a plain one of it first, by torch.nn.utils.parametrize.remove_parametrizations or "
            "torch.nn.utils.prune.remove"
        )
    for kind, parameter in layer.named_parameters():
        if id(parameter) in seen:
            raise InputError(f"the {kind} of {name!r} is shared with an earlier layer; give each layer its own")
    if isinstance(layer, nn.Conv2d) and (
        layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str)
    ):
        raise InputError(
            f"the convolution {name!r} has groups={layer.groups}, padding={layer.padding!r} and padding_mode="
            f"{layer.padding_mode!r}; CoNNTrA trains those with one group and zeros, counted in numbers, as padding"
        )


def _norm(norm: nn.Module, z: Tensor, channel: int | None) -> Tensor:
    """Batch normalisation by running statistics, of all features or of those that one channel has become."""
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    here = slice(None) if channel is None else slice(channel * z.shape[1], (channel + 1) * z.shape[1])
    weight, bias = (None if part is None else part[here] for part in (norm.weight, norm.bias))
    return torch.batch_norm(z, weight, bias, mean[here], variance[here], False, 0.0, norm.eps, False)

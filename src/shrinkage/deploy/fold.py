r"""BatchNorm leaves the model: in evaluation mode it is a scale and a shift, which a neighbouring layer can take over.

.. math::
    s\,(W x + b) + t = (s W)\,x + (s b + t) \qquad\qquad W\,(s x + t) + b = (W s)\,x + (W t + b)

with :math:`s = \gamma / \sqrt{\sigma^2 + \epsilon}` and :math:`t = \beta - s\,\mu`. The first is a BatchNorm behind
a layer, the second one before it; before a convolution that pads with zeros it is exact only without a shift.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from shrinkage.core.errors import InputError
from shrinkage.core.selection import unwrap
from shrinkage.core.tables import render
from shrinkage.deploy.rework import Arguments, Rework, rework
from shrinkage.deploy.tracing import Trace, arguments, operation, trace

# Operations that can take a BatchNorm over, and how many dimensions their results have beside batch and channels.
_LAYERS = {"linear": 0, **{f"{kind}{dims}d": dims for dims in (1, 2, 3) for kind in ("conv", "conv_transpose")}}


@dataclass(frozen=True)
class Pair:
    """A BatchNorm and the layer that takes it over.

    Attributes:
        norm: the path of the BatchNorm.
        layer: the path of the layer.
        behind: whether the BatchNorm comes after the layer.
    """

    norm: str
    layer: str
    behind: bool


@dataclass(frozen=True)
class Folded:
    """What :func:`fold_batchnorm` made; prints as a table.

    Attributes:
        model: the model without these BatchNorms.
        pairs: which of them were folded, and into what.
        left: paths of the others.
    """

    model: nn.Module
    pairs: tuple[Pair, ...]
    left: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as texts and lists, without the model."""
        return {
            "model": type(self.model).__name__,
            "folded": [{"norm": pair.norm, "into": pair.layer, "behind": pair.behind} for pair in self.pairs],
            "left": list(self.left),
        }

    def __str__(self) -> str:
        rows: list[list[object]] = [
            [pair.norm, f"{pair.layer}, {'before' if pair.behind else 'behind'} it"] for pair in self.pairs
        ]
        rows += [[name, None] for name in self.left]
        return render(["BatchNorm", "folded into"], rows, title=f"{type(self.model).__name__}, BatchNorm folded")


def fold_batchnorm(model: nn.Module, example: Any) -> Folded:
    """Fold BatchNorm into a layer beside it; the function in evaluation mode is the same but for rounding.

    A BatchNorm is folded where it and a convolution, transposed convolution or linear layer follow one another
    directly, each runs once, is used under one name and has no hooks or parametrizations. In its place stays an
    ``nn.Identity``; a layer without a bias gets one. Everything else is left alone.

    Args:
        model: any module that ``torch.export`` can trace; it is not changed.
        example: an input, as for :func:`~shrinkage.compact`.

    Returns:
        A copy for inference, in the mode of the original: without BatchNorm, training is another thing.

    Raises:
        InputError: as :func:`~shrinkage.compact`.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    >>> result = fold_batchnorm(net, torch.randn(1, 1, 8, 8))
    >>> print(result)
    Sequential, BatchNorm folded
    BatchNorm  folded into
    ─────────  ────────────
    1          0, before it
    >>> result.model[1], result.model[0].bias.shape
    (Identity(), torch.Size([4]))
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    folded, pairs, _ = rework(unwrap(model), arguments(example), _find)
    left = [name for name, module in folded.named_modules() if isinstance(module, _BatchNorm)]
    return Folded(folded, tuple(pairs), tuple(left))


def _find(model: nn.Module, inputs: Arguments) -> Rework[Pair]:
    traced = trace(model, *inputs)
    pairs: dict[str, Pair] = {}
    for pair in _pairs(model, traced):
        pairs.setdefault(pair.norm, pair)

    def make(model: nn.Module, some: Sequence[Pair]) -> None:
        for pair in some:
            _fold(model, pair)

    return Rework(list(pairs.values()), make, traced.epsilon)


def _pairs(model: nn.Module, traced: Trace) -> Iterator[Pair]:
    """What can be folded, first each BatchNorm into the layer before it."""
    paths = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))

    def owner(weights: Sequence[Any], names: Sequence[str]) -> str | None:
        """The path of the module whose tensors these are, by these names, if they are used here alone."""
        given = [(node, name) for node, name in zip(weights, names, strict=True) if node is not None]
        if not given or not all(traced.alone(node) for node, _ in given):
            return None
        path = traced.names[given[0][0]].rpartition(".")[0]
        if not path or any(traced.names[node] != f"{path}.{name}" for node, name in given):
            return None
        module = model.get_submodule(path)
        hooked = module._forward_hooks or module._forward_pre_hooks
        return path if paths[id(module)] == 1 and not hooked else None

    for node in traced.graph.graph.nodes:
        if operation(node) != "_native_batch_norm_legit_no_training":
            continue
        norm = owner(node.args[1:5], ("weight", "bias", "running_mean", "running_var"))
        (result,) = node.users if len(node.users) == 1 else (None,)
        readers = list(result.users) if result is not None else []
        if norm is None or not isinstance(model.get_submodule(norm), _BatchNorm):
            continue
        for other, behind in [(node.args[0], True), *((reader, False) for reader in readers)]:
            if operation(other) not in _LAYERS or other.meta["val"].ndim != _LAYERS[operation(other)] + 2:
                continue
            weights = (*other.args[1:3], None)[:2]  # a bias that is not there may be left out
            layer = owner(weights, ("weight", "bias"))
            if layer is None or not isinstance(model.get_submodule(layer), _ConvNd | nn.Linear):
                continue
            if behind and traced.norm_after(other) is node:
                yield Pair(norm, layer, behind=True)
            elif not behind and len(readers) == 1 and other.args[0] is result and _exact_before(model, norm, layer):
                yield Pair(norm, layer, behind=False)


def _exact_before(model: nn.Module, norm: str, layer: str) -> bool:
    """Whether a shift in front of the layer is one behind it: not beside padding, nor between spread inputs."""
    module = model.get_submodule(layer)
    if not isinstance(module, _ConvNd):
        return True
    plain = not module.transposed and module.padding in ("valid", (0,) * len(module.kernel_size))
    return plain or not bool(_affine(model.get_submodule(norm))[1].any())


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel, in double precision."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _fold(model: nn.Module, pair: Pair) -> None:
    norm, layer = model.get_submodule(pair.norm), model.get_submodule(pair.layer)
    assert isinstance(layer, _ConvNd | nn.Linear)
    scale, shift = _affine(norm)
    groups, transposed = (layer.groups, layer.transposed) if isinstance(layer, _ConvNd) else (1, False)
    weight = layer.weight.detach()
    first, second = weight.shape[:2]
    matrix = weight.double().view(groups, first // groups, second, -1)
    matrix = matrix.transpose(1, 2) if transposed else matrix  # groups, outputs, inputs, taps
    bias = scale.new_zeros(matrix.shape[0] * matrix.shape[1]) if layer.bias is None else layer.bias.detach().double()
    if pair.behind:
        matrix, bias = matrix * scale.view(groups, -1, 1, 1), scale * bias + shift
    else:
        bias = bias + (matrix.sum(-1) @ shift.view(groups, -1, 1)).flatten()
        matrix = matrix * scale.view(groups, 1, -1, 1)
    matrix = matrix.transpose(1, 2) if transposed else matrix
    layer.weight.data = matrix.reshape(weight.shape).to(weight)
    if layer.bias is not None:
        layer.bias.data = bias.to(weight)
    else:
        layer.bias = nn.Parameter(bias.to(weight), requires_grad=layer.weight.requires_grad)
    model.set_submodule(pair.norm, nn.Identity().train(norm.training))

"""Cutting slices out of a model's tensors, and making a fresh model as small as a compacted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from shrinkage.core.errors import InputError
from shrinkage.core.selection import is_hf_conv1d, unwrap
from shrinkage.deploy.dead import Cut, Plan
from shrinkage.deploy.tracing import stored

M = TypeVar("M", bound=nn.Module)


def apply(model: nn.Module, plan: Plan) -> None:
    """Do what is planned, in place; parameters stay the same objects."""
    held = stored(model)
    for name, shift in plan.shifts.items():
        tensor = held[name]
        tensor.data = (tensor.detach() + shift.to(tensor)).detach()
    for name, cut in plan.cuts.items():
        tensor = held[name]
        tensor.data = cut_to(tensor.detach(), cut)
    for name, groups in plan.groups.items():
        model.get_submodule(name.rpartition(".")[0]).groups = groups  # type: ignore[assignment]
    refresh(model)


def reshape_like(model: M, shapes: Mapping[str, Tensor | Sequence[int]]) -> M:
    """Shrink a freshly built model to the shapes of a compacted one, so that its weights can be loaded.

    Values are those of the first slices, to be overwritten. Names that the model does not have are left to
    ``load_state_dict`` to complain about.

    Args:
        model: is changed in place.
        shapes: a ``state_dict``, or shapes by name such as
            :attr:`Compacted.shapes <shrinkage.deploy.compact.Compacted.shapes>`.

    Returns:
        The model.

    Raises:
        InputError: if a shape has another number of dimensions than the model's, or is larger; nothing is changed then.

    >>> small = {"0.weight": (3, 4), "0.bias": (3,), "2.weight": (1, 3), "2.bias": (1,)}
    >>> net = nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 1))
    >>> reshape_like(net, small)[0]
    Linear(in_features=4, out_features=3, bias=True)
    """
    inner = unwrap(model)
    held = stored(inner)
    wanted = {
        name: tuple(like.shape) if isinstance(like, Tensor) else tuple(like)
        for name, like in shapes.items()
        if name in held
    }
    for name, shape in wanted.items():
        have = tuple(held[name].shape)
        if len(shape) != len(have) or any(small > large for small, large in zip(shape, have, strict=True)):
            raise InputError(
                f"{name!r} has the shape {have} in this model and cannot be shrunk to {shape}; "
                "build the model as it was before it was compacted"
            )
    groups = {
        module: _groups_left(module, wanted[f"{path}.weight" if path else "weight"])
        for path, module in inner.named_modules()
        if isinstance(module, _ConvNd) and (f"{path}.weight" if path else "weight") in wanted
    }
    for name, shape in wanted.items():
        tensor = held[name]
        if tuple(tensor.shape) != shape:
            tensor.grad = None
            tensor.data = tensor.detach()[tuple(slice(size) for size in shape)].clone()
    for module, left in groups.items():
        module.groups = left
    refresh(inner)
    return model


def refresh(model: nn.Module) -> None:
    """Make what modules say of their sizes agree with their tensors."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, _ConvNd):
            first, second = module.weight.shape[:2]
            sizes = (first, second * module.groups) if module.transposed else (second * module.groups, first)
            module.in_channels, module.out_channels = sizes
        elif isinstance(module, _NormBase):
            tensor = module.weight if module.weight is not None else module.running_mean
            module.num_features = module.num_features if tensor is None else len(tensor)
        elif isinstance(module, nn.PReLU):
            module.num_parameters = len(module.weight)
        elif isinstance(module, nn.Embedding):
            module.num_embeddings, module.embedding_dim = module.weight.shape
        elif is_hf_conv1d(module):
            module.nx, module.nf = module.get_parameter("weight").shape  # type: ignore[assignment]


def cut_to(tensor: Tensor, cut: Cut) -> Tensor:
    """A copy with the places of ``cut`` only, along each dimension, in the same memory format."""
    wanted = _format(tensor)
    for dim, places in enumerate(cut):
        if places is None:
            continue
        places = places.to(tensor.device)
        if places.ndim == 1:
            tensor = tensor.index_select(dim, places)
        else:  # of each output its own inputs
            rows = torch.arange(len(places), device=tensor.device).unsqueeze(1)
            tensor = tensor[rows, places]
    return tensor.clone(memory_format=wanted)


def _format(tensor: Tensor) -> torch.memory_format:
    for wanted, ndim in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if tensor.ndim == ndim and tensor.is_contiguous(memory_format=wanted) and not tensor.is_contiguous():
            return wanted
    return torch.contiguous_format


def _groups_left(conv: _ConvNd, shape: Sequence[int]) -> int:
    """How many groups a compacted convolution has: either whole groups went, or as many slices of each."""
    if conv.groups == 1 or conv.transposed:
        return conv.groups
    size = conv.out_channels // conv.groups
    whole = shape[1] == conv.weight.shape[1] and shape[0] % size == 0
    return shape[0] // size if whole else conv.groups

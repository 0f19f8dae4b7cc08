"""What goes into a model and what comes out, as flat lists of tensors: at any batch size, at random, compared."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from shrinkage.core.errors import InputError

Inputs = tuple[Tensor, ...]


def as_inputs(example: Any) -> Inputs:
    """An example as the positional arguments that it stands for, on the CPU.

    Args:
        example: a tensor, or a tuple or list of them; the first dimension of each counts examples.

    Raises:
        InputError: if it is something else, or the tensors disagree on how many examples they hold.
    """
    inputs = (example,) if isinstance(example, Tensor) else example
    if not isinstance(inputs, tuple | list) or not inputs or not all(isinstance(each, Tensor) for each in inputs):
        raise InputError(
            "the example must be a tensor, or a tuple of tensors in the order of the model's arguments, "
            f"got {type(example).__name__}"
        )
    sizes = [each.shape[0] if each.ndim else None for each in inputs]
    if len(set(sizes)) != 1 or not sizes[0]:
        shapes = ", ".join(str(tuple(each.shape)) for each in inputs)
        raise InputError(
            f"the first dimension of an example counts examples, at least one and as many in each: {shapes}"
        )
    return tuple(each.detach().cpu() for each in inputs)


def random_inputs(inputs: Inputs, batch: int, generator: torch.Generator) -> Inputs:
    """Others of the same kind, ``batch`` examples.

    Numbers with a point are from N(0, 1); whole numbers lie between the smallest and the largest of the
    example, so that indices into a table stay inside it.

    >>> x, = random_inputs((torch.zeros(1, 3),), 5, torch.Generator())
    >>> x.shape
    torch.Size([5, 3])
    """

    def one(like: Tensor) -> Tensor:
        shape = (batch, *like.shape[1:])
        if like.is_floating_point():
            return torch.randn(shape, generator=generator).to(like.dtype)
        if like.is_complex():
            return torch.randn(shape, generator=generator, dtype=torch.complex64).to(like.dtype)
        low, high = int(like.min()), int(like.max())
        return torch.randint(low, high + 1, shape, generator=generator).to(like.dtype)

    return tuple(map(one, inputs))


def input_names(model: nn.Module, count: int) -> list[str]:
    """What ``forward`` calls its first arguments; ``input``, or ``input_0`` and so on, where it does not name them."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return named[:count] if len(named) >= count else numbered("input", count)


def numbered(word: str, count: int) -> list[str]:
    """``["output"]`` for one, ``["output_0", "output_1"]`` for two."""
    return [word] if count == 1 else [f"{word}_{index}" for index in range(count)]


def outputs(result: Any) -> list[Tensor]:
    """The tensors of what a model gave, in order: alone, in tuples, lists, dicts or data classes known to torch.

    Raises:
        InputError: if there is none, or something else among them.
    """
    leaves = [leaf for leaf in _pytree.tree_leaves(result) if leaf is not None]
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        found = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
        raise InputError(f"the model must give tensors, alone or in tuples or dicts; it gave {found}")
    return leaves


def difference(found: Sequence[Any], expected: Sequence[Tensor]) -> float:
    """The largest difference between outputs, relative to the largest size in the output concerned.

    Returns:
        A number ≥ 0; infinite where they disagree in number or shape, or ``found`` has a value that is not finite.

    >>> difference([torch.tensor([1.0, 4.0])], [torch.tensor([1.0, 2.0])])
    1.0
    """
    if len(found) != len(expected):
        return float("inf")
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        a, b = torch.as_tensor(one).detach().cpu().double(), other.detach().cpu().double()
        if a.shape != b.shape:
            return float("inf")
        if not a.numel() or torch.equal(a, b):
            continue
        gap = float((a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst

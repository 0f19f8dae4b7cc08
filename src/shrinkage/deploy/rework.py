"""Changing a model's form and not its function: tried part by part, checked, and undone where it shows."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from shrinkage.core.errors import InputError
from shrinkage.core.evaluation import evaluating
from shrinkage.deploy.tracing import tensors

T = TypeVar("T")
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Rework(Generic[T]):
    """A change of form, in parts.

    Attributes:
        parts: what can be done, each by itself or left out.
        make: does some of it to a model, in place.
        epsilon: the largest machine epsilon of the types that the model computes in.
    """

    parts: Sequence[T]
    make: Callable[[nn.Module, Sequence[T]], None]
    epsilon: float


def rework(
    original: nn.Module, inputs: Arguments, find: Callable[[nn.Module, Arguments], Rework[T]]
) -> tuple[nn.Module, list[T], list[T]]:
    """Do as many parts as keep the function, on the example and on a random input like it.

    Args:
        original: is not changed.
        inputs: the example.
        find: gives the parts for a copy of the model, in evaluation mode and double precision if it runs in that: there
            a change of the function cannot hide in rounding.

    Returns:
        The changed copy, without gradients; the parts that were done, and those that were not.

    Raises:
        InputError: if the model cannot be copied, does not run on the example, or gives two outputs for one input.
    """
    for name, parameter in original.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise InputError(f"{name!r} has no shape yet: run the model on one batch first")
    work = _copied(original).eval()
    try:
        run(work, inputs)
    except Exception as error:
        kind = type(work).__name__
        raise InputError(f"{kind} cannot run on the example: {type(error).__name__}: {error}") from error
    try:
        wide, wide_inputs = _copied(work).double(), _pytree.tree_map(_doubled, inputs)
        run(wide, wide_inputs)
    except Exception:  # the user's code may insist on a type
        pass
    else:
        work, inputs = wide, wide_inputs
    change = find(work, inputs)
    known = [(inputs, run(work, inputs))]
    if not agree(run(work, inputs), known[0][1], change.epsilon):
        raise InputError(
            f"{type(work).__name__} gives two different outputs for one input in evaluation mode, so that nothing "
            "can be said of its function; let what it draws at random depend on torch's seed"
        )
    with contextlib.suppress(Exception):  # not every input that looks like the example is one
        random = random_like(inputs)
        known.append((random, run(work, random)))

    def works(some: Sequence[T]) -> bool:
        candidate = _copied(work)
        try:
            change.make(candidate, some)
            return all(agree(run(candidate, given), outputs, change.epsilon) for given, outputs in known)
        except Exception:  # such as sizes that the model's own code counts on
            return False

    done, left = largest(change.parts, works)
    result = _copied(original)
    for parameter in result.parameters():
        parameter.grad = None
    change.make(result, done)
    return result, done, left


def run(model: nn.Module, inputs: Arguments) -> list[Tensor]:
    """All tensors that the model returns, in evaluation mode; what it draws at random is the same at each call."""
    args, kwargs = _pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
    devices = list({parameter.device for parameter in model.parameters() if parameter.is_cuda})
    with evaluating(model), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        return tensors(model(*args, **kwargs))


def random_like(inputs: Arguments) -> Arguments:
    """Inputs of the same shapes: normal numbers with the example's mean and spread, whole numbers within its range.

    Truth values and complex numbers stay.
    """
    chance = torch.Generator().manual_seed(0)

    def other(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.numel() or leaf.dtype == torch.bool or leaf.is_complex():
            return leaf
        if leaf.is_floating_point():
            drawn = torch.randn(leaf.shape, generator=chance, dtype=torch.float64).to(leaf.device)
            spread = float(leaf.double().std(correction=0)) or 1.0
            return (leaf.double().mean() + spread * drawn).to(leaf.dtype)
        low, high = int(leaf.min()), int(leaf.max())
        return torch.randint(low, high + 1, leaf.shape, generator=chance).to(leaf)

    changed: Arguments = _pytree.tree_map(other, inputs)
    return changed


def agree(found: Sequence[Tensor], expected: Sequence[Tensor], epsilon: float) -> bool:
    """Whether outputs are equal but for rounding.

    Two thirds of the digits that ``epsilon`` leaves have to agree, relative to the largest size in each output.

    >>> agree([torch.tensor([1.0, 100.0])], [torch.tensor([1.0001, 100.0])], 1e-8)
    True
    >>> agree([torch.tensor([1.01, 100.0])], [torch.tensor([1.0, 100.0])], 1e-8)
    False
    """
    if len(found) != len(expected):
        return False
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if not other.is_floating_point():
            if not torch.equal(one, other):
                return False
            continue
        a, b = one.double(), other.double()
        finite = b[b.isfinite()].abs()
        size = float(finite.max()) if finite.numel() else 0.0
        if not torch.allclose(a, b, rtol=0.0, atol=size * epsilon ** (2 / 3), equal_nan=True):
            return False
    return True


def largest(parts: Sequence[T], works: Callable[[list[T]], bool]) -> tuple[list[T], list[T]]:
    """As many of the parts as work together, and the others; by halving, so that few that do not are found quickly.

    >>> largest([1, 2, 3, 4], lambda some: 3 not in some)
    ([1, 2, 4], [3])
    """
    good: list[T] = []
    bad: list[T] = []

    def take(some: Sequence[T]) -> None:
        if not some:
            return
        if works([*good, *some]):
            good.extend(some)
        elif len(some) == 1:
            bad.extend(some)
        else:
            half = math.ceil(len(some) / 2)
            take(some[:half])
            take(some[half:])

    take(parts)
    return good, bad


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # a lock, a file, a tensor with a history
        raise InputError(
            f"{type(model).__name__} cannot be copied by copy.deepcopy ({type(error).__name__}: {error}); "
            "take what cannot be copied out of the model first"
        ) from error


def _doubled(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

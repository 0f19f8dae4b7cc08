"""What flows into the readers of a model's units, summed over data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.core.errors import InputError, StateError
from shrinkage.core.evaluation import evaluating
from shrinkage.noiseout.correlation import Moments
from shrinkage.noiseout.foldable import Group, Reader


def measure(
    model: nn.Module, groups: Sequence[Group], batches: Iterable[Any], readers: int | None = None
) -> list[list[Moments]]:
    """Moments of the units of each group, at each of their readers, over all batches and positions.

    Args:
        model: is run in evaluation mode and left as it was.
        groups: of units.
        batches: inputs; of a pair ``(x, y)`` the first.
        readers: how many of each group to look at; ``None``: all.

    Raises:
        InputError: if there are no batches.
        StateError: if an activation is NaN or infinite.
    """
    found = [[Moments(len(group.sets)) for _ in group.readers[:readers]] for group in groups]
    empty = True
    with ExitStack() as stack, evaluating(model):
        for group, moments in zip(groups, found, strict=True):
            for reader, sums in zip(group.readers, moments, strict=False):
                hook = model.get_submodule(reader.path).register_forward_pre_hook(_adder(reader, sums))
                stack.callback(hook.remove)
        for batch in batches:
            empty = False
            call(model, batch)
    if empty:
        raise InputError("NoiseOut looks at data: pass inputs, or pairs (x, y), such as prune([(x, y)], neurons=8)")
    for group, moments in zip(groups, found, strict=True):
        if not all(bool(torch.isfinite(each.mean).all()) for each in moments):
            raise StateError(f"layer {group.name!r} has activations that are NaN or infinite on these batches")
    return found


def call(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch: a tensor, a pair ``(x, y)`` without its ``y``, or keyword arguments."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


def _adder(reader: Reader, sums: Moments) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def add(module: nn.Module, args: tuple[Any, ...]) -> None:
        sums.add(rows(args[0], reader))

    return add


def rows(x: Tensor, reader: Reader) -> Tensor:
    """A reader's input as observations of the units: examples and positions by units."""
    flat = x.detach().movedim(reader.channel, -1)
    flat = flat.reshape(-1, flat.shape[-1])
    units, places = reader.channels.shape
    picked = flat[:, reader.channels.T.flatten().to(flat.device)]
    return picked.view(len(flat) * places, units)

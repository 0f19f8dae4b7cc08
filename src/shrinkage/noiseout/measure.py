"""What flows into the readers of a model's units, summed over data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.core.errors import DivergedError, InputError
from shrinkage.noiseout.correlation import Moments
from shrinkage.noiseout.foldable import Group, Reader
from shrinkage.noiseout.watch import Seen, watching

_LEAST = 3
"""Observations: two lie on a line, whatever they are, so that any two units would be multiples of each other."""


def measure(
    model: nn.Module, groups: Sequence[Group], batches: Iterable[Any], inputs: int = 1, readers: int | None = None
) -> list[list[Moments]]:
    """Moments of the units of each group, at each of their readers, over all batches and positions.

    Args:
        model: is run in evaluation mode and left as it was.
        groups: of units.
        batches: see :func:`call`.
        inputs: how many the model takes by position.
        readers: how many of each group to look at; ``None``: all.

    Raises:
        InputError: if there are no batches, or a reader sees fewer than three observations in all of them.
        StateError: if an activation is NaN or infinite.
    """
    _check_batches(batches)
    found = [[Moments(len(group.sets)) for _ in group.readers[:readers]] for group in groups]
    pairs = [
        (group, reader, sums)
        for group, moments in zip(groups, found, strict=True)
        for reader, sums in zip(group.readers, moments, strict=False)
    ]
    at: dict[str, list[tuple[Reader, Moments]]] = {}
    for _, reader, sums in pairs:
        at.setdefault(reader.path, []).append((reader, sums))
    empty = True
    with watching(model, {path: _adder(some) for path, some in at.items()}):
        for batch in batches:
            empty = False
            call(model, batch, inputs)
    if empty:
        raise InputError("NoiseOut looks at data: pass inputs, or pairs (x, y), such as prune([(x, y)], neurons=8)")
    for group, reader, sums in pairs:
        if not bool(torch.isfinite(sums.mean).all()):
            raise DivergedError(f"layer {group.name!r} has activations that are NaN or infinite on these batches")
        if sums.count < _LEAST:
            raise InputError(
                f"layer {reader.path!r}, which reads the {len(group.sets)} neurons of {group.name!r}, saw {sums.count} "
                f"rows on these batches: correlations need {_LEAST} at least, better many times the number of neurons"
            )
    return found


def _check_batches(batches: Iterable[Any]) -> None:
    """Raise ``InputError`` for a batch in the place of a list of them."""
    alone = isinstance(batches, Tensor)
    if isinstance(batches, tuple) and len(batches) == 2 and all(isinstance(part, Tensor) for part in batches):
        alone = batches[0].is_floating_point() and not batches[1].is_floating_point()  # inputs and classes
    if alone:
        raise InputError(
            "this is one batch, and NoiseOut goes through several: pass a list or a loader, as [x] or [(x, y)]"
        )


def call(model: nn.Module, batch: Any, inputs: int = 1) -> Any:
    """Run a model on a batch.

    Args:
        model: to run.
        batch: a tensor; a pair ``(x, y)``, of which the first is the input; ``(x1, x2)``, ``(x1, x2, y)`` or
            ``((x1, x2), y)`` for a model of two inputs; or keyword arguments.
        inputs: how many the model takes by position.

    Raises:
        InputError: if the batch holds fewer.
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    parts = batch if isinstance(batch, tuple | list) else (batch,)
    if inputs > 1 and parts and isinstance(parts[0], tuple | list):
        parts = parts[0]
    if len(parts) < inputs:
        raise InputError(f"the example has {inputs} inputs, and a batch {len(parts)}: pass batches such as (x1, x2, y)")
    return model(*parts[: max(inputs, 1)])


def _adder(readers: Sequence[tuple[Reader, Moments]]) -> Seen:
    def add(x: Tensor) -> None:
        for reader, sums in readers:
            sums.add(rows(x, reader))

    return add


def rows(x: Tensor, reader: Reader) -> Tensor:
    """A reader's input as observations of the units: examples and positions by units."""
    flat = x.movedim(reader.channel, -1)
    flat = flat.reshape(-1, flat.shape[-1])
    units, places = reader.channels.shape
    picked = flat[:, reader.channels.T.flatten().to(flat.device)]
    return picked.view(len(flat) * places, units)

"""Remove, train, and again: how :class:`~shrinkage.NoiseOut` meets a budget by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from torch import nn

from shrinkage.core.errors import DivergedError, InputError
from shrinkage.noiseout.shrunk import Round, Shrunk

Train = Callable[[nn.Module], object]
Score = Callable[[nn.Module], float]


class Shrinking(Protocol):
    """A model that can lose neurons."""

    @property
    def neurons(self) -> dict[str, int]:
        """How many each layer has."""
        ...

    @property
    def parameters(self) -> int:
        """How many the model has."""
        ...

    def prune(self, batches: Iterable[Any], neurons: int | None = None, *, parameters: int | None = None) -> Shrunk:
        """Remove some."""
        ...

    def prune_up_to(self, batches: Iterable[Any], neurons: int) -> Shrunk:
        """Remove as many as asked for, or as can go."""
        ...

    def mark(self) -> Callable[[], None]:
        """The way back."""
        ...


def to_target(
    shrinking: Shrinking,
    model: nn.Module,
    train: Train,
    batches: Iterable[Any],
    score: Score | None,
    neurons: int | None,
    parameters: int | None,
    rounds: int,
) -> Iterator[Round]:
    """Remove the same share of what is left in each round, and train after each."""
    whole = sum(shrinking.neurons.values()) if neurons is not None else shrinking.parameters
    end = whole - neurons if neurons is not None else parameters
    assert end is not None
    for index in range(1, rounds + 1):
        left = round(whole * (end / whole) ** (index / rounds))
        if neurons is not None:
            shrinking.prune(batches, sum(shrinking.neurons.values()) - left)
        elif shrinking.parameters > left:
            shrinking.prune(batches, parameters=left)
        train(model)
        value = None if score is None else number(score(model))
        yield Round(sum(shrinking.neurons.values()), shrinking.parameters, value, kept=True)


def while_good(
    shrinking: Shrinking,
    model: nn.Module,
    train: Train,
    batches: Iterable[Any],
    score: Score,
    tolerance: float,
    baseline: float | None,
    share: float,
    refusals: int,
) -> Iterator[Round]:
    """Remove a share and train; take back what costs too much, and try half of the share from then on."""
    wanted = (number(score(model)) if baseline is None else baseline) - tolerance
    refused = 0
    while refused < refusals:
        back = shrinking.mark()
        count = len(shrinking.prune_up_to(batches, math.ceil(share * sum(shrinking.neurons.values()))).folds)
        if not count:
            return
        try:
            train(model)
            value = number(score(model), finite=False)
        except BaseException:  # an interruption from the keyboard, too
            back()
            raise
        kept = value >= wanted
        yield Round(sum(shrinking.neurons.values()), shrinking.parameters, value, kept)
        if not kept:
            back()
            refused += 1
            share /= 2
            if count == 1:
                return


def number(value: object, finite: bool = True) -> float:
    """A score.

    Raises:
        InputError: if it is no number.
        StateError: if it is not finite, and must be.
    """
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InputError(f"score returned {type(value).__name__}; return one number, such as the accuracy") from error
    if finite and not math.isfinite(found):
        raise DivergedError(f"score returned {found}: the training has diverged, or there is no held-out data")
    return found

"""How the share of zeros grows over training: ramps from 0 to the target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from shrinkage.core.errors import InputError

Shape = Callable[[float], float]

# Optimiser steps from one change of the zeros to the next, where nothing else is asked for.
INTERVAL = 12


def cubic(x: float) -> float:
    """Fast at first, slow at the end: 1 − (1 − x)³, the ramp of gradual pruning (Zhu & Gupta, 2017)."""
    return 1.0 - (1.0 - x) ** 3


def linear(x: float) -> float:
    """The same share of the way at every step."""
    return x


def one_shot(x: float) -> float:
    """Nothing before the end, everything at the end."""
    return 1.0 if x >= 1.0 else 0.0


def full(x: float) -> float:
    """Everything from the start: for methods that are sparse all along, and not in :data:`RAMPS`."""
    return 1.0


RAMPS: dict[str, Shape] = {"cubic": cubic, "linear": linear, "one-shot": one_shot}


@dataclass(frozen=True)
class Ramp:
    """The share of the target that is wanted at each moment of a training of known length.

    Args:
        shape: ``"cubic"``, ``"linear"``, ``"one-shot"``, or any callable from [0, 1] to [0, 1]
            that is 1 at 1.
        start: share of the training at which the ramp leaves 0, in [0, 1).
        end: share of the training at which the ramp reaches 1 and the pattern is fixed, in (start, 1].
        steps: length of the training in optimiser steps.

    >>> ramp = Ramp("linear", start=0.0, end=0.5, steps=100)
    >>> ramp(25), ramp.last_step
    (0.5, 50)
    """

    shape: str | Shape
    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        if isinstance(self.shape, str) and self.shape not in RAMPS:
            raise InputError(f"ramp must be one of {', '.join(RAMPS)} or a callable, got {self.shape!r}")
        if not 0.0 <= self.start < self.end <= 1.0:
            raise InputError(
                f"the ramp needs 0 <= start < end <= 1 (shares of the training), got start={self.start}, end={self.end}"
            )
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise InputError(f"steps must be a positive whole number of optimiser steps, got {self.steps!r}")
        if self.last_step <= self.first_step:
            raise InputError(
                f"steps={self.steps} is too few: between start={self.start} and end={self.end} lies no whole "
                "optimiser step; train longer or widen the ramp"
            )
        at_end = self._curve(1.0)
        if not math.isclose(at_end, 1.0, abs_tol=1e-6):
            raise InputError(f"the ramp must reach 1 at its end, but its value at 1 is {at_end}")

    @cached_property
    def first_step(self) -> int:
        """The step at which the ramp begins; nothing is wanted before."""
        return math.floor(round(self.start * self.steps, 6))  # 0.29 · 100 is 28.999…

    @cached_property
    def last_step(self) -> int:
        """The step after which the whole target is wanted and the pattern is fixed."""
        return math.ceil(round(self.end * self.steps, 6))

    def __call__(self, step: int) -> float:
        """Share of the target wanted after ``step`` optimiser steps, in [0, 1]."""
        if step >= self.last_step:
            return 1.0
        if step < self.first_step:
            return 0.0
        value = self._curve((step - self.first_step) / (self.last_step - self.first_step))
        if not 0.0 <= value <= 1.0:
            raise InputError(f"the ramp must stay within [0, 1], but it gave {value} at step {step}")
        return value

    def _curve(self, x: float) -> float:
        shape = RAMPS[self.shape] if isinstance(self.shape, str) else self.shape
        return float(shape(x))


def interval(steps: object, most: int = INTERVAL, asked: int | None = None) -> int:
    """Optimiser steps from one change of the zeros to the next.

    Args:
        steps: length of the training; short ones get a hundred changes at least.
        most: for long trainings.
        asked: what the user wants instead.

    Raises:
        InputError: if what is asked for is not a positive whole number.

    >>> interval(100_000), interval(500), interval(20)
    (12, 5, 1)
    """
    if asked is None:
        return max(1, min(most, steps // 100)) if isinstance(steps, int) else 1
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise InputError(f"interval must be a positive whole number of optimiser steps, got {asked!r}")
    return asked

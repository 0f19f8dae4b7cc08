"""The keyword options that every sparsifier understands."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, TypedDict

from shrinkage.core.errors import InputError
from shrinkage.core.granularity import Granularity
from shrinkage.core.schedules import Shape
from shrinkage.core.selection import Rules


class Options(TypedDict, total=False):
    """What :class:`~shrinkage.core.engine.Sparsifier` documents, and every method passes on to it."""

    include: Rules | None
    exclude: Rules | None
    biases: bool
    granularity: Granularity
    distribution: str
    layer_sparsity: Mapping[str, float]
    floor: float
    macs: float | None
    example: Any
    ramp: str | Shape
    start: float
    end: float


TARGETED = frozenset({"distribution", "layer_sparsity", "floor", "ramp", "start", "end"})
"""Those that say how a target is reached, and nothing where there is none."""

# The ramp of methods that lead to a target: the last fifth of the training belongs to the survivors.
STEERED = Options(start=0.1, end=0.8)


def check_options(method: type, options: Mapping[str, object]) -> None:
    """Refuse keywords that nobody would look at.

    Args:
        method: the class that was called; its own arguments are known words too.
        options: what it was given beside them.

    Raises:
        InputError: for an unknown keyword, with the nearest known one.
    """
    arguments = inspect.signature(method).parameters.values()
    own = [argument.name for argument in arguments if argument.kind is not argument.VAR_KEYWORD]
    for name in options:
        if name not in Options.__annotations__:
            (near,) = difflib.get_close_matches(name, [*own, *Options.__annotations__], 1, 0.0)
            raise InputError(f"{method.__name__} has no argument {name!r}; the nearest is {near!r}")

"""How many neurons may go, checked before anything is measured."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import SupportsIndex

from shrinkage.core.errors import InputError


def quota_of(
    sizes: Mapping[str, int], have: int, neurons: int | Mapping[str, int] | None, parameters: int | None
) -> list[int] | None:
    """How many neurons may go from each layer, if that is said.

    Args:
        sizes: neurons by layer.
        have: parameters of the model.
        neurons: how many go, in all or by layer.
        parameters: how many of them may be left.

    Returns:
        A number for each layer, in their order; None: any.

    Raises:
        InputError: for none or two targets, or one that cannot be.

    >>> quota_of({"0": 30, "2": 10}, 500, {"2": 4}, None)
    [0, 4]
    """
    if (neurons is None) == (parameters is None):
        raise InputError("prune() needs one target: neurons=8 (how many go) or parameters=50_000 (left at most)")
    if parameters is not None:
        whole("parameters", parameters, 1, have, "of parameters left at most")
        return None
    if not isinstance(neurons, Mapping):
        most = sum(sizes.values()) - len(sizes)
        whole("neurons", neurons, 0, most, f"of {most + len(sizes)} in all, of which each layer keeps one")
        return None
    for name, count in neurons.items():
        if name not in sizes:
            raise InputError(f"there is no layer {name!r} that can lose neurons: {', '.join(sizes)}")
        size = sizes[name]
        whole(f"neurons[{name!r}]", count, 0, size - 1, f"of the layer's {size}, of which it keeps one")
    return [int(neurons.get(name, 0)) for name in sizes]


def whole(name: str, value: object, low: int, high: int, what: str) -> None:
    """Check a count.

    Raises:
        InputError: if it is no whole number from ``low`` to ``high``.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or not low <= operator.index(value) <= high:
        raise InputError(f"{name} is a number {what}: from {low} to {high:,}, got {value!r}")

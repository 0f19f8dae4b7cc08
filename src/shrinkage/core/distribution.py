"""How one target is spread over the layers.

``"global"`` lets all layers compete for the same count, so that some keep more than others. ``"uniform"`` and
``"erk"`` fix each layer's share beforehand, from the shapes alone:

- uniform: the same sparsity everywhere;
- ERK (Erdős–Rényi with kernels; Mocanu et al. 2018, Evci et al. 2020): a layer's density is proportional to the sum
  of its dimensions over their product, so that narrow layers stay denser. A layer whose share would exceed 1 stays
  dense and the others make up for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from shrinkage.core.errors import InputError

DISTRIBUTIONS = ("global", "uniform", "erk")


def spread(distribution: str, shapes: Mapping[str, Sequence[int]], sparsity: float) -> dict[str, float]:
    """Sparsity by tensor name, such that the zeros of all tensors together are ``round(sparsity · n)``.

    Args:
        distribution: one of :data:`DISTRIBUTIONS`.
        shapes: of the per-unit tensors, by name; N units in all.
        sparsity: share of zeros over all of them, in (0, 1).

    Returns:
        A share in [0, 1) for every tensor, whole numbers of units; empty for ``"global"``, which fixes none.

    Raises:
        InputError: for an unknown distribution, or fewer units to keep than tensors.

    >>> shares = spread("erk", {"wide": (1000, 1000), "narrow": (10, 100)}, 0.9)
    >>> round(shares["wide"], 3), round(shares["narrow"], 3)
    (0.901, 0.0)
    """
    _check(distribution)
    if distribution == "global":
        return {}
    units = {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(units.values())
    wanted = total - round(sparsity * total)
    if wanted < len(units):
        raise InputError(
            f"distribution={distribution!r} keeps at least one unit in each of {len(units)} tensors, more than the "
            f"{wanted} that sparsity {sparsity} of {total} units leaves; ask for less, or leave some out with exclude="
        )
    kept = _whole(_water_fill(_densities(distribution, shapes), units, wanted), units, wanted)
    return {name: (units[name] - kept[name]) / units[name] for name in shapes}


def _check(distribution: str) -> None:
    if distribution not in DISTRIBUTIONS:
        raise InputError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}")


def _densities(distribution: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """What the densities are proportional to."""
    return {name: 1.0 if distribution == "uniform" else sum(shape) / math.prod(shape) for name, shape in shapes.items()}


def afford(
    distribution: str,
    shapes: Mapping[str, Sequence[int]],
    whole: Mapping[str, int],
    unit: Mapping[str, int],
    budget: int,
) -> dict[str, int]:
    """What each tensor may cost, where all may cost ``budget`` together: densities by the same rule, in costs.

    Args:
        distribution: ``"uniform"`` or ``"erk"``.
        shapes: of the per-unit tensors, by name.
        whole: what each costs with nothing zero.
        unit: what one of its units costs, at most.
        budget: > 0, less than all of ``whole``.

    Returns:
        By name, as much of the budget as whole units use up.

    Raises:
        InputError: for an unknown distribution, or a budget that does not pay for a unit in every tensor.

    >>> shapes, unit = {"conv": (8, 9), "linear": (10, 64)}, {"conv": 100, "linear": 1}
    >>> afford("uniform", shapes, {"conv": 7200, "linear": 640}, unit, budget=784)
    {'conv': 700, 'linear': 84}
    """
    _check(distribution)
    least = sum(unit[name] for name in shapes)
    if budget < least:
        raise InputError(
            f"distribution={distribution!r} keeps at least one unit in each of {len(shapes)} tensors, which takes "
            f"{least:,} multiply–accumulates, more than the {budget:,} that the budget leaves them; ask for more macs, "
            "or leave some out with exclude="
        )
    share = _water_fill(_densities(distribution, shapes), {name: whole[name] for name in shapes}, budget)
    kept = {name: max(math.floor(share[name] / unit[name] + 1e-9), 1) * unit[name] for name in shapes}
    order = sorted(shapes, key=lambda name: ((kept[name] - share[name]) / unit[name], name))
    while (left := budget - sum(kept.values())) < 0:  # those that keep one unit have more than their share
        name = next(name for name in reversed(order) if kept[name] > unit[name])
        kept[name] -= unit[name]
    turns = iter(order)  # one unit each by largest remainders; what is left then, to whoever lags most
    more = {name: min(unit[name], whole[name] - kept[name]) for name in shapes}
    while able := [name for name in order if 0 < more[name] <= left]:
        name = next((name for name in turns if name in able), None) or min(able, key=lambda n: kept[n] / share[n])
        kept[name] += more[name]
        left -= more[name]
        more[name] = min(unit[name], whole[name] - kept[name])
    return kept


def _water_fill(raw: Mapping[str, float], units: Mapping[str, int], wanted: int) -> dict[str, float]:
    """Units to keep in each tensor: density proportional to ``raw`` and at most 1, ``wanted`` in all."""
    dense: set[str] = set()
    while True:
        left = wanted - sum(units[name] for name in dense)
        weight = sum(raw[name] * units[name] for name in raw if name not in dense)
        factor = left / weight if weight else 0.0
        over = {name for name in raw if name not in dense and factor * raw[name] > 1}
        if not over:
            return {name: units[name] * (1.0 if name in dense else factor * raw[name]) for name in raw}
        dense |= over


def _whole(kept: Mapping[str, float], units: Mapping[str, int], wanted: int) -> dict[str, int]:
    """Whole numbers that add up to ``wanted``, by largest remainders; every tensor keeps one unit at least."""
    whole = {name: max(min(math.floor(value + 1e-9), units[name]), 1) for name, value in kept.items()}
    names = sorted(kept, key=lambda name: (whole[name] - kept[name], name))
    while (missing := wanted - sum(whole.values())) != 0:
        step = 1 if missing > 0 else -1
        able = [name for name in names[::step] if 0 < whole[name] + step <= units[name]]
        for name in able[: abs(missing)]:
            whole[name] += step
    return whole

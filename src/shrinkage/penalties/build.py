"""From a constructor's arguments to a solver: with a target the strength is steered, else it is fixed."""

from __future__ import annotations

import inspect
from typing import Literal

from shrinkage.core.budget import has_target
from shrinkage.core.errors import InputError
from shrinkage.core.gradient import GradientSolver
from shrinkage.core.options import STEERED, Options, check_options
from shrinkage.core.protocols import AdaptivePull, Prior, Solver
from shrinkage.core.proximal import FixedProximal, SteeredProximal
from shrinkage.core.scales import Scales
from shrinkage.core.schedules import INTERVAL, interval

SolverName = Literal["proximal", "gradient", "loss"]


def steered(
    method: type,
    pull: AdaptivePull,
    sparsity: float | None,
    steps: int | None,
    solver: SolverName | None,
    options: Options,
    *,
    every: int = INTERVAL,
    hold: bool = False,
) -> tuple[Solver, Options]:
    """The solver and options of a method that is steered towards a target.

    Args:
        method: the class, for messages.
        pull: whom the penalty pulls more.
        sparsity: the target.
        steps: length of the training.
        solver: what the user asked for.
        options: all others.
        every: optimiser steps from one proximal step to the next; fewer in short trainings.
        hold: see :class:`~shrinkage.core.proximal.SteeredProximal`.

    Raises:
        InputError: if the target or the length of the training is missing, or the solver cannot be steered.
    """
    check_options(method, options)
    name = method.__name__
    if not has_target(sparsity, options):
        raise InputError(f"{name} needs a target (sparsity= or macs=, and steps=) or fixed strengths (such as xi=)")
    if steps is None:
        raise InputError(f"{name} with a target needs steps=, the number of optimiser steps of the whole training")
    if solver not in (None, "proximal"):
        raise InputError(f"solver={solver!r} cannot be steered: give it strengths (such as xi=) beside the target")
    return SteeredProximal(pull, interval(steps, every), hold=hold), Options(**{**STEERED, **options})


def refuse_idle(method: type, **given: object) -> None:
    """Refuse arguments that belong to fixed strengths where there are none.

    Raises:
        InputError: naming the first that is not at its default.
    """
    known = inspect.signature(method).parameters
    for name, value in given.items():
        if value != known[name].default:
            raise InputError(
                f"{method.__name__}: {name}={value!r} belongs to fixed strengths (xi=, psi=); a target has none"
            )


def fixed(method: type, prior: Prior, scales: Scales, solver: SolverName | None) -> Solver:
    """The solver of a method with fixed strengths; by default the paper's gradient solver.

    Raises:
        InputError: for a solver that does not exist.
    """
    if solver in (None, "gradient"):
        return GradientSolver(prior, scales)
    if solver == "loss":
        return GradientSolver(prior, scales, in_loss=True)
    if solver == "proximal":
        return FixedProximal(prior, scales)
    raise InputError(f"{method.__name__}: solver must be 'proximal', 'gradient' or 'loss', got {solver!r}")


def strength(name: str, value: float | None, default: float = 0.0) -> float:
    """A strength ≥ 0, or its default.

    Raises:
        InputError: if it is negative or not finite.
    """
    if value is None:
        return default
    if not 0.0 <= value < float("inf"):
        raise InputError(f"{name} must be finite and at least 0, got {value}")
    return float(value)

"""The methods of the comparison: one row each, and how each spends the budget of epochs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

import shrinkage
from shrinkage.core.driver import Round
from shrinkage.core.engine import Sparsifier
from shrinkage.core.errors import InputError
from shrinkage.core.granularity import Weight
from shrinkage.core.hold import keep_zeros
from shrinkage.core.pruner import Pruner
from shrinkage.core.sensitivity import Loss
from shrinkage.pruning.lottery import Rewind
from shrinkage.reproduce import tasks
from shrinkage.reproduce.ablations import ABLATIONS
from shrinkage.reproduce.trial import Trial
from shrinkage.training.methods import METHODS

if TYPE_CHECKING:
    from shrinkage.reproduce.loop import Training

Run = Callable[["Training"], None]

LOOP = 1
"""Counts up when the same settings come to mean another training of every method: see :func:`recipe`."""


@dataclass(frozen=True)
class Entrant:
    """One row of :data:`ENTRANTS`.

    Attributes:
        title: its name in tables and plots.
        run: trains ``training.model`` to ``training.trial.sparsity`` within ``training.steps`` optimiser steps.
        recipe: counts up when the method comes to mean another training, so that older results of it are run again.
        under_adam: the same, where it counts otherwise for tasks with an optimiser of the Adam family.
        resumable: whether it is a single training, which can go on from a saved state.
        needs_moments: whether it needs an optimiser of the Adam family.
    """

    title: str
    run: Run
    recipe: int = 1
    under_adam: int | None = None
    resumable: bool = True
    needs_moments: bool = False


def _living(make: Callable[[nn.Module, float, int, int], Sparsifier]) -> Run:
    """A method that lives inside the loop."""

    def run(training: Training) -> None:
        method = make(training.model, training.trial.sparsity, training.steps, training.trial.seed)
        if training.saved:
            method.load_state_dict(training.saved)
        training.train(method.attach, method.state_dict)
        method.finalize()
        method.detach()

    return run


def _before(make: Callable[[float, int], Pruner], batches: int, loss: Loss = functional.cross_entropy) -> Run:
    """A pruner at initialisation, by the loss on so many batches, then training with its zeros."""

    def run(training: Training) -> None:
        if training.step == 0:
            make(training.trial.sparsity, training.trial.seed).prune(training.model, training.batches(batches), loss)
        training.train(keep_zeros(training.model).attach)

    return run


def _tempered(logits: Tensor, labels: Tensor) -> Tensor:
    """The temperature of GraSP's authors, which makes the outputs of a fresh classifier alike."""
    return functional.cross_entropy(logits / 200, labels)


def _after(training: Training) -> None:
    """Cut the trained network, and leave it at that."""
    training.train()
    shrinkage.Magnitude(training.trial.sparsity).prune(training.model)


def _tuned_after(training: Training) -> None:
    """Half of the budget to train, cut, and half to train the survivors from the top of the schedule."""
    half = training.steps // 2
    training.train(steps=half)
    shrinkage.Magnitude(training.trial.sparsity).prune(training.model)
    training.train(keep_zeros(training.model).attach, steps=training.steps - half)


def _lottery(rewind: Rewind, rounds: int = 3, rewind_to: float = 0.1) -> Run:
    """One whole training and, after each round of pruning, one from the rewinding point; all share the budget."""

    def run(training: Training) -> None:
        length = int(training.steps / (1 + rounds * (1 - rewind_to)))

        def one(model: nn.Module, round: Round) -> None:
            training.train(round.attach, first=round.first_step, steps=length)

        ticket = shrinkage.LotteryTicket(training.trial.sparsity, rounds=rounds, rewind=rewind, rewind_to=rewind_to)
        ticket.run(training.model, one, steps=length)

    return run


def _row(name: str, recipe: int = 1, under_adam: int | None = None) -> Entrant:
    """A method that ``shrinkage train`` knows, as it is there."""
    method = METHODS[name]
    make = method.make
    assert make is not None
    run = _living(lambda model, sparsity, steps, seed: make(model, sparsity, steps, Weight()))
    return Entrant(method.title, run, recipe, under_adam)


ENTRANTS: Mapping[str, Entrant] = {
    "dense": Entrant("Dense", lambda training: training.train()),
    "halo": _row("halo", recipe=2, under_adam=3),
    "halo-paper": Entrant(
        "HALO, the paper's form, ξ = 3·10⁻⁵, ψ = 10⁻⁴",
        _living(lambda *target: shrinkage.HALO(*target[:3], xi=3e-5, psi=1e-4)),
    ),
    **{
        f"halo-{name}": Entrant(f"HALO, {title}", _living(lambda *target, make=make: make(*target[:3])))
        for name, (title, make) in ABLATIONS.items()
    },
    **{name: _row(name) for name in ("lasso", "sws", "mcp", "bridge", "gradual", "str", "soft-topk")},
    "set": Entrant("SET", _living(lambda *target: shrinkage.SET(*target[:3], seed=target[3]))),
    "rigl": Entrant("RigL", _living(lambda *target: shrinkage.RigL(*target[:3], seed=target[3]))),
    "gradual-moment": Entrant(
        "Gradual, |w|·v^¼",
        _living(lambda *target: shrinkage.GradualMagnitude(*target[:3], score="moment")),
        needs_moments=True,
    ),
    "movement": Entrant(
        "Movement, second half", _living(lambda *target: shrinkage.Movement(*target[:3], start=0.5, end=0.9))
    ),
    "magnitude": Entrant("Magnitude, not fine-tuned", _after),
    "magnitude-tuned": Entrant("Magnitude, fine-tuned", _tuned_after, resumable=False),
    "lottery-weights": Entrant("Lottery, weights rewound", _lottery("weights"), resumable=False),
    "lottery-lr": Entrant("Lottery, learning rate rewound", _lottery("learning-rate"), resumable=False),
    "random": Entrant(
        "Random", _before(lambda sparsity, seed: shrinkage.Random(sparsity, seed=seed, distribution="erk"), 0)
    ),
    "snip": Entrant("SNIP", _before(lambda sparsity, seed: shrinkage.SNIP(sparsity), 10)),
    "grasp": Entrant("GraSP", _before(lambda sparsity, seed: shrinkage.GraSP(sparsity), 10, _tempered), recipe=2),
    "synflow": Entrant("SynFlow", _before(lambda sparsity, seed: shrinkage.SynFlow(sparsity), 1)),
}
"""The methods by the name that ``--method`` takes."""


def find(name: str) -> Entrant:
    """The method of this name.

    Raises:
        InputError: if there is none, with the nearest.
    """
    if name not in ENTRANTS:
        near = difflib.get_close_matches(name, ENTRANTS, 1, 0.0)[0]
        raise InputError(f"there is no method {name!r} here; did you mean {near!r}? ({', '.join(ENTRANTS)})")
    return ENTRANTS[name]


def recipe(trial: Trial) -> str:
    """What a result must agree in beside its settings and versions: how the loop trains, and the method."""
    method, count = find(trial.method), None
    if tasks.find(trial.task).optimizer != "sgd":
        count = method.under_adam
    return f"{LOOP}.{method.recipe if count is None else count}"

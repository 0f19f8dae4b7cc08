r"""Lottery tickets: train, prune, rewind, and train again, in several rounds.

Idea: a trained network tells which of its weights matter. Put back to where they were early in the training, those
few alone can be trained to (nearly) the accuracy of all. Round :math:`r = 0, 1, …, n` trains under a mask :math:`m_r`,
from :math:`w_k` (the weights after step k of round 0) or from the weights as round :math:`r - 1` left them:

.. math:: m_0 = 1, \qquad m_r = [\,|w| \text{ among the largest } d^{r/n} \text{ of all}\,],
   \qquad w \leftarrow m_r \odot w_k \quad\text{or}\quad w \leftarrow m_r \odot w

with the density :math:`d = 1 - \text{sparsity}`. What is pruned stays pruned, each round removes the same share of what
is left, and the last pruning meets the target exactly.

Regime: it costs rounds + 1 trainings, and is the measure that cheaper methods are held against.

Source: Frankle & Carbin, "The Lottery Ticket Hypothesis", ICLR 2019, arXiv 1803.03635 (k = 0). Frankle, Dziugaite,
Roy & Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020, arXiv 1912.05671 (an early k > 0,
which larger networks need). Renda, Frankle & Carbin, "Comparing Rewinding and Fine-tuning in Neural Network Pruning",
ICLR 2020, arXiv 2003.02389 (``rewind="learning-rate"``: the weights stay as they are, only the schedule goes back).

Choices made here: BatchNorm's statistics and every other buffer go back to step k with the weights; a layer with a
share of its own (``layer_sparsity=``, ``distribution=``) comes to it geometrically by itself.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from shrinkage.core import checkpoint
from shrinkage.core.budget import has_target
from shrinkage.core.driver import Round, Train, check_beginning
from shrinkage.core.errors import DivergedError, InputError, StateError, TargetError
from shrinkage.core.hold import bit_mask, clear
from shrinkage.core.options import Options, check_options
from shrinkage.core.plan import Plan
from shrinkage.core.result import Sparsified
from shrinkage.core.selection import unwrap
from shrinkage.core.tables import render
from shrinkage.formats.bits import pack_bits, unpack_bits

Rewind = Literal["weights", "learning-rate"]


@dataclass(frozen=True)
class Trained:
    """One round of a lottery ticket.

    Attributes:
        zeros: units that were zero in it.
        value: what the user's loop returned.
    """

    zeros: int
    value: float | None


@dataclass(frozen=True)
class Ticket(Sparsified):
    """What a lottery ticket has come to; prints a line a round.

    Attributes:
        rounds: all trainings, the dense one first.
    """

    rounds: tuple[Trained, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers and strings."""
        rounds = [
            {"zeros": each.zeros, "sparsity": each.zeros / self.units, "value": each.value} for each in self.rounds
        ]
        return {**super().to_dict(), "rounds": rounds}

    def __str__(self) -> str:
        rows = [
            [str(index), each.zeros, f"{each.zeros / self.units:.2%}", each.value]
            for index, each in enumerate(self.rounds)
        ]
        width = 3 if all(each.value is None for each in self.rounds) else 4
        header = ["round", "zeros", "sparsity", "result"]
        title = f"{self.method}, {self.units:,} units"
        table = render(header[:width], [row[:width] for row in rows], title=title)
        return table if self.macs is None else f"{table}\n{self.macs}"


@dataclass
class _Progress:
    """Where a run stands: all of it but the model."""

    plan: Plan
    config: dict[str, Any]
    kept: list[Tensor]  # which units stay, one tensor a selected parameter
    start: dict[str, Any] | None = None  # the model at the rewinding point, once it was there
    rounds: list[Trained] = field(default_factory=list)
    current: Round | None = None


class LotteryTicket:
    """Iterative magnitude pruning with rewinding: rounds + 1 trainings, each sparser than the one before.

    The loop is yours: a function ``train(model, run)`` that builds an optimiser, calls ``run.attach(optimizer)`` and
    takes the steps from ``run.first_step`` to ``run.steps``. That is 0 in the first round and the rewinding point in
    the later ones; let schedules and the order of the data follow it. A number that it returns stands in the result.

    Args:
        sparsity: share of zeros among the selected units in the end, in (0, 1), met exactly. ``None`` only with
            an N:M granularity, which fixes it.
        rounds: how often is pruned, at least 1. The papers remove a fifth of what is left at a time, which makes 13
            rounds to a sparsity of 0.95; the default is cheaper.
        rewind: ``"weights"`` puts all of the model's state back to the rewinding point, ``"learning-rate"`` leaves the
            survivors as they were trained and only has the schedule repeated from there.
        rewind_to: the rewinding point as a share of a training, in [0, 1).
        **options: ``include``, ``exclude``, ``biases``, ``granularity``, ``distribution``, ``layer_sparsity``,
            ``floor``, ``macs`` and ``example``, as in :class:`~shrinkage.core.engine.Sparsifier`.

    Raises:
        InputError: for arguments that cannot work.

    >>> import torch, shrinkage
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.ReLU(), torch.nn.Linear(50, 2))
    >>> x = torch.randn(64, 20)
    >>> def train(model, run):
    ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ...     run.attach(optimizer)
    ...     for step in range(run.first_step, run.steps):
    ...         optimizer.zero_grad()
    ...         torch.nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
    ...         optimizer.step()
    >>> print(shrinkage.LotteryTicket(sparsity=0.9, rounds=2).run(net, train, steps=50))
    LotteryTicket, 1,100 units
    round  zeros  sparsity
    ─────  ─────  ────────
    0          0     0.00%
    1        752    68.36%
    2        990    90.00%
    """

    def __init__(
        self,
        sparsity: float | None = None,
        rounds: int = 4,
        *,
        rewind: Rewind = "weights",
        rewind_to: float = 0.1,
        **options: Unpack[Options],
    ) -> None:
        check_options(type(self), options)
        if late := [word for word in ("ramp", "start", "end") if word in options]:
            raise InputError(f"{self._name} prunes between trainings and has no ramp: leave {late[0]!r} out")
        if not has_target(sparsity, options):
            raise InputError(f"{self._name} needs a target: sparsity=0.95 for 95 % zeros, or macs= and example=")
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise InputError(f"rounds is how often is pruned, a whole number of at least 1, got {rounds!r}")
        if rewind not in get_args(Rewind):
            raise InputError(f"rewind must be one of {', '.join(get_args(Rewind))}, got {rewind!r}")
        if isinstance(rewind_to, bool | str) or not 0.0 <= rewind_to < 1.0:
            raise InputError(
                f"rewind_to is a share of the training, from 0 to below 1 (0.1 for a tenth of it), got {rewind_to!r}"
            )
        self._sparsity = sparsity
        self._rounds = rounds
        self._rewind = rewind
        self._rewind_to = rewind_to
        self._options = options
        self._pending: dict[str, Any] | None = None
        self._progress: _Progress | None = None

    # ---- the procedure --------------------------------------------------------------------------

    def run(self, model: nn.Module, train: Train, steps: int) -> Ticket:
        """Find a ticket; or go on with one, after :meth:`load_state_dict`.

        Args:
            model: the network, trained and pruned in place; wrappers of ``torch.compile`` and DDP are looked through.
                Afterwards :func:`shrinkage.keep_zeros` keeps its zeros.
            train: is called with the model and a :class:`~shrinkage.core.driver.Round`, rounds + 1 times.
            steps: optimiser steps of a whole training.

        Returns:
            What was reached, per round and, in ``layers``, per tensor.

        Raises:
            InputError: for a target that cannot be, or a loaded state of another model or ticket.
            StateError: if ``train`` did not attach the round, took no steps or fewer than the rewinding point, or
                left NaN or infinite weights.
            TargetError: if pruned weights are no longer zero after a round, or more than asked for are in the end.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InputError(f"steps must be a positive whole number of optimiser steps, got {steps!r}")
        progress = self._progress = self._begin(unwrap(model), steps)
        try:
            while len(progress.rounds) <= self._rounds:
                self._train(model, train, progress, steps)
        finally:
            self._progress = None
        final = progress.plan.result(self._name, model)
        return Ticket(final.method, final.layers, final.target, final.macs, tuple(progress.rounds))

    def _begin(self, model: nn.Module, steps: int) -> _Progress:
        plan = Plan(model, self._sparsity, self._options)
        own = {"rounds": self._rounds, "rewind": self._rewind, "rewind_to": self._rewind_to, "steps": steps}
        config = plan.config() | own
        progress = _Progress(plan, config, [torch.ones(shape, dtype=torch.bool) for shape in plan.shapes.values()])
        if (state := self._pending) is not None:
            checkpoint.check(state, self._name, config, plan.shapes)
            progress.kept = [unpack_bits(state["kept"][name], shape) for name, shape in plan.shapes.items()]
            progress.start = state["start"]
            progress.rounds = [Trained(**each) for each in state["rounds"]]
            if progress.start is None and (back := _revived(progress, model)):
                raise StateError(f"{back[0]!r} holds pruned weights that are not zero: load the model's state_dict too")
            self._pending = None
        return progress

    def _train(self, model: nn.Module, train: Train, progress: _Progress, steps: int) -> None:
        """One round: rewind, train, and choose what the next one keeps."""
        index, inner = len(progress.rounds), unwrap(model)
        point = math.floor(round(self._rewind_to * steps, 6))  # 0.29 · 100 is 28.999…
        masks = _prepare(progress, inner)

        def watch(taken: int) -> None:
            if index == 0 and taken == point and self._rewind == "weights":
                progress.start = copy.deepcopy(inner.state_dict())

        run = Round(self._name, inner, progress.plan, masks, index, point if index else 0, steps, watch)
        progress.current = run
        try:
            value = train(model, run)
        finally:
            run.close()
        if not run.taken:
            what = "never attached the round: call run.attach(optimizer)" if run.taken is None else "took no step"
            raise StateError(f"train {what} (round {index} of {self._name})")
        if self._rewind == "weights" and progress.start is None:
            raise StateError(
                f"train took {run.taken} optimiser steps and never passed the rewinding point, step {point} "
                f"(rewind_to={self._rewind_to} of steps={steps}): give the steps that are really taken"
            )
        self._check_weights(progress, inner, index)
        zeros = sum(int((~kept).sum()) for kept in progress.kept)
        progress.rounds.append(Trained(zeros, _number(value)))
        if index < self._rounds:
            progress.kept = _choose(progress, inner, (index + 1) / self._rounds)

    def _check_weights(self, progress: _Progress, model: nn.Module, index: int) -> None:
        for name, weight in progress.plan.weights(model).items():
            if not bool(torch.isfinite(weight).all()):
                raise DivergedError(
                    f"{name!r} holds NaN or infinite weights after round {index}: the training has diverged; "
                    "lower the learning rate or clip the gradients"
                )
        if back := _revived(progress, model):
            raise TargetError(
                f"{back[0]!r} holds pruned weights that are no longer zero after round {index}: something other than "
                "the attached optimisers has written to them"
            )

    # ---- checkpoints ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the model, safe for ``weights_only``; to be taken in ``train``.

        Take it together with the model's, at the beginning of ``train``: the resumed run begins with that round.

        Raises:
            StateError: outside ``train``, or in it after ``run.attach``.
        """
        progress = self._progress
        check_beginning(self._name, None if progress is None else progress.current)
        assert progress is not None
        names = progress.plan.shapes
        return {
            **checkpoint.header(self._name, progress.config, names),
            "kept": {name: pack_bits(kept) for name, kept in zip(names, progress.kept, strict=True)},
            "start": progress.start,
            "rounds": [asdict(each) for each in progress.rounds],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next :meth:`run` begin where ``state`` was taken, and there be checked; load the model's as well."""
        self._pending = state

    @property
    def _name(self) -> str:
        return type(self).__name__


def _prepare(progress: _Progress, model: nn.Module) -> dict[str, Tensor]:
    """Rewind the model if there is something to rewind it to, and prune it; the masks of tensors with zeros."""
    if progress.rounds and progress.start is not None:
        model.load_state_dict(progress.start)
    weights = progress.plan.weights(model)
    devices = [weight.device for weight in weights.values()]
    kept = [units.to(device) for units, device in zip(progress.kept, devices, strict=True)]
    masks = {name: mask for name, mask in progress.plan.spread(kept, weights).items() if not bool(mask.all())}
    for name, mask in masks.items():
        clear(weights[name], bit_mask(mask, weights[name].detach()))
    return masks


def _sizes(progress: _Progress, model: nn.Module) -> list[Tensor]:
    return progress.plan.sizes(dict(progress.plan.weights(model)))


def _revived(progress: _Progress, model: nn.Module) -> list[str]:
    """Names of tensors in which a pruned unit is not zero."""
    pairs = zip(progress.plan.shapes, _sizes(progress, model), progress.kept, strict=True)
    return [name for name, size, kept in pairs if bool((size[~kept.to(size.device)] != 0).any())]


def _choose(progress: _Progress, model: nn.Module, exponent: float) -> list[Tensor]:
    """Which units stay next: the largest of those that stayed till now."""
    dial = progress.plan.dial
    assert dial is not None  # there is a target
    sizes = _sizes(progress, model)
    # A survivor that happens to be zero still ranks before what is pruned.
    scores = [
        size.clamp(min=torch.finfo(size.dtype).tiny) * kept.to(size.device)
        for size, kept in zip(sizes, progress.kept, strict=True)
    ]
    return dial.thinned(exponent).pattern(progress.plan.per_cost(scores), sizes)


def _number(value: object) -> float | None:
    if value is None:
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"train returned {type(value).__name__}; return one number, such as the accuracy, or nothing"
        ) from error

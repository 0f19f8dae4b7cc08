"""Drivers: methods that own several trainings of one model, and the rounds that they hand to the user's loop.

A driver calls the user's function once a round. There the user builds an optimiser, attaches the round to it, and
trains as ever. Between the rounds the driver does its work; when it returns it holds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from shrinkage.core.errors import InputError, StateError
from shrinkage.core.hold import Held, Holder, bit_mask
from shrinkage.core.hooks import OptimizerHooks, owners, unwrap_optimizer
from shrinkage.core.plan import Plan
from shrinkage.core.result import Sparsified

Train = Callable[[nn.Module, "Round"], float | None]
"""The user's loop: trains the model through one round, and may return a number, such as its accuracy."""


class Driver(Protocol):
    """What a driver offers. The checks of ``shrinkage.testing.driver_checks`` say what it promises."""

    def run(self, model: nn.Module, train: Train, steps: int) -> Sparsified:
        """Train ``model``, in place, as often as the method asks; ``steps`` is the length of a whole training."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the model; to be taken in ``train`` before ``attach``."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next ``run`` begin with the round in which ``state`` was taken."""
        ...


class Round:
    """One training of a driver: what the user's loop gets beside the model.

    Args:
        owner: the driver's name, for messages.
        model: out of its wrappers.
        plan: which tensors are at stake.
        masks: which weights stay (``True``), by parameter name; tensors without zeros may be left out.
        index: 0 for the first training.
        first_step: where this round begins in a whole training, so that schedules and the order of data go on there.
        steps: optimiser steps of a whole training.
        watch: is called with the number of steps taken in this round, at ``attach`` and after each.
    """

    def __init__(
        self,
        owner: str,
        model: nn.Module,
        plan: Plan,
        masks: Mapping[str, Tensor],
        index: int,
        first_step: int,
        steps: int,
        watch: Callable[[int], None],
    ) -> None:
        self.index = index
        self.first_step = first_step
        self.steps = steps
        self._owner = owner
        self._model = model
        self._plan = plan
        self._masks = masks
        self._watch = watch
        self._taken: int | None = None
        self._hooks: OptimizerHooks | None = None

    def attach(self, *optimizers: Any) -> Self:
        """Begin the training: from now on steps are counted, and what is pruned stays zero to the end of the round.

        Args:
            optimizers: all that update selected weights, built for this round. With several, a step is a step of
                the one that holds most of the selected weights.

        Raises:
            StateError: if it is attached already.
            InputError: if selected weights are in none of the optimisers.
        """
        if self._taken is not None:
            raise StateError(f"round {self.index} of {self._owner} is attached already; attach all optimisers at once")
        inner = list(dict.fromkeys(unwrap_optimizer(optimizer, "run") for optimizer in optimizers))
        owner = owners(inner)
        held: dict[Optimizer, list[Held]] = {optimizer: [] for optimizer in inner}
        load = dict.fromkeys(inner, 0)
        for name, weight in self._plan.weights(self._model).items():
            if id(weight) not in owner:
                raise InputError(
                    f"the selected weight {name!r} is in none of the optimisers given to run.attach(); build the "
                    "optimiser from this model's parameters, or leave the weight out with exclude="
                )
            optimizer, _ = owner[id(weight)]
            load[optimizer] += weight.numel()
            if name in self._masks:
                held[optimizer].append(Held(weight, bit_mask(self._masks[name], weight.detach())))
        clock = max(load, key=lambda optimizer: load[optimizer])
        self._hooks = OptimizerHooks(_Counting(held, clock, self._stepped), self._owner, inner)
        self._taken = 0
        self._watch(0)
        return self

    @property
    def taken(self) -> int | None:
        """Optimiser steps taken in this round; ``None`` before :meth:`attach`."""
        return self._taken

    def close(self) -> None:
        """Not for users: the round is over."""
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None

    def _stepped(self) -> None:
        assert self._taken is not None
        self._taken += 1
        self._watch(self._taken)


def check_beginning(owner: str, current: Round | None) -> None:
    """Raise unless a round is about to begin: the only time at which a driver's state says all there is.

    Args:
        owner: the driver's name, for the message.
        current: the round it is in, if any.

    Raises:
        StateError: outside ``train``, or in it after ``run.attach``.
    """
    if current is None or current.taken is not None:
        raise StateError(
            f"the state of {owner} is that of the beginning of a round: call state_dict() in train, before run.attach()"
        )


class _Counting(Holder):
    """Keeps the zeros, and tells of every step of one of the optimisers."""

    def __init__(self, held: Mapping[Optimizer, list[Held]], clock: Optimizer, stepped: Callable[[], None]) -> None:
        super().__init__(held)
        self._clock = clock
        self._tell = stepped

    def after_step(self, optimizer: Optimizer) -> None:
        """The step was taken."""
        super().after_step(optimizer)
        if optimizer is self._clock:
            self._tell()

"""The sparsifier: one life for every method that works inside a training loop.

``attach`` puts hooks on the optimiser, the loop stays as it was, ``finalize`` makes the result exact.
In between it passes through the phases ``"shrinking"`` (a solver acts on the weights), ``"holding"``
(the pattern is fixed, pruned weights stay zero, survivors train on) and ``"final"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self, Unpack

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from shrinkage.core import checkpoint
from shrinkage.core.errors import DivergedError, InputError, StateError, TargetError
from shrinkage.core.hold import Held, Holder, bit_mask, clear
from shrinkage.core.hooks import OptimizerHooks, owners, unwrap_optimizer
from shrinkage.core.options import TARGETED, Options, check_options
from shrinkage.core.plan import Plan
from shrinkage.core.protocols import Solver
from shrinkage.core.result import Sparsified, Spent
from shrinkage.core.schedules import Ramp
from shrinkage.core.selection import resolve
from shrinkage.core.slots import Slot


@dataclass(frozen=True)
class ByOptimizer:
    """Two solvers, of which one is chosen when the optimisers are known.

    Attributes:
        usual: where none of them is of the Adam family.
        adam: where one is, for all tensors alike, since all compete.
    """

    usual: Solver
    adam: Solver

    def suited(self, slots: Sequence[Slot]) -> Solver:
        """The one for these tensors and their optimisers."""
        return self.adam if any("betas" in slot.group for slot in slots) else self.usual


class Sparsifier:
    """A method that lives inside a training loop. Built by ``HALO``, ``Lasso``, ``SWS``, ``MCP``, ``Bridge``.

    Args:
        model: the network; wrappers of ``torch.compile`` and DDP are looked through.
        sparsity: share of zeros among the selected units, in (0, 1), met exactly; ``None`` for ``macs=``, and for
            methods with fixed strengths, whose zeros are what they are.
        steps: optimiser steps of the whole training; the ramp is laid out over them.
        solver: acts on the weights until the pattern is fixed; or two, of which the optimisers decide.
        zero_below: with no ``sparsity``, ``finalize`` zeroes units of this size and less.
        include: which tensors (types, name patterns, predicates) instead of the default: the weights
            of convolutions, linear, attention and recurrent layers.
        exclude: which of those to leave out.
        biases: also the biases of layers taken by type.
        granularity: ``Weight()``, ``Row()``, ``Block(r, c)`` or ``NM(n, m)``; sparsity counts its units.
        distribution: ``"global"`` (tensors compete for one count), ``"uniform"`` (the same share in each) or ``"erk"``
            (narrow tensors stay denser; see :mod:`shrinkage.core.distribution`).
        layer_sparsity: shares in [0, 1) by name pattern, for tensors that get a target of their own.
        floor: every tensor keeps at least this share of the asked density (default 0.05), and at least
            one unit; 0 switches the protection off.
        ramp: ``"cubic"``, ``"linear"``, ``"one-shot"`` or a callable from [0, 1] to [0, 1].
        start: share of ``steps`` at which the ramp begins.
        end: share of ``steps`` at which the pattern is fixed.
        macs: in place of ``sparsity``, the share of the model's multiply–accumulates on ``example`` that is left, in
            (0, 1). What is not selected (norms, excluded layers, products without weights) counts in full, so that
            :func:`shrinkage.footprint` finds no more than this share of its MACs effective, and less by under one
            unit's. The ramp is one of MACs. Scores are divided by the square root of what units cost, which gave the
            highest accuracy. ``layer_sparsity`` is then the share of its own MACs that a tensor loses, and what it
            keeps is paid from the budget; ``floor`` counts the density in MACs.
        example: one call's input for the model, on its device, as :func:`shrinkage.footprint` takes it: a tuple of
            positional arguments, a mapping of keyword arguments, or the only argument.

    Raises:
        InputError: for arguments that cannot work, with what would.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float | None,
        steps: int | None,
        *,
        solver: Solver | ByOptimizer,
        zero_below: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        check_options(type(self), options)
        self._model = model
        self._plan = Plan(model, sparsity, options)
        if self._plan.dial is None and (idle := sorted(options.keys() & TARGETED)):
            raise InputError(
                f"{type(self).__name__}: {idle[0]}= refines a target (sparsity= or macs=), and there is none"
            )
        self._given = solver
        self._solver = solver.usual if isinstance(solver, ByOptimizer) else solver
        self._zero_below = zero_below
        self._ramp: Ramp | None = None
        if steps is not None:
            start, end = options.get("start", 0.0), options.get("end", 1.0)
            self._ramp = Ramp(options.get("ramp", "cubic"), start, end, steps)
        self._slots: list[Slot] = []
        self._hooks: OptimizerHooks | None = None
        self._holder: Holder | None = None
        self._held: dict[str, Held] = {}
        self._clock: Optimizer | None = None
        self._pending: dict[str, Any] | None = None
        self._step = 0
        self._final = False

    # ---- the life -------------------------------------------------------------------------------

    def attach(self, *optimizers: Any) -> Self:
        """Begin: from now on every ``optimizer.step()`` carries the method.

        A method that is sparse all along makes the weights so now, unless a state was loaded before.

        Args:
            optimizers: all optimisers that update selected weights; Lightning's and accelerate's
                wrappers are looked through. With several, a step of the method is a step of the
                one that holds most of the selected weights.

        Raises:
            StateError: if it is attached already.
            InputError: if selected weights are in none of the optimisers.
        """
        if self._hooks is not None:
            raise StateError(
                f"{self._name} is attached already; call detach() first, or build another for another model"
            )
        inner = list(dict.fromkeys(unwrap_optimizer(optimizer, self._name) for optimizer in optimizers))
        self._slots = self._make_slots(inner)
        load = dict.fromkeys(inner, 0)
        for slot in self._slots:
            load[slot.optimizer] += slot.units
        self._clock = max(load, key=lambda optimizer: load[optimizer])
        if isinstance(self._given, ByOptimizer):
            self._solver = self._given.suited(self._slots)
        self._solver.start(self._slots, self._plan.dial)
        self._hooks = OptimizerHooks(self, self._name, inner)
        pending, self._pending = self._pending, None
        try:
            if pending is None or not pending["solver"]:
                self._solver.begin()
            if pending is not None:
                self._restore(pending)
        except BaseException:
            self._hooks.remove()
            self._hooks = None
            raise
        return self

    def _make_slots(self, optimizers: list[Optimizer]) -> list[Slot]:
        owner = owners(optimizers)
        weights = self._plan.weights(self._model)
        missing = [name for name, weight in weights.items() if id(weight) not in owner]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(weights)} selected weights, {missing[0]!r} among them, are in none of "
                f"the optimisers given to {self._name}.attach(); build the optimiser from this model's "
                "parameters (after moving or wrapping it), or leave those weights out with exclude="
            )
        return [
            Slot(
                item.name,
                weight,
                item.out_dim,
                self._plan.granularity,
                *owner[id(weight)],
                toll=self._plan.toll(i, weight.device),
            )
            for i, (item, weight) in enumerate(zip(self._plan.selected, weights.values(), strict=True))
        ]

    def penalty(self) -> Tensor:
        """The penalty at the present weights and strengths: a scalar, differentiable in both w and λ."""
        self._need_attached("penalty()")
        return self._solver.value()

    def finalize(self) -> Sparsified:
        """Make the zeros exact and final, and check what was asked for; the hooks keep them until :meth:`detach`.

        Returns:
            What was reached, per layer; prints as a table.

        Raises:
            TargetError: if the ramp has not ended, or the zeros, or the multiply–accumulates that are left, are not
                what was asked for.
            DivergedError: if a weight is NaN or infinite.
            StateError: if the method was never attached.
        """
        self._need_attached("finalize()")
        self._check_weights()
        if self._holder is None:
            if self._ramp is not None and self._plan.dial is not None:
                raise TargetError(
                    f"finalize() after {self._step} of {self._ramp.steps} steps, but the pattern is only fixed "
                    f"after step {self._ramp.last_step}: train on, or build {self._name} with steps= set to "
                    "the number of optimiser steps that will really be taken"
                )
            self._fix()
        assert self._holder is not None
        self._holder.clear_all()
        result = self._plan.result(self._name, self._model)
        self._final = True
        return result

    def detach(self) -> None:
        """Take the hooks off the optimisers; weights stay as they are."""
        if self._hooks is not None:
            self._pending = self.state_dict()
            self._hooks.remove()
            self._hooks = None

    def apply_to(self, other: nn.Module) -> None:
        """Give another copy of the model, such as an exponential moving average, the very same zeros.

        Raises:
            StateError: before the pattern is fixed.
            InputError: if the other model's parameters do not fit.
        """
        masks = self.masks()
        weights = resolve(other, masks)
        for name, weight in weights.items():
            if weight.shape != masks[name].shape:
                raise InputError(f"{name!r} has shape {tuple(weight.shape)} there, {tuple(masks[name].shape)} here")
        for name, weight in weights.items():
            clear(weight, bit_mask(masks[name], weight))

    # ---- looking --------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Optimiser steps seen."""
        return self._step

    @property
    def phase(self) -> str:
        """``"shrinking"``, ``"holding"`` or ``"final"``."""
        return "final" if self._final else "shrinking" if self._holder is None else "holding"

    @property
    def wanted(self) -> float:
        """The share of zeros that the ramp asks for now; 0 without a target.

        With ``macs=`` the share of multiply–accumulates that is to be gone.
        """
        if self._plan.dial is None:
            return 0.0
        share = self._ramp(self._step) if self._ramp is not None else float(self._holder is not None)
        return self._plan.dial.asked(share)

    @property
    def units(self) -> int:
        """How many units are selected."""
        return self._plan.units

    @property
    def zeros(self) -> int:
        """How many of them are zero now (counts; not for every step)."""
        return sum(zeros for zeros, _ in self.measure().values())

    @property
    def strength(self) -> float:
        """ξ as it is now; steered strengths are in units of the weights' root mean square."""
        return self._solver.strength

    @property
    def macs(self) -> Spent | None:
        """What is left of the multiply–accumulates now (counts); ``None`` where no budget of them was given."""
        return self._plan.spent(self._model)

    def measure(self) -> dict[str, tuple[int, int]]:
        """Zero units and all units of every selected tensor, by name."""
        return self._plan.measure(self._model)

    def lam(self) -> dict[str, Tensor]:
        """The adaptive scale λ of every unit, by parameter name; empty for penalties without one."""
        return self._solver.lam() if self._slots else {}

    @property
    def lam_optimizer(self) -> SGD | None:
        """The optimiser of the trained λ, for schedules; ``None`` before ``attach`` or if no λ is trained."""
        return self._solver.lam_optimizer

    def masks(self) -> dict[str, Tensor]:
        """Which weights stay (``True``), by parameter name.

        Raises:
            StateError: before the pattern is fixed.
        """
        if self._holder is None:
            raise StateError(f"{self._name} has not fixed its pattern yet (step {self._step}, {self.phase})")
        return {name: held.mask != 0 for name, held in self._held.items()}

    def __repr__(self) -> str:
        what = str(self._plan.dial) if self._plan.dial is not None else f"{self.units:,} units"
        return f"{self._name}({what} in {len(self._plan.selected)} tensors, step {self._step}, {self.phase})"

    # ---- checkpoints ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs beside the model and the optimiser; safe for ``weights_only``."""
        if self._hooks is None and self._pending is not None:
            return self._pending
        return {
            **checkpoint.header(self._name, self._config(), self._plan.shapes),
            "step": self._step,
            "final": self._final,
            "kept": checkpoint.pack_masks(self._held),
            "by": type(self._solver).__name__,
            "solver": self._solver.state_dict() if self._slots else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken; before or after ``attach``.

        Raises:
            InputError: if it belongs to another model, method or target.
        """
        checkpoint.check(state, self._name, self._config(), self._plan.shapes)
        if self._hooks is None:
            self._pending = state
            self._step, self._final = state["step"], state["final"]
        else:
            self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        if not state["kept"] and state["solver"] and state["by"] != type(self._solver).__name__:
            raise InputError(
                f"this state of {self._name} was taken with another kind of optimiser: under those of Adam's family it "
                "works differently; attach one of the same kind to continue"
            )
        self._step, self._final = state["step"], state["final"]
        if state["solver"] and state["by"] == type(self._solver).__name__:
            self._solver.load_state_dict(state["solver"])
        self._holder, self._held = None, {}
        if state["kept"]:
            self._hold(checkpoint.unpack_masks(state["kept"], {slot.name: slot.parameter for slot in self._slots}))

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"solver": type(self._given).__name__, **self._plan.config()}
        if self._ramp is not None:
            shape = self._ramp.shape if isinstance(self._ramp.shape, str) else "a callable"
            config |= {"steps": self._ramp.steps, "ramp": shape, "start": self._ramp.start, "end": self._ramp.end}
        return config

    def __getstate__(self) -> NoReturn:
        raise StateError(
            f"{self._name} is tied to its optimiser and cannot be copied or pickled: build a new one for the "
            "copied model and give it this one's state_dict()"
        )

    # ---- called by the optimisers' hooks --------------------------------------------------------

    def before_step(self, optimizer: Optimizer, scale: Tensor | None, once: bool) -> None:
        """Not for users: gradients are there, the step is not yet taken."""
        if self._holder is not None:
            self._holder.before_step(optimizer)
        else:
            self._solver.before_step(optimizer, scale, optimizer is self._clock, once)

    def after_step(self, optimizer: Optimizer) -> None:
        """Not for users: the step was taken."""
        if optimizer is self._clock:
            self._step += 1
        if self._holder is not None:
            self._holder.after_step(optimizer)
            return
        self._solver.stepped(optimizer)
        if optimizer is self._clock:
            share = self._ramp(self._step) if self._ramp is not None else 0.0
            self._solver.after_step(self._step, share)
            if self._ramp is not None and self._plan.dial is not None and self._step >= self._ramp.last_step:
                self._fix()

    def closure_value(self, optimizer: Optimizer, loss: Any) -> Any:
        """Not for users: what a wrapped closure returns."""
        if isinstance(loss, Tensor) and loss.device.type == "cpu" and not bool(torch.isfinite(loss).all()):
            self._check_weights()
            raise DivergedError(f"the loss is {loss.item()} at step {self._step}; lower the learning rate")
        return loss if self._holder is not None else self._solver.closure_value(optimizer, loss)

    def state_loaded(self, optimizer: Optimizer) -> None:
        """Not for users: the optimiser's state was replaced."""
        if self._holder is not None:
            self._holder.state_loaded(optimizer)
        else:
            self._solver.state_loaded(optimizer)

    # ---- fixing the pattern ---------------------------------------------------------------------

    @torch.no_grad()
    def _fix(self) -> None:
        """Choose the units that stay; from here on only they train."""
        self._check_weights()
        if self._plan.dial is None:
            kept = [slot.sizes() > self._zero_below for slot in self._slots]
        else:
            kept = self._plan.dial.pattern(*self._solver.ranking())
        self._hold(
            {
                slot.name: slot.spread(units).expand_as(slot.parameter)
                for slot, units in zip(self._slots, kept, strict=True)
            }
        )
        assert self._holder is not None
        self._holder.clear_all()

    def _hold(self, masks: Mapping[str, Tensor]) -> None:
        for slot in self._slots:
            self._held[slot.name] = Held(slot.parameter, bit_mask(masks[slot.name], slot.parameter.detach()))
        self._holder = Holder.of((slot.optimizer, self._held[slot.name]) for slot in self._slots)

    def _check_weights(self) -> None:
        for slot in self._slots:
            if not bool(torch.isfinite(slot.parameter).all()):
                raise DivergedError(
                    f"{slot.name!r} holds NaN or infinite weights at step {self._step}: the training has diverged; "
                    "lower the learning rate or clip the gradients"
                )

    def _need_attached(self, call: str) -> None:
        if self._hooks is None:
            raise StateError(f"{call} needs the method to be attached to an optimiser first: {self._name}.attach()")

    @property
    def _name(self) -> str:
        return type(self).__name__

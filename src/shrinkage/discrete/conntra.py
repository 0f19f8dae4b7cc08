r"""CoNNTrA: training with weights from a finite set, by coordinate descent over it.

Idea: a weight may only be :math:`s_\ell v` with :math:`v` in a set :math:`S`, such as :math:`\{-1, 0, 1\}`, and a scale
:math:`s_\ell` a layer. There are no floating-point weights behind them. One weight after the other is looked at:

.. math:: v_j \leftarrow \arg\min_{v \in S} L(v_1, …, v_{j-1}, v, v_{j+1}, …, v_n)
   \qquad\text{or}\qquad
   v_j \leftarrow v_j^{\pm} \text{ against the sign of } \frac{\partial L}{\partial v_j}, \text{ if } L \text{ falls}

The first is the exhaustive variant, the second, to the neighbouring value, the gradient-ranked one. Neither lets the
loss of the given examples rise, so that both end, after finitely many sweeps, where no single change helps (rounding
apart).

Regime: networks of some hundred thousand weights, for devices that store two bits a weight and cannot multiply. A
sweep costs up to n·(|S| − 1) trials, each of which computes only what lies downstream of the weight.

Source: Date, Carothers, Mitchell, Hendler & Magdon-Ismail, "Training Deep Neural Networks with Constrained Learning
Parameters", 2020, arXiv 2009.00540. Its pseudocode was not at hand; both variants are reconstructions with its stated
properties. Choices made here: the order is random (exhaustive) or by the first-order fall (gradient); ties keep
the present value; before the single trials of the gradient variant random parts of the gradient's steps are taken
together as long as the loss falls; biases are from the set as well; a scale a layer keeps the variance of the
activations, and the last layer's is set, before and after each sweep, to the temperature at which the loss is least,
with one wrong example more than there are, so that it has a bound.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.core import checkpoint
from shrinkage.core.driver import Round, Train, check_beginning
from shrinkage.core.errors import InputError, StateError
from shrinkage.core.hold import bit_mask, clear
from shrinkage.core.plan import Plan
from shrinkage.core.result import Layer
from shrinkage.core.selection import unwrap
from shrinkage.discrete import packed as packing
from shrinkage.discrete.cache import Loss, check_examples
from shrinkage.discrete.losses import cross_entropy
from shrinkage.discrete.result import Discretised, Sweep
from shrinkage.discrete.sweeps import Memory
from shrinkage.discrete.trainer import Scale, Settings, Start, Trainer, Variant, check_variant
from shrinkage.discrete.values import ValueSet, value_set
from shrinkage.formats.bits import pack_bits, unpack_bits

Examples = tuple[Tensor, Tensor]


@dataclass
class _Progress:
    """Where a run stands: all of it but the model."""

    plan: Plan
    config: dict[str, Any]
    trainer: Trainer
    kept: list[Tensor]  # which weights may be other than zero, one tensor a selected parameter
    sweeps: list[Sweep] = field(default_factory=list)
    rounds: list[float | None] = field(default_factory=list)
    current: Round | None = None


class CoNNTrA:
    """Train a network whose weights are from a finite set, with no floating-point weights behind them.

    With a model its weights are given values of the set at once, and :meth:`fit` sweeps over them. Without one it is a
    driver: :meth:`run` alternates between your loop, for what is not in the set, such as norms, and sweeps.

    Args:
        model: ``nn.Sequential`` of ``Linear``, ``Conv2d``, activations, pools, ``BatchNorm``, ``Dropout`` and
            ``Flatten``; changed in place. May be left out where :meth:`run` is used.
        values: the set, 2 to 256 numbers.
        variant: ``"exhaustive"`` tries every value of every weight. ``"gradient"`` first takes many steps at once,
            against a running mean of gradients that ``fit`` goes on with from sweep to sweep, then tries those that the
            present gradient proposes one by one. ``"together"`` leaves it at the former, which costs seconds a sweep.
        scale: ``"layer"`` multiplies a layer's values by a factor of its own; None leaves them as they are.
        temperature: what outputs are divided by before the loss. None has it chosen, for the least loss, before and
            after each sweep, with one wrong example more; with a scale a layer it becomes part of the last layer's.
        biases: whether biases are from the set too, times the layer's scale; otherwise they stay as they are.
        start: ``"random"`` draws the first values evenly, ``"round"`` takes those nearest to the model's weights.
        loss: from outputs and targets to a loss for each example. By default cross-entropy.
        seed: of all that is random, at least 0.
        sparsity: for :meth:`run`: share of zeros among the weights in the end, biases aside, in (0, 1), met exactly.
            It begins without any, and prunes after each round but the last what the loss would miss least, to first
            order.
        rounds: for :meth:`run`: how often your loop is called; at least 2 with a sparsity.
        data: for :meth:`run`: inputs and targets of the sweeps.

    Raises:
        InputError: for arguments that cannot work, and a module that cannot be looked through, which is named.

    >>> import torch, shrinkage
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> x = torch.randn(200, 20)
    >>> y = (x[:, 0] > x[:, 1]).long()
    >>> method = CoNNTrA(net, values=(-1, 0, 1))
    >>> result = method.fit(x, y, sweeps=3)
    >>> result.bits, result.sweeps[-1].loss <= result.sweeps[0].before
    (2, True)
    >>> (net(x).argmax(1) == y).float().mean().item() > 0.95
    True
    >>> method.packed()[0]
    PackedLinear(16 × 20 of 3 values, 2 bits each)
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        values: Sequence[float] = (-1, 0, 1),
        *,
        variant: Variant = "gradient",
        scale: Scale = "layer",
        temperature: float | None = None,
        biases: bool = True,
        start: Start = "random",
        loss: Loss = cross_entropy,
        seed: int = 0,
        sparsity: float | None = None,
        rounds: int = 2,
        data: Examples | None = None,
    ) -> None:
        self._settings = Settings(value_set(values), variant, scale, temperature, biases, start, loss)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed must be a whole number of at least 0, got {seed!r}")
        least = 1 if sparsity is None else 2
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < least:
            raise InputError(f"rounds is how often your loop is called, here at least {least}, got {rounds!r}")
        if sparsity is not None and (0.0 not in self._values.values or len(self._values.values) < 3):
            raise InputError(f"a sparsity needs zero and two other values in the set, got {tuple(values)}")
        self._seed, self._sparsity, self._rounds, self._data = seed, sparsity, rounds, data
        self._pending: dict[str, Any] | None = None
        self._progress: _Progress | None = None
        self._sweeps: list[Sweep] = []
        self._trainer: Trainer | None = None
        self._memory = Memory()  # of what fit() did
        self._frozen: dict[str, Tensor] = {}  # what run() has pruned
        if model is not None:
            self._trainer = Trainer(unwrap(model), self._settings)
            self._trainer.begin(self._generator(0))

    @property
    def _values(self) -> ValueSet:
        return self._settings.values

    # ---- a network by itself --------------------------------------------------------------------

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        sweeps: int = 1,
        *,
        batch: int | None = None,
        variant: Variant | None = None,
        validation: Examples | None = None,
        tell: Callable[[Sweep], None] | None = None,
    ) -> Discretised:
        """Sweep over all weights several times; called again, it goes on. What :meth:`run` has pruned stays zero.

        Args:
            x: inputs, shape (N, …), as the network takes them.
            y: targets, shape (N, …).
            sweeps: how many, at least 1. It ends earlier after an exhaustive sweep over all examples that moves
                nothing.
            batch: examples of each sweep, drawn afresh from all; None for all. Losses are of the sweep's examples.
            variant: another one than the constructor's, for these sweeps.
            validation: inputs and classes; the accuracy on them is measured after each sweep, and steers nothing.
            tell: is called after each sweep.

        Returns:
            All sweeps so far, and zeros per tensor.

        Raises:
            InputError: for data that do not fit the network or the loss.
            StateError: if there is no model, or the loss is not finite.
        """
        trainer = self._trained()
        check_examples(x, y)
        if validation is not None:
            check_examples(*validation)
        if isinstance(sweeps, bool) or not isinstance(sweeps, int) or sweeps < 1:
            raise InputError(f"sweeps must be a positive whole number, got {sweeps!r}")
        if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or not 0 < batch <= len(x)):
            raise InputError(f"batch must be a whole number from 1 to the {len(x)} examples there are, got {batch!r}")
        if variant is not None:
            check_variant(variant)
        for _ in range(sweeps):
            generator = self._generator(len(self._sweeps) + 1)
            here = slice(None) if batch is None else torch.randperm(len(x), generator=generator)[:batch]
            values = self._allowed() if self._frozen else None
            sweep = trainer.sweep(x[here], y[here], generator, variant, values, self._frozen, self._memory)
            if validation is not None:
                sweep = Sweep(**{**asdict(sweep), "accuracy": trainer.accuracy(*validation)})
            self._sweeps.append(sweep)
            if tell is not None:
                tell(sweep)
            if sweep.variant == "exhaustive" and batch is None and not sweep.moved:
                break
        return self._result(trainer, self._sweeps)

    def packed(self) -> nn.Module:
        """A copy of the network with its weights packed at ⌈log₂|S|⌉ bits, which computes from there.

        Its ``state_dict`` is the packed form: :func:`shrinkage.save` writes it, and :func:`shrinkage.load` reads it
        into another packed copy of the same architecture. :func:`shrinkage.discrete.unpacked` gives ordinary layers
        back.

        Raises:
            StateError: if there is no model, or its weights are no longer from the set.
        """
        trainer = self._trained()
        trainer.follow()
        return packing.packed(trainer.model, self._values, trainer.scales, self._settings.biases)

    def _trained(self) -> Trainer:
        if self._trainer is None:
            raise StateError("there is no model yet: give it as CoNNTrA(model, …), or call run(model, train, steps)")
        return self._trainer

    def _generator(self, *key: int) -> torch.Generator:
        number = self._seed
        for part in key:
            number = (number * 1_000_003 + part + 1) % (1 << 63)
        return torch.Generator().manual_seed(number)

    # ---- the driver -----------------------------------------------------------------------------

    def run(self, model: nn.Module, train: Train, steps: int) -> Discretised:
        """Alternate between your loop and sweeps; or go on, after :meth:`load_state_dict`.

        In each round ``train`` trains what is not in the set: weights of the set are put back after each step of
        the optimisers that are attached. Then comes one sweep over ``data``.

        Args:
            model: as in the constructor; wrappers of ``torch.compile`` and DDP are looked through.
            train: is called with the model and a :class:`~shrinkage.core.driver.Round`, once a round.
            steps: optimiser steps of a round.

        Returns:
            All sweeps, what ``train`` returned, and zeros per tensor.

        Raises:
            InputError: for a target that cannot be, missing data, or a loaded state of another model.
            StateError: if ``train`` did not attach the round, or took no steps.
            TargetError: if the sparsity was missed.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InputError(f"steps must be a positive whole number of optimiser steps, got {steps!r}")
        progress = self._progress = self._begin(unwrap(model), steps)
        self._trainer, self._memory = progress.trainer, Memory()
        try:
            while len(progress.rounds) < self._rounds:
                self._round(model, train, progress, steps)
        finally:
            self._progress, self._frozen = None, _pruned(progress)
        self._sweeps = progress.sweeps
        final = progress.plan.result(self._name, model)
        return self._result(progress.trainer, progress.sweeps, final.target, progress.rounds)

    def _begin(self, model: nn.Module, steps: int) -> _Progress:
        plan = Plan(model, self._sparsity, {})
        if self._data is None:
            raise InputError("run() sweeps over examples of its own: give them as CoNNTrA(…, data=(x, y))")
        check_examples(*self._data)
        settings = {name: value for name, value in vars(self._settings).items() if name not in ("values", "loss")}
        own = {"values": list(self._values.values), "rounds": self._rounds, "seed": self._seed, "steps": steps}
        trainer = Trainer(model, self._settings)
        kept = [torch.ones(shape, dtype=torch.bool) for shape in plan.shapes.values()]
        progress = _Progress(plan, plan.config() | settings | own, trainer, kept)
        if (state := self._pending) is None:
            trainer.begin(self._generator(0), self._allowed())
            return progress
        checkpoint.check(state, self._name, progress.config, plan.shapes)
        progress.kept = [unpack_bits(state["kept"][name], shape) for name, shape in plan.shapes.items()]
        progress.sweeps = [Sweep(**each) for each in state["sweeps"]]
        progress.rounds = list(state["rounds"])
        trainer.scales, trainer.temperature = dict(state["scales"]), state["temperature"]
        self._pending = None
        return progress

    def _allowed(self) -> ValueSet:
        """What weights may be that are not pruned; biases may be zero."""
        return self._values if self._sparsity is None else self._values.without_zero()

    def _round(self, model: nn.Module, train: Train, progress: _Progress, steps: int) -> None:
        trainer, plan, index = progress.trainer, progress.plan, len(progress.rounds)
        sites = trainer.sites()
        values = [parameter.detach().clone() for parameter in sites.parameters()]

        def put_back(taken: int) -> None:
            with torch.no_grad():
                for parameter, value in zip(sites.parameters(), values, strict=True):
                    parameter.copy_(value)

        run = Round(self._name, trainer.model, plan, _masks(progress), index, 0, steps, put_back)
        progress.current = run
        try:
            value = _figure(train(model, run))
        finally:
            run.close()
        if not run.taken:
            what = "never attached the round: call run.attach(optimizer)" if run.taken is None else "took no step"
            raise StateError(f"train {what} (round {index} of {self._name})")
        put_back(0)  # the last step may have been of an optimiser that does not count them
        assert self._data is not None
        if self._sparsity is not None and index + 1 < self._rounds:
            self._prune(progress, (index + 1) / (self._rounds - 1))
        generator = self._generator(index + 1)
        sweep = trainer.sweep(*self._data, generator, None, self._allowed(), _pruned(progress))
        progress.sweeps.append(sweep)
        progress.rounds.append(value)

    def _prune(self, progress: _Progress, exponent: float) -> None:
        """Zero the weights that the loss misses least, to first order: −w·∂L/∂w."""
        plan, trainer = progress.plan, progress.trainer
        assert plan.dial is not None  # there is a target
        assert self._data is not None
        weights = plan.weights(trainer.model)
        gradients = trainer.cache(*self._data).gradients(list(weights.values()))
        rises = [-gradient * weight.detach() for gradient, weight in zip(gradients, weights.values(), strict=True)]
        least = min(float(rise.min()) for rise in rises)
        tiny = torch.finfo(rises[0].dtype).tiny
        scores = [
            (rise - least).clamp(min=tiny) * kept.to(rise.device)
            for rise, kept in zip(rises, progress.kept, strict=True)
        ]
        progress.kept = plan.dial.thinned(exponent).pattern(scores, plan.sizes(dict(weights)))
        for name, mask in _masks(progress).items():
            clear(weights[name], bit_mask(mask, weights[name].detach()))

    def _result(
        self,
        trainer: Trainer,
        sweeps: Sequence[Sweep],
        target: int | None = None,
        rounds: Sequence[float | None] = (),
    ) -> Discretised:
        layers = [
            Layer(site.name, int((site.parameter == 0).sum()), site.parameter.numel())
            for site in trainer.sites().sites
            if site.parameter.ndim > 1
        ]
        return Discretised(
            method=self._name,
            layers=tuple(layers),
            target=target,
            values=self._values.values,
            bits=self._values.bits,
            scale=self._settings.scale,
            temperature=trainer.temperature,
            sweeps=tuple(sweeps),
            rounds=tuple(rounds),
        )

    # ---- checkpoints ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed :meth:`run` needs beside the model, safe for ``weights_only``; to be taken in ``train``.

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
            "scales": dict(progress.trainer.scales),
            "temperature": progress.trainer.temperature,
            "sweeps": [asdict(each) for each in progress.sweeps],
            "rounds": list(progress.rounds),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next :meth:`run` begin where ``state`` was taken, and there be checked; load the model's as well."""
        self._pending = copy.copy(state)

    @property
    def _name(self) -> str:
        return type(self).__name__


def _figure(value: object) -> float | None:
    """What a training returned, as a number or nothing.

    Raises:
        InputError: if it is neither.
    """
    try:
        return None if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InputError(f"train returned {type(value).__name__}; return one number, or nothing") from error


def _masks(progress: _Progress) -> dict[str, Tensor]:
    """Which weights stay, in the weights' shapes, of tensors in which some do not."""
    weights = progress.plan.weights(progress.trainer.model)
    kept = [units.to(weight.device) for units, weight in zip(progress.kept, weights.values(), strict=True)]
    return {name: mask for name, mask in progress.plan.spread(kept, weights).items() if not bool(mask.all())}


def _pruned(progress: _Progress) -> dict[str, Tensor]:
    """Which weights are zero and stay so, of the same tensors."""
    return {name: ~mask for name, mask in _masks(progress).items()}

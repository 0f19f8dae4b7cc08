r"""NoiseOut: neurons that say the same are folded into one, beside outputs that are to predict noise.

Of two neurons with activations :math:`h_A \approx a\,h_B + b` one is enough. Every reader :math:`k` of both takes the
first one's part over,

.. math:: w_{kB} \leftarrow w_{kB} + a\,w_{kA}, \qquad \beta_k \leftarrow \beta_k + b\,w_{kA}, \qquad
    a = \frac{\operatorname{cov}(h_A, h_B)}{\operatorname{var}(h_B)}, \quad b = \bar h_A - a\,\bar h_B

and neuron A leaves the network with its row and column. With :math:`|\rho| = 1` the function is the same but for
rounding. A constant neuron goes into the biases alone. In training, further outputs beside the model's own are asked
for random numbers that nobody can know, which in the paper drives correlations up (see
:mod:`shrinkage.noiseout.noise`).

Source: Babaeizadeh, Smaragdis, Campbell, "NoiseOut: A Simple Way to Prune Neural Networks", 2016, arXiv 1611.06211.
The paper's stop rule, its choice between the two of a pair and the parameters of its noise are not known here. Chosen
instead: of a pair the neuron goes that its readers hear less of; layers compare by :math:`|\rho|` itself; many pairs
go in a round, and a neuron that has taken others over counts as loud as it is then; a round that costs too much is
taken back and tried again with half as many. The default, ``by="error"``, is not the paper's: it weighs what a pair
does not share by how much of it is heard (see :mod:`shrinkage.noiseout.partners`). Channels of convolutions are
compared over all positions. Where padding, or a layer without a bias, lets no constant in, :math:`b = 0` and
moments about zero are used, the mean square in place of the variance, which stays exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Self, get_args

from torch import nn
from torch.optim import Optimizer

from shrinkage.core.errors import InputError, StateError
from shrinkage.core.hooks import unwrap_optimizer
from shrinkage.core.selection import unwrap
from shrinkage.deploy.tracing import arguments, stored
from shrinkage.noiseout.foldable import head_of
from shrinkage.noiseout.neurons import Neurons
from shrinkage.noiseout.noise import Gaussian, Noise, NoiseOutputs
from shrinkage.noiseout.partners import By
from shrinkage.noiseout.quota import quota_of, whole
from shrinkage.noiseout.removal import Snapshot
from shrinkage.noiseout.rounds import Score, Train, number, to_target, while_good
from shrinkage.noiseout.shrunk import Shrunk, Units

_FORMAT = 1
_NOISE = Gaussian()


class NoiseOut:
    """Fold correlated neurons and channels into one another, and take them out of the model and its optimisers.

    Args:
        model: the network, changed in place by :meth:`prune` and :meth:`run`; parameters stay the same objects, names
            and classes stay. Wrappers of ``torch.compile`` are looked through.
        example: an input, as for :func:`~shrinkage.compact`.
        noise: what the noise outputs are asked for: :class:`Gaussian`, :class:`Binomial`, :class:`Constant`, anything
            with their ``draw``; ``None`` for no such outputs.
        outputs: how many of them, at least 1.
        strength: of the noise loss, the mean squared error, beside the user's; greater than 0.
        head: path of the linear layer beside which they live; by default the last that runs.
        by: how pairs compare: ``"error"`` by what the fold leaves unexplained in the neuron's readers,
            ``"correlation"`` by :math:`|ρ|` alone, as in the paper.
        exclude: layers that keep all their neurons, by name or shell pattern. Of layers that are one group, because
            the same layers read them (``"a + b"``), one name is enough for all.
        seed: of the noise and the first weights of its outputs; the global random state is left alone.

    Raises:
        InputError: for arguments that cannot work, a model that cannot be traced, a head that cannot be widened.

    >>> import torch, shrinkage
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
    >>> _ = net[0].weight.data[:3].copy_(net[0].weight.data[3:])    # each of the first three says
    >>> _ = net[0].bias.data[:3].copy_(net[0].bias.data[3:])        # what one of the others says
    >>> x = torch.randn(100, 4)
    >>> before = net(x)
    >>> print(shrinkage.NoiseOut(net, x[:1], noise=None).prune([x], neurons=3))
    NoiseOut, 47.7% removed
    layer       neurons  left
    ──────────  ───────  ────
    0                 6     3
    ──────────  ───────  ────
    neurons           6     3
    parameters       44    23
    >>> torch.allclose(net(x), before, atol=1e-6)
    True
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        *,
        noise: Noise | None = _NOISE,
        outputs: int = 100,
        strength: float = 1.0,
        head: str | None = None,
        by: By = "error",
        exclude: str | Iterable[str] = (),
        seed: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
        spread: list[nn.Module] = [
            m for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel | nn.DataParallel)
        ]
        if spread or any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
            raise InputError(
                f"{type((spread or [model])[0]).__name__} spreads its parameters or gradients over devices by their "
                "sizes, which change here: prune on one device, and wrap the smaller model"
            )
        if by not in get_args(By):
            raise InputError(f"by must be one of {', '.join(get_args(By))}, got {by!r}")
        if isinstance(outputs, bool) or not isinstance(outputs, int) or outputs < 1:
            raise InputError(
                f"outputs is a whole number of noise outputs, at least 1 (noise=None: none), got {outputs!r}"
            )
        if isinstance(noise, type) or not (noise is None or callable(getattr(noise, "draw", None))):
            raise InputError(
                f"noise is an object with draw(), such as shrinkage.noiseout.Gaussian(), or None, got {noise!r}"
            )
        if not _positive(strength):
            raise InputError(f"strength must be greater than 0 (noise=None: no noise outputs), got {strength!r}")
        self._model = unwrap(model)
        inputs = arguments(example)
        self._hidden = Neurons(self._model, inputs, by, [exclude] if isinstance(exclude, str) else list(exclude))
        self._head = head_of(self._model, inputs, head) if noise is not None else ""
        self._noise, self._outputs, self._strength, self._seed = noise, outputs, strength, seed
        self._beside: NoiseOutputs | None = None
        self._pending: Mapping[str, Any] | None = None
        self._optimizers: list[Optimizer] | None = None
        self._before = self._now()

    # ---- training -------------------------------------------------------------------------------

    def attach(self, *optimizers: Any, scaler: Any = None) -> Self:
        """Begin: noise outputs train beside the model, and removals reach what the optimisers remember.

        While the model is in training mode its head adds the gradient of the noise loss to that of any loss of the
        user's. The weights of the noise outputs join the parameter group that trains the head's, until :meth:`finish`.
        The first step raises StateError if no noise has been learned before it. What was compiled before, of whatever
        model, is compiled anew when it is next called.

        Args:
            optimizers: all that train the model.
            scaler: the ``GradScaler`` of the training, if there is one.

        Raises:
            StateError: if it is attached already.
            InputError: if the head's weight is in none of the optimisers.
        """
        if self._optimizers is not None:
            raise StateError("NoiseOut is attached already; call finish() before attaching elsewhere")
        inner = list(dict.fromkeys(unwrap_optimizer(optimizer, "NoiseOut") for optimizer in optimizers))
        if not inner:
            raise InputError("NoiseOut.attach() needs the optimisers that train the model")
        if self._noise is not None:
            head = self._model.get_submodule(self._head)
            assert isinstance(head, nn.Linear)
            beside = NoiseOutputs(self._head, head, self._noise, self._outputs, self._strength, self._seed)
            if self._pending is not None:
                beside.load_state_dict(self._pending)
            beside.begin(head, inner, scaler)
            self._beside, self._pending = beside, None
        self._optimizers = inner
        return self

    def finish(self) -> Shrunk:
        """End: noise outputs leave the optimiser and the model, and nothing of them stays.

        From now on the optimisers are not followed. If more is pruned later, attach again, or go on with new ones.

        Returns:
            What has been removed since this object was made.
        """
        if self._beside is not None:
            self._beside.end(self._optimizers or [])
            self._pending = {"generator": self._beside.generator.get_state()}  # another time other targets
            self._beside = None
        self._optimizers = None
        return self.result()

    @property
    def noise_loss(self) -> float:
        """The last noise loss, times its strength; NaN where there was none."""
        return math.nan if self._beside is None else float(self._beside.loss)

    @property
    def neurons(self) -> dict[str, int]:
        """How many neurons or channels each layer has now, of those layers that can lose some."""
        return self._hidden.sizes

    @property
    def parameters(self) -> int:
        """How many parameters the model has now."""
        return self._hidden.parameters

    def correlation(self, batches: Iterable[Any]) -> dict[str, float]:
        """The mean of :math:`|ρ|` over all pairs of neurons of a layer that are not constant.

        Args:
            batches: inputs, or pairs ``(x, y)``, on the model's device.

        Returns:
            By layer; NaN where fewer than two neurons vary.
        """
        return self._hidden.correlation(batches)

    # ---- removal --------------------------------------------------------------------------------

    def prune(
        self, batches: Iterable[Any], neurons: int | Mapping[str, int] | None = None, *, parameters: int | None = None
    ) -> Shrunk:
        """Fold neurons into others and remove them, now. Exactly as many go as are asked for.

        Optimisers that this is attached to follow. Of others that hold momentum or other memory build new ones: what
        they remember has the old sizes.

        Args:
            batches: inputs, or pairs ``(x, y)``, on the model's device, that correlations are measured on: best many
                times as many examples (in convolutions, positions) as a layer has neurons. With fewer examples than
                neurons every neuron is nearly a combination of others, and correlations say little of new data.
            neurons: how many go: a number over all layers, or one for each layer by its name.
            parameters: in place of them, go on until at most so many parameters of the model are left.

        Returns:
            What went in this call.

        Raises:
            InputError: for a target that cannot be, fewer than three examples, or an optimiser whose state cannot be
                cut.
            StateError: if an activation is NaN or infinite, or in inference mode.
            TargetError: if fewer can go; nothing is changed then.
        """
        before = self._now()
        folds = self._hidden.prune(batches, neurons, parameters, self._optimizers or [], self._beside)
        return replace(self.result(before), folds=tuple(folds))

    def prune_up_to(self, batches: Iterable[Any], neurons: int) -> Shrunk:
        """The same for as many neurons over all layers, or for as many as can go."""
        whole("neurons", neurons, 0, sum(self._hidden.sizes.values()), "that go at most")
        before = self._now()
        folds = self._hidden.prune_up_to(batches, neurons, self._optimizers or [], self._beside)
        return replace(self.result(before), folds=tuple(folds))

    @property
    def fewest(self) -> int:
        """How many parameters are left when all neurons have gone that can."""
        return self._hidden.fewest

    def run(
        self,
        train: Train,
        batches: Iterable[Any],
        score: Score | None = None,
        *,
        tolerance: float | None = None,
        baseline: float | None = None,
        neurons: int | None = None,
        parameters: int | None = None,
        rounds: int = 10,
        share: float = 0.2,
        refusals: int = 3,
    ) -> Shrunk:
        """Remove, train, and again, until the budget is met.

        With a tolerance a round removes a share of the neurons that are left. After the recovery training the score may
        be lower than at the beginning by the tolerance; else, or if it is not finite, the round is taken back, with the
        optimisers' memory, and the share is halved. It ends after so many refusals, or when one neuron is too much, or
        when no more can go. Where ``train`` or ``score`` raise an error, the round is taken back before it goes on.

        Args:
            train: is given the model, and trains it for a while: the recovery after each removal.
            batches: what correlations are measured on; gone through once a round, so a list or a loader.
            score: is given the model and says how good it is on held-out data, the higher the better.
            tolerance: how much of the score may be lost, at least 0.
            baseline: what it is lost from; by default the score at the beginning of this call. A second run with the
                first one's baseline spends the tolerance once.
            neurons: in place of it, how many go in all, exactly.
            parameters: in place of both, how many may be left at most.
            rounds: removals for ``neurons`` and ``parameters``; each removes the same share of what is left.
            share: of the neurons that the first rounds remove for a tolerance, in (0, 1).
            refusals: of rounds, at least 1, after which it ends.

        Returns:
            What went, and the rounds.

        Raises:
            InputError: for a budget that cannot be.
            StateError: if the score at the beginning, or with a number as the budget, is not finite.
            TargetError: if fewer can go than are asked for by number; nothing is changed then.
        """
        if sum(each is not None for each in (tolerance, neurons, parameters)) != 1:
            raise InputError("run() needs one budget: tolerance=0.5 (of the score), neurons=100 or parameters=50_000")
        if iter(batches) is batches:
            raise InputError("run() goes through the batches once a round: pass a list or a loader, not a generator")
        before = self._now()
        if tolerance is not None:
            if score is None or not 0 <= tolerance < math.inf:
                raise InputError(
                    f"a tolerance (of at least 0, got {tolerance!r}) needs score=, a function of the model"
                )
            if not 0 < share < 1:
                raise InputError(f"share is of the neurons that are left, in (0, 1), got {share!r}")
            whole("refusals", refusals, 1, 1000, "of rounds taken back")
            hold = None if baseline is None else number(baseline)
            done = while_good(self, self._model, train, batches, score, tolerance, hold, share, refusals)
        else:
            quota_of(self.neurons, self.parameters, neurons, parameters)
            self._hidden.check_reach(neurons, parameters)
            whole("rounds", rounds, 1, 100_000, "of removals")
            done = to_target(self, self._model, train, batches, score, neurons, parameters, rounds)
        rounds_done = tuple(done)
        return replace(self.result(before), rounds=rounds_done)

    def mark(self) -> Callable[[], None]:
        """Remember the model, the optimisers' memory and the noise outputs as they are.

        Returns:
            What goes back there when it is called, any number of times. It raises StateError if :meth:`attach` or
            :meth:`finish` has been called in between, since the optimisers hold other parameters then.
        """
        attached, beside, sizes = self._optimizers, self._beside, self.neurons
        optimizers = attached or []
        snapshot = Snapshot.of(self._model, optimizers)
        noise = None if beside is None else beside.state_dict()

        def back() -> None:
            if self._optimizers is not attached:
                raise StateError("the mark was set before attach() or finish(), and cannot be gone back to after it")
            snapshot.restore(self._model, optimizers)
            if beside is not None and noise is not None:
                beside.restore(noise)
            self._hidden.restored(sizes)

        return back

    # ---- checkpoints ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the model's and the optimisers' state: shapes, noise outputs, generator."""
        return {
            "format": _FORMAT,
            "shapes": {name: list(tensor.shape) for name, tensor in stored(self._model).items()},
            "before": [dict(self._before[0]), self._before[1]],
            "noise": self._noise_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state: the model shrinks to the shapes that it had.

        Then load the model's state, build the optimiser, attach, and load the optimiser's state.

        Raises:
            InputError: if the state is not of this method, of other layers, or of a model that this one cannot be
                shrunk to.
            StateError: if it is attached already.
        """
        if state.get("format") != _FORMAT or "shapes" not in state:
            raise InputError(f"this is not the state of NoiseOut (format {state.get('format')}, needs {_FORMAT})")
        if self._optimizers is not None:
            raise StateError("load the state of NoiseOut before attach(): optimisers are built for the smaller model")
        if set(state["before"][0]) != set(self.neurons):
            raise InputError(
                f"this state is of layers {', '.join(state['before'][0])}, and here {', '.join(self.neurons)} can lose "
                "neurons: give the same model, example and exclude="
            )
        self._hidden.reshape(state["shapes"])
        self._before = dict(state["before"][0]), int(state["before"][1])
        self._pending = state["noise"]

    # ---- parts ----------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """A copy is attached to nothing; it knows the noise outputs as they are, for its own :meth:`attach`."""
        unattached = {"_optimizers": None, "_beside": None, "_pending": self._noise_state()}
        return {**self.__dict__, **unattached}

    def _noise_state(self) -> Mapping[str, Any] | None:
        return self._pending if self._beside is None else self._beside.state_dict()

    def _now(self) -> tuple[dict[str, int], int]:
        return self.neurons, self.parameters

    def result(self, before: tuple[Mapping[str, int], int] | None = None) -> Shrunk:
        """What has been removed, by default since this object was made."""
        sizes, parameters = before or self._before
        return Shrunk(
            "NoiseOut",
            {name: Units(sizes[name], count) for name, count in self.neurons.items()},
            Units(parameters, self.parameters),
            left=tuple(self._hidden.fixed),
        )


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf

"""NoiseOut as the command line trains it: neurons leave in the middle of a training, a share of the parameters in all.

It offers what a training asks of a sparsifier; what counts as zeros are parameters that are gone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from shrinkage.core.errors import InputError, StateError, TargetError
from shrinkage.core.hooks import OptimizerHooks
from shrinkage.noiseout.method import NoiseOut
from shrinkage.noiseout.shrunk import Shrunk

START, END, ROUNDS = 0.25, 0.65, 10
"""The removals: the first and the last as shares of the training, and how many."""


class Shrinker:
    """Removes neurons at fixed steps of a training, the same share of the parameters that are left each time.

    Args:
        model: the network; changed in place.
        share: of its parameters that go, in (0, 1); at least as many do.
        steps: optimiser steps of the training.
        batches: inputs that correlations are measured on.

    Raises:
        InputError: if the model has no neurons that can go, not enough of them for the share, or a head that cannot be
            widened.
    """

    def __init__(self, model: nn.Module, share: float, steps: int, batches: Sequence[Tensor], seed: int = 0) -> None:
        self._model = model
        self._noiseout = NoiseOut(model, batches[0][:2], seed=seed)
        self._batches = batches
        self._step = 0
        self.units = self._noiseout.parameters
        self._final = math.floor((1 - share) * self.units)
        if (fewest := self._noiseout.fewest) > self._final:
            raise InputError(
                f"{share:.2%} of the {self.units:,} parameters cannot go: {fewest:,} are left where every layer has "
                f"one neuron, so that the share is below {math.ceil(1e4 * (1 - fewest / self.units)) / 1e4:.2%}"
            )
        first, last = int(START * steps), int(END * steps)
        self._left = {
            first + (last - first) * index // max(ROUNDS - 1, 1): math.floor(
                self.units * (1 - share) ** ((index + 1) / ROUNDS)
            )
            for index in range(ROUNDS)
        }
        self._hooks: OptimizerHooks | None = None

    macs = None
    strength = 0.0

    @property
    def zeros(self) -> int:
        """Parameters that are gone."""
        return self.units - self._noiseout.parameters

    @property
    def wanted(self) -> float:
        """The share of them that is to be gone by now."""
        due = [left for step, left in self._left.items() if step < self._step]
        return 1 - due[-1] / self.units if due else 0.0

    @property
    def phase(self) -> str:
        """``"shrinking"`` until the last removal, then ``"holding"``."""
        return "shrinking" if self._step <= max(self._left) else "holding"

    def attach(self, optimizer: Optimizer) -> Self:
        """Follow the training of this optimiser."""
        if self.phase == "shrinking":  # else the noise has ended before this training was interrupted
            self._noiseout.attach(optimizer)
        self._hooks = OptimizerHooks(self, "NoiseOut", [optimizer])
        return self

    def finalize(self) -> Shrunk:
        """End the noise, and see that the target is met.

        Raises:
            StateError: if the training was shorter than was said.
            TargetError: if more parameters are left than asked for.
        """
        self.detach()
        found = self._noiseout.finish()
        if self._step <= max(self._left):
            raise StateError(f"only {self._step} steps were taken, and neurons leave up to step {max(self._left)}")
        if found.parameters.after > self._final:
            raise TargetError(f"{found.parameters.after:,} parameters are left, more than {self._final:,}")
        return found

    def detach(self) -> None:
        """No longer follow the training."""
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None

    def lam(self) -> Mapping[str, Tensor]:
        """No strengths per unit."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {"step": self._step, "noiseout": self._noiseout.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, before :meth:`attach`."""
        self._step = int(state["step"])
        self._noiseout.load_state_dict(state["noiseout"])

    # ---- around a step --------------------------------------------------------------------------

    def before_step(self, optimizer: Optimizer, scale: Tensor | None, once: bool) -> None:
        """Nothing."""

    def closure_value(self, optimizer: Optimizer, loss: Any) -> Any:
        """The user's own."""
        return loss

    def state_loaded(self, optimizer: Optimizer) -> None:
        """Nothing."""

    def after_step(self, optimizer: Optimizer) -> None:
        """Neurons leave, if it is time."""
        left = self._left.get(self._step)
        self._step += 1
        if left is not None and self._noiseout.parameters > left:
            device = next(self._model.parameters()).device
            self._noiseout.prune([batch.to(device) for batch in self._batches], parameters=left)
        if self._step > max(self._left):
            self._noiseout.finish()  # noise has done its work, and the survivors train on without it

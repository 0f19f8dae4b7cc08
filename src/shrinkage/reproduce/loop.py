"""The training loop of the experiments: an ordinary one, as a user would write it, for every method alike.

Convolutions are channels-last. On the CPU all runs in float32 on one thread, so that a trial is a function of its
settings. On a GPU the whole data set lies on the device, and the network is compiled, in bfloat16 autocast.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shrinkage.core.errors import DivergedError, InputError
from shrinkage.core.files import write
from shrinkage.data import Data
from shrinkage.data.loader import permutation
from shrinkage.models import build
from shrinkage.reproduce import tasks
from shrinkage.reproduce.trial import Trial
from shrinkage.training.recipes import OPTIMIZERS, SCHEDULES
from shrinkage.training.summary import versions

_CHECK_EVERY = 200  # steps between two looks at the loss; each look waits for the device


class Training:
    """A network and its data, ready to be trained by a method; what entrants are given.

    Args:
        trial: the settings.
        data: of its task.
        device: to train on.
        origin: what else decides the training, such as its recipe, the device and what the data is; a state saved under
            another is not gone on from.
        checkpoint: file for the state of a training that may be interrupted; None: it is not saved. For a single
            training: where a method trains several times, it must not be.
        every: epochs from one saved state to the next.

    Attributes:
        model: the network, on the device.
        steps: optimiser steps of the whole budget.
        step: of these, how many are done, in all trainings together.
        saved: the method's part of the state that the training goes on from; empty in a fresh one.
    """

    def __init__(
        self,
        trial: Trial,
        data: Data,
        device: torch.device,
        origin: Sequence[str | None] = (),
        checkpoint: Path | None = None,
        every: int = 10,
    ) -> None:
        self.trial, self.task = trial, tasks.find(trial.task)
        self._data, self._device = tasks.on(data, device), device
        self._given_origin, self._checkpoint, self._every = list(origin), checkpoint, every
        torch.manual_seed(trial.seed)
        self.model: nn.Module = build(self.task.model, data).to(device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._fast = device.type == "cuda"
        self.epoch_steps = -(-len(data.train) // self.task.batch_size)
        self.steps = self.epoch_steps * trial.epochs
        self.step = 0
        self.seconds = 0.0
        self.saved: dict[str, Any] = {}
        self._optimizer_state: dict[str, Any] = {}
        self._order: tuple[tuple[int, int], Tensor] | None = None
        if checkpoint is not None and checkpoint.exists():
            self._restore(checkpoint)

    def batches(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """The first batches of the first epoch, prepared, for methods that look at data."""
        order = permutation(len(self._data.train), self.trial.seed, 0)
        size = self.task.batch_size
        return [self._batch(order[i * size : (i + 1) * size], None) for i in range(count)]

    def train(
        self,
        attach: Callable[[torch.optim.Optimizer], object] | None = None,
        state: Callable[[], dict[str, Any]] = dict,
        *,
        first: int = 0,
        steps: int | None = None,
    ) -> None:
        """Train from optimiser step ``first`` to the end of a schedule of ``steps``.

        Args:
            attach: is given the optimiser before the first step; None for plain training.
            state: of the method, to be saved with the model's.
            first: where in the schedule to begin. The data go on from where the training before left them.
            steps: length of the schedule; by default the whole budget.

        Raises:
            DivergedError: if the loss or a weight has become NaN or infinite; they are looked at every 200 steps and at
                the end.
        """
        length = self.steps if steps is None else steps
        trial = self.trial
        optimizer = OPTIMIZERS[self.task.optimizer](self.model.parameters(), trial.lr, trial.weight_decay)
        if self._optimizer_state:
            optimizer.load_state_dict(self._optimizer_state)
            first, self._optimizer_state = self.step, {}
        if attach is not None:
            attach(optimizer)
        factor = SCHEDULES[trial.schedule]
        forward: Any = torch.compile(self.model) if self._fast else self.model
        self.model.train()
        began = time.perf_counter()
        for step in range(first, length):
            for group in optimizer.param_groups:
                group["lr"] = trial.lr * factor(step / length)
            x, y = self._at(self.step)
            optimizer.zero_grad(set_to_none=self._fast)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._fast):
                loss = functional.cross_entropy(forward(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            self.step += 1
            if self.step % _CHECK_EVERY == 0:
                self._check(loss)
            if self._checkpoint is not None and self.step % (self._every * self.epoch_steps) == 0:
                self._save(optimizer, state(), time.perf_counter() - began)
        if first < length:
            self._check(loss)
        if self._fast:
            torch.cuda.synchronize(self._device)
        self.seconds += time.perf_counter() - began

    def _check(self, loss: Tensor) -> None:
        if not bool(torch.isfinite(loss)) or not all(bool(each.isfinite().all()) for each in self.model.parameters()):
            raise DivergedError(
                f"the loss is {loss.item():g} at step {self.step}, or a weight is NaN or infinite: "
                f"lr={self.trial.lr:g} is too high"
            )

    def _at(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step; a function of (seed, step) only."""
        epoch, place = divmod(step, self.epoch_steps)
        key = (self.trial.seed, epoch)
        if self._order is None or self._order[0] != key:
            self._order = key, permutation(len(self._data.train), *key).to(self._device)
        size = self.task.batch_size
        generator = None
        if self._data.augment is not None:
            generator = torch.Generator(self._device).manual_seed((self.trial.seed << 32) + step)
        return self._batch(self._order[1][place * size : (place + 1) * size], generator)

    def _batch(self, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        x, y = self._data.train.x[index.to(self._device)], self._data.train.y[index.to(self._device)]
        if generator is not None and self._data.augment is not None:
            x = self._data.augment(x, generator)
        prepared = self._data.prepare(x)
        return prepared.contiguous(memory_format=torch.channels_last) if prepared.ndim == 4 else prepared, y

    def _save(self, optimizer: torch.optim.Optimizer, method: dict[str, Any], seconds: float) -> None:
        assert self._checkpoint is not None
        state = {
            "origin": self._origin,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "method": method,
            "step": self.step,
            "seconds": self.seconds + seconds,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        try:
            self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self._checkpoint.parent} cannot be made: {error.strerror}") from error
        write(self._checkpoint, buffer.getvalue())

    def _restore(self, checkpoint: Path) -> None:
        """Go on from a saved state; one that cannot be read, or that another version has written, is as none."""
        try:
            state = torch.load(checkpoint, map_location=self._device, weights_only=True)
            if state["origin"] != self._origin:
                return
            model, optimizer, method = state["model"], state["optimizer"], state["method"]
            step, seconds = state["step"], state["seconds"]
        except Exception:  # a damaged file raises whatever its bytes happen to mean
            return
        self.model.load_state_dict(model)
        self._optimizer_state, self.saved = optimizer, method
        self.step, self.seconds = step, seconds

    @property
    def _origin(self) -> dict[str, Any]:
        """What a saved state must agree in."""
        return {"command": self.trial.command, "given": self._given_origin, **versions()}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Small matrices are not worth sharing, and a sum shared otherwise rounds otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

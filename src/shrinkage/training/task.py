"""The classifier as Lightning sees it: one optimiser step, and what it is stepped by."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from shrinkage.core.errors import DivergedError
from shrinkage.data import Data
from shrinkage.deploy.surgery import reshape_like
from shrinkage.training.config import RunConfig
from shrinkage.training.recipes import OPTIMIZERS, SCHEDULES

Batch = tuple[Tensor, Tensor]

_CHECK_EVERY = 100  # steps between two looks at the loss; each look waits for the device


class Classifier(LightningModule):
    """Trains ``model`` by cross-entropy, with the optimiser and the schedule of ``config``.

    Optimisation is Lightning's manual one, which costs a third less a step than its automatic one.

    Args:
        model: maps a prepared batch to logits.
        data: how batches are augmented and prepared.
        config: optimiser, learning rate, weight decay, schedule and seed.
        steps_per_epoch: optimiser steps in an epoch.
    """

    def __init__(self, model: nn.Module, data: Data, config: RunConfig, steps_per_epoch: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self._data = data
        self._config = config
        self._losses = torch.zeros(steps_per_epoch)

    def configure_optimizers(self) -> Any:
        """The optimiser, and a schedule that is stepped with it."""
        config = self._config
        optimizer = OPTIMIZERS[config.optimizer](self.model.parameters(), config.lr, config.weight_decay)
        factor, steps = SCHEDULES[config.schedule], config.epochs * len(self._losses)
        return [optimizer], [LambdaLR(optimizer, lambda step: factor(step / steps))]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Be as small as the network that was saved, if neurons had left it."""
        saved = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
        reshape_like(self.model, saved)

    def on_fit_start(self) -> None:
        """Keep the losses where they are computed: nothing waits for the device at each step."""
        self._losses = self._losses.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Seed the epoch by its number: it is the same whether or not the training was resumed before it."""
        key = (self._config.seed, self.current_epoch, self.global_rank)
        seed_everything(int(np.random.SeedSequence(key).generate_state(1)[0]), verbose=False)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimiser step; of several devices, each takes its share of the batch."""
        x, y = batch
        if self.trainer.world_size > 1:
            share = slice(self.global_rank, None, self.trainer.world_size)
            x, y = x[share], y[share]
        if self._data.augment is not None:
            x = self._data.augment(x, None)
        optimizer: Any = self.optimizers()
        loss = functional.cross_entropy(self.model(self._data.prepare(x)), y)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        self._losses[batch_idx] = loss.detach()
        if batch_idx % _CHECK_EVERY == _CHECK_EVERY - 1:
            self._check(batch_idx + 1)

    def mean_loss(self) -> float:
        """The mean training loss over the epoch that has just ended.

        Raises:
            StateError: if it was NaN or infinite at some step.
        """
        self._check(len(self._losses))
        mean: Tensor = self.trainer.strategy.reduce(self._losses.mean(), reduce_op="mean")
        return mean.item()

    def _check(self, count: int) -> None:
        """Raise if one of the first ``count`` losses of this epoch is not finite."""
        finite = self._losses[:count].isfinite()
        if finite.all():
            return
        step = self.current_epoch * len(self._losses) + int((~finite).nonzero()[0])
        broken = [name for name, weight in self.model.named_parameters() if not weight.isfinite().all()]
        where = f"; the first layer with broken weights is {broken[0]!r}" if broken else ""
        raise DivergedError(
            f"the loss is NaN or infinite at optimiser step {step}{where}. The training has diverged: lower the "
            f"learning rate (now {self._config.lr:g}) or check the data"
        )

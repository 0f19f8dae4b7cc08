"""One progress bar for a whole training."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY = 0.1  # seconds between two updates; a step may take a thousandth of one


class TrainingBar(ProgressBar):
    """Draws on stderr how far a training is, with the metrics of its last epoch.

    Args:
        title: what is trained.
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title
        self._next = 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[metrics]}"),
            console=Console(stderr=True),
            refresh_per_second=5,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, at once where a resumed training stands."""
        assert trainer.max_epochs is not None
        steps = int(trainer.num_training_batches) * trainer.max_epochs
        self._task = self._progress.add_task(self._title, total=steps, completed=trainer.global_step, metrics="")
        self._progress.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the epoch."""
        description = f"{self._title}  epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._progress.update(self._task, description=description)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move, now and then."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVERY
            self._progress.update(self._task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what the epoch has come to."""
        metrics = self.get_metrics(trainer, pl_module)
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
        text = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self._progress.update(self._task, completed=trainer.global_step, metrics=text)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self._progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back, so that what is said next is on a line of its own."""
        self._progress.stop()

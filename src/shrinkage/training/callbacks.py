"""What joins a method, and the figures it is judged by, to a Lightning training."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from shrinkage.core.engine import Sparsifier
from shrinkage.data import Data
from shrinkage.training.evaluate import accuracy
from shrinkage.training.shrinker import Shrinker
from shrinkage.training.task import Classifier

Inside = Sparsifier | Shrinker
"""What lives inside a training."""

Row = dict[str, Any]
"""One epoch: see :class:`Metrics`."""


class Sparsify(Callback):
    """Lets a sparsifier live inside a Lightning training.

    It is attached when the training begins, saved in Lightning's checkpoints, and finalised when the last
    epoch has ended.

    Args:
        sparsifier: made for the module that is trained, or for a part of it.

    >>> import torch, shrinkage
    >>> net = torch.nn.Linear(8, 4)
    >>> Sparsify(shrinkage.HALO(net, sparsity=0.5, steps=100)).sparsifier.units
    32
    """

    def __init__(self, sparsifier: Inside) -> None:
        self.sparsifier = sparsifier

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach: the optimisers are there, and the module is where it will be trained."""
        self.sparsifier.attach(*trainer.optimizers)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reach the target exactly, or raise."""
        self.sparsifier.finalize()

    def state_dict(self) -> dict[str, Any]:
        """The sparsifier's state."""
        return self.sparsifier.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the sparsifier's state."""
        self.sparsifier.load_state_dict(state_dict)


class Metrics(Callback):
    """One row an epoch: ``epoch`` (from 1), ``step``, ``lr``, ``train_loss``, ``accuracy``, ``val_accuracy``
    (percent), ``sparsity``, ``wanted`` (shares in [0, 1]; 0 where multiply–accumulates are asked for in place
    of zeros), ``phase``, ``strength`` and ``seconds`` since the start.

    With held-out images only these are looked at while the training runs, and ``accuracy`` (on the test
    images) is None; without, it is the other way round. A resumed training has all rows.

    Args:
        data: what to measure on.
        sparsifier: whose zeros to count; None for plain training.
        publish: receives all rows after each epoch.
    """

    def __init__(self, data: Data, sparsifier: Inside | None, publish: Callable[[list[Row]], None]) -> None:
        self.rows: list[Row] = []
        self._data = data
        self._sparsifier = sparsifier
        self._publish = publish
        self._began = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, from where it stood."""
        self._began = time.perf_counter() - (self.rows[-1]["seconds"] if self.rows else 0.0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, show and publish."""
        assert isinstance(pl_module, Classifier)
        data, method = self._data, self._sparsifier
        held_out = data.validation
        score = accuracy(pl_module.model, held_out or data.test, data.prepare)
        row: Row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train_loss": pl_module.mean_loss(),
            "accuracy": score if held_out is None else None,
            "val_accuracy": score if held_out is not None else None,
            "sparsity": method.zeros / method.units if method else None,
            "wanted": None if method is None else method.wanted if method.macs is None else 0.0,
            "phase": method.phase if method else None,
            "strength": method.strength if method else None,
            "seconds": time.perf_counter() - self._began,
        }
        self.rows.append(row)
        shown = {"loss": row["train_loss"], "accuracy": score}
        if method:
            # Zeros may move between two steps of the method: until they are fixed, show what is asked for.
            moving = method.phase == "shrinking" and method.macs is None
            shown["zeros"] = 100 * (row["wanted"] if moving else row["sparsity"])
        pl_module.log_dict(shown, prog_bar=True, rank_zero_only=True)
        if trainer.is_global_zero:
            self._publish(self.rows)

    def state_dict(self) -> dict[str, Any]:
        """The rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the rows of the epochs before."""
        self.rows = list(state_dict["rows"])

"""Checkpoints that survive a kill at any moment: one after each epoch, and the one before it.

Only whole epochs are saved. What an epoch does is a function of its seed and of what the epochs before
it left behind, so a training that goes on from the last whole epoch ends with the very same weights.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from shrinkage.core.errors import InputError
from shrinkage.core.files import write

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
DAMAGED = "damaged.ckpt"


class SafeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint files, written aside and renamed; the one before is kept.

    Args:
        tell: receives a message when the last checkpoint cannot be read and the one before is taken.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the checkpoint; the one it replaces becomes ``previous.ckpt``.

        Raises:
            StateError: if the disk is full; the last checkpoint is still there.
        """
        buffer = io.BytesIO()  # so that a full disk is met in write(), which can tell what happened
        torch.save(checkpoint, buffer)
        write(Path(path), buffer.getvalue(), keep=Path(path).with_name(PREVIOUS))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = True) -> dict[str, Any]:
        """Read the checkpoint, or the one before it if this one is damaged.

        Raises:
            InputError: if neither can be read.
        """
        last = Path(path)
        try:
            return _read(last)
        except InputError as error:
            previous = last.with_name(PREVIOUS)
            if last.name == PREVIOUS or not previous.is_file():
                raise
            self._tell(f"{error}; going on from the one before it, {previous.name}")
            checkpoint = _read(previous)
            last.replace(last.with_name(DAMAGED))  # else the next one to be saved would make it the one before
            return checkpoint


class EveryEpoch(Checkpoint):
    """Saves after every epoch.

    Args:
        folder: where to.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LAST

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch that has just ended."""
        trainer.save_checkpoint(self._path)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in a folder, None if there is none yet."""
    return next((folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file may look like another kind of archive
            checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"the checkpoint {path} is truncated or damaged ({reason[0]})") from error
    return checkpoint

"""Run one trial from its settings to its line."""

from __future__ import annotations

from pathlib import Path

import torch

from shrinkage.core.errors import DivergedError, TargetError
from shrinkage.core.footprint import footprint
from shrinkage.core.selection import resolve, select
from shrinkage.reproduce import entrants, tasks
from shrinkage.reproduce.loop import Training, one_thread
from shrinkage.reproduce.trial import Outcome, Trial
from shrinkage.training.config import accelerator
from shrinkage.training.evaluate import accuracy
from shrinkage.training.summary import versions


def device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        InputError: if there is none here.
    """
    kind, index = accelerator(name)
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(kind, index) if index is not None else torch.device(kind)


def name_of(where: torch.device) -> str:
    """What outcomes call a device: on CUDA the card's name, since it decides the kernels."""
    return torch.cuda.get_device_name(where) if where.type == "cuda" else where.type


def run(
    trial: Trial,
    data_dir: Path | None,
    where: torch.device,
    *,
    data_label: str | None = None,
    checkpoint: Path | None = None,
) -> Outcome:
    """Train, count and evaluate.

    Args:
        trial: the settings.
        data_dir: folder with the data set.
        where: the device to train on.
        data_label: what the data is, where the data set's name does not say it.
        checkpoint: file to go on from, written every ten epochs and removed at the end; None: from the beginning.

    Returns:
        What came of it; a training that diverges, or misses its sparsity, is an outcome too.

    Raises:
        InputError: if something is wrong with the settings or the data.
        StateError: if a state cannot be saved.
    """
    method = entrants.find(trial.method)
    failure, score = None, None
    with one_thread():
        data = tasks.read(tasks.find(trial.task), data_dir, held_out=trial.validation)
        origin = [entrants.recipe(trial), name_of(where), data_label]
        training = Training(trial, data, where, origin, checkpoint if method.resumable else None)
        try:
            method.run(training)
            judged_on = (data.validation if trial.validation else None) or data.test
            score = accuracy(training.model.eval(), judged_on, data.prepare)
        except (DivergedError, TargetError) as error:
            failure = str(error)
        model = training.model.cpu()
        weights = resolve(model, [item.name for item in select(model)])
        layers = {name: (int((weight == 0).sum()), weight.numel()) for name, weight in weights.items()}
        total = footprint(model, torch.zeros(1, *data.input_shape)).total
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return Outcome(
        trial=trial,
        accuracy=score,
        failure=failure,
        zeros=sum(zeros for zeros, _ in layers.values()),
        weights=sum(units for _, units in layers.values()),
        mac_density=total.effective_macs / total.macs,
        seconds=round(training.seconds, 2),
        device=name_of(where),
        data_label=data_label,
        versions=versions(),
        recipe=entrants.recipe(trial),
        layers=layers,
    )

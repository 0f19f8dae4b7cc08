"""One training of an experiment: what decides its outcome, and the line that its outcome becomes."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from dataclasses import dataclass
from typing import Any

from shrinkage.core.errors import InputError
from shrinkage.reproduce import tasks
from shrinkage.training.recipes import SCHEDULES


@dataclass(frozen=True)
class Trial:
    """The settings of one training; equal trials give equal outcomes on the same machine and versions.

    Attributes:
        task: one of :data:`~shrinkage.reproduce.tasks.TASKS`.
        method: one of :data:`~shrinkage.reproduce.entrants.ENTRANTS`.
        sparsity: share of zeros, in (0, 1); 0 for the dense network.
        seed: of initial weights, order of images and all else.
        lr: learning rate before the schedule.
        weight_decay: as the optimiser takes it.
        schedule: of the learning rate.
        epochs: passes over the training images in all.
        validation: whether it is judged on held-out training images instead of the test images.

    Raises:
        InputError: if a value cannot be.
    """

    task: str
    method: str
    sparsity: float
    seed: int
    lr: float
    weight_decay: float
    schedule: str
    epochs: int
    validation: bool

    def __post_init__(self) -> None:
        tasks.find(self.task)
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        dense = self.method == "dense"
        if not (self.sparsity == 0 if dense else 0 < self.sparsity < 1):
            wanted = "0 for the dense network" if dense else "between 0 and 1 (0.95 for 95 %)"
            raise InputError(f"sparsity must be {wanted}, got {self.sparsity}")
        bounds = (("lr", 0.0, math.inf), ("weight_decay", -1e-12, math.inf), ("epochs", 0, 1e6), ("seed", -1, 1 << 31))
        for name, low, high in bounds:
            value = getattr(self, name)
            if not low < value < high:
                raise InputError(f"{name} is out of its range: {value}")

    @property
    def command(self) -> str:
        """What to type to run it again."""
        words = ["shrinkage", "reproduce", "trial"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            option = "--" + field.name.replace("_", "-")
            if field.name == "validation":
                words += [option] if value else []
            else:
                words += [option, repr(value) if isinstance(value, float) else str(value)]
        return shlex.join(words)


@dataclass(frozen=True)
class Outcome:
    """What a training gave; one line of a results file.

    Attributes:
        trial: its settings.
        accuracy: of the sparse network, in percent, on the images the trial is judged on; None if there is none.
        failure: why there is none: the training diverged, or the method missed the sparsity.
        zeros: exact zeros among the weights that the method works on.
        weights: how many it works on.
        mac_density: share of the multiplications that remain.
        seconds: of training and pruning, evaluation left out.
        device: what it ran on.
        data_label: what the data was, where the name of the data set does not say it.
        versions: of Python and of the packages that matter.
        recipe: see :func:`~shrinkage.reproduce.entrants.recipe`, as it was then.
        layers: zeros and weights by tensor.
    """

    trial: Trial
    accuracy: float | None
    failure: str | None
    zeros: int
    weights: int
    mac_density: float
    seconds: float
    device: str
    data_label: str | None
    versions: dict[str, str]
    recipe: str
    layers: dict[str, tuple[int, int]]

    @property
    def command(self) -> str:
        """What to type to run it again, beside ``--data-dir``."""
        kind = [] if self.device == "cpu" else ["--device", "cuda"]
        label = [] if self.data_label is None else ["--data-label", self.data_label]
        return shlex.join([*shlex.split(self.trial.command), *kind, *label])

    def to_json(self) -> str:
        """One line."""
        content = dataclasses.asdict(self)
        return json.dumps({"command": self.command, **content})


def parse(line: dict[str, Any]) -> Outcome:
    """The inverse of :meth:`Outcome.to_json`, from what :mod:`json` makes of it.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: if it is something else.
    """
    content = dict(line)
    command, trial = content.pop("command"), Trial(**content.pop("trial"))
    layers = {name: (zeros, units) for name, (zeros, units) in content.pop("layers").items()}
    outcome = Outcome(trial=trial, layers=layers, **content)
    if command != outcome.command:
        raise ValueError("the command does not belong to the settings")
    return outcome

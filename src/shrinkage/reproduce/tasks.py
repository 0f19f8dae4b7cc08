"""What is trained in an experiment: a network, its data, and the settings that every method shares.

A task fixes everything but the method. What may be tuned (learning rate, weight decay, schedule) is one space for
all methods, so that none has a knob that another lacks.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from shrinkage.core.errors import InputError
from shrinkage.data import Data, load
from shrinkage.data.sets import Prepare


@dataclass(frozen=True)
class Space:
    """What every method may tune: two log-uniform ranges and a choice.

    Attributes:
        lr: lowest and highest learning rate.
        weight_decay: lowest and highest weight decay.
        schedules: names of :data:`~shrinkage.training.recipes.SCHEDULES`.
    """

    lr: tuple[float, float]
    weight_decay: tuple[float, float]
    schedules: tuple[str, ...] = ("flat-cosine", "cosine")


@dataclass(frozen=True)
class Task:
    """One row of :data:`TASKS`.

    Attributes:
        title: for people.
        data: a data set that :func:`shrinkage.data.load` knows.
        model: a network that :func:`shrinkage.models.build` knows.
        optimizer: ``sgd`` or ``adamw``.
        epochs: passes over the training images; for a procedure of several trainings, all of them together.
        batch_size: images an optimiser step.
        space: what is tuned.
        start: learning rate, weight decay and schedule where nothing is tuned.
        tuned_at: the sparsity at which it is tuned.
        held_out: training images that settings are chosen on.
        side: images are averaged down to this many pixels a side; None: as they are.
    """

    title: str
    data: str
    model: str
    optimizer: str
    epochs: int
    batch_size: int
    space: Space
    start: tuple[float, float, str]
    tuned_at: float
    held_out: int
    side: int | None = None


_SGD = Space(lr=(0.03, 0.4), weight_decay=(3e-5, 3e-3))
_CIFAR = Space(lr=(0.03, 0.4), weight_decay=(1e-4, 3e-3))
_ADAMW = Space(lr=(5e-4, 6e-3), weight_decay=(1e-2, 1.0))
_PAPER = Task("VGG-16", "cifar10", "vgg-16", "sgd", 160, 128, _CIFAR, (0.1, 5e-4, "cosine"), 0.95, 5000)

TASKS: Mapping[str, Task] = {
    "digits": Task(
        "LeNet-300-100 on digits", "digits", "mlp", "sgd", 20, 32, _SGD, (0.1, 5e-4, "flat-cosine"), 0.95, 300
    ),
    "mnist": Task(
        "LeNet-300-100 on MNIST", "mnist", "lenet-300-100", "sgd", 20, 128, _SGD, (0.2, 2e-4, "flat-cosine"), 0.99, 5000
    ),
    "lenet-5": Task(
        "LeNet-5 on MNIST", "mnist", "lenet-5", "sgd", 5, 128, _SGD, (0.1, 5e-4, "flat-cosine"), 0.98, 5000
    ),
    "cnn": Task(
        "ResNet-8 on CIFAR-10 at 16×16", "cifar10", "resnet-8", "sgd", 4, 128, _CIFAR, (0.1, 2e-3, "cosine"), 0.95,
        held_out=5000, side=16,
    ),
    "vit": Task(
        "a small ViT on MNIST", "mnist", "vit-micro", "adamw", 3, 128, _ADAMW, (2e-3, 0.2, "cosine"), 0.95, 5000
    ),
    "cifar10-vgg-16": replace(_PAPER, title="VGG-16 on CIFAR-10"),
    "cifar10-resnet-20": replace(_PAPER, title="ResNet-20 on CIFAR-10", model="resnet-20"),
    "cifar10-resnet-50": replace(_PAPER, title="ResNet-50 (basic blocks) on CIFAR-10", model="resnet-50"),
    "cifar100-vgg-16": replace(_PAPER, title="VGG-16 on CIFAR-100", data="cifar100"),
    "cifar100-resnet-50": replace(
        _PAPER, title="ResNet-50 (basic blocks) on CIFAR-100", data="cifar100", model="resnet-50"
    ),
}  # fmt: skip
"""The tasks by name."""


def find(name: str) -> Task:
    """The task of this name.

    Raises:
        InputError: if there is none, with the nearest.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1, 0.0)[0]
        raise InputError(f"there is no task {name!r}; did you mean {near!r}? ({', '.join(TASKS)})")
    return TASKS[name]


@functools.lru_cache(maxsize=2)
def read(task: Task, data_dir: Path | None, *, held_out: bool) -> Data:
    """The data of a task; a process that runs many trials reads them once.

    Args:
        task: which.
        data_dir: folder with the data set; see :func:`shrinkage.data.load`.
        held_out: whether to keep training images back to choose settings on.
    """
    data = load(task.data, data_dir, validation=task.held_out if held_out else 0, seed=0)
    if task.side is None:
        return data
    shape = (data.input_shape[0], task.side, task.side)
    return replace(data, input_shape=shape, prepare=_Smaller(data.prepare, task.side))


@dataclass(frozen=True)
class _Smaller:
    """Average whole tiles of pixels, after the preparation."""

    prepare: Prepare
    side: int

    def __call__(self, x: Tensor) -> Tensor:
        prepared = self.prepare(x)
        return functional.avg_pool2d(prepared, prepared.shape[-1] // self.side)


def on(data: Data, device: torch.device) -> Data:
    """The same data with its training images on ``device``, where batches are made."""
    moved = replace(data.train, x=data.train.x.to(device), y=data.train.y.to(device))
    return replace(data, train=moved)

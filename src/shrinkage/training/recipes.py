"""What is trained how, unless told otherwise: one row a data set, and the learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

Schedule = Callable[[float], float]


@dataclass(frozen=True)
class Recipe:
    """The default settings of a training.

    Attributes:
        model: a name that :func:`shrinkage.models.build` knows.
        epochs: passes over the training images.
        batch_size: images an optimiser step.
        optimizer: one of :data:`OPTIMIZERS`.
        lr: learning rate before the schedule.
        weight_decay: as the optimiser takes it.
        schedule: one of :data:`SCHEDULES`.
        threads: of the CPU; None: as many as PyTorch sees fit. Matrices of a small network are too small to
            be shared: more threads than one gain little on an idle machine and cost much on a busy one.
    """

    model: str
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    schedule: str = "flat-cosine"
    threads: int | None = None


RECIPES: dict[str, Recipe] = {
    "digits": Recipe("mlp", 60, 32, "sgd", 0.1, 2e-3, threads=1),
    "mnist": Recipe("lenet-300-100", 20, 64, "sgd", 0.1, 2e-4, threads=1),
    "cifar10": Recipe("resnet-20", 160, 128, "sgd", 0.1, 5e-4),
    "cifar100": Recipe("resnet-20", 160, 128, "sgd", 0.1, 5e-4),
}
"""The recipe of each data set."""


def flat_cosine(u: float) -> float:
    """1 for three quarters of the training, then half a cosine to 0."""
    return cosine(max(0.0, 4 * u - 3))


def cosine(u: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * min(u, 1.0)))


def step(u: float) -> float:
    """1, a tenth from one half of the training on, a hundredth from three quarters on."""
    return 1.0 if u < 0.5 else 0.1 if u < 0.75 else 0.01


def constant(u: float) -> float:
    """1 throughout."""
    return 1.0


SCHEDULES: dict[str, Schedule] = {
    "flat-cosine": flat_cosine,
    "cosine": cosine,
    "step": step,
    "constant": constant,
}
"""Factor of the learning rate by the share ``u`` of the optimiser steps that are done, in [0, 1]."""


def _sgd(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)


def _adam(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> Optimizer:
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)


def _adamw(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], float, float], Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
}
"""Optimisers by name, made from parameters, learning rate and weight decay; SGD has momentum 0.9."""

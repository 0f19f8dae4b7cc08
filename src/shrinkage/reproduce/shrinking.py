"""One training of the evidence for NoiseOut: a network that loses neurons on its way, or one that never had them.

All trainings of a part take the same steps with the same schedule of the learning rate. A network that shrinks does so
at the ends of epochs in the middle of its training, by the same share of what is left each time; the rest of the epochs
are for recovery. On the CPU a training uses one thread, so that it is a function of its settings.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import shrinkage
from shrinkage.data import Data, load
from shrinkage.data.loader import permutation
from shrinkage.deploy.surgery import reshape_like
from shrinkage.models import build
from shrinkage.noiseout.method import NoiseOut
from shrinkage.noiseout.noise import Binomial, Constant, Gaussian, Noise
from shrinkage.reproduce.loop import one_thread
from shrinkage.training.evaluate import accuracy
from shrinkage.training.recipes import flat_cosine

RECIPE = 2
"""Counts up when the same settings come to mean another training."""

NOISES: Mapping[str, Noise | None] = {
    "none": None,
    "gaussian": Gaussian(),
    "binomial": Binomial(),
    "constant": Constant(),
}
"""What noise outputs are asked for, by name."""

_MEASURED = 5000
"""Training images that correlations are measured on."""


@dataclass(frozen=True)
class Part:
    """One table.

    Attributes:
        title: for people.
        data: a data set that :func:`shrinkage.data.load` knows.
        model: a network that :func:`shrinkage.models.build` knows.
        epochs: passes over the training images.
        batch_size: images an optimiser step.
        lr: learning rate before the schedule.
        budgets: shares of the parameters that are left.
        seeds: trainings of each.
        sparse: shares of zeros that HALO reaches alone; behind NoiseOut it leaves as many weights.
        sigmoid: neurons are sigmoids in place of ReLUs.
        outputs: noise outputs.
        strength: of the noise loss.
        start: share of the epochs before the first removal.
        end: share of the epochs at which the last removal has been.
        held_out: training images kept back for trials that choose settings.
    """

    title: str
    data: str
    model: str
    epochs: int
    batch_size: int
    lr: float
    budgets: tuple[float, ...]
    seeds: int
    sparse: tuple[float, ...] = (0.8, 0.95)
    sigmoid: bool = False
    outputs: int = 100
    strength: float = 1.0
    start: float = 0.25
    end: float = 0.65
    held_out: int = 5000


PARTS: Mapping[str, Part] = {
    "quick": Part(
        "LeNet-300-100 on digits", "digits", "mlp", 20, 32, 0.05, (0.2, 0.05), 3, strength=10.0, held_out=300
    ),
    "quick-sigmoid": Part(
        "LeNet-300-100 with sigmoids on digits", "digits", "mlp", 40, 32, 0.2, (0.1,), 3, (),
        sigmoid=True, strength=2.0, start=0.5, end=0.65, held_out=300,
    ),
    "mnist": Part(
        "LeNet-300-100 on MNIST", "mnist", "lenet-300-100", 20, 128, 0.05, (0.4, 0.221, 0.2, 0.15, 0.099, 0.06, 0.04), 5
    ),
    "mnist-strong": Part(
        "LeNet-300-100 on MNIST, noise ten times as strong", "mnist", "lenet-300-100", 20, 128, 0.05, (0.15, 0.06), 5,
        (), strength=10.0,
    ),
    "mnist-sigmoid": Part(
        "LeNet-300-100 with sigmoids on MNIST", "mnist", "lenet-300-100", 20, 128, 0.1, (0.221, 0.06), 5, (),
        sigmoid=True, strength=5.0,
    ),
    "lenet-5": Part("LeNet-5 on MNIST", "mnist", "lenet-5", 5, 128, 0.05, (0.2, 0.05, 0.02), 5),
}  # fmt: skip
"""The parts by name."""


@dataclass(frozen=True)
class Trial:
    """The settings of one training.

    Attributes:
        part: one of :data:`PARTS`.
        method: ``noiseout``, or ``scratch`` for a network that has the shapes from the beginning.
        noise: one of :data:`NOISES`.
        left: share of the parameters to leave; 1: nothing is removed.
        sparsity: share of the whole network's weights that HALO makes zero; 0: none. Where others have left before, so
            many that as many stay.
        seed: of weights, order and noise.
        by: how pairs compare.
        shapes: of the network from scratch, by name.
        late: HALO begins where removals end, whether or not there are any.
        validation: judged on held-out training images.
    """

    part: str
    method: str
    noise: str
    left: float
    seed: int
    sparsity: float = 0.0
    by: str = "error"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    late: bool = False
    validation: bool = False

    def settings(self) -> dict[str, Any]:
        """As plain values; what the part says belongs to them."""
        part = dataclasses.asdict(PARTS[self.part])
        noisy = self.method == "noiseout" and self.noise != "none"
        keys = ("epochs", "batch_size", "lr", "sigmoid", "start", "end", *(("outputs", "strength") if noisy else ()))
        return {**dataclasses.asdict(self), **{key: part[key] for key in keys}}


@functools.lru_cache(maxsize=2)
def read(part: Part, data_dir: Path | None, held_out: bool) -> Data:
    """The data of a part; a process that runs many trials reads them once."""
    return load(part.data, data_dir, validation=part.held_out if held_out else 0, seed=0)


def run(trial: Trial, data_dir: Path | None, where: torch.device) -> dict[str, Any]:
    """Train and evaluate.

    Returns:
        ``accuracy`` (percent), ``parameters``, ``nonzeros``, ``compacted`` (parameters after units that are dead are
        taken out), ``halo_steps`` (optimiser steps that HALO had), ``units`` by layer, ``shapes``, ``correlation`` (by
        layer, one dict an epoch), ``seconds``.
    """
    part = PARTS[trial.part]
    data = read(part, data_dir, trial.validation)
    with one_thread():
        return _Training(trial, part, data, where).run()


class _Training:
    def __init__(self, trial: Trial, part: Part, data: Data, where: torch.device) -> None:
        self.trial, self.part, self.data, self.where = trial, part, data, where
        torch.manual_seed(trial.seed)
        self.model = build(part.model, data)
        if part.sigmoid:
            for name, module in list(self.model.named_modules()):
                if isinstance(module, nn.ReLU):
                    self.model.set_submodule(name, nn.Sigmoid())
        if trial.method == "scratch":
            reshape_like(self.model, trial.shapes)
            for module in self.model.modules():  # as wide as it is, its first weights are others
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
        self.model.to(where)
        self._lay_out()
        self.judged = (data.validation if trial.validation else None) or data.test
        x = data.prepare(data.train.x.to(where))
        self.x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        self.y = data.train.y.to(where)
        seen = self.x[permutation(len(self.x), 2**31)[:_MEASURED].to(where)]
        self.batches = list(torch.split(seen, 500))
        self.whole, self.weights = self._count()

    def run(self) -> dict[str, Any]:
        trial, part = self.trial, self.part
        began = time.perf_counter()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=part.lr, momentum=0.9)
        method = self._method(optimizer)
        sparsifier: shrinkage.HALO | None = None
        correlations: list[dict[str, float]] = []
        steps = -(-len(self.x) // part.batch_size)
        removals = self._removals()
        last = max(removals, default=0)
        halo = self._ends()[1] if trial.late else last
        for epoch in range(part.epochs):
            if method is not None and epoch in removals:
                if method.parameters > removals[epoch]:
                    method.prune(self.batches, parameters=removals[epoch])
                    self._lay_out()
                if epoch == last:  # noise has done its work, and the survivors train on without it
                    method.finish()
            if trial.sparsity and epoch == halo:  # the rest of the training is HALO's
                sparsifier = shrinkage.HALO(self.model, self._zeros(), (part.epochs - halo) * steps)
                sparsifier.attach(optimizer)
            self._epoch(optimizer, epoch, steps)
            if method is not None:
                correlations.append(method.correlation(self.batches))
        if sparsifier is not None:
            sparsifier.finalize()
            sparsifier.detach()
        if method is not None:
            method.finish()
        seconds = time.perf_counter() - began
        self.model.cpu()
        compacted = shrinkage.compact(self.model, self.x[:2].cpu()).total.after.parameters
        return {
            "accuracy": accuracy(self.model, self.judged, self.data.prepare),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "nonzeros": sum(int((parameter != 0).sum()) for parameter in self.model.parameters()),
            "compacted": compacted,
            "halo_steps": (part.epochs - halo) * steps if trial.sparsity else 0,
            "units": method.neurons if method is not None else {},
            "shapes": {name: list(value.shape) for name, value in self.model.state_dict().items()},
            "correlation": correlations,
            "seconds": round(seconds, 2),
        }

    def _method(self, optimizer: torch.optim.Optimizer) -> NoiseOut | None:
        if self.trial.method == "scratch":
            return None
        method = NoiseOut(
            self.model,
            self.x[:2],
            noise=NOISES[self.trial.noise],
            outputs=self.part.outputs,
            strength=self.part.strength,
            by=self.trial.by,  # type: ignore[arg-type]
            seed=self.trial.seed,
        )
        return method.attach(optimizer)

    def _removals(self) -> dict[int, int]:
        """Parameters that are left when an epoch begins."""
        if self.trial.left == 1:
            return {}
        first, last = self._ends()
        rounds = last - first + 1
        return {
            first + index: math.floor(self.whole * self.trial.left ** ((index + 1) / rounds)) for index in range(rounds)
        }

    def _lay_out(self) -> None:
        """Channels last, which is faster here; what has been cut is not so any more."""
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _ends(self) -> tuple[int, int]:
        """The first and the last epoch that removals are made before."""
        first = max(round(self.part.start * self.part.epochs), 1)
        return first, max(round(self.part.end * self.part.epochs), first)

    def _count(self) -> tuple[int, int]:
        """Parameters, and weights among them."""
        sizes = [(parameter.numel(), parameter.ndim > 1) for parameter in self.model.parameters()]
        return sum(size for size, _ in sizes), sum(size for size, weight in sizes if weight)

    def _zeros(self) -> float:
        """The share of the weights that are left at which as many parameters stay as of the whole network."""
        parameters, weights = self._count()
        stay = self.whole - self.trial.sparsity * self.weights
        return 1 - (stay - (parameters - weights)) / weights

    def _epoch(self, optimizer: torch.optim.Optimizer, epoch: int, steps: int) -> None:
        self.model.train()
        order = permutation(len(self.x), self.trial.seed, epoch).to(self.where)
        for index, picked in enumerate(torch.split(order, self.part.batch_size)):
            share = (epoch * steps + index) / (self.part.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = self.part.lr * flat_cosine(share)
            optimizer.zero_grad()
            functional.cross_entropy(self.model(self.x[picked]), self.y[picked]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

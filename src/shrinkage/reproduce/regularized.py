"""One training of a small convolutional network under a regulariser: what DropFilter's evidence is made of.

What is fixed is the same for all regularisers: network, optimiser, schedule, epochs. What is tuned is the rate, one
number each, from one grid. On the CPU a training uses one thread, so that it is a function of its settings.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shrinkage import dropfilter
from shrinkage.core.errors import InputError
from shrinkage.data import Data, Split, load
from shrinkage.data.loader import permutation
from shrinkage.models import MODELS
from shrinkage.reproduce.loop import one_thread
from shrinkage.training.evaluate import accuracy
from shrinkage.training.recipes import cosine

RATES = (0.05, 0.1, 0.2, 0.3, 0.5)
"""What every regulariser chooses its rate from."""

RECIPE = 1
"""Counts up when the same settings come to mean another training."""

Apply = Callable[[nn.Sequential, float], nn.Sequential]


def small_cnn(input_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """Two convolutions of 16 and 32 filters of 3×3, each with a pool, and a hidden layer of 64 neurons.

    >>> sum(p.numel() for p in small_cnn((1, 28, 28), 10).parameters())
    105866
    """
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 64),
        nn.ReLU(),
        nn.Linear(64, num_classes),
    )


def halving(epoch: int) -> float:
    """Factor of the learning rate that halves every 25 epochs."""
    return 0.5 ** (epoch // 25)


@dataclass(frozen=True)
class Part:
    """One table.

    Attributes:
        title: for people.
        data: a data set that :func:`shrinkage.data.load` knows.
        model: ``small-cnn`` or a network of :data:`shrinkage.models.MODELS`.
        images: training images, drawn by the seed; None: all.
        epochs: passes over them.
        batch_size: images an optimiser step.
        lr: learning rate before the schedule.
        lrs: learning rates to choose from in its place, together with the rate.
        methods: of :data:`REGULARISERS`; the first is the one that the others are compared with.
        seeds: trainings of the table for each.
        tuning_seeds: trainings of each rate to choose by; 0: the first rate.
        held_out: training images that rates are chosen on.
        halved: the learning rate is halved every 25 epochs; else it follows half a cosine.
        channels_last: memory is laid out so, which is faster and rounds differently.
    """

    title: str
    data: str
    model: str
    images: int | None
    epochs: int
    batch_size: int
    lr: float
    methods: tuple[str, ...]
    seeds: int = 5
    tuning_seeds: int = 1
    held_out: int = 5000
    halved: bool = False
    lrs: tuple[float, ...] = ()
    channels_last: bool = False


@dataclass(frozen=True)
class Regulariser:
    """One row of :data:`REGULARISERS`.

    Attributes:
        title: its name in tables.
        apply: from a fresh network and a rate to the network that is trained.
        rates: to choose from.
        grows: the rate grows from epoch to epoch by :class:`~shrinkage.dropfilter.Growing`.
    """

    title: str
    apply: Apply
    rates: tuple[float, ...] = RATES
    grows: bool = False


def _dropping(plus: bool, scaling: str = "inverted", layers: str | None = None) -> Apply:
    def apply(model: nn.Sequential, p: float) -> nn.Sequential:
        dropfilter.convert(model, p, layers, plus=plus, scaling=scaling)
        return model

    return apply


def _dropconnect(model: nn.Sequential, p: float) -> nn.Sequential:
    """Masks over the weights of the hidden linear layers, as in its paper, but one a batch."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    dropfilter.convert(model, p, linear[:-1])
    return model


def _dropout(after: type[nn.Module], kind: type[nn.Module]) -> Apply:
    """Dropout behind the activations that follow layers of a type."""

    def apply(model: nn.Sequential, p: float) -> nn.Sequential:
        layers: list[nn.Module] = []
        last: nn.Module | None = None
        for module in model:
            layers.append(module)
            if isinstance(module, nn.Conv2d | nn.Linear):
                last = module
            if isinstance(module, nn.ReLU) and isinstance(last, after):
                layers.append(kind(p))
        return nn.Sequential(*layers)

    return apply


REGULARISERS: Mapping[str, Regulariser] = {
    "none": Regulariser("none", lambda model, p: model, rates=(0.0,)),
    "dropfilter": Regulariser("DropFilter", _dropping(False)),
    "dropfilter-plus": Regulariser("DropFilter-PLUS", _dropping(True)),
    "dropout": Regulariser("Dropout", _dropout(nn.Linear, nn.Dropout)),
    "dropout2d": Regulariser("Dropout2d", _dropout(nn.Conv2d, nn.Dropout2d)),
    "dropconnect": Regulariser("DropConnect", _dropconnect),
    **{
        f"dropfilter{'-plus' if plus else ''}-{scaling}": Regulariser(
            f"DropFilter{'-PLUS' if plus else ''}, scaling {scaling}", _dropping(plus, scaling)
        )
        for plus in (False, True)
        for scaling in ("test", "none")
    },
    "first": Regulariser("DropFilter, first layer", _dropping(False, layers="0"), (0.06,), grows=True),
    "first-plus": Regulariser("DropFilter-PLUS, first layer", _dropping(True, layers="0"), (0.06,), grows=True),
}
"""By name: what is compared."""

_ALL = ("none", "dropfilter", "dropfilter-plus", "dropout", "dropout2d", "dropconnect")
_SCALINGS = (
    "dropfilter", "dropfilter-test", "dropfilter-none",
    "dropfilter-plus", "dropfilter-plus-test", "dropfilter-plus-none",
)  # fmt: skip

PARTS: Mapping[str, Part] = {
    "quick": Part("a small CNN on 200 digits", "digits", "small-cnn", 200, 40, 25, 0.05, _ALL, 5, 2, held_out=600),
    "quick-scaling": Part(
        "a small CNN on 200 digits, by scaling", "digits", "small-cnn", 200, 40, 25, 0.05, _SCALINGS, 5, 1, 600,
        lrs=(0.05, 0.1, 0.2, 0.4),
    ),
    "mnist-1000": Part("a small CNN on 1,000 images of MNIST", "mnist", "small-cnn", 1000, 60, 50, 0.05, _ALL),
    "lenet-5-1000": Part("LeNet-5 on 1,000 images of MNIST", "mnist", "lenet-5", 1000, 60, 50, 0.05, _ALL),
    "scaling": Part(
        "a small CNN on 1,000 images of MNIST, by scaling", "mnist", "small-cnn", 1000, 60, 50, 0.05, _SCALINGS,
        lrs=(0.05, 0.1, 0.2, 0.4), channels_last=True,
    ),
    "mnist": Part("a small CNN on MNIST", "mnist", "small-cnn", None, 10, 128, 0.05, _ALL, channels_last=True),
    "lenet-5": Part("LeNet-5 on MNIST", "mnist", "lenet-5", None, 5, 128, 0.05, _ALL, channels_last=True),
    "cifar10-first": Part(
        "VGG-16 on CIFAR-10, first convolution", "cifar10", "vgg-16", None, 300, 100, 0.06,
        ("none", "first", "first-plus"), seeds=3, tuning_seeds=0, halved=True, channels_last=True,
    ),
}  # fmt: skip
"""The parts by name."""


@dataclass(frozen=True)
class Trial:
    """The settings of one training.

    Attributes:
        part: one of :data:`PARTS`.
        method: one of :data:`REGULARISERS`.
        p: its rate.
        seed: of weights, images, order and masks.
        validation: whether it is judged by held-out training images instead of the test images.
        lr: learning rate before the schedule; None: the part's.
    """

    part: str
    method: str
    p: float
    seed: int
    validation: bool
    lr: float | None = None

    @property
    def start(self) -> float:
        """The learning rate that it begins with."""
        return PARTS[self.part].lr if self.lr is None else self.lr

    def settings(self) -> dict[str, Any]:
        """As plain values; what the part says belongs to them."""
        part = dataclasses.asdict(PARTS[self.part])
        own = {key: part[key] for key in ("data", "model", "images", "epochs", "batch_size", "halved")}
        if part["channels_last"]:
            own["channels_last"] = True
        return {**dataclasses.asdict(self), **own, "lr": self.start}


def find(name: str) -> Part:
    """The part of this name.

    Raises:
        InputError: if there is none, with the nearest.
    """
    if name not in PARTS:
        near = difflib.get_close_matches(name, PARTS, 1, 0.0)[0]
        raise InputError(f"there is no part {name!r}; did you mean {near!r}? ({', '.join(PARTS)})")
    return PARTS[name]


@functools.lru_cache(maxsize=2)
def read(data: str, data_dir: Path | None, held_out: int) -> Data:
    """A data set; a process that runs many trials reads it once."""
    return load(data, data_dir, validation=held_out, seed=0)


def run(trial: Trial, data_dir: Path | None, where: torch.device) -> dict[str, Any]:
    """Train and evaluate.

    Returns:
        ``accuracy`` and ``train_accuracy`` in percent, on the images that it is judged by and on those that it was
        trained on; ``seconds`` of training.

    Raises:
        InputError: if the data cannot be read.
    """
    with one_thread():
        data = read(PARTS[trial.part].data, data_dir, PARTS[trial.part].held_out if trial.validation else 0)
        began = time.perf_counter()
        model, images = train(trial, data, where)
        seconds = time.perf_counter() - began
        judged = accuracy(model, (data.validation if trial.validation else None) or data.test, data.prepare)
        learned = accuracy(model, images, data.prepare)
    return {"accuracy": judged, "train_accuracy": learned, "seconds": round(seconds, 2)}


def train(trial: Trial, data: Data, where: torch.device) -> tuple[nn.Module, Split]:
    """The trained network, and the images that it was trained on."""
    part, method = PARTS[trial.part], REGULARISERS[trial.method]
    torch.manual_seed(trial.seed)
    factory = small_cnn if part.model == "small-cnn" else MODELS[part.model]
    fresh = factory(data.input_shape, data.num_classes)
    assert isinstance(fresh, nn.Sequential)
    layout = torch.channels_last if part.channels_last else torch.preserve_format
    model = method.apply(fresh, trial.p).to(where, memory_format=layout)  # type: ignore[call-overload]
    images = data.train if part.images is None else data.train.take(
        permutation(len(data.train), trial.seed)[: part.images]
    )  # fmt: skip
    x, y = images.x.to(where), images.y.to(where)
    optimizer = torch.optim.SGD(model.parameters(), trial.start, momentum=0.9, weight_decay=5e-4)
    steps, rate = -(-len(y) // part.batch_size), dropfilter.Growing()
    model.train()
    for epoch in range(part.epochs):
        if method.grows:
            dropfilter.set_rate(model, rate(epoch))
        order = permutation(len(y), trial.seed, epoch).to(where)
        for step, index in enumerate(torch.split(order, part.batch_size)):
            done = (epoch * steps + step) / (part.epochs * steps)
            optimizer.param_groups[0]["lr"] = trial.start * (halving(epoch) if part.halved else cosine(done))
            optimizer.zero_grad()
            loss(model, data, x[index], y[index], layout).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model, images


def loss(
    model: nn.Module, data: Data, x: Tensor, y: Tensor, layout: torch.memory_format = torch.preserve_format
) -> Tensor:
    """Cross-entropy of raw images."""
    return functional.cross_entropy(model(data.prepare(x).to(memory_format=layout)), y)

"""The evidence for CoNNTrA: ternary networks on Iris and MNIST against backpropagation in double precision.

Every training is one line of JSON in ``OUT/PART.jsonl``, written when it is done; what is there is not run again.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from shrinkage.core.errors import InputError, require
from shrinkage.data import load
from shrinkage.discrete import CoNNTrA
from shrinkage.discrete.trainer import Variant
from shrinkage.models import build
from shrinkage.reproduce.drawing import drawing
from shrinkage.reproduce.lines import Lines
from shrinkage.reproduce.loop import one_thread
from shrinkage.reproduce.rivals import backpropagation, straight_through
from shrinkage.reproduce.runner import Outcome, Runner
from shrinkage.reproduce.sheets import Sheet, mean, save
from shrinkage.training.summary import versions

METHODS = {
    "conntra": "CoNNTrA, ternary",
    "backprop": "backpropagation, double precision",
    "straight-through": "straight-through, ternary",
}
RECIPE = 3
"""Counts up when the same settings come to mean another training."""

_SPLIT = 30  # of Iris' 150 examples, to test on


@dataclass(frozen=True)
class Phase:
    """Some sweeps of CoNNTrA.

    Attributes:
        variant: of the sweeps.
        sweeps: how many, at most.
        batch: examples of each; None for all.
    """

    variant: Variant
    sweeps: int
    batch: int | None = None


@dataclass(frozen=True)
class Task:
    """One row of :data:`TASKS`.

    Attributes:
        title: in tables.
        data: ``iris``, or a data set of :mod:`shrinkage.data`, or ``features``.
        seeds: trainings of each method; for Iris each has its own split.
        phases: of CoNNTrA.
        restarts: trainings of each method, from other initial weights, of which the one with the least training loss
            is taken.
        epochs, batch, lr: of its rivals.
        examples: training examples; None for all.
    """

    title: str
    data: str
    seeds: int
    phases: tuple[Phase, ...]
    restarts: int
    epochs: int
    batch: int
    lr: float
    examples: int | None = None


TASKS: Mapping[str, Task] = {
    "iris": Task("Iris, 4-16-3, 10 splits", "iris", 10, (Phase("exhaustive", 30),), 5, 200, 32, 0.01),
    "digits": Task(
        "digits, LeNet-300-100", "digits", 1, (Phase("together", 10), Phase("gradient", 1)), 1, 60, 64, 1e-3
    ),
    "mnist-10000": Task(
        "MNIST, 10,000 images, LeNet-300-100", "mnist", 1, (Phase("together", 20, 5000),), 1, 40, 128, 1e-3, 10_000
    ),
    "mnist": Task(
        "MNIST, LeNet-300-100", "mnist", 3,
        (Phase("together", 24, 10_000), Phase("together", 12), Phase("gradient", 1)), 1, 20, 128, 1e-3,
    ),
    "features": Task(
        "the last layer on given features", "features", 1, (Phase("together", 5), Phase("gradient", 2)), 1, 30, 128,
        1e-3,
    ),
}  # fmt: skip
"""The tasks by the name that ``--part`` takes."""


@dataclass(frozen=True)
class Trial:
    """The settings of one training.

    Attributes:
        task: one of :data:`TASKS`.
        method: one of :data:`METHODS`.
        seed: of weights, order and, for Iris, the split.
    """

    task: str
    method: str
    seed: int

    def settings(self) -> dict[str, Any]:
        """As plain values; what the task says belongs to them."""
        return {**asdict(self), **asdict(TASKS[self.task])}


@dataclass(frozen=True)
class Comparison:
    """The outcomes of a task; prints as a table.

    Attributes:
        task: its name.
        outcomes: by method; see :func:`run`.
    """

    task: str
    outcomes: Mapping[str, Sequence[Outcome]]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"task": self.task, "outcomes": {method: list(found) for method, found in self.outcomes.items()}}

    def behind(self, method: str) -> list[float]:
        """Points of test error by which a method is worse than backpropagation, seed by seed."""
        pairs = zip(self.outcomes[method], self.outcomes["backprop"], strict=True)
        return [mine["test_error"] - other["test_error"] for mine, other in pairs]

    def sheet(self) -> Sheet:
        """As a table."""
        rows: list[list[object]] = []
        for method, found in self.outcomes.items():
            size, double = found[0]["bytes"], 8 * found[0]["weights"]
            errors = [mean([each[key] for each in found]) for key in ("train_error", "test_error")]
            more = None if method == "backprop" else mean(self.behind(method), sign="+")
            seconds = statistics.mean(each["seconds"] for each in found)
            rows.append([METHODS[method], *errors, more, size, f"{double / size:.1f} ×", f"{seconds:.1f}"])
        header = [
            "method",
            "training error, %",
            "test error, %",
            "more than backpropagation",
            "bytes",
            "smaller than double",
            "seconds",
        ]
        seeds = len(self.outcomes["conntra"])
        several = f" (mean ± standard error of {seeds})" if seeds > 1 else ""
        if (restarts := TASKS[self.task].restarts) > 1:
            several += f", each the best of {restarts} by training loss"
        return Sheet(f"{TASKS[self.task].title}{several}", header, rows)

    def __str__(self) -> str:
        return str(self.sheet())


Sets = tuple[Tensor, Tensor, Tensor, Tensor]


def reproduce(
    names: Sequence[str],
    out: Path,
    *,
    data_dir: Path | None,
    features: Path | None = None,
    processes: int,
    tell: Callable[[str], None],
) -> list[Comparison]:
    """Run tasks, or what is missing of them.

    Args:
        names: of the tasks.
        out: folder for ``NAME.jsonl``, ``NAME.md`` and ``conntra.svg``.
        data_dir: folder with MNIST.
        features: for the task ``features``: an ``.npz`` file with ``x``, ``y``, ``x_test`` and ``y_test``.
        processes: trainings at a time.
        tell: receives what a person should know, a line at a time.

    Raises:
        InputError: for a task that does not exist, or data or a folder that cannot be used.
        StateError: if another process is adding to the same results.
    """
    for name in names:
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, 1, 0.0)[0]
            raise InputError(f"there is no part {name!r}; did you mean {near!r}? ({', '.join(TASKS)})")
    present = {package: versions().get(package) for package in ("shrinkage", "torch")}
    comparisons = []
    for name in names:
        tell(f"{name}: {TASKS[name].title}")
        _prepare(TASKS[name], 0, data_dir, features)  # what is wrong with the data is said once
        given = features if TASKS[name].data == "features" else None
        origin = {**present, "recipe": RECIPE, "features": None if given is None else _digest(given)}
        with Lines(out / f"{name}.jsonl", origin, tell) as lines:
            work = functools.partial(run, data_dir=data_dir, features=features)
            runner = Runner(lines, work, _title, _score, processes, tell)
            seeds = range(TASKS[name].seeds)
            trials = [Trial(name, method, seed) for method in METHODS for seed in seeds]
            outcomes = runner.all(trials)
        by_method = {
            method: [outcome for trial, outcome in zip(trials, outcomes, strict=True) if trial.method == method]
            for method in METHODS
        }
        comparisons.append(Comparison(name, by_method))
        save([comparisons[-1].sheet()], out / f"{name}.md")
    bars(comparisons, out / "conntra.svg")
    return comparisons


def run(trial: Trial, data_dir: Path | None, features: Path | None = None) -> Outcome:
    """Train one network on one thread.

    Returns:
        ``train_error`` and ``test_error`` in percent; ``bytes`` of weights, biases and scales as the method stores
        them; ``weights``, how many there are, biases included; ``seconds`` of training, of all restarts.
    """
    task, seed = TASKS[trial.task], trial.seed
    with one_thread():
        make, sets = _prepare(task, seed, data_dir, features)
        x, y, x_test, y_test = sets
        torch.manual_seed(seed)
        begin = time.perf_counter()
        train = _TRAIN[trial.method]
        found = [train(task, make(), x, y, 1000 * seed + restart) for restart in range(task.restarts)]
        net, stored = min(found, key=lambda each: _loss(each[0], x, y))
        seconds = time.perf_counter() - begin
        return {
            "train_error": _error(net, x, y),
            "test_error": _error(net, x_test, y_test),
            "bytes": stored,
            "weights": sum(parameter.numel() for parameter in net.parameters()),
            "seconds": round(seconds, 2),
        }


def _title(trial: Trial) -> str:
    return f"{METHODS[trial.method]}, seed {trial.seed}"


def _score(outcome: Mapping[str, Any]) -> str:
    return f"{outcome['test_error']:.2f} % error, {outcome['seconds']:.1f} s"


def _conntra(task: Task, net: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[nn.Module, int]:
    """The trained network, and its bytes; so do the other two."""
    method = CoNNTrA(net, seed=seed)
    for phase in task.phases:
        method.fit(x, y, phase.sweeps, batch=phase.batch, variant=phase.variant)
    return net, sum(buffer.nbytes for buffer in method.packed().buffers())


def _backprop(task: Task, net: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[nn.Module, int]:
    double = torch.float64
    backpropagation(net, x, y, epochs=task.epochs, batch=task.batch, lr=task.lr, seed=seed, dtype=double)
    return net, sum(parameter.nbytes for parameter in net.parameters())


def _straight_through(task: Task, net: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[nn.Module, int]:
    straight_through(net, x, y, epochs=task.epochs, batch=task.batch, lr=task.lr, seed=seed)
    return net, sum(
        -(-parameter.numel() // 4) + 4 if parameter.ndim > 1 else parameter.nbytes for parameter in net.parameters()
    )


_TRAIN = {"conntra": _conntra, "backprop": _backprop, "straight-through": _straight_through}


def _prepare(
    task: Task, seed: int, data_dir: Path | None, features: Path | None
) -> tuple[Callable[[], nn.Module], Sets]:
    if task.data == "iris":
        return lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)), _iris(seed)
    if task.data == "features":
        sets = _features(features)
        classes = int(max(sets[1].max(), sets[3].max())) + 1
        return lambda: nn.Sequential(nn.Linear(sets[0].shape[1], classes)), sets
    data = load(task.data, data_dir)
    train = data.train.take(torch.arange(len(data.train))[: task.examples])
    sets = data.prepare(train.x), train.y, data.prepare(data.test.x), data.test.y
    return lambda: build("lenet-300-100", data), sets


def _iris(seed: int) -> Sets:
    """Iris, a fifth of it to test on, standardised by the rest."""
    bundle = require("sklearn.datasets", "reproduce").load_iris()
    order = torch.randperm(len(bundle.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.from_numpy(bundle.data).float()[order], torch.from_numpy(bundle.target).long()[order]
    mean, std = x[:-_SPLIT].mean(0), x[:-_SPLIT].std(0)
    x = (x - mean) / std
    return x[:-_SPLIT], y[:-_SPLIT], x[-_SPLIT:], y[-_SPLIT:]


def _digest(path: Path) -> str:
    """What is in a file, in 16 letters."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _features(path: Path | None) -> Sets:
    if path is None:
        raise InputError("the part 'features' needs a file: --features FILE.npz with x, y, x_test and y_test")
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y, x_test, y_test = (torch.from_numpy(file[key]) for key in ("x", "y", "x_test", "y_test"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error}; it must be an .npz with x, y, x_test and y_test") from error
    if x.ndim != 2 or x_test.shape[1:] != x.shape[1:] or y.shape != x.shape[:1] or y_test.shape != x_test.shape[:1]:
        raise InputError(f"{path}: x must be (N, features) and y (N,), got {tuple(x.shape)} and {tuple(y.shape)}")
    return x.float(), y.long(), x_test.float(), y_test.long()


@torch.no_grad()
def _loss(net: nn.Module, x: Tensor, y: Tensor) -> float:
    like = next(net.parameters())
    return sum(
        float(functional.cross_entropy(net(x[first : first + 4096].to(like)), y[first : first + 4096], reduction="sum"))
        for first in range(0, len(y), 4096)
    )


@torch.no_grad()
def _error(net: nn.Module, x: Tensor, y: Tensor) -> float:
    like = next(net.parameters())
    wrong = sum(
        int((net(x[first : first + 4096].to(like)).argmax(1) != y[first : first + 4096]).sum())
        for first in range(0, len(y), 4096)
    )
    return 100 * wrong / len(y)


def bars(comparisons: Sequence[Comparison], path: Path) -> None:
    """Test errors, a group of bars a task.

    Raises:
        MissingExtra: if matplotlib is not installed.
    """
    names = [comparison.task for comparison in comparisons]
    with drawing(path, (6.4, 3.6)) as (_, (axes,)):
        for index, (method, colour) in enumerate(zip(METHODS, ("#c2410c", "#6b7280", "#1d4ed8"), strict=True)):
            groups = [[each["test_error"] for each in found.outcomes[method]] for found in comparisons]
            places = [place + 0.27 * (index - 1) for place in range(len(names))]
            errors = [statistics.stdev(group) / len(group) ** 0.5 if len(group) > 1 else 0 for group in groups]
            heights = [statistics.mean(group) for group in groups]
            axes.bar(places, heights, 0.25, yerr=errors, color=colour, label=METHODS[method])
        axes.set_xticks(range(len(names)), names)
        axes.set_ylabel("test error, %")
        axes.legend(frameon=False)

"""The evidence for CoNNTrA: ternary networks on Iris and MNIST against backpropagation in double precision.

Every training is one line of JSON in ``OUT/conntra.jsonl``, written when it is done; what is there is not run again.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shrinkage.core.errors import InputError, require
from shrinkage.core.tables import render
from shrinkage.data import load
from shrinkage.discrete import CoNNTrA
from shrinkage.discrete.trainer import Variant
from shrinkage.models import build
from shrinkage.reproduce.loop import one_thread
from shrinkage.reproduce.rivals import backpropagation, straight_through
from shrinkage.training.files import write
from shrinkage.training.summary import versions

METHODS = {
    "conntra": "CoNNTrA, ternary",
    "backprop": "backpropagation, double precision",
    "straight-through": "straight-through, ternary",
}
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
        restarts: of CoNNTrA, of which the one with the least training loss is taken.
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
        "digits, LeNet-300-100", "digits", 1, (Phase("together", 3), Phase("gradient", 1)), 1, 60, 64, 1e-3
    ),
    "mnist-10000": Task(
        "MNIST, 10,000 images, LeNet-300-100", "mnist", 1, (Phase("together", 3, 5000),), 1, 10, 128, 1e-3, 10_000
    ),
    "mnist": Task(
        "MNIST, LeNet-300-100", "mnist", 3,
        (Phase("together", 30, 10_000), Phase("together", 10), Phase("gradient", 1)), 1, 20, 128, 1e-3,
    ),
    "features": Task(
        "the last layer on given features", "features", 1, (Phase("together", 5), Phase("gradient", 2)), 1, 30, 128,
        1e-3,
    ),
}  # fmt: skip
"""The tasks by the name that ``--part`` takes."""


@dataclass(frozen=True)
class Line:
    """What one training gave.

    Attributes:
        task, method, seed: which one.
        recipe: the task's settings and the versions that it was run with.
        train_error, test_error: in percent.
        bytes: of weights, biases and scales as the method stores them.
        weights: how many there are, biases included.
        seconds: of training.
    """

    task: str
    method: str
    seed: int
    recipe: dict[str, Any]
    train_error: float
    test_error: float
    bytes: int
    weights: int
    seconds: float


Sets = tuple[Tensor, Tensor, Tensor, Tensor]


def reproduce(
    names: Sequence[str],
    out: Path,
    *,
    data_dir: Path | None,
    features: Path | None = None,
    tell: Callable[[str], None],
) -> list[str]:
    """Run tasks, or what is missing of them.

    Args:
        names: of the tasks.
        out: folder for ``conntra.jsonl`` and ``conntra.svg``.
        data_dir: folder with MNIST.
        features: for the task ``features``: an ``.npz`` file with ``x``, ``y``, ``x_test`` and ``y_test``.
        tell: receives what a person should know.

    Returns:
        A table a task.

    Raises:
        InputError: for a task that does not exist, or data that cannot be read.
    """
    for name in names:
        if name not in TASKS:
            raise InputError(f"there is no part {name!r}; there are {', '.join(TASKS)}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from error
    path = out / "conntra.jsonl"
    known = _read(path)
    tables, found = [], []
    for name in names:
        lines = []
        for method in METHODS:
            for seed in range(TASKS[name].seeds):
                line = known.get((name, method, seed, json.dumps(_recipe(name, features))))
                if line is None:
                    line = run(name, method, seed, data_dir, features)
                    _append(path, line)
                    tell(f"{name}, {method}, seed {seed}: {line.test_error:.2f} % error, {line.seconds:.1f} s")
                lines.append(line)
        tables.append(table(name, lines))
        found += lines
    bars(found, out / "conntra.svg")
    return tables


def run(name: str, method: str, seed: int, data_dir: Path | None, features: Path | None = None) -> Line:
    """Train one network on one thread."""
    task = TASKS[name]
    with one_thread():
        make, sets = _prepare(task, seed, data_dir, features)
        x, y, x_test, y_test = sets
        torch.manual_seed(seed)
        begin = time.perf_counter()
        if method == "conntra":
            net, stored = _conntra(task, make, x, y, seed)
        else:
            rival = {"epochs": task.epochs, "batch": task.batch, "lr": task.lr, "seed": seed}
            net = make()
            if method == "backprop":
                backpropagation(net, x, y, dtype=torch.float64, **rival)  # type: ignore[arg-type]
                stored = sum(parameter.nbytes for parameter in net.parameters())
            else:
                straight_through(net, x, y, **rival)  # type: ignore[arg-type]
                stored = sum(
                    -(-parameter.numel() // 4) + 4 if parameter.ndim > 1 else parameter.nbytes
                    for parameter in net.parameters()
                )
        seconds = time.perf_counter() - begin
        weights = sum(parameter.numel() for parameter in net.parameters())
        errors = _error(net, x, y), _error(net, x_test, y_test)
    return Line(name, method, seed, _recipe(name, features), *errors, stored, weights, round(seconds, 2))


def _conntra(task: Task, make: Callable[[], nn.Module], x: Tensor, y: Tensor, seed: int) -> tuple[nn.Module, int]:
    best: tuple[float, nn.Module, int] | None = None
    for restart in range(task.restarts):
        net = make()
        method = CoNNTrA(net, seed=1000 * seed + restart)
        for phase in task.phases:
            result = method.fit(x, y, phase.sweeps, batch=phase.batch, variant=phase.variant)
        loss = result.sweeps[-1].loss
        if best is None or loss < best[0]:
            best = loss, net, sum(buffer.nbytes for buffer in method.packed().buffers())
    assert best is not None
    return best[1], best[2]


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
def _error(net: nn.Module, x: Tensor, y: Tensor) -> float:
    like = next(net.parameters())
    wrong = sum(
        int((net(x[first : first + 4096].to(like)).argmax(1) != y[first : first + 4096]).sum())
        for first in range(0, len(y), 4096)
    )
    return 100 * wrong / len(y)


def table(name: str, lines: Sequence[Line]) -> str:
    """Means over the seeds, with their standard errors."""
    rows: list[list[object]] = []
    for method, title in METHODS.items():
        mine = [line for line in lines if line.method == method]
        size, seconds = mine[0].bytes, statistics.mean(line.seconds for line in mine)
        double = 8 * mine[0].weights
        errors = (_spread([line.train_error for line in mine]), _spread([line.test_error for line in mine]))
        rows.append([title, *errors, size, f"{double / size:.1f} ×", f"{seconds:.1f}"])
    header = ["method", "training error, %", "test error, %", "bytes", "smaller than double", "seconds"]
    return render(header, rows, title=f"{TASKS[name].title}, {TASKS[name].seeds} seed(s)")


def _spread(values: Sequence[float]) -> str:
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{error}"


def bars(lines: Sequence[Line], path: Path) -> None:
    """Test errors, a group of bars a task.

    Raises:
        MissingExtra: if matplotlib is not installed.
    """
    plt: Any = require("matplotlib.pyplot", "reproduce")
    names = list(dict.fromkeys(line.task for line in lines))
    with plt.rc_context({"svg.hashsalt": "shrinkage", "font.size": 9, "axes.spines.top": False}):
        figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        for index, (method, colour) in enumerate(zip(METHODS, ("#c2410c", "#6b7280", "#1d4ed8"), strict=True)):
            groups = [[line.test_error for line in lines if (line.task, line.method) == (n, method)] for n in names]
            places = [place + 0.27 * (index - 1) for place in range(len(names))]
            errors = [statistics.stdev(group) / len(group) ** 0.5 if len(group) > 1 else 0 for group in groups]
            heights = [statistics.mean(group) for group in groups]
            axes.bar(places, heights, 0.25, yerr=errors, color=colour, label=METHODS[method])
        axes.set_xticks(range(len(names)), names)
        axes.set_ylabel("test error, %")
        axes.legend(frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        plt.close(figure)
    write(path, text.getvalue())


def _recipe(name: str, features: Path | None) -> dict[str, Any]:
    found = versions()
    settings = {**asdict(TASKS[name]), "phases": [asdict(phase) for phase in TASKS[name].phases]}
    return {
        **settings,
        "features": None if features is None else str(features),
        **{package: found.get(package) for package in ("shrinkage", "torch")},
    }


def _read(path: Path) -> dict[tuple[str, str, int, str], Line]:
    """Lines that are there; a half-written one is passed over."""
    found = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            line = Line(**json.loads(text))
        except (ValueError, TypeError):
            continue
        found[line.task, line.method, line.seed, json.dumps(line.recipe)] = line
    return found


def _append(path: Path, line: Line) -> None:
    """On the disk when this returns; a line that was cut off before is ended first."""
    with path.open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(asdict(line)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())

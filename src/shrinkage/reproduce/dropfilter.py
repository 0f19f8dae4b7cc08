"""The evidence for DropFilter: rates chosen on held-out images, then paired trainings judged by the test images.

Every training is a line of JSON in ``OUT/PART.jsonl``; what is there is not run again.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.dropfilter import moments
from shrinkage.reproduce.lines import Lines
from shrinkage.reproduce.regularized import (
    PARTS,
    RATES,
    RECIPE,
    REGULARISERS,
    Part,
    Trial,
    find,
    loss,
    read,
    run,
    train,
)
from shrinkage.reproduce.runner import Outcome, Runner
from shrinkage.reproduce.sheets import Sheet, mean, save
from shrinkage.training.summary import versions

_TUNING_SEED = 1000  # not among those of the table
_MATTER = ("shrinkage", "torch")


@dataclass(frozen=True)
class Row:
    """One regulariser in a table.

    Attributes:
        method: its name.
        p: the rate that was chosen.
        lr: the learning rate that was chosen; None where all have the same.
        scores: test accuracy in percent by seed.
        train: accuracy in percent on the training images, the mean over seeds.
        over: difference to the first regulariser of the table in points, by seed; empty for that one itself.
    """

    method: str
    p: float
    lr: float | None
    scores: tuple[float, ...]
    train: float
    over: tuple[float, ...]


@dataclass(frozen=True)
class Table:
    """A part's outcome; prints as a table.

    Attributes:
        title: what was trained.
        rows: the first one is what the others are compared with, seed by seed.
    """

    title: str
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers, texts and lists."""
        return {"title": self.title, "rows": [{**vars(row)} for row in self.rows]}

    def sheet(self) -> Sheet:
        """As a table."""
        tuned = any(row.lr for row in self.rows)
        rows = [
            [
                REGULARISERS[row.method].title,
                row.p or None,
                *([row.lr] if tuned else []),
                mean(row.scores),
                mean(row.over, sign="+"),
                f"{row.train:.2f} %",
            ]
            for row in self.rows
        ]
        first = REGULARISERS[self.rows[0].method].title
        header = [
            "regulariser",
            "rate",
            *(["learning rate"] if tuned else []),
            "test accuracy",
            f"over {first}",
            "training accuracy",
        ]
        return Sheet(f"{self.title} (mean ± standard error of {len(self.rows[0].scores)} seeds)", header, rows)

    def __str__(self) -> str:
        return str(self.sheet())


@dataclass(frozen=True)
class Noise:
    """Algorithm 2 of DropFilter-PLUS over the exact form, on the layers of a trained network; prints as a table.

    Attributes:
        title: what was trained.
        rows: layer and figures; see :class:`~shrinkage.dropfilter.Moments`.
    """

    title: str
    rows: tuple[tuple[str, dict[str, float]], ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers, texts and lists."""
        return {"title": self.title, "rows": [{"layer": name, **found} for name, found in self.rows]}

    def sheet(self) -> Sheet:
        """As a table."""
        keys = ["output_mean", "output_variance", "output_noise", "gradient_variance", "gradient_noise"]
        rows = [[f"layer {name}", found["p"], *(found[key] for key in keys)] for name, found in self.rows]
        header = ["layer", "p", *(key.replace("_", " ").replace("noise", "var/mean²") for key in keys)]
        return Sheet(f"{self.title}: Algorithm 2 of DropFilter-PLUS over the exact form", header, rows)

    def __str__(self) -> str:
        return str(self.sheet())


def reproduce(
    names: Sequence[str],
    out: Path,
    *,
    data_dir: Path | None,
    where: torch.device,
    processes: int,
    tell: Callable[[str], None],
) -> list[Table | Noise]:
    """Run parts, or what is missing of them.

    Args:
        names: of the parts.
        out: folder for ``NAME.jsonl`` and ``NAME.md``.
        data_dir: folder with the data sets.
        where: the device to train on.
        processes: trainings at a time.
        tell: receives what a person should know, a line at a time.

    Returns:
        A table a part; for parts that compare all regularisers also how far the fast form is from the exact one.

    Raises:
        InputError: for a part that does not exist, or data or a folder that cannot be used.
        StateError: if another process is adding to the same results.
    """
    parts = {name: find(name) for name in names}
    found: list[Table | Noise] = []
    for name, part in parts.items():
        tell(f"{name}: {part.title}")
        read(part.data, data_dir, 0)  # what is wrong with the data is said once
        origin = {**{package: versions().get(package) for package in _MATTER}, "device": where.type, "recipe": RECIPE}
        with Lines(out / f"{name}.jsonl", origin, tell) as lines:
            work = functools.partial(run, data_dir=data_dir, where=where)
            mine: list[Table | Noise] = [_compare(name, part, Runner(lines, work, _title, _score, processes, tell))]
        if "dropfilter-plus" in part.methods and "none" in part.methods:
            mine.append(noise(name, data_dir, where))
        save([each.sheet() for each in mine], out / f"{name}.md")
        found += mine
    return found


def noise(name: str, data_dir: Path | None, where: torch.device, rates: Sequence[float] = RATES) -> Noise:
    """Train a part's network without regulariser, and compare the two forms of DropFilter-PLUS on a batch of it."""
    part = PARTS[name]
    data = read(part.data, data_dir, 0)
    model, images = train(Trial(name, "none", 0.0, 0, False), data, where)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    layers = {key: module for key, module in model.named_modules() if isinstance(module, nn.Conv2d)}

    def keep(key: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[key], outputs[key] = args[0].detach(), output
            output.retain_grad()

        return hook

    handles = [module.register_forward_hook(keep(key)) for key, module in layers.items()]
    x, y = images.x[: part.batch_size].to(where), images.y[: part.batch_size].to(where)
    loss(model, data, x, y).backward()  # type: ignore[no-untyped-call]
    for handle in handles:
        handle.remove()
    return Noise(
        part.title,
        tuple(
            (key, moments(layer, inputs[key], p, outputs[key].grad).to_dict())
            for key, layer in layers.items()
            for p in rates
        ),
    )


def _title(trial: Trial) -> str:
    judged = "held-out" if trial.validation else "test"
    speed = "" if trial.lr is None else f", learning rate {trial.lr:g}"
    return f"{REGULARISERS[trial.method].title} at {trial.p:g}{speed}, seed {trial.seed}, {judged} images"


def _score(outcome: Mapping[str, Any]) -> str:
    return f"{outcome['accuracy']:.2f} %, {outcome['seconds']:.1f} s"


def _compare(name: str, part: Part, runner: Runner) -> Table:
    def choices(method: str) -> list[tuple[float, float | None]]:
        return [(p, lr) for p in REGULARISERS[method].rates for lr in part.lrs or (None,)]

    def tuning(method: str) -> dict[tuple[float, float | None], list[Trial]]:
        seeds = range(_TUNING_SEED, _TUNING_SEED + part.tuning_seeds)
        return {(p, lr): [Trial(name, method, p, seed, True, lr) for seed in seeds] for p, lr in choices(method)}

    def known(trials: Iterable[Trial]) -> dict[Trial, Outcome]:
        wanted = list(trials)
        return dict(zip(wanted, runner.all(wanted), strict=True))

    searched = [method for method in part.methods if part.tuning_seeds and len(choices(method)) > 1]
    tried = known(trial for method in searched for trials in tuning(method).values() for trial in trials)
    chosen = {method: choices(method)[0] for method in part.methods}
    for method in searched:
        means = {
            choice: statistics.mean(tried[trial]["accuracy"] for trial in trials)
            for choice, trials in tuning(method).items()
        }
        chosen[method] = max(means, key=means.__getitem__)  # of equals the first: the lower rates
    final = {
        method: [Trial(name, method, p, seed, False, lr) for seed in range(part.seeds)]
        for method, (p, lr) in chosen.items()
    }
    # Seed by seed, so that what is interrupted has all regularisers.
    done = known(trials[seed] for seed in range(part.seeds) for trials in final.values())
    scores = {method: tuple(done[trial]["accuracy"] for trial in trials) for method, trials in final.items()}
    first = part.methods[0]
    rows = []
    for method in part.methods:
        pairs = zip(scores[method], scores[first], strict=True)
        over = () if method == first else tuple(ours - theirs for ours, theirs in pairs)
        learned = statistics.mean(done[trial]["train_accuracy"] for trial in final[method])
        rows.append(Row(method, *chosen[method], scores[method], learned, over))
    return Table(part.title, tuple(rows))

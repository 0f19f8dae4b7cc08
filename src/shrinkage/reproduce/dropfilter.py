"""The evidence for DropFilter: rates chosen on held-out images, then paired trainings judged by the test images.

Every training is a line of JSON in ``OUT/PART.jsonl``; what is there is not run again.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.core.errors import InputError
from shrinkage.core.tables import render
from shrinkage.dropfilter import moments
from shrinkage.reproduce.regularized import (
    PARTS,
    RATES,
    RECIPE,
    REGULARISERS,
    Outcome,
    Part,
    Trial,
    find,
    loss,
    read,
    run,
    train,
)
from shrinkage.training.files import lock
from shrinkage.training.summary import versions

_TUNING_SEED = 1000  # not among those of the table
_MATTER = ("shrinkage", "torch")


@dataclass(frozen=True)
class Row:
    """One regulariser in a table.

    Attributes:
        method: its name.
        p: the rate that was chosen.
        scores: test accuracy in percent by seed.
        train: accuracy in percent on the training images, the mean over seeds.
        over: difference to the first regulariser of the table in points, by seed; empty for that one itself.
    """

    method: str
    p: float
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

    def __str__(self) -> str:
        first = REGULARISERS[self.rows[0].method].title
        header = ["regulariser", "rate", "test accuracy", f"over {first}", "training accuracy"]
        rows = [
            [REGULARISERS[row.method].title, row.p or None, _mean(row.scores), _mean(row.over, sign="+"),
             f"{row.train:.2f} %"]
            for row in self.rows
        ]  # fmt: skip
        return render(header, rows, title=f"{self.title} (mean ± standard error of {len(self.rows[0].scores)} seeds)")


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

    def __str__(self) -> str:
        keys = ["output_mean", "output_variance", "output_noise", "gradient_variance", "gradient_noise"]
        rows = [[name, found["p"], *(found[key] for key in keys)] for name, found in self.rows]
        header = ["layer", "p", *(key.replace("_", " ").replace("noise", "var/mean²") for key in keys)]
        return render(header, rows, title=f"{self.title}: Algorithm 2 of DropFilter-PLUS over the exact form")


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
        out: folder for ``NAME.jsonl``.
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
        with _results(out / f"{name}.jsonl", where, tell) as results:
            found.append(_compare(name, part, _Runner(results, data_dir, where, processes, tell)))
        if "dropfilter-plus" in part.methods and "none" in part.methods:
            found.append(noise(name, data_dir, where))
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


class _Results:
    """The outcomes in a file that are of the present versions and device, and the way to add to them."""

    def __init__(self, path: Path, file: Any, where: torch.device, tell: Callable[[str], None]) -> None:
        self._file = file
        self._known: dict[Trial, Outcome] = {}
        present = {package: versions().get(package) for package in _MATTER}
        unused = 0
        for line in filter(str.strip, path.read_text(encoding="utf-8", errors="replace").splitlines()):
            try:
                outcome = Outcome.parse(line)
            except (ValueError, KeyError, TypeError):
                outcome = None
            if outcome is None or outcome.recipe != RECIPE or outcome.device != where.type or any(
                outcome.versions.get(package) != version for package, version in present.items()
            ):  # fmt: skip
                unused += 1
            else:
                self._known[outcome.trial] = outcome
        if unused:
            tell(f"{path}: lines that are broken, or of other versions or devices, not used: {unused}")

    def get(self, trial: Trial) -> Outcome | None:
        return self._known.get(trial)

    def add(self, outcome: Outcome) -> None:
        """On the disk when this returns."""
        self._known[outcome.trial] = outcome
        self._file.write(outcome.to_json() + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


@contextmanager
def _results(path: Path, where: torch.device, tell: Callable[[str], None]) -> Iterator[_Results]:
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(path.with_name(f".{path.name}.lock"), str(path)))
            file = stack.enter_context(path.open("a+", encoding="utf-8"))
            content = path.read_bytes()
            if content and not content.endswith(b"\n"):  # a line that was cut off stays one of its own
                file.write("\n")
                file.flush()
            results = _Results(path, file, where, tell)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
        yield results


@dataclass(frozen=True)
class _Runner:
    results: _Results
    data_dir: Path | None
    where: torch.device
    processes: int
    tell: Callable[[str], None]

    def all(self, trials: Iterable[Trial]) -> dict[Trial, Outcome]:
        """The outcomes of trials, run where they are not known."""
        wanted = list(dict.fromkeys(trials))
        missing = [trial for trial in wanted if self.results.get(trial) is None]
        if missing:
            self._run(missing)
        known = {trial: self.results.get(trial) for trial in wanted}
        return {trial: outcome for trial, outcome in known.items() if outcome is not None}

    def _run(self, trials: list[Trial]) -> None:
        with ProcessPoolExecutor(self.processes, multiprocessing.get_context("spawn")) as pool:
            try:
                running = [pool.submit(run, trial, self.data_dir, self.where) for trial in trials]
                for count, future in enumerate(as_completed(running), 1):
                    outcome = future.result()
                    self.results.add(outcome)
                    trial = outcome.trial
                    aim = "held-out" if trial.validation else "test"
                    self.tell(
                        f"{count:4d} of {len(trials)}  {REGULARISERS[trial.method].title} at {trial.p:g}, "
                        f"seed {trial.seed}: {aim} {outcome.accuracy:.2f} %, {outcome.seconds:.1f} s"
                    )
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in multiprocessing.active_children():  # what they were at is run again next time
                    worker.terminate()
                raise


def _compare(name: str, part: Part, runner: _Runner) -> Table:
    def tuning(method: str) -> dict[float, list[Trial]]:
        rates, seeds = REGULARISERS[method].rates, range(_TUNING_SEED, _TUNING_SEED + part.tuning_seeds)
        return {p: [Trial(name, method, p, seed, True) for seed in seeds] for p in rates}

    searched = [method for method in part.methods if part.tuning_seeds and len(REGULARISERS[method].rates) > 1]
    tried = runner.all(trial for method in searched for trials in tuning(method).values() for trial in trials)
    chosen = {method: REGULARISERS[method].rates[0] for method in part.methods}
    for method in searched:
        means = {p: statistics.mean(tried[trial].accuracy for trial in trials) for p, trials in tuning(method).items()}
        chosen[method] = max(means, key=lambda p: (means[p], -p))
    final = {
        method: [Trial(name, method, p, seed, False) for seed in range(part.seeds)] for method, p in chosen.items()
    }
    # Seed by seed, so that what is interrupted has all regularisers.
    done = runner.all(trials[seed] for seed in range(part.seeds) for trials in final.values())
    scores = {method: tuple(done[trial].accuracy for trial in trials) for method, trials in final.items()}
    first = part.methods[0]
    rows = []
    for method in part.methods:
        pairs = zip(scores[method], scores[first], strict=True)
        over = () if method == first else tuple(ours - theirs for ours, theirs in pairs)
        learned = statistics.mean(done[trial].train_accuracy for trial in final[method])
        rows.append(Row(method, chosen[method], scores[method], learned, over))
    return Table(part.title, tuple(rows))


def _mean(values: Sequence[float], sign: str = "") -> str | None:
    if not values:
        return None
    spread = f" ± {statistics.stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.2f}{spread}"

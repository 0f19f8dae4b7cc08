"""A part of the evidence from nothing, or from wherever it stood, to its outcomes.

First each method chooses its settings on held-out training images, all with the same number of trials in the same
space. Then come the trainings of the table, judged on the test images. What is in the results file is not run again;
since the search is a function of its outcomes, an interrupted one goes on by replaying them.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from shrinkage.core.errors import InputError, StateError, require
from shrinkage.reproduce import entrants, tasks
from shrinkage.reproduce.parts import Part
from shrinkage.reproduce.run import run
from shrinkage.reproduce.store import Results
from shrinkage.reproduce.tables import Table
from shrinkage.reproduce.trial import Outcome, Trial

T = TypeVar("T")
R = TypeVar("R")
Settings = tuple[float, float, str]  # learning rate, weight decay, schedule

_TUNING_SEED = 1000  # not among those of the table


@dataclass(frozen=True)
class Place:
    """Where trials run.

    Attributes:
        data_dir: folder with the data sets.
        device: to train on.
        processes: trials at a time.
        data_label: what the data is, where the data set's name does not say it.
        checkpoints: folder for the states of long trainings; None: they begin anew when interrupted.
    """

    data_dir: Path | None
    device: torch.device
    processes: int
    data_label: str | None = None
    checkpoints: Path | None = None


class Campaign:
    """Runs the trials of a part and keeps their outcomes.

    Args:
        part: what is compared.
        place: where trials run.
        results: where outcomes are kept; open.
        tell: receives a line a trial.
        deadline: when, by :func:`time.monotonic`, no further trial is begun; None: never.

    Raises:
        InputError: if a method cannot be trained by the task's optimiser.
    """

    def __init__(
        self, part: Part, place: Place, results: Results, tell: Callable[[str], None], deadline: float | None = None
    ) -> None:
        self._part, self._place, self._results, self._tell = part, place, results, tell
        self._task = tasks.find(part.task)
        self._deadline = deadline
        for method in part.methods:
            if entrants.find(method).needs_moments and self._task.optimizer == "sgd":
                raise InputError(f"{method} needs an optimiser of the Adam family, and {part.task} is trained by sgd")
        self._guard = threading.Lock()
        self._done = 0

    def run(self) -> Table:
        """Do what is missing.

        Returns:
            The table of all that is done; with a ``deadline`` it may lack some.
        """
        tasks.read(self._task, self._place.data_dir, held_out=False)  # what is wrong with the data is said once
        known, total = len(self._results), self._part.trainings
        self._tell(f"trainings: {total}, of which {min(known, total)} are done; what is interrupted goes on next time")
        with (
            ProcessPoolExecutor(self._place.processes, multiprocessing.get_context("spawn")) as self._pool,
            ThreadPoolExecutor(self._place.processes) as threads,
        ):
            try:
                chosen = self._choose(threads)
                table = Table(list(filter(None, _all(threads, self._outcome, self._grid(chosen)))))
                extra = filter(None, _all(threads, self._outcome, self._paired(chosen, table)))
                return Table([*table.outcomes, *extra])
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                for worker in multiprocessing.active_children():  # what they were at is run again next time
                    worker.terminate()
                raise

    def _choose(self, threads: ThreadPoolExecutor) -> dict[str, Settings]:
        """Each method's settings, of those it has tried and those that others chose."""
        found = _all(threads, self._tune, self._part.methods)
        tried = {method: scores for method, scores in zip(self._part.methods, found, strict=True) if scores}
        if len(tried) == len(self._part.methods):
            wanted = sorted({_best(scores) for scores in tried.values()})
            missing = [(method, each) for method, scores in tried.items() for each in wanted if each not in scores]
            for (method, settings), score in zip(missing, _all(threads, self._held_out, missing), strict=True):
                if score is None:
                    return {}  # time ran out
                tried[method][settings] = score
        return {method: _best(scores) for method, scores in tried.items()}

    def _trial(self, method: str, sparsity: float, seed: int, settings: Settings) -> Trial:
        lr, weight_decay, schedule = settings
        share = 0.0 if method == "dense" else sparsity
        return Trial(self._part.task, method, share, seed, lr, weight_decay, schedule, self._task.epochs, False)

    def _grid(self, chosen: dict[str, Settings]) -> Iterable[Trial]:
        """Seed by seed, so that an interrupted part has all methods."""
        for seed in range(self._part.seeds):
            for sparsity in self._part.sparsities:
                for method, settings in chosen.items():
                    if method != "dense" or sparsity == self._part.sparsities[0]:
                        yield self._trial(method, sparsity, seed, settings)

    def _paired(self, chosen: dict[str, Settings], table: Table) -> Iterable[Trial]:
        first = self._part.methods[0]
        for sparsity in self._part.paired if first in chosen else ():
            others = [method for method in table.others(first, sparsity) if method in chosen]
            for seed in range(self._part.seeds, self._part.paired_seeds):
                for method in (first, *others[:3]):
                    yield self._trial(method, sparsity, seed, chosen[method])

    def _tune(self, method: str) -> dict[Settings, float] | None:
        """Held-out accuracy by settings; None if time ran out."""
        if not self._part.tuning:
            return {self._task.start: 0.0}
        optuna: Any = require("optuna", "reproduce")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=max(self._part.tuning // 2, 1))
        study = optuna.create_study(direction="maximize", sampler=sampler)
        space = self._task.space
        ranges = {
            "lr": optuna.distributions.FloatDistribution(*space.lr, log=True),
            "weight_decay": optuna.distributions.FloatDistribution(*space.weight_decay, log=True),
            "schedule": optuna.distributions.CategoricalDistribution(space.schedules),
        }
        found: dict[Settings, float] = {}
        for _ in range(self._part.tuning):
            asked = study.ask(ranges)
            settings = (_short(asked.params["lr"]), _short(asked.params["weight_decay"]), asked.params["schedule"])
            score = self._held_out((method, settings))
            if score is None:
                return None
            study.tell(asked, score)
            found[settings] = score
        return found

    def _held_out(self, case: tuple[str, Settings]) -> float | None:
        """Accuracy on held-out images, 0 for a failure; None if time ran out."""
        method, settings = case
        trial = replace(self._trial(method, self._task.tuned_at, _TUNING_SEED, settings), validation=True)
        outcome = self._outcome(trial)
        return None if outcome is None else outcome.accuracy or 0.0

    def _outcome(self, trial: Trial) -> Outcome | None:
        known = self._results.get(trial)
        if known is not None:
            return known
        if self._deadline is not None and time.monotonic() > self._deadline:
            return None
        place = self._place
        name = hashlib.sha256(trial.command.encode()).hexdigest()[:16]
        checkpoint = None if place.checkpoints is None else place.checkpoints / f"{name}.pt"
        try:
            outcome = self._pool.submit(
                run, trial, place.data_dir, place.device, data_label=place.data_label, checkpoint=checkpoint
            ).result()
        except BrokenProcessPool as error:
            raise StateError(
                "a training was killed from outside, perhaps for want of memory: try fewer --processes. The trainings "
                "that are done are kept"
            ) from error
        self._results.add(outcome)
        with self._guard:
            self._done += 1
            score = outcome.failure or f"{outcome.accuracy:.2f} %"
            aim = "validation" if trial.validation else "test"
            self._tell(
                f"{self._done:4d}  {entrants.find(trial.method).title} at {100 * trial.sparsity:g} %, "
                f"seed {trial.seed}: {aim} {score}, {outcome.seconds:.0f} s"
            )
        return outcome


def _all(threads: ThreadPoolExecutor, call: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``call`` on each item; the first error is raised at once."""
    futures = [threads.submit(call, item) for item in items]
    wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        if future.done() and future.exception() is not None:
            future.result()
    return [future.result() for future in futures]


def _best(scores: dict[Settings, float]) -> Settings:
    """The settings with the highest score, of equals the greatest."""
    return max(scores, key=lambda settings: (scores[settings], settings))


def _short(value: float) -> float:
    """Three digits, so that a command is easy to type and means exactly this."""
    return float(f"{value:.3g}")

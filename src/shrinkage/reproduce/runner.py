"""Trials that are run where their outcomes are not known yet, in processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from shrinkage.reproduce.lines import Lines

Outcome = dict[str, Any]


class Settings(Protocol):
    """A trial: what decides the outcome of one training."""

    def settings(self) -> dict[str, Any]:
        """As plain values."""
        ...


T = TypeVar("T", bound=Settings)


@dataclass(frozen=True)
class Runner:
    """Runs trials and keeps their outcomes.

    Attributes:
        lines: where outcomes are kept; open.
        work: runs a trial; with several processes something that can be pickled.
        title: of a trial, for people.
        score: of an outcome, for people.
        processes: trials at a time; a single one runs in this process.
        tell: receives a line a trial.
    """

    lines: Lines
    work: Callable[[Any], Outcome]
    title: Callable[[Any], str]
    score: Callable[[Mapping[str, Any]], str]
    processes: int
    tell: Callable[[str], None]

    def all(self, trials: Iterable[T]) -> list[Outcome]:
        """The outcomes of trials, in their order; run where they are not known."""
        wanted = list(trials)
        missing = {str(trial.settings()): trial for trial in wanted if self.lines.get(trial.settings()) is None}
        for count, (trial, outcome) in enumerate(self._run(list(missing.values())), 1):
            self.lines.add(trial.settings(), outcome)
            self.tell(f"{count:4d} of {len(missing)}  {self.title(trial)}: {self.score(outcome)}")
        return [known for trial in wanted if (known := self.lines.get(trial.settings())) is not None]

    def _run(self, trials: Sequence[T]) -> Iterator[tuple[T, Outcome]]:
        if self.processes == 1 or len(trials) < 2:
            for trial in trials:
                yield trial, self.work(trial)
            return
        with ProcessPoolExecutor(self.processes, multiprocessing.get_context("spawn")) as pool:
            try:
                running = {pool.submit(self.work, trial): trial for trial in trials}
                for future in as_completed(running):
                    yield running[future], future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in multiprocessing.active_children():  # what they were at is run again next time
                    worker.terminate()
                raise

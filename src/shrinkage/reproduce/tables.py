"""The table of a part: means with their errors, and paired differences."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shrinkage.core.errors import InputError
from shrinkage.core.tables import render
from shrinkage.reproduce import entrants
from shrinkage.reproduce.store import mixed
from shrinkage.reproduce.trial import Outcome


@dataclass(frozen=True)
class Cell:
    """One method at one sparsity.

    Attributes:
        scores: accuracies in percent by seed, of the trainings that succeeded.
        failures: why the others did not, by seed.
    """

    scores: dict[int, float]
    failures: dict[int, str]

    @property
    def mean(self) -> float:
        """Of the scores, in percent; −∞ if there are none."""
        return statistics.mean(self.scores.values()) if self.scores else float("-inf")

    @property
    def place(self) -> tuple[int, float]:
        """What cells are ordered by, the best first."""
        return len(self.failures), -self.mean

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None for fewer than two. Of two it says next to nothing, and is not printed."""
        return _error(list(self.scores.values()))

    @property
    def trainings(self) -> int:
        """How many there are, of whatever outcome."""
        return len(self.scores) + len(self.failures)

    def __str__(self) -> str:
        if not self.scores:
            return f"failed ({len(self.failures)})"
        spread = "" if self.error is None or len(self.scores) < 3 else f" ± {self.error:.2f}"
        return f"{self.mean:.2f}{spread}" + (f" ({len(self.failures)} failed)" if self.failures else "")


class Table:
    """Outcomes on test images, by method and sparsity.

    Args:
        outcomes: of one task.

    Raises:
        InputError: if a method has outcomes of different settings, which no mean should hide.
    """

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes = [outcome for outcome in outcomes if not outcome.trial.validation]
        self.cells: dict[tuple[str, float], Cell] = {}
        used: dict[str, tuple[float, float, str, int]] = {}
        for outcome in self.outcomes:
            trial = outcome.trial
            settings = (trial.lr, trial.weight_decay, trial.schedule, trial.epochs)
            if used.setdefault(trial.method, settings) != settings:
                raise InputError(f"{trial.method} has outcomes of different settings: {used[trial.method]}, {settings}")
            cell = self.cells.setdefault((trial.method, trial.sparsity), Cell({}, {}))
            if outcome.accuracy is None:
                cell.failures[trial.seed] = outcome.failure or "failed"
            else:
                cell.scores[trial.seed] = outcome.accuracy

    @property
    def sparsities(self) -> list[float]:
        """All that occur, the dense network's 0 left out."""
        return sorted({sparsity for _, sparsity in self.cells} - {0.0})

    @property
    def methods(self) -> list[str]:
        """By mean accuracy at the highest sparsities, best first; the dense network first of all."""
        found = {method for method, _ in self.cells if method != "dense"}
        missing = (sys.maxsize, 0.0)  # comes last

        def score(method: str) -> list[tuple[int, float]]:
            cells = [self.cells.get((method, sparsity)) for sparsity in reversed(self.sparsities)]
            return [missing if cell is None else cell.place for cell in cells]

        return [*(["dense"] if ("dense", 0.0) in self.cells else []), *sorted(found, key=score)]

    def ranking(self, sparsity: float) -> list[str]:
        """Methods by mean accuracy at one sparsity, best first; those that failed sometimes come last."""
        there = [(cell.place, method) for (method, s), cell in self.cells.items() if s == sparsity]
        return [method for _, method in sorted(there)]

    def others(self, method: str, sparsity: float) -> list[str]:
        """The ranking without a method and its variants, which are named ``METHOD-…``."""
        return [name for name in self.ranking(sparsity) if name != method and not name.startswith(f"{method}-")]

    def lead(self, method: str, sparsity: float) -> tuple[str, float, float | None, int] | None:
        """The best other method at a sparsity, and by how much ``method`` is ahead of it on the same seeds.

        The other is chosen by these same outcomes, which flatters it. Trainings that failed are in no pair.

        Returns:
            The other, the mean paired difference in points, its standard error, and the number of pairs; None if
            there is no pair.
        """
        others = self.others(method, sparsity)
        mine = self.cells.get((method, sparsity))
        if mine is None or not others:
            return None
        theirs = self.cells[others[0], sparsity]
        seeds = sorted(mine.scores.keys() & theirs.scores.keys())
        if not seeds:
            return None
        differences = [mine.scores[seed] - theirs.scores[seed] for seed in seeds]
        return others[0], statistics.mean(differences), _error(differences), len(seeds)

    def rows(self) -> tuple[list[str], list[list[str | None]]]:
        """Header and rows of text."""
        header = ["", *(f"{100 * sparsity:g} %" for sparsity in self.sparsities)]
        rows: list[list[str | None]] = []
        for method in self.methods:
            title = entrants.find(method).title
            if method == "dense":
                rows.append([title, str(self.cells["dense", 0.0]), *[None] * (len(self.sparsities) - 1)])
                continue
            cells = [self.cells.get((method, sparsity)) for sparsity in self.sparsities]
            rows.append([title, *(None if cell is None else str(cell) for cell in cells)])
        return header, rows

    def remarks(self, first: str) -> list[str]:
        """Sentences below the table: who leads by how much, how many trainings, and what they differ in."""
        said = []
        for sparsity in self.sparsities:
            found = self.lead(first, sparsity)
            if found is not None:
                other, difference, error, pairs = found
                spread = "" if error is None else f" ± {error:.2f}"
                said.append(
                    f"{100 * sparsity:g} %: {entrants.find(first).title} over {entrants.find(other).title}, the best "
                    f"other: {difference:+.2f}{spread} points ({pairs} pairs){self._left_out(first, other, sparsity)}"
                )
        said += self._numbers()
        if remark := mixed(self.outcomes):
            said.append(remark)
        return said

    def _left_out(self, first: str, other: str, sparsity: float) -> str:
        """What failed of the two, and who would be the best other by the mean of those that did not fail."""
        said = ""
        for name in (first, other):
            if failed := len(self.cells[name, sparsity].failures):
                said += f"; {failed} of {self.cells[name, sparsity].trainings} of {entrants.find(name).title} failed"
        best = max(self.others(first, sparsity), key=lambda name: self.cells[name, sparsity].mean)
        if best != other and self.cells[best, sparsity].mean > self.cells[other, sparsity].mean:
            cell = self.cells[best, sparsity]
            title, failed = entrants.find(best).title, len(cell.failures)
            said += f"; {title}, of which {failed} failed, is passed over with {cell.mean:.2f}"
        return said

    def _numbers(self) -> list[str]:
        """How many trainings a mean is of, where that differs."""
        usual = statistics.mode(cell.trainings for cell in self.cells.values())
        others: dict[int, list[str]] = {}
        for (method, sparsity), cell in self.cells.items():
            if cell.trainings != usual:
                place = f"{entrants.find(method).title}" + (f" at {100 * sparsity:g} %" if sparsity else "")
                others.setdefault(cell.trainings, []).append(place)
        if not others:
            return []
        exceptions = "; ".join(f"{count}: {', '.join(places)}" for count, places in sorted(others.items()))
        return [f"means are of {usual} trainings, but of {exceptions}"]

    def __str__(self) -> str:
        header, rows = self.rows()
        return render(header, rows)

    def markdown(self) -> str:
        """The same for a page; the best method of each column in bold."""
        header, rows = self.rows()
        best = {sparsity: entrants.find(self.ranking(sparsity)[0]).title for sparsity in self.sparsities}
        lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
        for title, *cells in rows:
            marked = [
                "" if cell is None else f"**{cell}**" if best[sparsity] == title else cell
                for cell, sparsity in zip(cells, self.sparsities, strict=True)
            ]
            lines.append(f"| {str(title).replace('|', chr(92) + '|')} | " + " | ".join(marked) + " |")
        return "\n".join(lines)


def settings(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """What each method's trainings of the table were run with."""
    return {
        outcome.trial.method: {
            "lr": outcome.trial.lr,
            "weight_decay": outcome.trial.weight_decay,
            "schedule": outcome.trial.schedule,
        }
        for outcome in outcomes
        if not outcome.trial.validation
    }


def _error(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None

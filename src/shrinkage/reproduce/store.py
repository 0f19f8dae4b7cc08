"""The results file: one JSON line a trial, appended when it is done, so that whatever interrupts loses nothing."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from shrinkage.core.errors import InputError
from shrinkage.reproduce.entrants import ENTRANTS, recipe
from shrinkage.reproduce.trial import Outcome, Trial, parse
from shrinkage.training.files import lock, write
from shrinkage.training.summary import versions

_MATTER = ("shrinkage", "torch")  # another version of these may give another outcome


class Results:
    """The outcomes in a file, and the way to add to them. A context manager: the file is locked within.

    Lines that cannot be read, such as a half-written last one, are told of and taken out, after a copy of the
    file was made, and their trials count as not done. So do those of another version or recipe, whose lines stay.

    Args:
        path: of the file, made if it is not there.
        tell: receives what a person should know.

    Raises:
        InputError: if the file cannot be read or written.
        StateError: if another process is adding to it.
    """

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self._path = path
        self._tell = tell
        self._guard = threading.Lock()
        self._known: dict[Trial, Outcome] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock(self._path.with_name(f".{self._path.name}.lock"), str(self._path)))
                outcomes, broken = _read(self._path) if self._path.exists() else ([], [])
                if broken:
                    self._mend(broken)
                self._file = stack.enter_context(self._path.open("a", encoding="utf-8"))
            except OSError as error:
                raise InputError(f"{self._path} cannot be written: {error.strerror}") from error
            self._stack = stack.pop_all()
        mine = _relevant(versions())
        for outcome in outcomes:
            if (
                outcome.trial.method in ENTRANTS
                and outcome.recipe == recipe(outcome.trial.method)
                and _relevant(outcome.versions) == mine
            ):
                self._known[outcome.trial] = outcome
        if others := sum(outcome.trial not in self._known for outcome in outcomes):
            self._tell(f"{self._path}: {others} results of other versions are not used")
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def get(self, trial: Trial) -> Outcome | None:
        """The outcome of this trial under the present versions, if it is known."""
        return self._known.get(trial)

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome: it is on the disk when this returns."""
        with self._guard:
            self._known[outcome.trial] = outcome
            self._file.write(outcome.to_json() + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def _mend(self, broken: list[str]) -> None:
        """Keep the file as it was aside, and go on without the broken lines."""
        whole = self._path.read_bytes()
        aside = self._path.with_name(self._path.name + ".broken")
        write(aside, whole)
        lines = whole.decode(errors="replace").splitlines(keepends=True)
        write(self._path, "".join(line for line in lines if line.rstrip("\n") not in broken))
        self._tell(
            f"{self._path}: {len(broken)} lines are broken; their trials are run again "
            f"(the file as it was is kept in {aside.name})"
        )


def load(path: Path) -> list[Outcome]:
    """All outcomes in a file that can be read, of whatever version; the last of equal trials counts.

    Raises:
        InputError: if the file cannot be read.
    """
    outcomes, _ = _read(path)
    return list({outcome.trial: outcome for outcome in outcomes}.values())


def _read(path: Path) -> tuple[list[Outcome], list[str]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    outcomes, broken = [], []
    for line in filter(str.strip, lines):
        try:
            outcomes.append(parse(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            broken.append(line)
    return outcomes, broken


def _relevant(found: dict[str, str]) -> list[str | None]:
    return [found.get(package) for package in _MATTER]


def mixed(outcomes: Iterable[Outcome]) -> str:
    """A remark for a table whose outcomes differ in versions, device or data; empty if they agree."""
    seen = {
        (
            *(f"{package} {outcome.versions.get(package)}" for package in _MATTER),
            outcome.device,
            outcome.data_label or "",
        )
        for outcome in outcomes
    }
    return (
        "" if len(seen) < 2 else "of different origin: " + "; ".join(", ".join(filter(None, s)) for s in sorted(seen))
    )

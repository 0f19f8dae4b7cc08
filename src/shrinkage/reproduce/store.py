"""The results file: one JSON line a trial, appended when it is done, so that whatever interrupts loses nothing."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from shrinkage.core.errors import InputError, StateError
from shrinkage.core.files import lock, write
from shrinkage.reproduce.entrants import ENTRANTS, recipe
from shrinkage.reproduce.trial import Outcome, Trial, parse
from shrinkage.training.summary import versions

_MATTER = ("shrinkage", "torch")  # another version of these may give another outcome


class Results:
    """The outcomes in a file, and the way to add to them. A context manager: the file is locked within.

    Lines that cannot be read, such as a half-written last one, are told of and moved to ``FILE.broken``, and their
    trials count as not done. So do those of another version, recipe, device or data, whose lines stay.

    Args:
        path: of the file, made if it is not there.
        tell: receives what a person should know.
        device: the trials' device, as outcomes name it.
        data_label: what the data is, as outcomes have it.

    Raises:
        InputError: if the file cannot be read or written.
        StateError: if another process is adding to it.
    """

    def __init__(
        self, path: Path, tell: Callable[[str], None], device: str = "cpu", data_label: str | None = None
    ) -> None:
        self._path = path
        self._origin = (device, data_label, *_relevant(versions()))
        self._tell = tell
        self._guard = threading.Lock()
        self._known: dict[Trial, Outcome] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock(self._path.with_name(f".{self._path.name}.lock"), str(self._path)))
                outcomes, foreign, broken = _read(self._path) if self._path.exists() else ([], 0, [])
                if broken:
                    self._mend(broken)
                self._file = stack.enter_context(self._path.open("a+", encoding="utf-8"))
                if not _ends_in_newline(self._path):
                    self._file.write("\n")
            except OSError as error:
                raise InputError(f"{self._path} cannot be written: {error.strerror}") from error
            self._stack = stack.pop_all()
        for outcome in outcomes:
            origin = (outcome.device, outcome.data_label, *_relevant(outcome.versions))
            if is_current(outcome) and origin == self._origin:
                self._known[outcome.trial] = outcome
        if others := foreign + sum(outcome.trial not in self._known for outcome in outcomes):
            self._tell(f"{self._path}: results of other versions, devices or data, not used: {others}")
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def get(self, trial: Trial) -> Outcome | None:
        """The outcome of this trial under the present versions, if it is known."""
        return self._known.get(trial)

    def __len__(self) -> int:
        """How many outcomes are known."""
        return len(self._known)

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome: it is on the disk when this returns.

        Raises:
            StateError: if it cannot be written; a half-written line is found the next time.
        """
        with self._guard:
            try:
                self._file.write(outcome.to_json() + "\n")
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise StateError(
                    f"{self._path} cannot be written: {error.strerror}; free some space and go on"
                ) from error
            self._known[outcome.trial] = outcome

    def _mend(self, broken: list[str]) -> None:
        """Move broken lines to a file of their own."""
        aside = self._path.with_name(self._path.name + ".broken")
        with aside.open("a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in broken)
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        write(self._path, "".join(line + "\n" for line in lines if line not in broken))
        self._tell(
            f"{self._path}: broken lines: {len(broken)}; their trials are run again (they are kept in {aside.name})"
        )


def load(path: Path) -> list[Outcome]:
    """The outcomes in a file that hold for the present recipes; the last of equal trials counts.

    Raises:
        InputError: if the file cannot be read.
    """
    try:
        outcomes, _, _ = _read(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return list({outcome.trial: outcome for outcome in outcomes if is_current(outcome)}.values())


def is_current(outcome: Outcome) -> bool:
    """Whether its settings still mean the training that it came from."""
    method = outcome.trial.method
    return method in ENTRANTS and outcome.recipe == recipe(outcome.trial)


def _read(path: Path) -> tuple[list[Outcome], int, list[str]]:
    """Outcomes, how many lines are whole but of another form, and lines that are broken."""
    outcomes, foreign, broken = [], 0, []
    for line in filter(str.strip, path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            content = json.loads(line)
        except ValueError:
            broken.append(line)
            continue
        try:
            outcomes.append(parse(content))
        except (ValueError, KeyError, TypeError, AttributeError):
            foreign += 1
    return outcomes, foreign, broken


def _ends_in_newline(path: Path) -> bool:
    content = path.read_bytes()
    return not content or content.endswith(b"\n")


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

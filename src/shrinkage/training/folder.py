"""The folder of a run: made fresh, held by one process at a time, and where things lie in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shrinkage.core.errors import InputError
from shrinkage.core.files import lock


@dataclass(frozen=True)
class RunFolder:
    """Where the files of a run lie.

    Attributes:
        path: the folder itself.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One row an epoch."""
        return self.path / "metrics.csv"

    @property
    def model(self) -> Path:
        """The trained network's state_dict as plain dense tensors."""
        return self.path / "model.safetensors"

    @property
    def summary(self) -> Path:
        """What the run reached, in figures."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """What the run reached, to look at."""
        return self.path / "report.html"

    def checkpoints(self, method: str) -> Path:
        """The checkpoints of the training by ``method``; the folder is made."""
        path = self.path / "checkpoints" / method
        path.mkdir(parents=True, exist_ok=True)
        return path

    def outcome(self, method: str) -> Path:
        """What the training by ``method`` gave; there once it is complete."""
        return self.checkpoints(method) / "outcome.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the system lets go of it however the process ends.

        Raises:
            StateError: if another process holds it.
        """
        with lock(self.path / ".lock", f"the run folder {self.path}"):
            yield


def create(out: Path, name: str) -> RunFolder:
    """Make a fresh folder ``out/name``, or ``out/name-2`` and so on where there is one already.

    Raises:
        InputError: if the name is a path, or the folder cannot be made.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise InputError(f"name must be a folder's name, got {name!r}; where it is made is set by --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        attempt = 1
        while True:
            path = out / (name if attempt == 1 else f"{name}-{attempt}")
            try:
                path.mkdir()
            except FileExistsError:
                attempt += 1
            else:
                return RunFolder(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"no run folder could be made in {out}: {reason}; choose another with --out") from error


def find(path: Path) -> RunFolder:
    """The folder of an earlier run.

    Raises:
        InputError: if it is not one.
    """
    folder = RunFolder(path)
    if not path.is_dir():
        raise InputError(f"there is no run folder {path}")
    if not folder.config.is_file():
        raise InputError(f"{path} is not a run folder: it holds no {folder.config.name}")
    return folder

"""Results as lines of JSON, each on the disk as soon as it is there; what is there is not run again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from shrinkage.core.errors import InputError
from shrinkage.core.files import lock


class Lines:
    """The outcomes in a file and the way to add to them. A context manager: the file is locked within.

    Args:
        path: of the file, made if it is not there.
        origin: what else decides an outcome, such as versions and device: lines of another origin are not used.
        tell: receives what a person should know.

    Raises:
        InputError: if the file cannot be read or written.
        StateError: if another process is adding to it.
    """

    def __init__(self, path: Path, origin: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        self._path, self._origin, self._tell = path, dict(origin), tell
        self._known: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock(self._path.with_name(f".{self._path.name}.lock"), str(self._path)))
                self._file = stack.enter_context(self._path.open("a+", encoding="utf-8"))
                content = self._path.read_text(encoding="utf-8", errors="replace")
                if content and not content.endswith("\n"):  # a line that was cut off stays one of its own
                    self._file.write("\n")
                    self._file.flush()
            except OSError as error:
                raise InputError(f"{self._path} cannot be written: {error.strerror}") from error
            self._stack = stack.pop_all()
        unused = 0
        for line in filter(str.strip, content.splitlines()):
            try:
                found = json.loads(line)
                mine = found["origin"] == self._origin
                key, outcome = _key(found["settings"]), found["outcome"]
            except (ValueError, KeyError, TypeError):
                mine, key, outcome = False, "", {}
            if mine:
                self._known[key] = outcome
            else:
                unused += 1
        if unused:
            self._tell(f"{self._path}: lines that are broken, or of other versions or devices, not used: {unused}")
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def get(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The outcome of these settings, if it is known."""
        return self._known.get(_key(settings))

    def add(self, settings: Mapping[str, Any], outcome: Mapping[str, Any]) -> None:
        """Keep an outcome: it is on the disk when this returns."""
        line = json.dumps({"settings": settings, "origin": self._origin, "outcome": outcome})
        self._known[_key(settings)] = json.loads(line)["outcome"]
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)

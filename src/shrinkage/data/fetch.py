"""Standard downloads: checked against a published checksum, written aside, then moved into place."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from shrinkage.core.errors import InputError, require


@dataclass(frozen=True)
class Remote:
    """A file that others publish.

    Attributes:
        name: its file name.
        md5: the checksum its publisher gives.
        mirrors: base URLs that serve it, tried in order.
    """

    name: str
    md5: str
    mirrors: tuple[str, ...]


def cache_dir() -> Path:
    """The user's cache folder for downloads that were not given a place.

    Raises:
        MissingExtra: if pooch is not installed.
    """
    return Path(require("pooch", "train").os_cache("shrinkage"))


def fetch(remote: Remote, folder: Path) -> Path:
    """Download ``remote`` into ``folder`` (made if need be) and return the file's path.

    Raises:
        InputError: if no mirror can be reached, none serves the right file, or the folder cannot be
            written. The message gives every cause; nothing is left in the folder.
        MissingExtra: if pooch is not installed.
    """
    pooch = require("pooch", "train")
    show_progress = importlib.util.find_spec("tqdm") is not None and sys.stderr.isatty()
    failures = []
    for base in remote.mirrors:
        url = f"{base}/{remote.name}"
        try:
            # pooch writes to a temporary file and moves it once the checksum is right.
            path = pooch.retrieve(url, f"md5:{remote.md5}", fname=remote.name, path=folder, progressbar=show_progress)
            return Path(path)
        except (OSError, ValueError) as error:  # unreachable, refused, disk full; wrong checksum
            failures.append(f"{url}: {' '.join(str(error).split())}")
    raise InputError(
        f"{remote.name} could not be downloaded to {folder} ({'; '.join(failures)}). Try again later, or "
        f"get the file elsewhere (MD5 {remote.md5}), put it there, and name the folder with data_dir"
    )


def check(path: Path, remote: Remote) -> None:
    """Compare a file that is meant to be ``remote`` with the published checksum.

    Raises:
        InputError: if they differ, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if found != remote.md5:
        raise InputError(
            f"{path} has the MD5 checksum {found}, the published file has {remote.md5}: it is damaged or "
            "incomplete; delete it to have it downloaded again"
        )

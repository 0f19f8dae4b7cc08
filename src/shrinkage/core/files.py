"""Files that are whole or not there: written aside, flushed to the disk, then renamed. And files that lock."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shrinkage.core.errors import InputError, StateError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def writing(path: Path, *, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of ``path`` when the block ends, and vanishes if it fails.

    A reader, at any moment, finds the old content or the new, never a part.

    Args:
        path: where to; its folder must exist.
        keep: where the file that is replaced goes; it is lost otherwise.

    Raises:
        StateError: if the disk is full or a quota is reached; what was there before is untouched.
        InputError: if the file cannot be written for another reason.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        aside = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                os.chmod(name, 0o666 & ~_umask())  # mkstemp's files are private
                yield file
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _explained(error, path) from error


def write(path: Path, content: str | bytes, *, keep: Path | None = None) -> None:
    """Write a whole file; see :func:`writing`.

    Args:
        path: where to; its folder must exist.
        content: text (written as UTF-8) or bytes.
        keep: where the file that is replaced goes; it is lost otherwise.

    Raises:
        StateError: if the disk is full or a quota is reached; what was there before is untouched.
        InputError: if the file cannot be written for another reason.
    """
    with writing(path, keep=keep) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file for this process; the system lets go of it however the process ends.

    Args:
        path: of the file, made if it is not there.
        what: is locked by it, for the message.

    Raises:
        StateError: if another process holds it.
    """
    with path.open("a+") as file:
        if not _lock(file.fileno()):
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise StateError(f"{what} is in use by process {owner}; wait for it, stop it, or use another")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock(descriptor: int) -> bool:
    """Whether the lock was to be had. Where the system has no ``flock`` (Windows) there is none to take."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _explained(error: OSError, path: Path) -> StateError | InputError:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return StateError(
            f"{path} could not be written: {reason.lower()}. Nothing that was saved before is lost; "
            "free some space and go on"
        )
    return InputError(f"{path} could not be written: {reason.lower()}")


def _umask() -> int:
    with contextlib.suppress(OSError, StopIteration):  # asking the process itself would change it for a moment
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0)
    os.umask(mask)
    return mask

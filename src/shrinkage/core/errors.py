"""The errors this library raises, and the one way to import an optional package."""

from __future__ import annotations

import importlib
from types import ModuleType


class ShrinkageError(Exception):
    """Base of every error raised on purpose by this library."""


class InputError(ShrinkageError, ValueError):
    """An argument, a file or a tensor that cannot be used; the message says what would be."""


class FileError(InputError):
    """A file that cannot be read: missing, damaged, not of this library, or of a newer version."""


class StateError(ShrinkageError, RuntimeError):
    """A call that would be right at another time, such as ``finalize()`` before the last step."""


class DivergedError(StateError):
    """The training has left the finite numbers: a loss, a weight or a score is NaN or infinite."""


class TargetError(StateError):
    """The sparsity that was asked for was not reached, or cannot be."""


class MissingExtra(ShrinkageError, ImportError):
    """An optional package is needed and not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, or say which extra of this library brings it.

    Raises:
        MissingExtra: if the module, or something it imports, is not installed.

    >>> require("json", "train").loads("[1]")
    [1]
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{module} is needed for this and could not be imported ({error}); "
            f'install it with: pip install "shrinkage[{extra}]"'
        ) from error

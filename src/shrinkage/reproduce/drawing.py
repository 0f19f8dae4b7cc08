"""The frame of every plot of a reproduction: an SVG with the same bytes whenever it is drawn."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shrinkage.core.errors import require
from shrinkage.core.files import write


@contextmanager
def drawing(path: Path, size: tuple[float, float], panels: int = 1) -> Iterator[tuple[Any, list[Any]]]:
    """A figure and its axes, side by side; drawn on inside, written afterwards.

    Args:
        path: of the file.
        size: in inches.
        panels: how many axes.

    Raises:
        MissingExtra: if matplotlib is not installed.
        InputError, StateError: if the file cannot be written.
    """
    plt: Any = require("matplotlib.pyplot", "reproduce")
    options = {"svg.hashsalt": "shrinkage", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(options):
        figure, axes = plt.subplots(1, panels, figsize=size, layout="constrained", squeeze=False)
        yield figure, list(axes[0])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        plt.close(figure)
    write(path, buffer.getvalue())

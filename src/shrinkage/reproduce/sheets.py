"""Tables of a reproduction: on the screen as text, in a file as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shrinkage.core.files import write
from shrinkage.core.tables import markdown, render


@dataclass(frozen=True)
class Sheet:
    """A table; prints as one.

    Attributes:
        title: above it.
        header: one heading a column.
        rows: cells, as :func:`~shrinkage.core.tables.render` takes them.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return render(self.header, self.rows, title=self.title)


def save(sheets: Iterable[Sheet], path: Path) -> None:
    """Write tables as Markdown, each under its title.

    Raises:
        InputError, StateError: if the file cannot be written.
    """
    write(path, "\n\n".join(f"{sheet.title}:\n\n{markdown(sheet.header, sheet.rows)}" for sheet in sheets) + "\n")


def mean(values: Sequence[float], digits: int = 2, sign: str = "") -> str | None:
    """The mean, with its standard error if there are several values; None if there is none.

    >>> mean([1.0, 2.0, 3.0], sign="+")
    '+2.00 ± 0.58'
    """
    if not values:
        return None
    spread = f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.{digits}f}{spread}"

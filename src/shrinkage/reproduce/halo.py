"""The evidence for HALO: one part after the other, each with its results, table and plot."""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from shrinkage.core.errors import InputError
from shrinkage.reproduce import tasks
from shrinkage.reproduce.campaign import Campaign, Place
from shrinkage.reproduce.parts import PARTS
from shrinkage.reproduce.plots import accuracy_plot
from shrinkage.reproduce.run import name_of
from shrinkage.reproduce.store import Results
from shrinkage.reproduce.tables import Table


def reproduce(
    names: Sequence[str], out: Path, place: Place, *, tell: Callable[[str], None], limit: float | None = None
) -> dict[str, Table]:
    """Run parts, or what is missing of them.

    Args:
        names: of the parts.
        out: folder for ``NAME.jsonl`` and ``NAME.svg``.
        place: where trials run.
        tell: receives what a person should know, a line at a time.
        limit: seconds after which no further trial is begun; None: none.

    Returns:
        A table a part.

    Raises:
        InputError: for a part that does not exist, or data that cannot be read.
        StateError: if another process is adding to the same results.
    """
    for name in names:
        if name not in PARTS:
            near = difflib.get_close_matches(name, PARTS, 1, 0.0)[0]
            raise InputError(f"there is no part {name!r}; did you mean {near!r}? ({', '.join(PARTS)})")
    deadline = None if limit is None else time.monotonic() + limit
    tables = {}
    for name in names:
        part = PARTS[name]
        tell(f"{name}: {tasks.find(part.task).title}")
        with Results(out / f"{name}.jsonl", tell, name_of(place.device), place.data_label) as results:
            table = Campaign(part, place, results, tell, deadline).run()
        if any(cell.scores for (_, sparsity), cell in table.cells.items() if sparsity):
            accuracy_plot(table, part.methods[0], tasks.find(part.task).title, out / f"{name}.svg")
        tables[name] = table
    if place.checkpoints is not None:
        with contextlib.suppress(OSError):  # states of trainings that were interrupted stay
            place.checkpoints.rmdir()
    return tables

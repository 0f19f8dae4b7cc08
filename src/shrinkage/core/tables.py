"""Plain-text tables: how every result object of this library prints."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMERIC_TEXT = re.compile(r"[-+−]?[\d.,]+(\s?(%|±\s?[\d.]+|×|[kMGT]?i?B|µJ|pJ|s|ms))?")


def render(header: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> str:
    """Lay ``rows`` out under ``header`` in aligned columns.

    Whole numbers get thousands separators, floats four significant digits, None an en dash; anything
    else is printed by ``str``. A column of numbers, or of texts such as ``"95.0 %"``, is set flush
    right. An empty row draws a rule, as above a total.

    Args:
        header: one heading a column.
        rows: cells, as many in each row as there are headings.
        title: a line above the table.

    Returns:
        Lines joined by newlines, without trailing blanks.

    Raises:
        ValueError: if a row has another number of cells than the header.

    >>> print(render(["layer", "weights"], [["conv", 864], ["fc", 1000], [], ["total", 1864]], title="Net"))
    Net
    layer  weights
    ─────  ───────
    conv       864
    fc       1,000
    ─────  ───────
    total    1,864
    """
    for row in rows:
        if len(row) not in (0, len(header)):
            raise ValueError(f"a row has {len(row)} cells under {len(header)} headings: {list(row)!r}")
    texts = [[_cell(value) for value in row] for row in rows]
    filled = [row for row in texts if row]
    widths = [max(len(cell) for cell in column) for column in zip(header, *filled, strict=True)]
    columns = [[row[column] for row in rows if row] for column in range(len(header))]
    right = [_is_numeric(column, leading=index == 0) for index, column in enumerate(columns)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(cells, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("─" * width for width in widths)
    lines = [line(header), rule, *(line(row) if row else rule for row in texts)]
    return "\n".join(lines if title is None else [title, *lines])


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The same cells as a table in Markdown; an empty row is left out.

    >>> print(markdown(["layer", "weights"], [["conv", 864], [], ["total", 1864]]))
    | layer | weights |
    | --- | ---: |
    | conv | 864 |
    | total | 1,864 |
    """
    filled = [row for row in rows if row]
    right = [_is_numeric([row[column] for row in filled], leading=column == 0) for column in range(len(header))]
    lines = [
        header,
        ["---:" if flush else "---" for flush in right],
        *([_cell(cell) for cell in row] for row in filled),
    ]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def _is_numeric(values: Sequence[object], *, leading: bool) -> bool:
    """Whether a column holds numbers. In the leading one a text is a name, were it ``"0"``."""

    def number(value: object) -> bool:
        if isinstance(value, str):
            return not leading and _NUMERIC_TEXT.fullmatch(value) is not None
        return isinstance(value, int | float) and not isinstance(value, bool)

    present = [value for value in values if value is not None and value != ""]
    return bool(present) and all(number(value) for value in present)

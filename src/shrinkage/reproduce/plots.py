"""Accuracy against sparsity: one curve a method, the judged one and the best others in colour.

A cross lies on the means of methods of which some trainings failed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shrinkage.reproduce import entrants
from shrinkage.reproduce.drawing import drawing
from shrinkage.reproduce.tables import Table

_FIRST = "#c2410c"
_OTHERS = ("#1d4ed8", "#0f766e", "#7c3aed", "#a16207")
_REST = "#b8bcc4"
_DENSE = "#6b7280"


def accuracy_plot(table: Table, first: str, title: str, path: Path) -> None:
    """Write an SVG of the table.

    Args:
        table: what is drawn.
        first: the method that is judged.
        title: above the plot.
        path: of the file.

    Raises:
        MissingExtra: if matplotlib is not installed.
        InputError, StateError: if the file cannot be written.
    """
    with drawing(path, (6.4, 4.0)) as (_, (axes,)):
        _draw(axes, table, first)
        axes.set_title(title, loc="left")


def _draw(axes: Any, table: Table, first: str) -> None:
    sparsities = table.sparsities
    places = list(range(len(sparsities)))
    ranked = [method for method in table.methods if method not in ("dense", first)]
    colours = {first: _FIRST, **dict(zip(ranked, _OTHERS, strict=False))}
    named: list[tuple[float, str, str]] = []
    low, high = _window(table)
    below = 0
    for method in [*reversed(ranked), first]:
        cells = [table.cells.get((method, sparsity)) for sparsity in sparsities]
        there = [(place, cell) for place, cell in zip(places, cells, strict=True) if cell is not None and cell.scores]
        if not there:
            continue
        colour = colours.get(method, _REST)
        aside = 0.02 * (list(colours).index(method) if method in colours else 0)  # bars beside each other can be told
        below += all(cell.mean < low for _, cell in there)
        axes.errorbar(
            [place + aside for place, _ in there],
            [cell.mean for _, cell in there],
            [cell.error or 0.0 for _, cell in there],
            color=colour,
            linewidth=2.2 if method == first else 1.4 if method in colours else 0.9,
            marker="o",
            markersize=4 if method in colours else 2.5,
            capsize=2,
            zorder=3 if method == first else 2 if method in colours else 1,
        )
        if there[-1][0] == places[-1] and method in colours and there[-1][1].mean > low:
            named.append((there[-1][1].mean, entrants.find(method).title, colour))
    dense = table.cells.get(("dense", 0.0))
    if dense is not None and dense.scores:
        axes.axhline(dense.mean, color=_DENSE, linestyle=":", linewidth=1)
        named.append((dense.mean, "dense", _DENSE))
    for method, sparsity in table.cells:
        cell = table.cells[method, sparsity]
        if sparsity and cell.failures and cell.scores:
            axes.plot(sparsities.index(sparsity), cell.mean, "x", color=colours.get(method, _REST), markersize=9)
    if below:
        said = "1 method lies below" if below == 1 else f"{below} methods lie below"
        axes.annotate(said, (0.02, 0.02), xycoords="axes fraction", color=_DENSE)
    axes.set_ylim(low, high)
    axes.set_xticks(places, [f"{100 * sparsity:g} %" for sparsity in sparsities])
    axes.set_xlabel("zeros")
    axes.set_ylabel("test accuracy, % (mean ± standard error)")
    _names(axes, named, places[-1], low, high)


def _window(table: Table) -> tuple[float, float]:
    """From a little under the median method at the highest sparsity to a little over the best of all."""
    means = sorted((cell.mean for cell in table.cells.values() if cell.scores), reverse=True)
    last = [table.cells[method, table.sparsities[-1]].mean for method in table.ranking(table.sparsities[-1])]
    seen = sorted((mean for mean in last if mean > float("-inf")), reverse=True)
    low = seen[len(seen) // 2] if seen else means[-1]
    return low - 0.15 * (means[0] - low) - 0.05, means[0] + 0.08 * (means[0] - low) + 0.05


def _names(axes: Any, named: list[tuple[float, str, str]], x: float, low: float, high: float) -> None:
    """Names at the right ends of the curves, moved apart where they would run into each other."""
    gap = (high - low) / 22
    place = low - gap
    for mean, title, colour in sorted(named):
        place = max(mean, place + gap)
        axes.annotate(
            title, (x, place), (14, 0), textcoords="offset points", va="center", color=colour, annotation_clip=False
        )

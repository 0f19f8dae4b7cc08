"""The report of a run: which of its figures stand where."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from shrinkage.core.footprint import Footprint, Layer
from shrinkage.report import Headline, Page, page
from shrinkage.training.config import RunConfig
from shrinkage.training.methods import METHODS
from shrinkage.training.outcome import Outcome
from shrinkage.training.summary import Summary


def present(config: RunConfig, summary: Summary, ledger: Footprint, outcome: Outcome, dense: Outcome | None) -> str:
    """Draw the report.

    Args:
        config: the run's settings.
        summary: its figures.
        ledger: the costs of the network.
        outcome: of the method.
        dense: of the dense comparison, None if there is none (yet).

    Returns:
        A self-contained HTML document.
    """
    method = METHODS[config.method].title
    settings = {name: _text(value) for name, value in dataclasses.asdict(config).items()}
    content = Page(
        title=f"{config.model} on {config.data}, {method}",
        method=method,
        headlines=_headlines(summary),
        rows=outcome.rows,
        dense_rows=dense.rows if dense else [],
        figures=outcome.figures,
        dense_figures=dense.figures if dense else None,
        size="|w|" if config.granularity == "weight" or config.granularity[0].isdecimal() else "‖w‖₂ of a group",
        footprint=_costs(ledger),
        command=summary.command,
        facts={"Settings": settings, "Versions": summary.versions},
    )
    return page(content)


def _headlines(summary: Summary) -> Sequence[Headline]:
    dense = summary.dense_accuracy
    against = "no dense comparison"
    if dense is not None:
        against = f"dense {dense:.2f} %, {_signed(summary.accuracy - dense)} points"
    return [
        Headline("Test accuracy", f"{summary.accuracy:.2f} %", against),
        Headline(
            "Weights gone" if METHODS[summary.method].removes == "neurons" else "Zeros",
            f"{100 * summary.sparsity:.2f} %",
            f"{summary.zeros:,} of {summary.weights:,} weights",
        ),
        Headline("Size", _bytes(summary.bytes), _saving(summary.dense_bytes, summary.bytes, _bytes)),
        Headline("MACs", _count(summary.macs), _saving(summary.dense_macs, summary.macs, _count)),
    ]


def _costs(ledger: Footprint) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    packed = any(layer.bits for layer in ledger.layers)

    def row(layer: Layer) -> list[str]:
        return [
            layer.name or "(model)",
            layer.kind,
            f"{layer.parameters:,}",
            f"{layer.nonzeros:,}",
            f"{layer.dense_bytes:,}",
            f"{layer.sparse_bytes:,}",
            *([str(layer.bits or "")] if packed else []),
            f"{layer.macs:,}",
            f"{layer.effective_macs:,}",
            *([f"{layer.additions:,}"] if packed else []),
            f"{layer.energy_uj:.3g}",
        ]

    bits, additions = (["Bits"], ["Additions"]) if packed else ([], [])
    header = ["Layer", "Kind", "Parameters", "Non-zeros", "Bytes", "Sparse bytes", *bits, "MACs",
              "Effective MACs", *additions, "Energy, µJ"]  # fmt: skip
    return header, [*map(row, ledger.layers), row(ledger.total)]


def _saving(before: int, after: int, text: Callable[[int], str]) -> str:
    return f"dense {text(before)}" + (f", {before / after:.1f}× less" if 0 < after < before else "")


def _bytes(count: int) -> str:
    return _short(count, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))) or f"{count} B"


def _count(count: int) -> str:
    return _short(count, (("billion", 1e9), ("million", 1e6))) or f"{count:,}"


def _short(count: int, units: Sequence[tuple[str, float]]) -> str | None:
    """Three digits and the largest unit that is not too large."""
    return next((f"{count / size:.3g} {unit}" for unit, size in units if count >= 0.9995 * size), None)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _text(value: object) -> str:
    if value is None:
        return "–"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)

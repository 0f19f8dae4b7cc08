"""One self-contained HTML page: no script, no font, nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from shrinkage.report.figures import Figures
from shrinkage.report.plots import Line, curves, histogram, layers, scatter, spectrum
from shrinkage.report.spectrum import directions


@dataclass(frozen=True)
class Headline:
    """One figure at the top.

    Attributes:
        name: what it is.
        value: the figure with its unit.
        beside: what it is to be compared with.
    """

    name: str
    value: str
    beside: str


@dataclass(frozen=True)
class Page:
    """What stands on a report.

    Attributes:
        title: what was trained on what.
        method: its name.
        headlines: the figures at the top.
        rows: one mapping an epoch with ``accuracy`` or ``val_accuracy`` (percent), ``sparsity`` and
            ``wanted`` (shares, or None) and ``phase``.
        dense_rows: the same for the dense comparison; empty if there was none.
        figures: what is drawn of the trained network.
        dense_figures: the same of the dense network, None if there was none.
        size: name of a unit's size, ``|w|`` or ``‖w‖₂ of a group``.
        footprint: heading and rows of the table of costs a layer; the last row is the total.
        command: what was typed; empty if the run was not started from the command line.
        facts: everything else by heading and name: settings, versions.
    """

    title: str
    method: str
    headlines: Sequence[Headline]
    rows: Sequence[Mapping[str, Any]]
    dense_rows: Sequence[Mapping[str, Any]]
    figures: Figures
    dense_figures: Figures | None
    size: str
    footprint: tuple[Sequence[str], Sequence[Sequence[str]]]
    command: str
    facts: Mapping[str, Mapping[str, str]]


def page(content: Page) -> str:
    """Draw a report.

    Returns:
        An HTML document; light or dark as the reader's system asks, for any width from 320 pixels.
    """
    style = resources.files("shrinkage.report").joinpath("page.css").read_text(encoding="utf-8")
    sections = [
        _headlines(content.headlines),
        f'<div class="figures">{"".join(_figures(content))}</div>',
        _section("Zeros in each layer", layers(content.figures.layers)),
        _spectra(content),
        _section("Footprint", _table(*content.footprint)),
        _section("Command", f"<pre>{escape(content.command)}</pre>") if content.command else "",
        *(_section(name, _list(facts)) for name, facts in content.facts.items()),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(content.title)} – shrinkage</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<header><p class="brand">shrinkage</p><h1>{escape(content.title)}</h1></header>\n'
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def _headlines(headlines: Sequence[Headline]) -> str:
    tiles = "".join(
        f'<div><dt>{escape(line.name)}</dt><dd>{escape(line.value)}</dd><dd class="beside">'
        f"{escape(line.beside)}</dd></div>"
        for line in headlines
    )
    return f'<dl class="headlines">{tiles}</dl>'


def _figures(content: Page) -> list[str]:
    figures = content.figures
    drawn = [_figure("Accuracy", _accuracy(content), _accuracy_caption(content))]
    if content.rows[-1]["sparsity"]:
        ramped = any(row["wanted"] for row in content.rows)
        caption = (
            "Dotted: what the ramp asks for. Solid: exact zeros, from where they follow it."
            if ramped
            else "Exact zeros."
        )
        drawn.append(_figure("Sparsity", _sparsity(content), caption))
    if figures.points:
        drawn.append(
            _figure(
                f"λ against {content.size}",
                scatter(figures.points, content.size),
                f"The adaptive scale of {len(figures.points):,} of {figures.units:,} units, half of them drawn "
                "from those that are left. A small λ pulls hard.",
            )
        )
    if figures.counts:
        left = sum(figures.counts)
        drawn.append(
            _figure(
                "Weights that are left", histogram(figures.edges, figures.counts), f"{left:,} weights are not zero."
            )
        )
    return drawn


def _accuracy(content: Page) -> str:
    lines = [Line(content.method, "method", _scores(content.rows))]
    if content.dense_rows:
        lines.append(Line("dense", "dense", _scores(content.dense_rows)))
    return curves("Accuracy", "accuracy, %", lines)


def _accuracy_caption(content: Page) -> str:
    held_out = content.rows[0]["val_accuracy"] is not None
    return f"On the {'held-out training' if held_out else 'test'} images after each epoch."


def _scores(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [row["accuracy"] if row["val_accuracy"] is None else row["val_accuracy"] for row in rows]


def _sparsity(content: Page) -> str:
    rows = content.rows
    asked = [100 * (row["wanted"] or 0.0) for row in rows]
    if not any(asked):
        return curves("Sparsity", "zeros, %", [Line("zeros", "method", _zeros(rows))], low=0)
    lines = [Line("asked for", "wanted", asked, named_at=0.25)]
    # With some methods zeros may move between two steps of the method; then they mean nothing before the end.
    apart = [abs(row["sparsity"] - row["wanted"]) > 0.05 and row["phase"] == "shrinking" for row in rows]
    first = len(rows) - [*reversed(apart), True].index(True)
    if first < len(rows):
        lines.append(Line("zeros", "method", _zeros(rows[first:]), first=first + 1))
    return curves("Sparsity", "zeros, %", lines, low=0)


def _zeros(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [100 * row["sparsity"] for row in rows]


def _spectra(content: Page) -> str:
    sparse, dense = content.figures.spectra, content.dense_figures.spectra if content.dense_figures else {}
    drawn = []
    for layer, values in sparse.items():
        lines = {content.method: values, **({"dense": dense[layer]} if layer in dense else {})}
        shown = {name: line for name, line in lines.items() if line}
        if not shown:
            continue
        counts = [f"{'dense ' * (name == 'dense')}{directions(line)}" for name, line in shown.items()]
        caption = f"99 % of the variance in {', '.join(counts)} of {len(values)} directions."
        drawn.append(_figure(layer or "(model)", spectrum(layer, shown), caption))
    if not drawn:
        return ""
    about = (
        "Eigenvalues of the covariance of each layer's outputs over training images, relative to the largest. "
        "A curve that falls early belongs to a layer that uses few directions."
    )
    return _section("Directions that layers use", f'<p>{about}</p><div class="small figures">{"".join(drawn)}</div>')


def _figure(name: str, drawing: str, caption: str) -> str:
    return f"<figure><h2>{escape(name)}</h2>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _section(name: str, body: str) -> str:
    return f"<section><h2>{escape(name)}</h2>{body}</section>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = []
    for index, (name, *cells) in enumerate(rows):
        kind = ' class="total"' if index == len(rows) - 1 else ""
        rest = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr{kind}><th scope="row">{escape(name)}</th>{rest}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _list(facts: Mapping[str, str]) -> str:
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{items}</dl>'

"""The plots of a report, each a function from numbers to SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from shrinkage.report.figures import LayerZeros, Point
from shrinkage.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, frame, label, linear, logarithmic, plain

_PLOT_RIGHT = WIDTH - RIGHT
_PLOT_BOTTOM = HEIGHT - BOTTOM
_DECADES = 6  # of eigenvalues that are drawn
_DRAWN = 120  # points of a curve


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: written beside it, at its end or, if ``named_at`` is given, below that place.
        kind: its class, which gives it its colour: ``method``, ``dense`` or ``wanted``.
        y: one value an epoch, without a gap.
        first: the epoch of the first value.
        named_at: share of the curve's length at which its name stands.
    """

    name: str
    kind: str
    y: Sequence[float]
    first: int = 1
    named_at: float | None = None

    @property
    def last(self) -> int:
        """The epoch of the last value."""
        return self.first + len(self.y) - 1

    def points(self) -> list[tuple[int, float]]:
        """Epoch and value of each point."""
        return list(enumerate(self.y, self.first))

    def at(self, epoch: int) -> float | None:
        """The value of an epoch."""
        return self.y[epoch - self.first] if self.first <= epoch <= self.last else None


def curves(name: str, unit: str, lines: Sequence[Line], *, low: float | None = None) -> str:
    """Curves over the epochs, each named at its end, with a reading under the pointer.

    Args:
        name: what is drawn.
        unit: label of the vertical axis.
        lines: at least one, each with at least one value.
        low: where the vertical axis begins; by default a little below what matters.
    """
    epochs = max(line.last for line in lines)
    values = [value for line in lines for value in line.y]
    y = linear(_floor(values) if low is None else low, max(values), unit)
    x = linear(min(1, epochs - 1), epochs, "epoch", count=6, snug=True)
    clip = _slug(name)
    body = [
        f'<clipPath id="{clip}"><rect x="{LEFT:g}" y="0" width="{_PLOT_RIGHT - LEFT:g}" '
        f'height="{_PLOT_BOTTOM:g}"/></clipPath>'
    ]
    for line in lines:
        points = " ".join(f"{x.x(epoch)},{y.y(value)}" for epoch, value in line.points())
        body.append(f'<polyline class="line {line.kind}" clip-path="url(#{clip})" points="{points}"/>')
        if len(line.y) == 1:
            body.append(_dot(line.kind, x.x(line.first), y.y(line.y[0])))
        if line.named_at is not None:
            epoch, value = line.points()[int(line.named_at * (len(line.y) - 1))]
            body.append(label(x.x(epoch) + 10, y.y(value) + 12, line.name, line.kind))
    body += _names([line for line in lines if line.named_at is None], y)
    body += _readings(lines, x, y, epochs)
    ends = "; ".join(f"{line.name} ends at {plain(line.y[-1])}" for line in lines)
    return frame(name, f"{unit} over {epochs} epochs. {ends}.", x, y, "".join(body))


def scatter(points: Sequence[Point], size: str) -> str:
    """λ against |w|; what was removed stands at |w| = 0.

    Args:
        points: at least one.
        size: name of the horizontal axis.
    """
    kept = [point for point in points if point.size > 0]
    gone = [point for point in points if point.size == 0]
    # A few outliers would squeeze all others into a corner.
    reach = _quantile([point.size for point in kept], 0.998) or 1.0
    x = linear(0, reach, size, snug=True)
    y = linear(0, max(point.scale for point in points), "λ")
    body = [
        f'<g class="dots {kind}">' + _dots(group, x, y) + "</g>" for kind, group in (("gone", gone), ("method", kept))
    ]
    if gone:
        body.append(label(LEFT + 8, _PLOT_BOTTOM - 8, f"at 0: removed ({len(gone):,} drawn)", "gone"))
    if kept:
        body.append(label(_PLOT_RIGHT - 4, TOP + 12, f"kept ({len(kept):,} drawn)", "method", "end"))
    beyond = sum(point.size > reach for point in kept)
    text = f"{len(kept):,} kept and {len(gone):,} removed units are drawn; {beyond} lie beyond the right edge."
    return frame("λ against |w|", text, x, y, "".join(body))


def histogram(edges: Sequence[float], counts: Sequence[int]) -> str:
    """The weights that are not zero."""
    x = linear(edges[0], edges[-1], "weight", snug=True)
    y = linear(0, max(counts), "weights per bin", count=4)
    bars = []
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            height = _PLOT_BOTTOM - y.y(count)
            bars.append(
                f'<rect class="bar" x="{x.x(low) + 0.4:g}" y="{y.y(count):g}" '
                f'width="{x.x(high) - x.x(low) - 0.8:.2f}" height="{height:g}">'
                f"<title>{plain(low)} to {plain(high)}: {count:,} weights</title></rect>"
            )
    text = f"{sum(counts):,} weights are not zero; they lie within ±{plain(edges[-1])}."
    return frame("Weights that are left", text, x, y, "".join(bars))


def spectrum(name: str, lines: Mapping[str, Sequence[float]]) -> str:
    """Eigenvalues of one layer's outputs, in falling order, on a logarithmic scale.

    Args:
        name: of the layer.
        lines: relative eigenvalues by whose they are; ``dense`` is drawn as such. At least one, none empty.
    """
    drawn = {
        who: [(rank, value) for rank, value in enumerate(line, 1) if value >= 10**-_DECADES]
        for who, line in lines.items()
    }
    x = linear(1, max(2, *map(len, drawn.values())), "direction", snug=True)
    y = logarithmic(_DECADES, "eigenvalue over the largest")
    body, said, place = [], [], _PLOT_BOTTOM - 8  # names stand where no falling curve comes by
    for who, line in reversed(drawn.items()):
        kind = "dense" if who == "dense" else "method"
        shown = [*line[:: -(-len(line) // _DRAWN)], line[-1]]
        points = " ".join(f"{x.x(rank)},{y.y(math.log10(value))}" for rank, value in shown)
        body += [f'<polyline class="line {kind}" points="{points}"/>', label(LEFT + 8, place, who, kind)]
        said.append(f"{who}: {len(line)} of {len(lines[who])} above a millionth")
        place -= 18
    return frame(f"Directions of {name or 'the model'}", "; ".join(said) + ".", x, y, "".join(body))


def layers(rows: Sequence[LayerZeros]) -> str:
    """A bar a layer, as HTML: it grows with the number of layers and wraps on a phone."""
    lines = []
    for row in rows:
        share = row.zeros / row.weights
        lines.append(
            f'<li><span class="who">{escape(row.name)}</span><span class="track">'
            f'<span class="fill" style="width:{100 * share:.2f}%"></span></span>'
            f'<span class="much">{100 * share:.1f} %</span>'
            f'<span class="of">{row.weights - row.zeros:,} of {row.weights:,} weights left</span></li>'
        )
    return f'<ul class="layers">{"".join(lines)}</ul>'


def _dots(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """Dots as one path of round-capped strokes of no length: a fifth of the bytes of circles."""
    places = [f"M{x.x(point.size)} {y.y(point.scale)}h0" for point in points if point.size <= x.high]
    return f'<path d="{"".join(places)}"/>'


def _names(lines: Sequence[Line], y: Axis) -> list[str]:
    """Each curve's name above its right end, pushed down where curves end close together."""
    gap = 14.0
    ends = sorted((y.y(line.y[-1]), index) for index, line in enumerate(lines))
    places: list[float] = []
    for end, _ in ends:
        places.append(max(end - 6, places[-1] + gap) if places else end - 6)
    below = max(0.0, places[-1] - (_PLOT_BOTTOM - 4)) if places else 0.0
    return [
        label(_PLOT_RIGHT - 4, place - below, lines[index].name, lines[index].kind, "end")
        for place, (_, index) in zip(places, ends, strict=True)
    ]


def _readings(lines: Sequence[Line], x: Axis, y: Axis, epochs: int) -> list[str]:
    """An invisible band an epoch; the style sheet shows what is in the one under the pointer."""
    width = (_PLOT_RIGHT - LEFT) / max(1, epochs - 1)
    bands = []
    for epoch in range(1, epochs + 1):
        here = [(line, value) for line in lines if (value := line.at(epoch)) is not None]
        text = f"epoch {epoch}: " + ", ".join(f"{line.name} {value:.2f}" for line, value in here)
        place = x.x(epoch)
        marks = "".join(_dot(line.kind, place, y.y(value)) for line, value in here if value >= y.low)
        bands.append(
            f'<g class="at"><rect x="{place - width / 2:.2f}" y="{TOP:g}" width="{width:.2f}" '
            f'height="{_PLOT_BOTTOM - TOP:g}"/><g><path d="M{place} {TOP:g}V{_PLOT_BOTTOM:g}"/>{marks}'
            f'<text x="{LEFT + 6:g}" y="{_PLOT_BOTTOM - 8:g}">{escape(text)}</text></g></g>'
        )
    return bands


def _dot(kind: str, x: float, y: float) -> str:
    return f'<circle class="dot {kind}" r="3" cx="{x}" cy="{y}"/>'


def _floor(values: Sequence[float]) -> float:
    """Where an axis begins that shows the later part of a training well: early values may fall below."""
    lowest = _quantile(values, 0.25) or 0.0
    return max(min(values), lowest - 0.25 * (max(values) - lowest))


def _quantile(values: Sequence[float], share: float) -> float | None:
    return sorted(values)[int(share * (len(values) - 1))] if values else None


def _slug(name: str) -> str:
    return "clip-" + "".join(letter if letter.isalnum() else "-" for letter in name.lower())

"""Axes in SVG: scales, ticks that people would choose, and the frame every plot is drawn in.

Colours are CSS variables of the page, so that one drawing serves a light and a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 400.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 30.0, 40.0


@dataclass(frozen=True)
class Axis:
    """One axis of a plot.

    Attributes:
        low, high: the data at its ends.
        ticks: where it is labelled.
        label: what it shows, with the unit.
        text: how a tick is written.
    """

    low: float
    high: float
    ticks: Sequence[float]
    label: str
    text: Callable[[float], str]

    def share(self, value: float) -> float:
        """Where on the axis a value lies, 0 at its low and 1 at its high end."""
        return (value - self.low) / (self.high - self.low)

    def x(self, value: float) -> float:
        """Position from the left, in the drawing's units."""
        return round(LEFT + self.share(value) * (WIDTH - LEFT - RIGHT), 2)

    def y(self, value: float) -> float:
        """Position from the top."""
        return round(HEIGHT - BOTTOM - self.share(value) * (HEIGHT - TOP - BOTTOM), 2)


def linear(low: float, high: float, label: str, *, count: int = 5, snug: bool = False) -> Axis:
    """A linear axis with about ``count`` round ticks; it ends on ticks unless ``snug``.

    >>> axis = linear(0, 97, "zeros, %")
    >>> [axis.text(tick) for tick in axis.ticks]
    ['0', '20', '40', '60', '80', '100']
    """
    if high <= low:
        pad = abs(low) * 0.05 or 1.0
        low, high = low - pad, high + pad
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if snug:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [index * step for index in range(first, last + 1)]
    ends = (low, high) if snug else (ticks[0], ticks[-1])
    if step >= 1000:
        return Axis(*ends, ticks, label, lambda value: f"{plain(value / 1000)}k" if value else "0")
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return Axis(*ends, ticks, label, lambda value: _signed(f"{value:.{digits}f}"))


def logarithmic(decades: int, label: str) -> Axis:
    """The axis of a logarithm to base ten that is at most 0; every second decade is labelled.

    >>> axis = logarithmic(6, "share")
    >>> [axis.text(tick) for tick in axis.ticks]
    ['10⁻⁶', '10⁻⁴', '10⁻²', '1']
    """
    superscript = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    ticks = [float(tick) for tick in range(-decades, 1, 2)]
    return Axis(
        -decades, 0, ticks, label, lambda tick: "1" if tick == 0 else f"10{f'{tick:.0f}'.translate(superscript)}"
    )


def frame(name: str, description: str, x: Axis, y: Axis, body: str) -> str:
    """A whole drawing: grid, axes with ticks and units, and ``body`` within them.

    Args:
        name: what is drawn; screen readers speak it.
        description: what is to be seen, for those who do not see it.
        x: the horizontal axis.
        y: the vertical axis.
        body: SVG in the coordinates of the axes.
    """
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img">',
        f"<title>{escape(name)}</title><desc>{escape(description)}</desc>",
        '<g class="grid">',
        *(f'<path d="M{LEFT:g} {y.y(tick)}H{right:g}"/>' for tick in y.ticks),
        '</g><g class="tick">',
        *(_text(LEFT - 6, y.y(tick) + 4, y.text(tick), "end") for tick in y.ticks),
        *(_text(x.x(tick), bottom + 15, x.text(tick), "middle") for tick in x.ticks),
        '</g><g class="axis">',
        f'<path d="M{LEFT:g} {bottom:g}H{right:g}"/>',
        *(f'<path d="M{x.x(tick)} {bottom:g}v4"/>' for tick in x.ticks),
        '</g><g class="label">',
        _text((LEFT + right) / 2, HEIGHT - 6, x.label, "middle"),
        _text(0, 12, y.label, "start"),
        "</g>",
        body,
        "</svg>",
    ]
    return "".join(parts)


def label(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    """Text beside what it names, in that thing's colour."""
    return _text(x, y, text, anchor, f"name {kind}")


def plain(value: float) -> str:
    """A number with as few characters as it needs.

    >>> plain(0.001), plain(20.0), plain(-0.5), plain(1e-7)
    ('0.001', '20', '−0.5', '1e−7')
    """
    if value and not 1e-4 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.0e}".partition("e")
        return _signed(f"{mantissa}e{int(exponent)}")
    return _signed(f"{value:.4g}")


def _signed(text: str) -> str:
    """With a true minus sign, and none before a zero."""
    if text.startswith("-") and not any(digit in text for digit in "123456789"):
        text = text[1:]
    return text.replace("-", "−")


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{style}>{escape(text)}</text>'


def _round_step(step: float) -> float:
    """The next step of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * (1 - 1e-9))

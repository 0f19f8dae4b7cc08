import re

import pytest
import torch
from torch import nn

from shrinkage.report.figures import POINTS, Point, gather
from shrinkage.report.plots import Line, curves, histogram, scatter
from shrinkage.report.svg import linear, plain


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, ["0", "20", "40", "60", "80", "100"]),
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (96.3, 98.9, ["96", "97", "98", "99"]),
        (-0.7, 0.7, ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
        (5, 5, ["4.7", "4.8", "4.9", "5.0", "5.1", "5.2", "5.3"]),
        (0, 12345, ["0", "5k", "10k", "15k"]),
    ],
)
def test_ticks_are_round_and_hold_the_data(low: float, high: float, expected: list[str]) -> None:
    axis = linear(low, high, "")
    assert [axis.text(tick) for tick in axis.ticks] == expected
    assert axis.low <= low
    assert axis.high >= high


def test_a_snug_axis_ends_with_the_data() -> None:
    axis = linear(1, 160, "epoch", snug=True)
    assert (axis.low, axis.high) == (1, 160)
    assert all(1 <= tick <= 160 for tick in axis.ticks)


def test_positions_follow_the_axis() -> None:
    axis = linear(0, 10, "")
    assert axis.x(10) - axis.x(5) == pytest.approx(axis.x(5) - axis.x(0), abs=0.02)
    assert axis.y(10) < axis.y(0)


def test_numbers_are_short() -> None:
    assert [plain(value) for value in (0.0, 98.761234, 1e-9, -2.5e7)] == ["0", "98.76", "1e−9", "−2e7"]


def test_a_curve_is_where_its_numbers_are() -> None:
    svg = curves("Accuracy", "%", [Line("a", "method", [0.0, 50.0, 100.0])], low=0)
    match = re.search(r'points="([^"]*)"', svg)
    assert match is not None
    x, y = zip(*([float(part) for part in point.split(",")] for point in match[1].split()), strict=True)
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.02)
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.02)
    assert "epoch 2: a 50.00" in svg
    assert "a ends at 100" in svg


def test_the_names_of_curves_that_end_together_do_not_collide() -> None:
    lines = [Line("one", "method", [1.0, 99.0]), Line("two", "dense", [2.0, 99.0])]
    places = re.findall(r'y="([\d.]+)" text-anchor="end" class="name', curves("Accuracy", "%", lines))
    assert len(places) == 2
    assert abs(float(places[0]) - float(places[1])) >= 12


def test_the_histogram_counts_every_survivor() -> None:
    torch.manual_seed(0)
    net = nn.Linear(50, 40)
    with torch.no_grad():
        net.weight[:20] = 0
    figures = gather(net, ["weight"], {}, {})
    assert sum(figures.counts) == 1000
    assert figures.edges[0] == -figures.edges[-1]
    assert "1,000 weights are not zero" in histogram(figures.edges, figures.counts)


def test_the_sample_shows_both_kept_and_removed() -> None:
    size = torch.cat([torch.zeros(50_000), torch.rand(2_000) + 0.1])
    net = nn.Linear(1, 1)
    figures = gather(net, ["weight"], {"weight": size}, {"weight": size + 1})
    assert len(figures.points) == POINTS
    assert sum(point.size == 0 for point in figures.points) == POINTS // 2
    assert figures.units == 52_000
    assert all(point.scale == pytest.approx(point.size + 1, rel=1e-2) for point in figures.points)


def test_the_scatter_says_what_it_leaves_out() -> None:
    points = [Point(0.1, 1.0)] * 998 + [Point(9.0, 1.0)] * 2
    assert "2 lie beyond the right edge" in scatter(points, "|w|")

"""What NoiseOut's evidence looks like: correlations over a training, and accuracy by parameters left."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shrinkage.reproduce.drawing import drawing

_COLOURS = {
    "none": "#6b7280",
    "gaussian": "#c2410c",
    "binomial": "#1d4ed8",
    "constant": "#0f766e",
    "scratch": "#111827",
}
_OTHER = "#a16207"
_SPARSE = "#7c3aed"

Outcomes = Sequence[Mapping[str, Any]]


def correlation_plot(noise: Mapping[str, Outcomes], title: str, path: Path) -> None:
    """Write an SVG: the mean of |ρ| by epoch, a panel a layer, a curve a noise.

    Args:
        noise: outcomes without removal, by noise.
        title: above the plot.
        path: of the file.

    Raises:
        MissingExtra: if matplotlib is not installed.
        InputError, StateError: if the file cannot be written.
    """
    layers = list(noise["none"][0]["correlation"][0])
    with drawing(path, (3.4 * len(layers), 3.2), len(layers)) as (figure, axes):
        for place, (panel, layer) in enumerate(zip(axes, layers, strict=True)):
            for name, outcomes in noise.items():
                curves = [[epoch[layer] for epoch in outcome["correlation"]] for outcome in outcomes]
                mean = [statistics.fmean(values) for values in zip(*curves, strict=True)]
                epochs = range(1, len(mean) + 1)
                for curve in curves:
                    panel.plot(epochs, curve, color=_COLOURS[name], linewidth=0.5, alpha=0.35)
                panel.plot(epochs, mean, color=_COLOURS[name], linewidth=1.8, label=name)
            panel.set_title(f"layer {layer}", loc="left")
            panel.set_xlabel("epoch")
            if not place:
                panel.set_ylabel("mean |ρ| over pairs of neurons")
                panel.legend(frameon=False, title="noise")
        figure.suptitle(title, x=0.01, ha="left")


def curve_plot(
    curve: Mapping[tuple[str, float], Outcomes], sparse: Mapping[str, Outcomes], title: str, path: Path
) -> None:
    """Write an SVG: test accuracy by parameters left, a curve a noise, with networks from scratch and HALO's.

    Args:
        curve: outcomes by noise (or ``"scratch"``) and budget.
        sparse: outcomes with HALO, by what was done; they stand at their non-zeros, and hollow at the parameters that
            are left when dead units are taken out.
        title: above the plot.
        path: of the file.

    Raises:
        MissingExtra: if matplotlib is not installed.
        InputError, StateError: if the file cannot be written.
    """
    with drawing(path, (6.4, 4.2)) as (_, (axes,)):
        for name in dict.fromkeys(name for name, _ in curve):
            points = sorted((_point(found, "parameters") for (key, _), found in curve.items() if key == name))
            axes.errorbar(
                [point[0] for point in points],
                [point[1] for point in points],
                [point[2] for point in points],
                color=_COLOURS.get(name, _OTHER),
                linestyle="--" if name == "scratch" else "-",
                marker="o",
                markersize=3.5,
                linewidth=1.5,
                capsize=2,
                label="the same shape from scratch" if name == "scratch" else f"NoiseOut, {name}",
            )
        for index, (name, found) in enumerate(sparse.items()):
            x, y, error = _point(found, "nonzeros")
            marker = {"color": _SPARSE, "marker": "sD^v"[index % 4], "markersize": 4.5}
            axes.errorbar([x], [y], [error], capsize=2, label=name, **marker)
            compacted, _, _ = _point(found, "compacted")
            axes.plot([x, compacted], [y, y], color=_SPARSE, linewidth=0.6, linestyle=":")
            axes.plot([compacted], [y], markerfacecolor="white", **marker)
        axes.set_xscale("log")
        axes.set_xlabel("parameters left (with HALO: non-zeros; hollow: parameters, compacted)")
        axes.set_ylabel("test accuracy, % (mean ± standard error)")
        axes.legend(frameon=False, fontsize=7)
        axes.set_title(title, loc="left")


def _point(found: Outcomes, key: str) -> tuple[float, float, float]:
    scores = [outcome["accuracy"] for outcome in found]
    error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
    return statistics.fmean(outcome[key] for outcome in found), statistics.fmean(scores), error

"""The numbers behind a report's plots, small enough to keep in a JSON file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shrinkage.core.selection import resolve
from shrinkage.report.spectrum import spectra

POINTS = 3000
"""At most so many weights are drawn one by one."""

_BINS = 60


@dataclass(frozen=True)
class Point:
    """One unit in the plot of λ against |w|.

    Attributes:
        size: |w|, or ‖w_g‖₂ of a group; 0 where it was removed.
        scale: its λ.
    """

    size: float
    scale: float


@dataclass(frozen=True)
class LayerZeros:
    """Zeros of one tensor.

    Attributes:
        name: the parameter's name.
        weights: its entries.
        zeros: those that are exactly zero.
    """

    name: str
    weights: int
    zeros: int


@dataclass(frozen=True)
class Figures:
    """What is drawn of a trained network.

    Attributes:
        layers: zeros of each tensor that the method works on.
        edges: borders of the histogram's bins, one more than there are bins; empty if nothing survived.
        counts: surviving weights in each bin.
        points: a sample of units that have a λ, at most :data:`POINTS`; empty if the method has none.
        units: how many units the sample was drawn from.
        spectra: by layer, in how many directions its outputs vary; see :func:`~shrinkage.report.spectrum.spectra`.
    """

    layers: list[LayerZeros]
    edges: list[float]
    counts: list[int]
    points: list[Point]
    units: int
    spectra: dict[str, list[float]]


def gather(
    model: nn.Module,
    names: list[str],
    sizes: Mapping[str, Tensor],
    lam: Mapping[str, Tensor],
    inputs: Iterable[Tensor] = (),
) -> Figures:
    """Reduce a trained network to what is drawn of it.

    Args:
        model: the trained network.
        names: the parameters that the method works on.
        sizes: |w| or ‖w_g‖₂ of every unit, by parameter name.
        lam: λ of every unit by parameter name, shaped as ``sizes``; empty if the method has none.
        inputs: prepared batches to look at the layers' outputs with, on the model's device.

    >>> net = nn.Linear(2, 1)
    >>> with torch.no_grad(): _ = net.weight.copy_(torch.tensor([[0.0, 0.5]]))
    >>> gather(net, ["weight"], {}, {}).layers
    [LayerZeros(name='weight', weights=2, zeros=1)]
    """
    weights = {name: weight.detach().float().cpu() for name, weight in resolve(model, names).items()}
    layers = [LayerZeros(name, weight.numel(), int((weight == 0).sum())) for name, weight in weights.items()]
    flat = torch.cat([weight.flatten() for weight in weights.values()])
    edges, counts = _histogram(flat[flat != 0])
    points, units = _sample(sizes, lam)
    return Figures(layers, edges, counts, points, units, spectra(model, names, inputs) if inputs else {})


def _histogram(values: Tensor) -> tuple[list[float], list[int]]:
    """Bins that are symmetric around zero, so that zero is a border and the gap around it shows."""
    if not len(values):
        return [], []
    reach = values.abs().max().item()
    counts = values.histc(_BINS, -reach, reach).int().tolist()
    return [reach * (2 * index / _BINS - 1) for index in range(_BINS + 1)], counts


def _sample(sizes: Mapping[str, Tensor], lam: Mapping[str, Tensor]) -> tuple[list[Point], int]:
    """Half of the points from the units that are left and half from those that went, as far as they reach."""
    if not lam:
        return [], 0
    size = torch.cat([sizes[name].detach().float().cpu().flatten() for name in lam])
    scale = torch.cat([scale.detach().float().cpu().flatten() for scale in lam.values()])
    generator = torch.Generator().manual_seed(0)
    chosen = []
    for group in ((size != 0).nonzero(), (size == 0).nonzero()):
        order = torch.randperm(len(group), generator=generator)[: POINTS // 2]
        chosen.append(group.flatten()[order])
    index = torch.cat(chosen)
    pairs = zip(size[index].tolist(), scale[index].tolist(), strict=True)
    return [Point(_short(a), _short(b)) for a, b in pairs], len(size)


def _short(value: float) -> float:
    """Four significant digits: a plot shows no more."""
    return float(f"{value:.4g}") if math.isfinite(value) else 0.0

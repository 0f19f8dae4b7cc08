"""The weights that a finite set is for: every one of them has a number, and a place in the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shrinkage.discrete.cache import Place
from shrinkage.discrete.values import ValueSet

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Site:
    """A tensor whose entries are from the set.

    Attributes:
        name: the parameter's name in the model.
        stage: the layer's place in the chain.
        parameter: the tensor as the model holds it: it has the values, times the scale, and there is no other copy.
        scale: of the layer.
        values: the set.
        frozen: entries that stay as they are, in the tensor's shape; None for none.
    """

    name: str
    stage: int
    parameter: nn.Parameter
    scale: float
    values: ValueSet
    frozen: Tensor | None = None


@dataclass(frozen=True)
class Coordinate:
    """One weight.

    Attributes:
        site: its tensor.
        offset: its place in the flattened tensor.
        channel: the output it belongs to.
        place: where in the channel; None for a bias.
    """

    site: Site
    offset: int
    channel: int
    place: Place

    @property
    def value(self) -> float:
        """What it is now."""
        return float(self.site.parameter.data.view(-1)[self.offset])

    def set(self, value: float) -> None:
        """Give it another value."""
        self.site.parameter.data.view(-1)[self.offset] = value


class Sites:
    """All tensors of a network whose entries are from the set, numbered through.

    Args:
        sites: contiguous parameters, in the network's order.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = tuple(sites)
        self._starts = np.cumsum([0, *(site.parameter.numel() for site in sites)])
        self.table = [site.values.tensor(site.parameter.data, site.scale).tolist() for site in sites]

    def __len__(self) -> int:
        """How many weights there are."""
        return int(self._starts[-1])

    @property
    def alternatives(self) -> int:
        """How many values all the weights that may change could take beside their present ones."""
        parts = zip(self._free(), self.table, strict=True)
        return sum(len(places) * (len(table) - 1) for places, table in parts)

    def free(self) -> Numbers:
        """Numbers of the weights that may change."""
        parts = self._free()
        return np.concatenate([start + part for start, part in zip(self._starts, parts, strict=False)])

    def _free(self) -> list[Numbers]:
        return [
            np.arange(site.parameter.numel()) if site.frozen is None else _places(~site.frozen) for site in self.sites
        ]

    def parameters(self) -> list[nn.Parameter]:
        """The tensors."""
        return [site.parameter for site in self.sites]

    def coordinate(self, number: int) -> tuple[Coordinate, list[float]]:
        """The weight of a number, and what it may be."""
        index = int(np.searchsorted(self._starts, number, side="right")) - 1
        site, offset = self.sites[index], int(number - self._starts[index])
        shape = site.parameter.shape
        if len(shape) == 1:
            return Coordinate(site, offset, offset, None), self.table[index]
        channel, *place = np.unravel_index(offset, tuple(shape))
        return Coordinate(site, offset, int(channel), tuple(int(part) for part in place)), self.table[index]

    def steps(self, gradients: Sequence[Tensor]) -> tuple[Numbers, NDArray[np.float64], NDArray[np.float64]]:
        """The neighbouring values against the sign of the gradient.

        Args:
            gradients: of the loss, one tensor a site.

        Returns:
            For each free weight with such a neighbour: its number, by how much the loss falls to first order (> 0), and
            the neighbour.
        """
        numbers, falls, targets = [], [], []
        for site, start, table, gradient in zip(self.sites, self._starts, self.table, gradients, strict=False):
            sure = torch.tensor(table, dtype=torch.float64, device=gradient.device)
            codes = site.values.codes(site.parameter, site.scale).long().flatten()
            slope = gradient.flatten().double()
            neighbour = (codes - slope.sign().long()).clamp(0, len(table) - 1)
            fall = slope * (sure[codes] - sure[neighbour])
            wanted = fall > 0
            if site.frozen is not None:
                wanted &= ~site.frozen.flatten()
            places = wanted.nonzero()[:, 0]
            numbers.append(places.cpu().numpy() + start)
            falls.append(fall[places].cpu().numpy())
            targets.append(sure[neighbour[places]].cpu().numpy())
        return np.concatenate(numbers), np.concatenate(falls), np.concatenate(targets)

    def write(self, numbers: Numbers, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give several weights values at once; what they were before."""
        before = np.empty(len(numbers))
        for site, start, end in zip(self.sites, self._starts, self._starts[1:], strict=False):
            here = (numbers >= start) & (numbers < end)
            flat = site.parameter.data.view(-1)
            places = torch.from_numpy(numbers[here] - start).to(flat.device)
            before[here] = flat[places].double().cpu().numpy()
            flat[places] = torch.from_numpy(values[here]).to(flat)
        return before


def _places(mask: Tensor) -> Numbers:
    return np.asarray(mask.flatten().nonzero()[:, 0].cpu().numpy(), dtype=np.int64)

r"""Means and covariances of many units over a stream of data, and how well one unit tells another.

Of two units with activations :math:`h_A` and :math:`h_B`, the best guess of the first from the second is

.. math:: h_A \approx a\,h_B + b, \qquad
    a = \frac{\operatorname{cov}(h_A, h_B)}{\operatorname{var}(h_B)}, \qquad b = \bar h_A - a\,\bar h_B

and explains the share :math:`\rho^2` of the variance of :math:`h_A`. Where no constant can be added
(:math:`b = 0`), moments about zero take the place of those about the mean: the mean square that of the variance.

All sums are in float64. A block of rows at a time is widened, and only one half of the symmetric matrix is summed. That
matrix takes 128 MiB for 4,096 units, and once more while a relation is made of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BLOCK = 1 << 22
"""Numbers that are widened to float64 at a time: 32 MiB."""

_TILE = 512
"""Units in a tile of the matrix; large enough that products of tiles run at full speed."""

CONSTANT = 1e-12
"""A unit whose variance is below this share of its mean square is a constant: float32 knows no finer."""


class Moments:
    """The mean and the moments of second order of some units, summed up batch by batch.

    The sums are taken about the mean of the first rows, so that nothing cancels where the mean is far from zero.

    Args:
        units: how many there are.

    >>> moments = Moments(2)
    >>> moments.add(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    >>> moments.add(torch.tensor([[5.0, 10.0]]))
    >>> moments.mean.tolist(), moments.covariance().tolist()
    ([3.0, 6.0], [[2.6666666666666665, 5.333333333333333], [5.333333333333333, 10.666666666666666]])
    """

    def __init__(self, units: int) -> None:
        self.count = 0
        self._shift = torch.zeros(units, dtype=torch.float64)
        self._sum = torch.zeros(units, dtype=torch.float64)
        self._products = torch.zeros(units, units, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take in observations, shape (rows, units), of any floating type; they are summed where they lie."""
        units = len(self._sum)
        if not len(rows):
            return
        if rows.device.type == "mps":  # knows no float64
            rows = rows.cpu()
        if not self.count:
            self._shift, self._sum, self._products = (
                part.to(rows.device) for part in (self._shift, self._sum, self._products)
            )
            self._shift = rows[: max(_BLOCK // units, 1)].double().mean(0)
        for block in torch.split(rows, max(_BLOCK // units, 1)):
            wide = block.double() - self._shift
            self._sum += wide.sum(0)
            for start in range(0, units, _TILE):  # the upper half of the matrix
                tile = wide[:, start : start + _TILE]
                self._products[start : start + _TILE, start:].addmm_(tile.T, wide[:, start:])
        self.count += len(rows)

    @property
    def mean(self) -> Tensor:
        """Of each unit, shape (units,), float64."""
        return self._shift + self._sum / max(self.count, 1)

    def covariance(self) -> Tensor:
        """The covariance over all observations (divided by their count), shape (units, units), float64."""
        for start in range(0, len(self._sum), _TILE):  # the lower half, which is never added to the upper one
            end = start + _TILE
            corner = self._products[start:end, start:end]
            corner.copy_(corner.triu() + corner.triu(1).T)
            self._products[end:, start:end] = self._products[start:end, end:].T
        mean = self._sum / max(self.count, 1)
        return (self._products / max(self.count, 1)).addr_(mean, mean, alpha=-1)

    def about_zero(self) -> Tensor:
        """The mean products of pairs of units, shape (units, units), float64."""
        mean = self.mean
        return self.covariance().addr_(mean, mean)


class Relation:
    """How well each unit is a multiple of each other one, at one place where they are read.

    Args:
        moments: of the units there.
        constant: whether a constant can be added to the multiple.

    Attributes:
        size: of each unit, what is lost there without it: its variance, or where no constant can be added its mean
            square. Shape (units,), float64.
    """

    def __init__(self, moments: Moments, constant: bool) -> None:
        self._second = moments.covariance() if constant else moments.about_zero()
        self._mean = moments.mean
        self._constant = constant
        diagonal = self._second.diagonal()
        square = diagonal + self._mean**2 if constant else diagonal
        self.size = diagonal.where(diagonal > CONSTANT * square, 0)

    def explained(self, units: Tensor, others: slice = slice(None)) -> Tensor:
        """The share of the size of some units that others explain, shape (len(units), all or others), in [0, 1].

        1 means: an exact multiple, up to the constant that can be added. A unit of size 0 is explained by any other.
        """
        mine, other = self.size[units, None], self.size[None, others]
        share = self._second[units, others].square_() / (mine * other).clamp_min(torch.finfo(torch.float64).tiny)
        return share.where(other > 0, 0).where(mine > 0, 1).clamp_(0, 1)

    def fold(self, unit: int, partner: int) -> tuple[float, float]:
        """The factor and the constant that make of the partner the best guess of the unit."""
        size = float(self.size[partner])
        factor = float(self._second[unit, partner]) / size if size > 0 and float(self.size[unit]) > 0 else 0.0
        if not self._constant:
            return factor, 0.0
        return factor, float(self._mean[unit]) - factor * float(self._mean[partner])


def mean_correlation(moments: Moments) -> float:
    """The mean of :math:`|ρ|` over all pairs of units that vary; NaN where fewer than two do.

    >>> moments = Moments(3)
    >>> moments.add(torch.tensor([[1.0, -1.0, 5.0], [2.0, -2.0, 5.0]]))
    >>> mean_correlation(moments)
    1.0
    """
    covariance = moments.covariance()
    variance = covariance.diagonal()
    vary = (variance > CONSTANT * (variance + moments.mean**2)).nonzero().flatten()
    if len(vary) < 2:
        return math.nan
    scale = variance[vary].rsqrt()
    total = 0.0
    for some in torch.split(vary, _TILE):
        total += float((covariance[some][:, vary].abs() * variance[some].rsqrt()[:, None] * scale).sum())
    return (total - len(vary)) / (len(vary) * (len(vary) - 1))

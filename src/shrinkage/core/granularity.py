"""What is removed as one: a weight, an output channel, a block, or a place in an N:M group.

A granularity cuts a weight tensor into *units*, gives each its size ‖w_g‖₂, and spreads a value per unit
back over the weights. Everything else in the library (λ, thresholds, sparsity, counts) is per unit.

Tensors are read as matrices ``[outputs, inputs × kernel]``; ``out_dim`` says which dimension counts
outputs (0, but 1 for transposed convolutions and Hugging Face's ``Conv1D``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shrinkage.core.errors import InputError


class Granularity(Protocol):
    """How a tensor is cut into units."""

    def shape(self, weight: Sequence[int], out_dim: int) -> tuple[int, ...]:
        """Shape of the per-unit tensors that belong to a weight of shape ``weight``."""
        ...

    def sizes(self, weight: Tensor, out_dim: int) -> Tensor:
        """‖w_g‖₂ of every unit, shape ``shape(...)``, fp32 or wider."""
        ...

    def spread(self, units: Tensor, like: Tensor, out_dim: int) -> Tensor:
        """A value per unit as a tensor that broadcasts against the weight."""
        ...

    def check(self, name: str, weight: Sequence[int], out_dim: int) -> None:
        """Raise if a weight of this shape cannot be cut."""
        ...


def wide(tensor: Tensor) -> Tensor:
    """At least fp32, so that sizes of half-precision weights are not rounded."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


@dataclass(frozen=True)
class Weight:
    """Every weight by itself (unstructured sparsity)."""

    def shape(self, weight: Sequence[int], out_dim: int) -> tuple[int, ...]:
        """The weight's own shape."""
        return tuple(weight)

    def sizes(self, weight: Tensor, out_dim: int) -> Tensor:
        """|w|."""
        return wide(weight).abs()

    def spread(self, units: Tensor, like: Tensor, out_dim: int) -> Tensor:
        """The values as they are."""
        return units

    def check(self, name: str, weight: Sequence[int], out_dim: int) -> None:
        """Every shape will do."""


@dataclass(frozen=True)
class Row:
    """Whole output units: rows of a linear layer, output channels of a convolution."""

    def shape(self, weight: Sequence[int], out_dim: int) -> tuple[int, ...]:
        """One value an output."""
        return (weight[out_dim if len(weight) > 1 else 0],)

    def sizes(self, weight: Tensor, out_dim: int) -> Tensor:
        """‖row‖₂."""
        rows = wide(weight).movedim(out_dim if weight.ndim > 1 else 0, 0)
        norms: Tensor = torch.linalg.vector_norm(rows.reshape(rows.shape[0], -1), dim=1)
        return norms

    def spread(self, units: Tensor, like: Tensor, out_dim: int) -> Tensor:
        """Shape 1 everywhere but along the outputs."""
        view = [1] * like.ndim
        view[out_dim if like.ndim > 1 else 0] = -1
        return units.reshape(view)

    def check(self, name: str, weight: Sequence[int], out_dim: int) -> None:
        """Scalars have no outputs."""
        if not weight:
            raise InputError(f"{name!r} is a single number and has no rows; leave it out with exclude={name!r}")


@dataclass(frozen=True)
class Block:
    """Tiles of ``rows`` × ``columns`` of the matrix ``[outputs, inputs × kernel]``; edge tiles are smaller.

    Args:
        rows: outputs a tile, at least 1.
        columns: inputs a tile, at least 1.
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise InputError(f"a block needs at least one row and one column, got {self.rows}x{self.columns}")

    def shape(self, weight: Sequence[int], out_dim: int) -> tuple[int, ...]:
        """Tiles down × tiles across."""
        outputs = weight[out_dim]
        inputs = math.prod(weight) // outputs
        return (-(-outputs // self.rows), -(-inputs // self.columns))

    def sizes(self, weight: Tensor, out_dim: int) -> Tensor:
        """‖tile‖₂."""
        matrix = wide(weight).movedim(out_dim, 0).flatten(1)
        down, across = self.shape(weight.shape, out_dim)
        padding = (0, across * self.columns - matrix.shape[1], 0, down * self.rows - matrix.shape[0])
        tiles = torch.nn.functional.pad(matrix, padding).reshape(down, self.rows, across, self.columns)
        norms: Tensor = torch.linalg.vector_norm(tiles, dim=(1, 3))
        return norms

    def spread(self, units: Tensor, like: Tensor, out_dim: int) -> Tensor:
        """The full shape of the weight."""
        moved = like.movedim(out_dim, 0)
        matrix = units.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)
        matrix = matrix[: moved.shape[0], : moved[0].numel()]
        return matrix.reshape(moved.shape).movedim(0, out_dim)

    def check(self, name: str, weight: Sequence[int], out_dim: int) -> None:
        """Vectors have no blocks."""
        if len(weight) < 2:
            raise InputError(f"{name!r} of shape {tuple(weight)} is a vector and cannot be cut into blocks")


@dataclass(frozen=True)
class NM:
    """At most ``n`` of every ``m`` consecutive input channels stay (2:4 is what GPUs run fast).

    The pattern fixes the sparsity: 1 − n/m. Units are single weights; what makes the pattern is which of
    them may go (see :meth:`removable`).

    Args:
        n: survivors a group, 1 ≤ n < m.
        m: length of a group; must divide the number of input channels.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise InputError(f"N:M needs 1 <= N < M, got {self.n}:{self.m}")

    @property
    def sparsity(self) -> float:
        """The share of zeros that the pattern fixes."""
        return 1.0 - self.n / self.m

    def shape(self, weight: Sequence[int], out_dim: int) -> tuple[int, ...]:
        """The weight's own shape."""
        return tuple(weight)

    def sizes(self, weight: Tensor, out_dim: int) -> Tensor:
        """|w|."""
        return wide(weight).abs()

    def spread(self, units: Tensor, like: Tensor, out_dim: int) -> Tensor:
        """The values as they are."""
        return units

    def check(self, name: str, weight: Sequence[int], out_dim: int) -> None:
        """The input channels must fall into whole groups."""
        if len(weight) < 2 or weight[1 - out_dim] % self.m:
            inputs = weight[1 - out_dim] if len(weight) > 1 else 0
            raise InputError(
                f"{name!r} has {inputs} input channels, which do not fall into groups of {self.m}; "
                f"leave it out with exclude={name!r}"
            )

    def removable(self, scores: Tensor, out_dim: int) -> Tensor:
        """Mark the m − n lowest scores of every group (ties: the earlier channel goes)."""
        grouped = scores.movedim(1 - out_dim, -1)
        groups = grouped.reshape(*grouped.shape[:-1], -1, self.m)
        order = groups.argsort(dim=-1, stable=True)
        marked = torch.zeros_like(groups, dtype=torch.bool)
        marked.scatter_(-1, order[..., : self.m - self.n], True)
        return marked.reshape(grouped.shape).movedim(-1, 1 - out_dim)

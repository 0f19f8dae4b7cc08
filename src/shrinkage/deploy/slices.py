"""Which slices of which tensors can only go together: sets of numbers that grow together.

Every index of every dimension of every parameter is a *slice* and has a number. Where the model adds two channels
or multiplies an input by a column of weights, their slices become one set. Number 0 is the set that stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

STAYS = 0


class Slices:
    """Disjoint sets of slices.

    >>> slices = Slices()
    >>> a, b = slices.new(3), slices.new(3)
    >>> _ = slices.join(a, b)
    >>> slices.fix(b[:1])
    >>> slices.roots().tolist()
    [0, 0, 2, 3, 0, 2, 3]
    """

    def __init__(self) -> None:
        self._parent = [STAYS]

    def new(self, count: int) -> Tensor:
        """Numbers for ``count`` slices that nothing ties yet, shape (count,)."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def join(self, one: Tensor, other: Tensor) -> Tensor:
        """Tie the slices of two dimensions of one length index by index; returns one of them."""
        for a, b in set(zip(one.tolist(), other.tolist(), strict=True)):
            if a != b:
                self._unite(a, b)
        return one

    def together(self, slices: Tensor) -> None:
        """Tie all of these to each other."""
        self.join(slices, slices[:1].expand_as(slices))

    def fix(self, slices: Tensor) -> None:
        """These stay."""
        self.join(slices, torch.zeros_like(slices))

    def roots(self) -> Tensor:
        """The smallest number of each slice's set, by the slice's number."""
        return torch.tensor([self._root(slice_) for slice_ in range(len(self._parent))])

    def _root(self, slice_: int) -> int:
        parent = self._parent
        while parent[slice_] != slice_:
            parent[slice_] = parent[parent[slice_]]
            slice_ = parent[slice_]
        return slice_

    def _unite(self, one: int, other: int) -> None:
        one, other = self._root(one), self._root(other)
        self._parent[max(one, other)] = min(one, other)

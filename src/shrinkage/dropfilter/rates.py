"""Drop rates that grow over a training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shrinkage.core.errors import InputError
from shrinkage.dropfilter.masks import check_rate


@dataclass(frozen=True)
class Growing:
    """A rate that is multiplied after every epoch, up to a limit: min(start · factorⁿ, most).

    The defaults are those of the authors' code for CIFAR-10, where 0.30 is reached in epoch 162 of 300.

    Args:
        start: rate of epoch 0, in (0, 1).
        factor: at least 1.
        most: the limit, in [start, 1).

    Raises:
        InputError: if one is out of its range.

    >>> rate = Growing()
    >>> [round(rate(epoch), 4) for epoch in (0, 1, 100, 161, 162, 300)]
    [0.06, 0.0606, 0.1623, 0.2978, 0.3, 0.3]
    """

    start: float = 0.06
    factor: float = 1.01
    most: float = 0.30

    def __post_init__(self) -> None:
        if not 0 < check_rate(self.start) <= check_rate(self.most):
            raise InputError(f"the rate cannot grow from start={self.start} to most={self.most}; 0 < start <= most < 1")
        number = isinstance(self.factor, int | float) and not isinstance(self.factor, bool)
        if not number or not 1 <= self.factor < math.inf:
            raise InputError(f"factor must be a number of at least 1, 1.01 for 1 % an epoch, got {self.factor!r}")

    def __call__(self, epoch: int) -> float:
        """The rate of an epoch, counted from 0.

        Raises:
            InputError: if the epoch is negative.
        """
        if epoch < 0:
            raise InputError(f"epochs are counted from 0, got {epoch}")
        try:
            return min(self.start * self.factor**epoch, self.most)
        except OverflowError:
            return self.most

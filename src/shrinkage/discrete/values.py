"""The finite set that weights are taken from: the values, what a layer scales them by, and their codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from shrinkage.core.errors import InputError
from shrinkage.formats.kbits import bits_for

_MOST = 256  # a code is a byte
_LEAST_SIZE, _GREATEST_SIZE = 1e-30, 1e30  # of the value that is farthest from zero: its square is a number too


@dataclass(frozen=True)
class ValueSet:
    """A finite set of numbers, in ascending order.

    A weight of a layer is one of them times the layer's scale. Its *code* is its place in the set.

    Attributes:
        values: the numbers.
    """

    values: tuple[float, ...]

    @property
    def bits(self) -> int:
        """⌈log₂|S|⌉."""
        return bits_for(len(self.values))

    @property
    def signs(self) -> bool:
        """Whether all values are −1, 0 or 1, so that a product with one of them is no multiplication."""
        return set(self.values) <= {-1.0, 0.0, 1.0}

    @property
    def mean_square(self) -> float:
        """The mean of v² over the set."""
        return sum(value * value for value in self.values) / len(self.values)

    def without_zero(self) -> ValueSet:
        """The values that are not zero."""
        return ValueSet(tuple(value for value in self.values if value != 0))

    def scale_for(self, fan_in: int, gain: float) -> float:
        """The scale by which a layer with weights drawn from the set keeps the variance of its inputs.

        >>> ValueSet((-1.0, 0.0, 1.0)).scale_for(300, gain=2.0)
        0.1
        """
        return math.sqrt(gain / (fan_in * self.mean_square))

    def apart(self, dtype: torch.dtype) -> bool:
        """Whether no two values become one in a floating-point type, whatever the scale.

        >>> [ValueSet((1.0, 1.005)).apart(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
        [True, True, False]
        """
        least = torch.finfo(dtype).eps
        return all(high - low >= least * max(-low, high) for low, high in pairwise(self.values))

    def tensor(self, like: Tensor, scale: float = 1.0) -> Tensor:
        """The values times a scale, in the type and on the device of ``like``."""
        return (torch.tensor(self.values, dtype=torch.float64) * scale).to(like)

    def codes(self, weight: Tensor, scale: float) -> Tensor:
        """Codes of the nearest values: uint8, in the shape of ``weight``; a tie goes to the lower one.

        >>> ValueSet((-1.0, 0.0, 1.0)).codes(torch.tensor([-0.3, 0.02, 0.09]), scale=0.1)
        tensor([0, 1, 2], dtype=torch.uint8)
        """
        wide = weight.detach().double()  # halves between values are not rounded to the weights' type
        sure = self.tensor(wide, scale)
        return torch.bucketize(wide, (sure[1:] + sure[:-1]) / 2).to(torch.uint8)

    def decode(self, codes: Tensor, scale: float, like: Tensor) -> Tensor:
        """The inverse of :meth:`codes`."""
        return self.tensor(like, scale)[codes.long()]

    def scale_of(self, weights: Sequence[Tensor], *first: float) -> float | None:
        """A scale at which all of these weights are in the set, to rounding; None if there is none.

        Args:
            weights: of one layer, of the same type.
            first: scales to try before others.

        >>> ValueSet((-1.0, 0.0, 1.0)).scale_of([torch.tensor([0.3, 0.0]), torch.tensor([-0.3])])
        0.30000001192092896
        >>> ValueSet((-1.0, 0.0, 1.0)).scale_of([torch.tensor([0.3, 0.0, 0.1])])
        """
        seen = torch.unique(torch.cat([weight.detach().flatten() for weight in weights]))
        if len(seen) > len(self.values) or not bool(seen.isfinite().all()):
            return None
        room = 4 * torch.finfo(seen.dtype).eps
        seen = seen.double()
        farthest = float(seen[seen.abs().argmax()])
        for scale in (*first, *(farthest / value for value in self.values if farthest * value > 0)):
            near = self.decode(self.codes(seen, scale), 1.0, seen)
            if bool(((seen - scale * near).abs() <= room * abs(farthest)).all()):
                return scale
        return None

    def draw(self, like: Tensor, scale: float, generator: torch.Generator) -> Tensor:
        """Weights drawn evenly from the set, in the shape, type and device of ``like``."""
        codes = torch.randint(len(self.values), tuple(like.shape), generator=generator)
        return self.decode(codes.to(like.device), scale, like)

    def nearest_zero(self) -> float:
        """The value nearest to zero; of two the lower."""
        return min(self.values, key=abs)


def value_set(values: Sequence[float]) -> ValueSet:
    """Check a set of values.

    Raises:
        InputError: for fewer than two or more than 256 values, for values that are not finite or occur twice, and for
            sets whose greatest size is beyond 1e-30 to 1e30.

    >>> value_set((1, -1, 0))
    ValueSet(values=(-1.0, 0.0, 1.0))
    """
    try:
        numbers = sorted(float(value) for value in values)
    except (TypeError, ValueError):
        raise InputError(f"values must be a sequence of numbers, such as (-1, 0, 1), got {values!r}") from None
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"values must be finite numbers, got {values!r}")
    if len(set(numbers)) < len(numbers):
        raise InputError(f"values must differ from each other, got {values!r}")
    if not 2 <= len(numbers) <= _MOST:
        raise InputError(f"values must be a set of 2 to {_MOST} numbers, such as (-1, 0, 1), got {values!r}")
    if not _LEAST_SIZE <= max(-numbers[0], numbers[-1]) <= _GREATEST_SIZE:
        raise InputError(
            f"the greatest of the values must be between {_LEAST_SIZE:g} and {_GREATEST_SIZE:g} in size, got {values!r}"
        )
    return ValueSet(tuple(number + 0.0 for number in numbers))

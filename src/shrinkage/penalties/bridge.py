r"""Bridge: what HALO becomes when λ always stands at its optimum.

.. math:: L = \text{loss} + c \sum_j |w_j|^p, \qquad p = 1/3, \quad c = 3 \cdot 2^{-2/3}\, \xi^{1/3} \psi^{2/3}

With λ profiled out there is nothing to store beside the weights, and nothing to remember either: a weight
that was large a moment ago is pulled like one that was always small. Bridge penalties: Frank and
Friedman, 1993. With weight decay on λ instead of ψ the exponent is 1/2 and c = √(2·ξ·decay).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from shrinkage.core.engine import Sparsifier
from shrinkage.core.errors import InputError
from shrinkage.core.options import Options
from shrinkage.core.protocols import Shape
from shrinkage.core.scales import Scales
from shrinkage.penalties.build import SolverName, fixed, steered, strength


@dataclass(frozen=True)
class BridgePrior:
    """ξ Σ size^p.

    Args:
        xi: strength, ≥ 0.
        power: p in (0, 1).
        smallest: the slope, infinite at zero, is not followed below this size.
    """

    xi: float
    power: float = 1 / 3
    smallest: float = 1e-6
    initial_scale: float = 1.0

    def scale_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """None."""
        return []

    def value(self, sizes: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
        """The penalty, linear below ``smallest``."""
        return self.xi * torch.stack([self._each(size).sum().to(sizes[0].device) for size in sizes]).sum()

    def _each(self, size: Tensor) -> Tensor:
        bounded = size.clamp(min=self.smallest)
        line = self.smallest**self.power + self.power * self.smallest ** (self.power - 1) * (size - self.smallest)
        value: Tensor = torch.where(size < self.smallest, line, bounded.pow(self.power))
        return value

    def grad_size(self, index: int, size: Tensor, scales: Sequence[Tensor]) -> Tensor:
        """ξ p size^(p−1)."""
        return size.clamp(min=self.smallest).pow_(self.power - 1).mul_(self.xi * self.power)

    def grad_scales(self, sizes: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor]:
        """None."""
        return []

    def prox(self, index: int, size: Tensor, scales: Sequence[Tensor], step: float | Tensor) -> Tensor:
        """The global minimum of ½(x − size)² + step·ξ·xᵖ over x ≥ 0.

        It jumps: sizes up to (2−p)/(2(1−p)) · (2c(1−p))^(1/(2−p)), c = step·ξ, go to 0, larger ones to the larger
        root of x + c p x^(p−1) = size, found by Newton's method from above.
        """
        p = self.power
        c = torch.as_tensor(step, dtype=size.dtype, device=size.device) * self.xi
        jump = (2 - p) / (2 * (1 - p)) * (2 * c * (1 - p)).pow(1 / (2 - p))
        root = size.clamp(min=torch.finfo(size.dtype).tiny)
        for _ in range(8):  # quadratic from above: eight steps reach rounding
            slope = 1 + c * p * (p - 1) * root.pow(p - 2)
            root = root - (root + c * p * root.pow(p - 1) - size) / slope.clamp(min=0.1)
            root = root.clamp(min=torch.finfo(size.dtype).tiny)
        return torch.where(size > jump, root, 0)


@dataclass(frozen=True)
class BridgePull:
    """The scale-free form: size^(p−1), of the present size.

    Args:
        power: p in (0, 1).
        smallest: sizes are not followed below this share of the typical one.
    """

    power: float = 1 / 3
    smallest: float = 1e-4
    remembers: bool = False

    @property
    def bias(self) -> float:
        """p/(2 − p): where the proximal map of size^p jumps, it lands so much below the size."""
        return self.power / (2 - self.power)

    def remember(self, memory: Tensor, size: Tensor) -> None:
        """Nothing to remember."""

    def pull(self, memory: Tensor, reference: float) -> Tensor:
        """(size/reference)^(p−1)."""
        return (memory / reference).clamp_(min=self.smallest).pow_(self.power - 1)

    def scale(self, memory: Tensor, reference: float) -> Tensor | None:
        """There is none."""
        return None


class Bridge(Sparsifier):
    """Train a network under an ℓ_p penalty with p < 1: HALO without the λ.

    Args:
        model: the network to train.
        sparsity: share of zeros wanted, in (0, 1).
        steps: optimiser steps of the whole training.
        xi: fixed strength c of Σ|w|^p.
        power: p in (0, 1); 1/3 is HALO's profile.
        solver: as in :class:`~shrinkage.HALO`.
        **options: see :class:`~shrinkage.core.engine.Sparsifier`.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float | None = None,
        steps: int | None = None,
        *,
        xi: float | None = None,
        power: float = 1 / 3,
        solver: SolverName | None = None,
        **options: Unpack[Options],
    ) -> None:
        if not 0.0 < power < 1.0:
            raise InputError(f"Bridge needs a power between 0 and 1, got {power}")
        method = type(self)
        if xi is None:
            chosen, options = steered(method, BridgePull(power), sparsity, steps, solver, options)
        else:
            prior = BridgePrior(strength("xi", xi), power)
            chosen = fixed(method, prior, Scales(prior, 0.0, 0.0, 0.0), solver)
        super().__init__(model, sparsity, steps, solver=chosen, zero_below=1e-5, **options)

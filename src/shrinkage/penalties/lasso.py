r"""Lasso: the same pull on every weight, whatever its size.

.. math:: L = \text{loss} + \xi \sum_j |w_j|

The oldest of the family (Tibshirani, 1996) and HALO with all λ held at 1. It shrinks large weights as
much as small ones, which costs accuracy; that bias is what the others set out to remove.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from shrinkage.core.engine import Sparsifier
from shrinkage.core.options import Options
from shrinkage.core.protocols import Shape
from shrinkage.core.scales import Scales
from shrinkage.penalties.build import SolverName, fixed, steered, strength


@dataclass(frozen=True)
class LassoPrior:
    """ξ Σ size.

    Args:
        xi: strength, ≥ 0.
    """

    xi: float
    initial_scale: float = 1.0

    def scale_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """None."""
        return []

    def value(self, sizes: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
        """The penalty."""
        return self.xi * torch.stack([size.sum().to(sizes[0].device) for size in sizes]).sum()

    def grad_size(self, index: int, size: Tensor, scales: Sequence[Tensor]) -> Tensor:
        """ξ."""
        return size.new_full((), self.xi)

    def grad_scales(self, sizes: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor]:
        """None."""
        return []

    def prox(self, index: int, size: Tensor, scales: Sequence[Tensor], step: float | Tensor) -> Tensor:
        """Soft thresholding at step·ξ."""
        return (size - step * self.xi).clamp_(min=0)


@dataclass(frozen=True)
class UniformPull:
    """The same for every unit."""

    bias: float = 1.0
    remembers: bool = False

    def remember(self, memory: Tensor, size: Tensor) -> None:
        """Nothing to remember."""

    def pull(self, memory: Tensor, reference: float) -> Tensor:
        """1."""
        return torch.ones_like(memory)

    def scale(self, memory: Tensor, reference: float) -> Tensor | None:
        """There is none."""
        return None


class Lasso(Sparsifier):
    """Train a network under an ℓ₁ penalty, to an exact share of zeros or with a fixed strength.

    Args:
        model: the network to train.
        sparsity: share of zeros wanted, in (0, 1).
        steps: optimiser steps of the whole training.
        xi: fixed strength ξ.
        solver: as in :class:`~shrinkage.HALO`.
        **options: see :class:`~shrinkage.core.engine.Sparsifier`.

    >>> import torch, shrinkage
    >>> shrinkage.Lasso(torch.nn.Linear(10, 10), sparsity=0.5, steps=100)
    Lasso(50.00% of 100 units in 1 tensors, step 0, shrinking)
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float | None = None,
        steps: int | None = None,
        *,
        xi: float | None = None,
        solver: SolverName | None = None,
        **options: Unpack[Options],
    ) -> None:
        method = type(self)
        if xi is None:
            chosen, options = steered(method, UniformPull(), sparsity, steps, solver, options)
        else:
            prior = LassoPrior(strength("xi", xi))
            chosen = fixed(method, prior, Scales(prior, 0.0, 0.0, 0.0), solver)
        super().__init__(model, sparsity, steps, solver=chosen, zero_below=1e-5, **options)

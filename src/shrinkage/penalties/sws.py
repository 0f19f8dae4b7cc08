r"""SWS: one trained strength shared by all weights.

.. math:: L = \text{loss} + \xi \sum_j |w_j| / \lambda^2 + \psi \lambda^2

HALO's comparison with a single λ (Seto, Wells, Zhang, 2021): the strength adapts to the network, but not
to the weight. At its optimum λ² = √(ξ‖w‖₁/ψ), and the penalty is 2√(ξψ‖w‖₁). Steered towards a target
nothing is left to adapt, so there it is the lasso.
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
from shrinkage.penalties.build import SolverName, fixed, refuse_idle, steered, strength
from shrinkage.penalties.lasso import UniformPull


@dataclass(frozen=True)
class SWSPrior:
    """ξ Σ size/λ² + ψλ², one λ in all.

    Args:
        xi: strength on the sizes, ≥ 0.
        psi: strength on the scale, ≥ 0.
    """

    xi: float
    psi: float
    initial_scale: float = 1.0

    def scale_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """One scalar."""
        return [()]

    def value(self, sizes: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
        """The penalty."""
        (scale,) = scales
        return self.xi * self._total(sizes, scale) / scale.square() + self.psi * scale.square()

    def grad_size(self, index: int, size: Tensor, scales: Sequence[Tensor]) -> Tensor:
        """ξ/λ²."""
        return (self.xi / scales[0].square()).to(size.device)

    def grad_scales(self, sizes: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor]:
        """−2ξ Σ size/λ³ + 2ψλ."""
        (scale,) = scales
        return [-2 * self.xi * self._total(sizes, scale) / scale.pow(3) + 2 * self.psi * scale]

    def prox(self, index: int, size: Tensor, scales: Sequence[Tensor], step: float | Tensor) -> Tensor:
        """Soft thresholding at step·ξ/λ²."""
        return (size - step * self.grad_size(index, size, scales)).clamp_(min=0)

    @staticmethod
    def _total(sizes: Sequence[Tensor], scale: Tensor) -> Tensor:
        return torch.stack([size.sum().to(scale.device) for size in sizes]).sum()


class SWS(Sparsifier):
    """Train a network under a lasso with one trained strength.

    Args:
        model: the network to train.
        sparsity: share of zeros wanted, in (0, 1).
        steps: optimiser steps of the whole training.
        xi: fixed strength on Σ|w|/λ².
        psi: fixed strength on λ².
        solver: as in :class:`~shrinkage.HALO`.
        lam_lr: learning rate of λ, for fixed strengths.
        lam_momentum: momentum of λ.
        lam_weight_decay: weight decay of λ.
        **options: see :class:`~shrinkage.core.engine.Sparsifier`.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float | None = None,
        steps: int | None = None,
        *,
        xi: float | None = None,
        psi: float | None = None,
        solver: SolverName | None = None,
        lam_lr: float = 0.1,
        lam_momentum: float = 0.9,
        lam_weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        method = type(self)
        settings = {"lam_lr": lam_lr, "lam_momentum": lam_momentum, "lam_weight_decay": lam_weight_decay}
        if xi is None and psi is None:
            refuse_idle(method, **settings)
            chosen, options = steered(method, UniformPull(), sparsity, steps, solver, options)
        else:
            prior = SWSPrior(strength("xi", xi), strength("psi", psi))
            scales = Scales(prior, *(strength(word, value) for word, value in settings.items()))
            chosen = fixed(method, prior, scales, solver)
        super().__init__(model, sparsity, steps, solver=chosen, zero_below=1e-5, **options)

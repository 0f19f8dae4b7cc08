r"""HALO: a lasso whose strength on every weight is itself trained.

Idea: small weights are pushed to zero, large ones are left alone, and the training itself finds out which
are which, in one run. Each weight :math:`w_j` has a scale :math:`\lambda_j`:

.. math:: L = \text{loss} + \xi \sum_j |w_j| / \lambda_j^2 + \psi\, \bigl| \sum_j |\lambda_j| - K \bigr|

With λ at its optimum :math:`\lambda_j = (2\xi|w_j|/\psi)^{1/3}` this is the non-convex penalty
:math:`3 \cdot 2^{-2/3}\, \xi^{1/3} \psi^{2/3} \sum_j |w_j|^{1/3}`: its pull falls as a weight grows.

Source: Seto, Wells, Zhang, "HALO: Learning to Prune Neural Networks with Shrinkage", SDM 2021,
arXiv 2008.10183.

The steered form (``sparsity=``) keeps the adaptive scale and replaces ξ and ψ by the target: every few steps a
proximal step lowers every size by ξ·λ^(−2q), with the ξ that leaves as many zeros as the ramp asks for. Small weights
glide to zero while the network adjusts, and stay there; large ones are hardly touched. Under optimisers of the Adam
family the step is taken from a copy of the weights that is trained on, and what was dropped may come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from shrinkage.core.engine import ByOptimizer, Sparsifier
from shrinkage.core.latent import LatentSolver
from shrinkage.core.options import Options
from shrinkage.core.protocols import Shape, Solver
from shrinkage.core.scales import Scales
from shrinkage.core.schedules import interval
from shrinkage.core.straight import StraightThrough
from shrinkage.penalties.build import SolverName, fixed, refuse_idle, steered, strength

EVERY = 24
"""Optimiser steps from one steered proximal step to the next, in long trainings."""


@dataclass(frozen=True)
class HALOPrior:
    """ξ Σ size/λ² + ψ·bracket(Σ|λ|), with one λ a unit.

    Args:
        xi: strength on the sizes, ≥ 0.
        psi: strength on the scales, ≥ 0.
        budget: K in the bracket |Σ|λ| − K|.
        squared: square the bracket.
        layerwise: add ξ Σ_l ‖w_l‖₁/λ_l² + ψ Σ_l |λ_l| with one more λ a tensor.
    """

    xi: float
    psi: float
    budget: float = 0.0
    squared: bool = False
    layerwise: bool = False
    initial_scale: float = 1.0

    def scale_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """One λ a unit and, layerwise, one a tensor."""
        return [*shapes, *([()] * len(shapes) if self.layerwise else [])]

    def value(self, sizes: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
        """The penalty."""
        n = len(sizes)
        home = sizes[0].device
        pairs = zip(sizes, scales[:n], strict=True)
        total = torch.stack([(size / scale.square()).sum().to(home) for size, scale in pairs]).sum() * self.xi
        gap = torch.stack([scale.abs().sum().to(home) for scale in scales[:n]]).sum() - self.budget
        total = total + self.psi * (gap.square() if self.squared else gap.abs())
        for size, scale in zip(sizes, scales[n:], strict=False):
            total = total + (self.xi * size.sum() / scale.square() + self.psi * scale.abs()).to(home)
        return total

    def grad_size(self, index: int, size: Tensor, scales: Sequence[Tensor]) -> Tensor:
        """ξ/λ², plus ξ/λ_l² layerwise."""
        slope = scales[index].square().reciprocal_().mul_(self.xi)
        return slope + self.xi / scales[len(scales) // 2 + index].square() if self.layerwise else slope

    def grad_scales(self, sizes: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor]:
        """−2ξ size/λ³ + ψ·sign λ·(the bracket's slope)."""
        n = len(sizes)
        pull = self._bracket_slope(scales[:n])
        gradients = []
        for size, scale in zip(sizes, scales[:n], strict=True):
            gradient = size / scale.pow(3)
            gradient.mul_(-2 * self.xi)
            gradients.append(gradient.add_(scale.sgn().mul_(pull.to(scale.device))))
        for size, scale in zip(sizes, scales[n:], strict=False):
            gradients.append(-2 * self.xi * size.sum() / scale.pow(3) + self.psi * scale.sgn())
        return gradients

    @property
    def separable(self) -> bool:
        """True unless the bracket or a layer's λ ties the weights together."""
        return self.budget == 0 and not self.squared and not self.layerwise

    def add_gradients(self, weight: Tensor, scale: Tensor, to: Tensor) -> Tensor:
        """``grad_size`` times the sign, and ``grad_scales``, for single weights and a separable penalty."""
        direction = weight.sgn().div_(scale.square())
        to.add_(direction, alpha=self.xi)
        return scale.sgn().mul_(self.psi).addcdiv_(direction.mul_(weight), scale, value=-2 * self.xi)

    def prox(self, index: int, size: Tensor, scales: Sequence[Tensor], step: float | Tensor) -> Tensor:
        """Soft thresholding at step·ξ/λ²."""
        return (size - step * self.grad_size(index, size, scales)).clamp_(min=0)

    def _bracket_slope(self, scales: Sequence[Tensor]) -> Tensor:
        if self.budget == 0 and not self.squared:
            return scales[0].new_full((), self.psi)  # Σ|λ| ≥ 0: no need to add it up
        gap = torch.stack([scale.abs().sum().to(scales[0].device) for scale in scales]).sum() - self.budget
        return self.psi * (2 * gap if self.squared else gap.sgn())


@dataclass(frozen=True)
class HALOPull:
    """The scale-free HALO pull: λ follows its optimum for a running mean of the sizes.

    The optimum is λ ∝ size^⅓, so the slope λ^(−2·power) is a negative power of the remembered size.

    Args:
        power: 1 is the paper's slope λ⁻²; larger values spare large weights more.
        decay: of the running mean, per proximal step.
        bias: share of the threshold that a survivor loses in a proximal step.
        smallest: λ is not followed below this value.
    """

    power: float = 1.0
    decay: float = 0.5
    bias: float = 1.0
    smallest: float = 0.05
    remembers: bool = True

    def remember(self, memory: Tensor, size: Tensor) -> None:
        """memory ← decay·memory + (1 − decay)·size."""
        memory.lerp_(size, 1 - self.decay)

    def pull(self, memory: Tensor, reference: float) -> Tensor:
        """λ^(−2·power) with λ = (memory/reference)^⅓."""
        relative = (memory / reference).clamp_(min=self.smallest**3)
        if self.power == 3.0:
            return relative.square_().reciprocal_()
        return relative.log2_().mul_(-2 * self.power / 3).exp2_()  # in half the time of a power

    def scale(self, memory: Tensor, reference: float) -> Tensor:
        """λ = (memory/reference)^⅓."""
        return (memory / reference).pow_(1 / 3).clamp_(min=self.smallest)


ADAM = HALOPull(power=3.0, decay=0.0)
"""λ⁻⁶, for optimisers of the Adam family; λ follows at once."""


class HALO(Sparsifier):
    """Train a network to an exact share of zeros, with an adaptive lasso.

    Args:
        model: the network to train.
        sparsity: share of zeros wanted, in (0, 1). Given alone, there is nothing else to tune.
        steps: optimiser steps of the whole training.
        xi: ξ of the paper, strength on |w|/λ²; with ``psi`` it asks for fixed strengths.
        psi: ψ of the paper, strength on λ.
        solver: ``"proximal"`` (exact zeros in training; default with a target), ``"gradient"`` (the
            paper; default with ``xi``/``psi``; zeros are cut at the end) or ``"loss"`` (add ``penalty()`` to
            the loss yourself).
        budget: K of the paper.
        squared: square the bracket |Σ|λ| − K|.
        layerwise: one more λ a tensor.
        lam_lr: learning rate of λ, for fixed strengths.
        lam_momentum: momentum of λ.
        lam_weight_decay: weight decay of λ; the paper's code has it on, which changes the method.
        **options: see :class:`~shrinkage.core.engine.Sparsifier`.

    Raises:
        InputError: for arguments that cannot work.

    >>> import torch, shrinkage
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.ReLU(), torch.nn.Linear(50, 2))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    >>> halo = shrinkage.HALO(net, sparsity=0.9, steps=100).attach(optimizer)
    >>> x = torch.randn(64, 20)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     torch.nn.functional.cross_entropy(net(x), (x[:, 0] > 0).long()).backward()
    ...     optimizer.step()
    >>> print(halo.finalize())
    HALO
    tensor    units  kept   zeros
    ...
    total     1,100   110  90.00%
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
        budget: float = 0.0,
        squared: bool = False,
        layerwise: bool = False,
        lam_lr: float = 0.1,
        lam_momentum: float = 0.9,
        lam_weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        method = type(self)
        settings = {"lam_lr": lam_lr, "lam_momentum": lam_momentum, "lam_weight_decay": lam_weight_decay}
        if xi is None and psi is None:
            chosen: Solver | ByOptimizer
            refuse_idle(method, budget=budget, squared=squared, layerwise=layerwise, **settings)
            chosen, options = steered(method, HALOPull(), sparsity, steps, solver, options, every=EVERY, hold=True)
            chosen = ByOptimizer(chosen, LatentSolver(StraightThrough(ADAM), interval(steps, EVERY)))
        else:
            prior = HALOPrior(strength("xi", xi), strength("psi", psi), budget, squared, layerwise)
            scales = Scales(prior, *(strength(word, value) for word, value in settings.items()))
            chosen = fixed(method, prior, scales, solver)
        super().__init__(model, sparsity, steps, solver=chosen, zero_below=1e-5, **options)

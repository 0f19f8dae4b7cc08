r"""MCP: a lasso that lets go of large weights.

.. math:: p(w) = \xi|w| - w^2/(2\psi) \text{ if } |w| \le \psi\xi, \text{ else } \psi\xi^2/2

The minimax concave penalty (Zhang, 2010), one of HALO's comparisons: the slope falls from ξ at zero
to nothing at |w| = ψξ. Unlike HALO's, where it lets go is fixed beforehand.
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
class MCPPrior:
    """ξ·size − size²/(2ψ) up to size ψξ, constant from there.

    Args:
        xi: slope at zero, ≥ 0.
        psi: concavity, > 0; the penalty is flat beyond ψξ.
    """

    xi: float
    psi: float
    initial_scale: float = 1.0

    def scale_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """None."""
        return []

    def value(self, sizes: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
        """The penalty."""
        return torch.stack([self._each(size).sum().to(sizes[0].device) for size in sizes]).sum()

    def _each(self, size: Tensor) -> Tensor:
        inner = self.xi * size - size.square() / (2 * self.psi)
        return torch.where(size <= self.psi * self.xi, inner, self.psi * self.xi**2 / 2)

    def grad_size(self, index: int, size: Tensor, scales: Sequence[Tensor]) -> Tensor:
        """(ξ − size/ψ)₊."""
        return (self.xi - size / self.psi).clamp_(min=0)

    def grad_scales(self, sizes: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor]:
        """None."""
        return []

    def prox(self, index: int, size: Tensor, scales: Sequence[Tensor], step: float | Tensor) -> Tensor:
        """The firm threshold: (size − step·ξ)₊ / (1 − step/ψ) up to ψξ, the size itself beyond.

        Needs step < ψ; at longer steps the minimum jumps, and the step is a hard threshold at ξ√(step·ψ).
        """
        step = torch.as_tensor(step, dtype=size.dtype, device=size.device)
        firm = (size - step * self.xi).clamp(min=0) / (1 - step / self.psi)
        hard = torch.where(size > self.xi * (step * self.psi).sqrt(), size, 0)
        return torch.where(step < self.psi, torch.where(size <= self.psi * self.xi, firm, size), hard)


@dataclass(frozen=True)
class MCPPull:
    """The scale-free form: full at zero, falling in a line to (almost) nothing at ``flat`` times the typical size.

    Args:
        flat: where the penalty lets go, in units of the weights' root mean square at the start.
        least: what is left beyond, so that every weight can still be reached.
    """

    flat: float = 1.0
    least: float = 1e-3
    bias: float = 1.0
    remembers: bool = False

    def remember(self, memory: Tensor, size: Tensor) -> None:
        """Nothing to remember."""

    def pull(self, memory: Tensor, reference: float) -> Tensor:
        """(1 − size/flat)₊."""
        return (1 - memory / (self.flat * reference)).clamp_(min=self.least)

    def scale(self, memory: Tensor, reference: float) -> Tensor | None:
        """There is none."""
        return None


class MCP(Sparsifier):
    """Train a network under the minimax concave penalty.

    Args:
        model: the network to train.
        sparsity: share of zeros wanted, in (0, 1).
        steps: optimiser steps of the whole training.
        xi: fixed slope at zero.
        psi: fixed concavity, > 0.
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
        psi: float | None = None,
        solver: SolverName | None = None,
        **options: Unpack[Options],
    ) -> None:
        method = type(self)
        if xi is None and psi is None:
            chosen, options = steered(method, MCPPull(), sparsity, steps, solver, options)
        else:
            if xi is None or psi is None or not psi > 0:
                raise InputError(f"MCP needs both xi >= 0 and psi > 0, got xi={xi}, psi={psi}")
            prior = MCPPrior(strength("xi", xi), strength("psi", psi))
            chosen = fixed(method, prior, Scales(prior, 0.0, 0.0, 0.0), solver)
        super().__init__(model, sparsity, steps, solver=chosen, zero_below=1e-5, **options)

r"""STR: a threshold per layer that is trained with the weights, and subtracted from them.

Idea: what the network uses is the soft-thresholded weight, and the threshold is a function of a number that gradient
descent moves like any other. So each layer finds its own sparsity.

.. math:: w = \operatorname{sign}(\theta) \max(|\theta| - \alpha_l,\, 0), \qquad \alpha_l = c \cdot \sigma(s_l)

Weights below the threshold get no gradient. To :math:`\log \alpha_l` belongs the slope
:math:`A_l = -\alpha_l \sum_{w_j \ne 0} \operatorname{sign}(\theta_j)\, \partial L / \partial w_j`.

Source: Kusupati et al., "Soft Threshold Weight Reparameterization for Learnable Sparsity", ICML 2020, arXiv 2002.03231.
There :math:`c = 1`, every :math:`s_l` starts far below zero, weight decay on it drives the threshold up, and a sparsity
is found by tuning that decay and the start.

Choices here: the common factor c, which meets an exact target. After each step it is an order statistic: a unit is zero
exactly if :math:`|\theta_j| / \sigma(s_l) \le c`, so c is the k-th smallest of these ratios over all layers. What is
left to train is how the thresholds of the layers compare. They begin alike, :math:`s_l = 0`, and move along
:math:`(1 - \sigma(s_l)) (A_l - \pi_l \sum_m A_m)`, where :math:`\pi_l` is the share of layer l in the units within a
tenth of the threshold: that is the slope if c keeps the count. Without it all thresholds fall together, since each by
itself would rather be lower, and c undoes it. With several optimisers, the sum is over the tensors of the one that
steps.

In groups ‖θ_g‖₂ takes the place of |θ|. Units that the floor or an N:M pattern keeps are not shrunk.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.optim import SGD

from shrinkage.core.dial import Pool
from shrinkage.core.engine import Sparsifier
from shrinkage.core.errors import InputError
from shrinkage.core.latent import Choice, LatentForm, latent
from shrinkage.core.options import Options
from shrinkage.core.slots import Slot


class SoftThreshold(LatentForm):
    """w = θ · max(1 − α_l/size, 0) with trained α_l.

    Args:
        lr: learning rate of the s_l.
        momentum: of the s_l.
        weight_decay: of the s_l.
    """

    def __init__(self, lr: float, momentum: float, weight_decay: float) -> None:
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay

    def start(self, slots: list[Slot]) -> None:
        """All thresholds begin alike."""
        super().start(slots)
        self.logits = [
            torch.zeros((), dtype=slot.sizes().dtype, device=slot.parameter.device, requires_grad=True)
            for slot in slots
        ]
        self.shares: dict[int, tuple[tuple[int, ...], float]] = {i: ((i,), 1.0) for i in range(len(slots))}
        self._optimizer = SGD(self.logits, lr=self._lr, momentum=self._momentum, weight_decay=self._weight_decay)

    def score(self, index: int, size: Tensor) -> Tensor:
        """|θ|/σ(s_l)."""
        return size / self.logits[index].sigmoid()

    def chosen(self, step: int, pool: Pool, scores: Tensor, gone: int, limit: float) -> None:
        """See in which tensors units would come and go if c moved."""
        near = scores.sub(limit).abs_() < 0.1 * limit
        counts = [int(part.sum()) for part in torch.split(near, list(pool.units))]
        counts = counts if any(counts) else list(pool.units)
        for i, count in zip(pool.members, counts, strict=True):
            self.shares[i] = (pool.members, count / sum(counts))

    def threshold(self, index: int, choice: Choice) -> Tensor:
        """α_l."""
        return max(choice.limit, 0.0) * self.logits[index].detach().sigmoid()

    def factor(self, index: int, size: Tensor, choice: Choice) -> Tensor:
        """1 − α_l/size."""
        threshold = self.threshold(index, choice)
        return torch.where(self._shrunk(size, threshold, choice), 1 - threshold / size, choice.kept)

    @staticmethod
    def _shrunk(size: Tensor, threshold: Tensor, choice: Choice) -> Tensor:
        """Kept units lie above the threshold, but for those that are safe and for one that ties with the last to go."""
        above = choice.kept & (size > threshold)
        return above if choice.safe is None else above & ~choice.safe

    def gradients(
        self,
        own: Sequence[int],
        sizes: Sequence[Tensor],
        choices: Sequence[Choice],
        pulls: Sequence[Tensor],
        scale: Tensor | None,
    ) -> list[tuple[Tensor, Tensor | None]]:
        """∂w/∂θ, which for a single weight is 1 where it is not zero; and that of s_l, aside."""
        passed: list[tuple[Tensor, Tensor | None]] = []
        slopes: dict[int, Tensor] = {}
        for i, size, choice, pull in zip(own, sizes, choices, pulls, strict=True):
            threshold = self.threshold(i, choice)
            along = torch.where(self._shrunk(size, threshold, choice), pull / size, 0)
            slopes[i] = -along.sum() * threshold
            if self.slots[i].single:
                passed.append((choice.kept.to(size.dtype), None))
            else:
                turn = (along * threshold).div_(size).div_(size).nan_to_num_(0.0)  # 0/0 where there is nothing
                passed.append((self.factor(i, size, choice), turn))
        for members in {self.shares[i][0]: None for i in own}:
            self._compare([i for i in members if i in slopes], slopes, scale)
        return passed

    def _compare(self, together: list[int], slopes: dict[int, Tensor], scale: Tensor | None) -> None:
        """The gradients of the s_l of one pool, from those of log α_l: c takes back what they have in common."""
        home = slopes[together[0]].device
        total = torch.stack([slopes[i].to(home) for i in together]).sum()
        whole = sum(self.shares[i][1] for i in together)
        for i in together:
            slope = slopes[i] - total.to(slopes[i].device) * (self.shares[i][1] / max(whole, 1e-30))
            slope.mul_(1 - self.logits[i].sigmoid())
            self.logits[i].grad = slope if scale is None else slope / scale

    def stepped(self, own: Sequence[int]) -> None:
        """Move the thresholds of these tensors."""
        self._optimizer.step()
        self._optimizer.zero_grad()

    def strength(self, choices: Sequence[Choice]) -> float:
        """The largest threshold."""
        return max((float(self.threshold(i, choice)) for i, choice in enumerate(choices)), default=0.0)

    def state_dict(self) -> dict[str, Any]:
        """The s_l and their optimiser's state, and where units would come and go."""
        return {
            "shares": [(list(members), share) for members, share in self.shares.values()],
            "logits": [logit.detach().clone() for logit in self.logits],
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        for logit, saved in zip(self.logits, state["logits"], strict=True):
            logit.copy_(saved)
        self.shares = {i: (tuple(members), share) for i, (members, share) in enumerate(state["shares"])}
        self._optimizer.load_state_dict(state["optimizer"])


class STR(Sparsifier):
    """Train a network with one learned threshold a tensor, to an exact share of zeros.

    Args:
        model: the network to train.
        sparsity: share of zeros wanted, in (0, 1); ``None`` only with an N:M granularity, which fixes it.
        steps: optimiser steps of the whole training.
        threshold_lr: learning rate of the s_l, which have a plain SGD of their own; 0 keeps the thresholds alike.
        threshold_momentum: momentum of the s_l.
        threshold_weight_decay: weight decay of the s_l. The paper drives its thresholds up by it; here it only pulls
            them together.
        **options: see :class:`~shrinkage.core.engine.Sparsifier`. ``start`` and ``end`` default to 0.1 and 0.8.

    Raises:
        InputError: for arguments that cannot work; from ``attach`` for LBFGS.

    >>> import torch
    >>> from shrinkage.pruning.thresholds import STR
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.ReLU(), torch.nn.Linear(50, 2))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    >>> method = STR(net, sparsity=0.9, steps=100).attach(optimizer)
    >>> x = torch.randn(64, 20)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     torch.nn.functional.cross_entropy(net(x), (x[:, 0] > 0).long()).backward()
    ...     optimizer.step()
    >>> method.finalize().zeros
    990
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float | None = None,
        steps: int | None = None,
        *,
        threshold_lr: float = 0.01,
        threshold_momentum: float = 0.9,
        threshold_weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        settings = {
            "threshold_lr": threshold_lr,
            "threshold_momentum": threshold_momentum,
            "threshold_weight_decay": threshold_weight_decay,
        }
        for name, value in settings.items():
            if not 0.0 <= value < math.inf:
                raise InputError(f"{name} must be finite and at least 0, got {value}")
        solver, options = latent(type(self), SoftThreshold(*settings.values()), sparsity, steps, options)
        super().__init__(model, sparsity, steps, solver=solver, **options)

r"""A steered proximal step that is taken from latent weights and does not add up.

What the network uses is prox(θ): of a weight θ, pulled with relative slope p, there is left θ·(1 − ξp/|θ|), or nothing.
The gradient with respect to it goes straight through to θ, also where nothing is left, so that what was dropped is
trained on and comes back if it grows. ξ is an order statistic of the ratios |θ|/p, as in
:class:`~shrinkage.core.proximal.SteeredProximal`.

This is the form for optimisers of the Adam family. They move every weight at about the same speed, whatever its
gradient: steps that lower the weights themselves take most from those that the loss defends least, again and again,
and what is zeroed for good is not weighed again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shrinkage.core.errors import DivergedError
from shrinkage.core.latent import Choice, LatentForm
from shrinkage.core.pieces import pieces
from shrinkage.core.protocols import AdaptivePull
from shrinkage.core.proximal import lowered
from shrinkage.core.slots import Slot, root_mean_square, typical_roots


class StraightThrough(LatentForm):
    """w = θ·(1 − b·ξ/ratio) where the ratio |θ|/p is above ξ, else 0.

    Args:
        pull: whom the penalty pulls more. Its slope is divided by the fourth root of Adam's second moment, since a
            weight with large gradients is harder to do without.
    """

    straight = True

    def __init__(self, pull: AdaptivePull) -> None:
        self._pull = pull

    def start(self, slots: list[Slot]) -> None:
        """Nothing is lowered yet; the root mean square of the weights becomes the unit of size."""
        super().start(slots)
        self._reference = root_mean_square(slots)
        if not 0 < self._reference < math.inf:
            raise DivergedError("at step 0 every selected weight is zero, or too large to square")
        self._metric: list[Tensor | None] = [None] * len(slots)
        self._counted = False
        self._ratios: dict[int, Tensor] = {}

    def choosing(self, counted: bool) -> None:
        """Look at the second moments, which stay as they are until the next count."""
        self._counted = counted
        if not counted:
            return
        typical = typical_roots(self.slots)
        for i, (slot, root) in enumerate(zip(self.slots, typical, strict=True)):
            moments = slot.second_moments()
            if moments is not None and root is not None:
                self._metric[i] = moments.sqrt().div_(root).add_(1e-3).sqrt_()

    def slope(self, index: int, size: Tensor) -> Tensor:
        """p."""
        return self._slope(size, self._metric[index])

    def _slope(self, size: Tensor, metric: Tensor | None) -> Tensor:
        slope = self._pull.pull(size, self._reference)
        return slope if metric is None else slope.div_(metric)

    def score(self, index: int, size: Tensor) -> Tensor:
        """The ratio."""
        ratios = self._ratios[index] = torch.empty_like(size)
        for part, metric, ratio in pieces(size, self._metric[index], ratios):
            torch.div(part, self._slope(part, metric), out=ratio)
        return ratios

    def factor(self, index: int, size: Tensor, choice: Choice) -> Tensor:
        """What is left of every unit; of those that are safe, and of one that ties with the last to go, all."""
        ratios = self._ratios.pop(index, None)
        if ratios is None:
            ratios = size / self.slope(index, size)
        xi = max(choice.limit, 1e-30)
        whole = choice.safe
        if self._counted:  # between counts nothing ties
            ties = (ratios <= xi).logical_and_(choice.kept)
            whole = ties if whole is None else ties.logical_or_(whole)
        for part, kept in pieces(ratios, choice.kept):
            lowered(part, xi, self._pull.bias).clamp_(min=torch.finfo(ratios.dtype).eps).mul_(kept)
        return ratios if whole is None or not bool(whole.any()) else ratios.masked_fill_(whole, 1)

    def finish(self) -> None:
        """The second moments are not looked at again."""
        self._metric = []

    def lam(self, size: Tensor) -> Tensor | None:
        """λ, where the penalty has one."""
        return self._pull.scale(size, self._reference)

    def strength(self, choices: Sequence[Choice]) -> float:
        """The largest ξ."""
        return max([0.0, *(choice.limit for choice in choices)])

    def state_dict(self) -> dict[str, Any]:
        """The unit of size, and what was made of the second moments."""
        metric = [None if each is None else each.clone() for each in self._metric]
        return {"reference": self._reference, "counted": self._counted, "metric": metric}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._reference, self._counted, self._ratios = float(state["reference"]), state["counted"], {}
        homes = [slot.parameter.device for slot in self.slots]
        pairs = zip(state["metric"], homes, strict=True)
        self._metric = [None if each is None else each.to(home, copy=True) for each, home in pairs]

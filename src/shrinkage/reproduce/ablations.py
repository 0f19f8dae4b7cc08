"""HALO's steered form with one of its pieces changed, to see what each is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from shrinkage.core.engine import Sparsifier
from shrinkage.core.options import STEERED
from shrinkage.core.protocols import AdaptivePull
from shrinkage.core.proximal import SteeredProximal
from shrinkage.core.schedules import interval
from shrinkage.penalties.halo import EVERY, HALO, HALOPull
from shrinkage.penalties.lasso import UniformPull

Make = Callable[[nn.Module, float, int], Sparsifier]


class Controlled(SteeredProximal):
    """ξ is raised while there are too few zeros and lowered while there are too many, by up to a tenth at a time."""

    def _limits(self, share: float) -> list[Tensor]:
        assert self._dial is not None
        if share >= 1.0:
            return super()._limits(share)
        xi = max(self.strength, 1e-6)  # the last one, which is part of the saved state
        zeros = sum(int((ratio <= xi).sum()) for ratio in self._ratios)
        short = (share * self._dial.zeros - zeros) / self._dial.units
        xi *= math.exp(0.1 * min(max(short / 0.05, -1.0), 1.0))
        return [ratio.new_full((), xi) for ratio in self._ratios]


class Variant(HALO):
    """HALO by another solver; the pattern is fixed at a share ``end`` of the training."""

    def __init__(self, model: nn.Module, sparsity: float, steps: int, solver: SteeredProximal, end: float) -> None:
        Sparsifier.__init__(
            self, model, sparsity, steps, solver=solver, zero_below=1e-5, start=STEERED["start"], end=end
        )


def _with(
    pull: AdaptivePull | None = None,
    every: int | None = None,
    solver: type[SteeredProximal] = SteeredProximal,
    hold: bool = True,
    end: float = STEERED["end"],
) -> Make:
    def make(model: nn.Module, sparsity: float, steps: int) -> Sparsifier:
        steered = solver(pull or HALOPull(), interval(steps, EVERY, every), hold=hold)
        return Variant(model, sparsity, steps, steered, end)

    return make


ABLATIONS: Mapping[str, tuple[str, Make]] = {
    "lambda-1": ("λ = 1 for all", _with(UniformPull())),
    "no-memory": ("λ follows at once", _with(HALOPull(decay=0.0))),
    "scoring": ("survivors not lowered", _with(HALOPull(bias=0.0))),
    "moving": ("zeros may move", _with(hold=False)),
    "controller": ("zeros may move, ξ by a controller", _with(solver=Controlled, hold=False)),
    "every-step": ("a proximal step every step", _with(every=1)),
    "early": ("pattern fixed at 0.6", _with(end=0.6)),
    "late": ("pattern fixed at 0.95", _with(end=0.95)),
}
"""By name: what is changed, and the method with it."""

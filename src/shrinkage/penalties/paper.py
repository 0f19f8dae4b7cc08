"""HALO as its authors ran it: two SGD optimisers, their schedules with their quirks, and a final cut.

Facts of the released code that change the results, and are kept here:

- λ has the same learning rate, momentum and weight decay as the weights. With ξ = ψ = 1e-8 and a decay of 1e-4
  the decay on λ outweighs ψ by far, and the profiled penalty is √(2·ξ·decay·|w|), an ℓ_½ and not an ℓ_⅓ penalty.
- CIFAR, 160 epochs, batch 64: at epochs 80 and 120 the decay of the learning rate runs once for each optimiser
  on a shared counter, so the weights go .1 → .01 → .0001 and the scales .1 → .001 → .00001.
- MNIST, 250 epochs, batch 100: the weights' rate falls ×.01 every 25,000 steps, that of λ stays at .1.
- Nothing becomes exactly zero in training; a global magnitude threshold cuts at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from shrinkage.core.errors import InputError
from shrinkage.core.options import Options
from shrinkage.core.selection import Rules
from shrinkage.penalties.halo import HALO

PaperRecipe = Literal["cifar", "mnist"]


@dataclass(frozen=True)
class _Recipe:
    include: tuple[type[nn.Module], ...]
    weight_decay: float
    weights: Callable[[int, int], float]  # (step, epoch) → factor on the learning rate
    scales: Callable[[int, int], float]


def _drops(*factors: float) -> Callable[[int, int], float]:
    """Before epoch 80, until 120, and after."""
    return lambda step, epoch: factors[(epoch >= 80) + (epoch >= 120)]


RECIPES: dict[str, _Recipe] = {
    "cifar": _Recipe((nn.Conv2d,), 1e-4, _drops(1.0, 0.1, 0.001), _drops(1.0, 0.01, 0.0001)),
    "mnist": _Recipe(
        (nn.Conv2d, nn.Linear), 0.0, lambda step, epoch: 0.01 ** (step // 25_000), lambda step, epoch: 1.0
    ),
}


class PaperSchedule:
    """The two learning-rate schedules, stepped together after every optimiser step."""

    def __init__(self, optimizer: SGD, lam_optimizer: SGD, recipe: _Recipe, steps_per_epoch: int) -> None:
        self._parts = (
            LambdaLR(optimizer, lambda step: recipe.weights(step, step // steps_per_epoch)),
            LambdaLR(lam_optimizer, lambda step: recipe.scales(step, step // steps_per_epoch)),
        )

    def step(self) -> None:
        """One optimiser step was taken."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)


@dataclass(frozen=True)
class Faithful:
    """What the paper's training loop needs.

    Attributes:
        halo: the method, attached to ``optimizer``; ``halo.lam_optimizer`` moves λ.
        optimizer: SGD over all parameters of the model.
        scheduler: to be stepped after every optimiser step.
    """

    halo: HALO
    optimizer: SGD
    scheduler: PaperSchedule


def faithful(
    model: nn.Module,
    recipe: PaperRecipe,
    *,
    steps_per_epoch: int,
    sparsity: float | None = None,
    xi: float = 1e-8,
    psi: float = 1e-8,
    weight_decay: float | None = None,
    include: Rules | None = None,
) -> Faithful:
    """HALO with the optimisers, schedules and thresholding of the paper's released code.

    Args:
        model: the network.
        recipe: ``"cifar"`` (λ on every Conv2d weight and bias) or ``"mnist"`` (on Conv2d and Linear).
        steps_per_epoch: optimiser steps an epoch, which the CIFAR schedule counts in.
        sparsity: share of zeros to cut to in ``finalize()``; without it |w| ≤ 1e-5 counts as zero.
        xi: ξ.
        psi: ψ.
        weight_decay: of weights and λ alike; default the recipe's (1e-4 and 0).
        include: other tensors than the recipe's; see :func:`~shrinkage.core.selection.select`.

    Raises:
        InputError: for an unknown recipe, or a model that has none of its layers.

    >>> import shrinkage
    >>> from torch.nn import Linear
    >>> run = shrinkage.faithful(Linear(4, 2), "mnist", steps_per_epoch=600, xi=1e-4, psi=1e-4)
    >>> run.optimizer.param_groups[0]["lr"], run.halo.lam_optimizer.param_groups[0]["lr"]
    (0.1, 0.1)
    """
    if recipe not in RECIPES:
        raise InputError(f"the paper's recipes are {', '.join(RECIPES)}, got {recipe!r}")
    if steps_per_epoch < 1:
        raise InputError(f"steps_per_epoch must be at least 1, got {steps_per_epoch}")
    chosen = RECIPES[recipe]
    decay = chosen.weight_decay if weight_decay is None else weight_decay
    present = [kind for kind in chosen.include if any(isinstance(module, kind) for module in model.modules())]
    if include is None and not present:
        raise InputError(f"the {recipe} recipe works on {' and '.join(k.__name__ for k in chosen.include)} layers, "
                         f"and {type(model).__name__} has none; name its tensors with include=")  # fmt: skip
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=decay)
    options = Options(include=present if include is None else include, biases=True)
    if sparsity is not None:
        options["floor"] = 0.0
    halo = HALO(
        model,
        sparsity,
        xi=xi,
        psi=psi,
        solver="gradient",
        lam_lr=0.1,
        lam_momentum=0.9,
        lam_weight_decay=decay,
        **options,
    ).attach(optimizer)
    assert halo.lam_optimizer is not None
    return Faithful(halo, optimizer, PaperSchedule(optimizer, halo.lam_optimizer, chosen, steps_per_epoch))

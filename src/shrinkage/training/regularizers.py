"""The regularisers that the command line knows, by name: one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from shrinkage import dropfilter
from shrinkage.core.errors import InputError

Apply = Callable[[nn.Module, float], object]


def _dropfilter(model: nn.Module, rate: float) -> object:
    return dropfilter.convert(model, rate)


def _dropfilter_plus(model: nn.Module, rate: float) -> object:
    return dropfilter.convert(model, rate, plus=True)


REGULARIZERS: Mapping[str, Apply | None] = {
    "none": None,
    "dropfilter": _dropfilter,
    "dropfilter-plus": _dropfilter_plus,
}
"""The regularisers by the name that ``--regularizer`` takes; each changes what a model computes while it is trained."""


def regularize(model: nn.Module, name: str, rate: float) -> None:
    """Apply a regulariser to a network that is about to be trained; its ``state_dict`` stays as it is.

    Args:
        model: the network; convolutions are regularised.
        name: one of :data:`REGULARIZERS`.
        rate: drop rate, in [0, 1).

    Raises:
        InputError: if the network has no convolution, or the rate is out of range.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3))
    >>> regularize(net, "dropfilter", 0.1)
    >>> dropfilter.dropping(net).layers[0].p
    0.1
    """
    apply = REGULARIZERS[name]
    if apply is None:
        return
    if not any(isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) for module in model.modules()):
        raise InputError(
            f"regularizer {name!r} is for convolutions, and {type(model).__name__} has none: choose another model, "
            "such as lenet-5 or resnet-20, or leave the regularizer out"
        )
    apply(model, rate)

r"""What is drawn when a layer is called: the hooks behind DropFilter and DropFilter-PLUS.

*DropFilter* (Algorithm 1 of the source). Every call draws one mask over the filter and one over the bias,

.. math:: z = (r^F \odot F) * x + r^b \odot b, \qquad r^F_k,\, r^b_o \sim \text{Bernoulli}(1 - p)

and the gradients of F and b carry the same masks. *DropFilter-PLUS* means another mask at every position of the
convolution; Algorithm 2 puts cheap noise in its place,

.. math:: z = r^{out} \odot (F * x + b), \qquad r^{out} \sim \text{Uniform}(0, 1), \qquad
   \frac{\partial L}{\partial F} \leftarrow m \odot \frac{\partial L}{\partial F}, \qquad
   m \sim N\Bigl(1 - p,\, \frac{p (1 - p)}{n}\Bigr)

and likewise for b. What the source leaves open is chosen so:

- r^out is applied before the activation, since a layer does not know its activation. For ReLU, and whatever else is
  positively homogeneous, this is the same as after it.
- r^out is drawn for every element of a batch, and the gradient passes through it.
- n is the number of terms that a filter's gradient is the sum of: output positions times examples. Then m has the
  variance that the exact form has where all terms are equal, and a smaller one everywhere else.
- p = 0 is the plain layer in both, though Algorithm 2 by the letter multiplies by r^out even then.
- The masks of a call are shared by its examples, as one draw a forward pass says.

Nothing in the source says what happens at test time: see :data:`SCALINGS`.

The layer keeps its class and its Parameters. While its ``forward`` runs, an attribute of the same name hides the
Parameter; it is gone when the call returns, or fails.

Source: Pan, Jiang, Niu, Dou, "DropFilter: A Novel Regularization Method for Learning Convolutional Neural Networks",
arXiv 1811.06783, 2018.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shrinkage.core.errors import InputError, StateError
from shrinkage.dropfilter.noise import kept, uniform

SCALINGS: Mapping[str, str] = {
    "inverted": "divide by the expectation while training; evaluation is the plain layer",
    "test": "train by the letter; multiply by the expectation in evaluation",
    "none": "train by the letter; evaluation is the plain layer",
}
"""How training and evaluation are made to agree. The expectation is 1 − p for DropFilter and ½ for DropFilter-PLUS."""

_NAMES = ("weight", "bias")


class Rule(ABC):
    """What is drawn for one layer; a subclass says how.

    Args:
        p: drop rate, in [0, 1).
        scaling: one of :data:`SCALINGS`.

    Raises:
        InputError: if one of them is something else.
    """

    title: ClassVar[str]

    def __init__(self, p: float, scaling: str) -> None:
        if scaling not in SCALINGS:
            raise InputError(f"scaling must be one of {', '.join(SCALINGS)}, got {scaling!r}")
        self.p = check_rate(p)
        self.scaling = scaling
        self._handles: list[RemovableHandle] = []

    @property
    @abstractmethod
    def expectation(self) -> float:
        """The mean of what an output is multiplied by in training, before any scaling."""

    @abstractmethod
    def cover(self, module: nn.Module, x: Tensor | None) -> None:
        """Hide the Parameters of a layer that is about to be called in training."""

    @abstractmethod
    def trained(self, output: Tensor) -> Tensor:
        """What becomes of the layer's output in training."""

    def attach(self, module: nn.Module) -> None:
        """Act on every call of the module from now on."""
        self._handles = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            # always_call (with no output): a call that fails must not leave the Parameters hidden.
            module.register_forward_hook(self._after, always_call=True),
        ]

    def detach(self, module: nn.Module) -> None:
        """Leave the module alone."""
        _uncover(module)
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _uncover(module)  # a call that was interrupted from the keyboard runs no hooks
        if module.training and self.p > 0:
            self.cover(module, next(iter(args or kwargs.values()), None))

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor | None) -> Tensor | None:
        _uncover(module)
        if output is None or self.p == 0:
            return output
        if module.training:
            return self.trained(output)
        return output * self.expectation if self.scaling == "test" else output


def _uncover(module: nn.Module) -> None:
    for name in _NAMES:
        if name in module._parameters:
            module.__dict__.pop(name, None)


class FilterRule(Rule):
    """DropFilter: one mask a call over the filter, one over the bias."""

    title = "DropFilter"

    @property
    def expectation(self) -> float:
        """1 − p."""
        return 1 - self.p

    def cover(self, module: nn.Module, x: Tensor | None) -> None:
        """Put masked tensors in the place of filter and bias; autograd masks their gradients."""
        for name, parameter in own_parameters(module):
            mask = kept(parameter, self.p)
            if self.scaling == "inverted":
                mask = mask / self.expectation
            module.__dict__[name] = parameter * mask

    def trained(self, output: Tensor) -> Tensor:
        """The output as it is."""
        return output


class PlusRule(Rule):
    """DropFilter-PLUS by Algorithm 2: noise on the output, and on the gradients of filter and bias."""

    title = "DropFilter-PLUS"

    @property
    def expectation(self) -> float:
        """½, for any p > 0."""
        return 0.5

    def cover(self, module: nn.Module, x: Tensor | None) -> None:
        """Put tensors of the same values in the place of filter and bias, whose gradients are multiplied."""
        seen = 0 if x is None else positions(module, x)
        n = max(seen, 1)  # of an empty batch, or an input that the layer itself will refuse
        keep = 1 - self.p
        for name, parameter in own_parameters(module):
            mask = keep + torch.randn_like(parameter) * (self.p * keep / n) ** 0.5
            if self.scaling == "inverted":
                mask = mask / keep
            masked = parameter * mask
            module.__dict__[name] = parameter.detach() + (masked - masked.detach())  # adds 0, with a gradient

    def trained(self, output: Tensor) -> Tensor:
        """The output times r^out."""
        return output * uniform(output.detach(), 2.0 if self.scaling == "inverted" else 1.0)


def check_rate(p: float) -> float:
    """``p`` if it is a drop rate.

    Raises:
        InputError: if it is no number in [0, 1).
    """
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p < 1:
        raise InputError(f"the drop rate p must be a number in [0, 1), such as 0.1 to drop a tenth, got {p!r}")
    return float(p)


def rule_of(module: nn.Module) -> Rule | None:
    """The rule that acts on a module's calls, if there is one."""
    for hook in module._forward_pre_hooks.values():
        rule = getattr(hook, "__self__", None)
        if isinstance(rule, Rule):
            return rule
    return None


def own_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Filter, and bias if there is one, as the module holds them.

    Raises:
        StateError: if the filter is no Parameter of the module.
    """
    if module._parameters.get("weight") is None:
        raise StateError(
            f"the weight of a {type(module).__name__} that drops parts of it is no longer a Parameter: something, such "
            "as weight_norm, torch.nn.utils.prune or DataParallel, has taken its place; revert the one or the other"
        )
    for name in _NAMES:
        parameter = module._parameters.get(name)
        if parameter is not None:
            yield name, parameter


def positions(module: nn.Module, x: Tensor) -> int:
    """At how many places, over all examples, a convolution multiplies its filter with ``x``.

    >>> positions(nn.Conv2d(3, 8, 5, stride=2), torch.empty(10, 3, 28, 28))
    1440
    """
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    dimensions = len(module.kernel_size)
    sides = x.shape[-dimensions:]
    if module.padding != "same":
        padding = (0,) * dimensions if isinstance(module.padding, str) else module.padding
        sides = torch.Size(
            (side + 2 * pad - dilation * (size - 1) - 1) // stride + 1
            for side, pad, dilation, size, stride in zip(
                sides, padding, module.dilation, module.kernel_size, module.stride, strict=True
            )
        )
    return math.prod(x.shape[: -dimensions - 1]) * math.prod(sides)

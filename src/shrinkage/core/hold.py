"""Keeping zeros zero while the survivors train on.

A weight that is zero, with zero optimiser state and a zero gradient, is left at zero by every
coordinate-wise optimiser: so one cheap operation a step, clearing the pruned gradients, is enough. It is a
bitwise AND with an integer mask of the weight's own width, which also turns NaN and −0.0 into +0.0.
Optimisers that mix coordinates (Muon, LBFGS), or divide by zero there, get the weights cleared after the step as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from shrinkage.core.errors import InputError, StateError
from shrinkage.core.hooks import OptimizerHooks, owners, unwrap_optimizer
from shrinkage.core.selection import Rules, resolve, select

INTS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# Exactly these types: a subclass may do anything.
COORDINATE_WISE: frozenset[type[Optimizer]] = frozenset(
    {
        optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.RMSprop,
        optim.Adagrad, optim.Adadelta, optim.ASGD, optim.Rprop,
    }
)  # fmt: skip


def _leaves_zeros(optimizer: Optimizer) -> bool:
    """Whether what is zero, without a gradient and without memory, stays zero; 0/0 does not."""
    return type(optimizer) in COORDINATE_WISE and all(group.get("eps") != 0 for group in optimizer.param_groups)


def bit_mask(kept: Tensor, like: Tensor) -> Tensor:
    """All bits set where ``kept``, none elsewhere, in the width and memory layout of ``like``."""
    mask = torch.zeros_like(like, dtype=INTS[like.element_size()], requires_grad=False)
    return mask.masked_fill_(kept.to(like.device), -1)


def clear(tensor: Tensor, mask: Tensor) -> None:
    """Set ``tensor`` to +0.0 wherever ``mask`` has no bits."""
    tensor = tensor.detach()
    if tensor.element_size() == mask.element_size():
        tensor.view(mask.dtype).bitwise_and_(mask)
    else:
        tensor.masked_fill_(mask == 0, 0)


@dataclass
class Held:
    """One parameter whose zeros are kept."""

    parameter: nn.Parameter
    mask: Tensor

    def clear_weight(self, optimizer: Optimizer, spared: str = "") -> None:
        """Zero the weight, its gradient and its optimiser state where pruned, but for one entry of the state."""
        clear(self.parameter, self.mask)
        self.clear_gradient()
        self.clear_state(optimizer, spared)

    def clear_state(self, optimizer: Optimizer, spared: str = "") -> None:
        """Zero the optimiser's state where pruned, but for one of its entries."""
        for key, value in optimizer.state.get(self.parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == self.parameter.shape and key != spared:
                clear(value, self.mask)

    def clear_gradient(self) -> None:
        """Zero the gradient where pruned."""
        gradient = self.parameter.grad
        if gradient is not None:
            clear(gradient, self.mask)


class Holder:
    """Keeps the zeros of several parameters through the steps of their optimisers (a hook listener).

    Args:
        held: the parameters by optimiser.
        spared: an entry of the optimisers' state that is left as it is.
    """

    def __init__(self, held: Mapping[Optimizer, list[Held]], spared: str = "") -> None:
        self._held = dict(held)
        self._spared = spared
        self._stale = set(held)  # optimisers whose state may hold something for a pruned weight

    @classmethod
    def of(cls, pairs: Iterable[tuple[Optimizer, Held]], spared: str = "") -> Holder:
        """One for parameters that come with the optimisers that update them."""
        held: dict[Optimizer, list[Held]] = {}
        for optimizer, item in pairs:
            held.setdefault(optimizer, []).append(item)
        return cls(held, spared)

    def before_step(self, optimizer: Optimizer, scale: Tensor | None = None, once: bool = True) -> None:
        """Clear what would revive a pruned weight."""
        held = self._held.get(optimizer, [])
        if optimizer in self._stale:
            self._stale.discard(optimizer)
            for item in held:
                item.clear_weight(optimizer, self._spared)
        else:
            for item in held:
                item.clear_gradient()

    def after_step(self, optimizer: Optimizer) -> None:
        """Clear the weights where clearing gradients was not enough."""
        if not _leaves_zeros(optimizer):
            for item in self._held.get(optimizer, []):
                clear(item.parameter, item.mask)

    def closure_value(self, optimizer: Optimizer, loss: Any) -> Any:
        """The user's loss, as it is."""
        return loss

    def state_loaded(self, optimizer: Optimizer) -> None:
        """Clear the new optimiser state at the next step."""
        if optimizer in self._held:
            self._stale.add(optimizer)

    def clear_all(self) -> None:
        """Zero weights and optimiser state now."""
        for optimizer, held in self._held.items():
            for item in held:
                item.clear_weight(optimizer, self._spared)


class KeepZeros:
    """Later training of an already sparse model: what is zero now stays zero.

    Made by :func:`keep_zeros`.
    """

    def __init__(self, model: nn.Module, kept: Mapping[str, Tensor]) -> None:
        self._model = model
        self._kept = dict(kept)
        self._hooks: OptimizerHooks | None = None

    def attach(self, *optimizers: Any) -> KeepZeros:
        """Keep the zeros through every step of these optimisers.

        Raises:
            StateError: if it is attached already.
            InputError: if none of the optimisers holds a sparse weight of the model.
        """
        if self._hooks is not None:
            raise StateError("these zeros are kept already; call detach() before attaching elsewhere")
        inner = list(dict.fromkeys(unwrap_optimizer(optimizer, "keep_zeros") for optimizer in optimizers))
        owner = owners(inner)
        held: dict[Optimizer, list[Held]] = {}
        for name, parameter in resolve(self._model, self._kept).items():
            if id(parameter) in owner:
                mask = bit_mask(self._kept[name], parameter)
                held.setdefault(owner[id(parameter)][0], []).append(Held(parameter, mask))
        if not held:
            raise InputError("none of these optimisers holds a sparse weight of this model")
        self._hooks = OptimizerHooks(Holder(held), "keep_zeros", inner)
        return self

    def detach(self) -> None:
        """Stop keeping the zeros."""
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None

    def masks(self) -> dict[str, Tensor]:
        """Which weights are kept (``True``), by parameter name."""
        return dict(self._kept)


def keep_zeros(model: nn.Module, include: Rules | None = None, exclude: Rules | None = None) -> KeepZeros:
    """Keep every weight that is exactly zero now at zero during later training.

    Args:
        model: a sparse model, from any method or file.
        include: which tensors to look at; default as in :func:`shrinkage.core.selection.select`.
        exclude: which of them to leave alone.

    Raises:
        InputError: if no selected weight is zero.

    >>> import torch, shrinkage
    >>> net = torch.nn.Linear(2, 1)
    >>> _ = torch.nn.init.zeros_(net.weight[:, :1].data)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> kept = shrinkage.keep_zeros(net).attach(optimizer)
    >>> net(torch.ones(1, 2)).sum().backward(); optimizer.step()
    >>> net.weight[0, 0].item()
    0.0
    """
    names = [item.name for item in select(model, include, exclude)]
    kept = {name: parameter.detach() != 0 for name, parameter in resolve(model, names).items()}
    kept = {name: mask for name, mask in kept.items() if not bool(mask.all())}
    if not kept:
        raise InputError("no selected weight is zero: there are no zeros to keep")
    return KeepZeros(model, kept)

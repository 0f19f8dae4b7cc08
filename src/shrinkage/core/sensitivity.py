r"""What a loss says about units: derivatives on some batches, taken without leaving a trace on the model.

Put a gate :math:`c_g = 1` before every unit, so that its weights act as :math:`c_g w_g`. The derivative by the gate is
:math:`\sum_{j \in g} w_j \partial / \partial w_j`, and says to first order what removing the unit changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from shrinkage.core.errors import InputError
from shrinkage.core.granularity import wide
from shrinkage.core.plan import Plan

Batch = tuple[Any, Any]
Loss = Callable[[Any, Any], Tensor]


def random_state_kept(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, random numbers may be drawn; afterwards torch's generators stand where they stood.

    Args:
        model: tells which CUDA devices matter beside the CPU.
    """
    devices = sorted({parameter.get_device() for parameter in model.parameters() if parameter.is_cuda})
    return torch.random.fork_rng(devices)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[Callable[[Any], Any]]:
    """A way to run ``model``, in the mode it is in, that changes neither buffers nor the random state.

    Two runs begun one after the other draw the same random numbers: dropout drops the same.

    >>> norm = nn.BatchNorm1d(2)
    >>> with undisturbed(norm) as run:
    ...     _ = run(torch.ones(4, 2))
    >>> norm.running_mean
    tensor([0., 0.])
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with random_state_kept(model), torch.enable_grad():
        yield lambda x: functional_call(model, buffers, (x,))


def pairs(method: str, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, one by one, or an error that says what to pass.

    Raises:
        InputError: if there are none, or they are no pairs.
    """
    empty = True
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise InputError(
                f"{method} takes batches that are pairs (x, y), got {type(batch).__name__}: "
                "pass a list of them, such as [(x, y)]"
            )
        empty = False
        yield batch[0], batch[1]
    if empty:
        raise InputError(f"{method} looks at data: pass pairs (x, y), such as prune(model, [(x, y)])")


def mean_over_batches(
    method: str,
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    derive: Callable[[Tensor], Sequence[Tensor]],
) -> list[Tensor]:
    """``derive(loss(model(x), y))``, averaged over the batches, in fp32 or wider.

    The model runs in the mode it is in, and keeps its buffers, gradients and the random state.

    Args:
        method: for messages.
        model: the network.
        batches: pairs ``(x, y)``; each counts the same, whatever its size.
        loss: gives a scalar.
        derive: takes the loss of one batch to tensors, as ``torch.autograd.grad`` does.

    Raises:
        InputError: for batches that are missing or no pairs, or a loss that is no differentiable scalar.
    """
    sums: list[Tensor] = []
    count = 0
    with undisturbed(model) as run:
        for x, y in pairs(method, batches):
            value = loss(run(x), y)
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise InputError(
                    f"{method} needs a loss that is a differentiable scalar of loss(model(x), y), got {got}"
                )
            parts = [wide(part.detach()) for part in derive(value.sum())]
            sums = [total + part for total, part in zip(sums, parts, strict=True)] if sums else parts
            count += 1
    return [total / count for total in sums]


def unit_sums(plan: Plan, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums over every unit of tensors shaped like the selected weights, in their order.

    The derivative by a gate: what :meth:`~shrinkage.core.plan.Plan.spread` spreads, backwards.
    """
    sums: list[Tensor] = []
    for item, tensor in zip(plan.selected, tensors, strict=True):
        with torch.enable_grad():
            gates = tensor.new_ones(plan.shapes[item.name], requires_grad=True)
            total = (plan.granularity.spread(gates, tensor, item.out_dim) * tensor).sum()
        sums += torch.autograd.grad(total, gates)
    return sums

r"""Movement pruning: what stays are the weights that fine-tuning moves away from zero.

Idea: in a network that is fine-tuned, a weight's size tells what it was worth before; which way it is pushed tells what
it is worth now. Scores add up that push, whether the weight is masked at the moment or not:

.. math:: w = \theta \odot M, \qquad M = 1 \text{ for the } k \text{ highest scores}, \qquad
   S^{(t+1)} = S^{(t)} - \theta \odot \partial L / \partial w

This is gradient descent on S if the mask is taken for S itself in the backward pass (straight-through). The weights
get the gradient of a product: :math:`\partial L / \partial \theta = M \odot \partial L / \partial w`. A masked weight
stands still, but for momentum and decay, and comes back if its score does.

Regime: meant for fine-tuning a network that was trained on something else. It also works from random weights.

Source: Sanh, Wolf, Rush, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020, arXiv 2005.07683; "hard"
movement pruning, with its cubic ramp. In their released code scores begin at zero, and each matrix keeps its own share
(``distribution="uniform"``); here all tensors compete by default, as everywhere in this library.

Choices here: scores add up as in the paper's formula, by plain gradient descent, whose learning rate would change no
order and is left out (the released code moves them by Adam). Between equal scores, as all are before the first step and
those of dead inputs remain, the smaller weights go. The score of a group is the sum over its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from shrinkage.core.engine import Sparsifier
from shrinkage.core.latent import Choice, LatentForm, latent
from shrinkage.core.options import Options
from shrinkage.core.slots import Slot


class Masked(LatentForm):
    """w = θ ⊙ M, with scores that follow the weights' movement."""

    def start(self, slots: list[Slot]) -> None:
        """Scores begin at zero."""
        super().start(slots)
        self.scores = [torch.zeros_like(slot.sizes()) for slot in slots]

    def score(self, index: int, size: Tensor) -> Tensor:
        """The movement, in keys of the same order."""
        return keys(self.slots[index].per_cost(self.scores[index]))

    def factor(self, index: int, size: Tensor, choice: Choice) -> Tensor:
        """The mask."""
        return choice.kept.to(size.dtype)

    def gradients(
        self,
        own: Sequence[int],
        sizes: Sequence[Tensor],
        choices: Sequence[Choice],
        pulls: Sequence[Tensor],
        scale: Tensor | None,
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Through the mask to the weights, past it to the scores."""
        for i, pull in zip(own, pulls, strict=True):
            self.scores[i].sub_(pull if scale is None else pull / scale)
        return [(choice.kept.to(size.dtype), None) for size, choice in zip(sizes, choices, strict=True)]

    def finish(self) -> None:
        """Scores have done their work."""
        self.scores = []

    def state_dict(self) -> dict[str, Any]:
        """The scores."""
        return {"scores": [score.clone() for score in self.scores]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.scores = [
            saved.to(slot.parameter.device, copy=True) for slot, saved in zip(self.slots, state["scores"], strict=True)
        ]


def keys(values: Tensor) -> Tensor:
    """Floats of any sign as floats ≥ 0 in the same order, but for their last bit.

    A float's bits, read as an integer, order like its size; turned over where the sign is set, like its value. One bit
    is given up to the sign.

    >>> keys(torch.tensor([-2.0, -0.0, 0.0, 1e-30, 3.0])).diff() > 0
    tensor([ True, False,  True,  True])
    """
    integer = {4: torch.int32, 8: torch.int64}[values.element_size()]
    largest = torch.iinfo(integer).max
    bits = (values + 0.0).view(integer)  # −0.0 + 0.0 is +0.0
    ordered = bits ^ ((bits >> (8 * values.element_size() - 1)) & largest)
    return ((ordered >> 1) + (largest // 2 + 1)).view(values.dtype)


class Movement(Sparsifier):
    """Fine-tune a network to an exact share of zeros; weights that move away from zero stay.

    Args:
        model: the network, already trained on something.
        sparsity: share of zeros wanted, in (0, 1); ``None`` only with an N:M granularity, which fixes it.
        steps: optimiser steps of the whole fine-tuning.
        **options: see :class:`~shrinkage.core.engine.Sparsifier`. ``start`` and ``end`` default to 0.1 and 0.8: scores
            need some steps before the first weights go.

    Raises:
        InputError: for arguments that cannot work; from ``attach`` for LBFGS.

    >>> import torch
    >>> from shrinkage.pruning.movement import Movement
    >>> net = torch.nn.Linear(4, 1, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> method = Movement(net, sparsity=0.5, steps=10).attach(optimizer)
    >>> for _ in range(10):
    ...     net.weight.grad = torch.tensor([[-1.0, -1.0, 1.0, 1.0]])  # the small ones are wanted larger
    ...     optimizer.step()
    >>> method.finalize().zeros, net.weight[0, 2:].tolist()
    (2, [0.0, 0.0])
    """

    def __init__(
        self, model: nn.Module, sparsity: float | None = None, steps: int | None = None, **options: Unpack[Options]
    ) -> None:
        solver, options = latent(type(self), Masked(), sparsity, steps, options)
        super().__init__(model, sparsity, steps, solver=solver, **options)

"""The loss of each example, for very many calls on few examples."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each example, to rounding the same as PyTorch's, and several times faster for few classes.

    log Σ exp(z_c − z_y), where the target's own output takes the place of the greatest; if that overflows, PyTorch's.

    Args:
        outputs: logits, shape (M, classes).
        y: classes, shape (M,), of any type of whole numbers; or what else PyTorch's takes.

    >>> outputs, y = torch.tensor([[2.0, 0.0], [300.0, 0.0]]), torch.tensor([0, 1])
    >>> cross_entropy(outputs, y)
    tensor([1.2693e-01, 3.0000e+02])
    """
    if not y.is_floating_point():
        y = y.long()
    if outputs.ndim != 2 or y.is_floating_point():
        return functional.cross_entropy(outputs, y, reduction="none")
    shifted = outputs - outputs.gather(1, y.unsqueeze(1))
    sums = torch.mv(shifted.exp_(), outputs.new_ones(outputs.shape[1]))
    if len(sums) and not math.isfinite(float(sums.detach().max())):
        return functional.cross_entropy(outputs, y, reduction="none")
    return sums.log_()

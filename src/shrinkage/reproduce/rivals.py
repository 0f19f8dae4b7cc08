"""What CoNNTrA is held against: backpropagation in double precision, and straight-through ternary training."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from shrinkage.discrete.chain import chain


def backpropagation(
    net: nn.Module, x: Tensor, y: Tensor, *, epochs: int, batch: int, lr: float, seed: int, dtype: torch.dtype
) -> nn.Module:
    """Train a network by Adam with a cosine schedule, in ``dtype``, in place."""
    net.to(dtype).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    steps = epochs * math.ceil(len(x) / batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    x = x.to(dtype)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for first in range(0, len(x), batch):
            chosen = order[first : first + batch]
            optimizer.zero_grad()
            functional.cross_entropy(net(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net.eval()


class Ternary(nn.Module):
    """Ternary values in the forward pass, the gradient straight through to floating-point weights behind them.

    Weights beyond 0.7 times the mean size become ± the mean size of these, all others zero: Li, Zhang & Liu, "Ternary
    Weight Networks", 2016, arXiv 1605.04711.
    """

    def forward(self, weight: Tensor) -> Tensor:
        """The ternary weights."""
        size = weight.detach().abs()
        kept = size > 0.7 * size.mean()
        scale = (size * kept).sum() / kept.sum().clamp(min=1)
        return weight + (weight.detach().sign() * kept * scale - weight.detach())


def straight_through(
    net: nn.Module, x: Tensor, y: Tensor, *, epochs: int, batch: int, lr: float, seed: int
) -> nn.Module:
    """The same with ternary weights, a scale a layer and free biases; the floating-point weights are left behind."""
    layers = [stage.layer for stage in chain(net).stages]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Ternary())
    backpropagation(net, x, y, epochs=epochs, batch=batch, lr=lr, seed=seed, dtype=torch.float32)
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight")
    return net

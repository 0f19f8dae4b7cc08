"""A learnable problem that trains in a fraction of a second, and a loop like everybody's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

FEATURES, CLASSES = 12, 4


def net() -> nn.Module:
    """Two hidden layers with a normalisation between them; 512 selected weights. Seed torch before."""
    return nn.Sequential(
        nn.Linear(FEATURES, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, CLASSES)
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Inputs ``[32, 12]`` and labels ``[32]`` (int64) of one step; the same step gives the same batch."""
    x = torch.randn(32, FEATURES, generator=torch.Generator().manual_seed(step))
    return x, (x[:, :CLASSES] + x[:, CLASSES : 2 * CLASSES]).argmax(1)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: range,
    after: Callable[[int], None] | None = None,
) -> None:
    """An ordinary loop; ``after(step)`` is called once the step is taken."""
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if after is not None:
            after(step)

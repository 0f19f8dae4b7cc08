"""Accuracy on a split."""

from __future__ import annotations

import torch
from torch import nn

from shrinkage.core.evaluation import evaluating
from shrinkage.data.sets import Prepare, Split

_BATCH = 500


def accuracy(model: nn.Module, split: Split, prepare: Prepare) -> float:
    """Share of the examples that the model classifies rightly, in percent.

    The model is evaluated on the device it is on, in evaluation mode, and left in the mode it was in.

    Args:
        model: maps a prepared batch to logits (B, classes).
        split: the examples; not empty.
        prepare: raw batch to the network's input.
    """
    device = next(model.parameters()).device
    hits = torch.zeros((), dtype=torch.int64, device=device)  # summed there, so that the CPU waits once
    with evaluating(model):
        for start in range(0, len(split), _BATCH):
            x, y = split.x[start : start + _BATCH], split.y[start : start + _BATCH]
            logits = model(prepare(x.to(device, non_blocking=True)))
            hits += (logits.argmax(1) == y.to(device, non_blocking=True)).sum()
    return 100 * hits.item() / len(split)

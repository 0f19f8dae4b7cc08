"""Looking at a model without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module comes back in the mode it was in.

    >>> net = nn.Sequential(nn.Dropout().eval(), nn.Dropout())
    >>> with evaluating(net): net[1].training, torch.is_grad_enabled()
    (False, False)
    >>> net[0].training, net[1].training
    (False, True)
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training

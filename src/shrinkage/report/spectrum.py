"""In how many directions a layer's outputs vary: eigenvalues of their covariance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from shrinkage.core.evaluation import evaluating

_SMALLEST = 1e-12  # of the largest eigenvalue: below, float32 activations hold nothing but rounding


def spectra(model: nn.Module, names: Sequence[str], batches: Iterable[Tensor]) -> dict[str, list[float]]:
    """Eigenvalues of the covariance of what layers put out, before any non-linearity.

    A fully connected layer has one sample an input; a convolution one an input and place, over its channels.

    Args:
        model: the network; its training mode is put back.
        names: parameters; the layers that own them are looked at, once each. What is neither linear nor a convolution
            is left out, and so is what no batch reaches.
        batches: prepared inputs, on the model's device; no gradient is taken.

    Returns:
        By layer, its eigenvalues divided by the largest, in falling order; empty where the outputs do not vary.

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> with torch.no_grad(): _ = layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    >>> spectra(nn.Sequential(layer), ["0.weight"], [torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])])
    {'0': [1.0, 0.25]}
    """
    moments: dict[str, Moments] = {}
    hooks = []
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in names):
        module = model.get_submodule(owner)
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            moments[owner] = Moments()
            hooks.append(module.register_forward_hook(_watch(moments[owner], 1 if _convolves(module) else -1)))
    try:
        with evaluating(model):
            for batch in batches:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {owner: found.eigenvalues() for owner, found in moments.items() if found.count}


def directions(eigenvalues: Sequence[float], share: float = 0.99) -> int:
    """How many directions hold this share of the variance.

    >>> directions([1.0, 0.5, 0.001])
    2
    """
    total, held = sum(eigenvalues), 0.0
    for count, value in enumerate(eigenvalues, 1):
        held += value
        if held >= share * total:
            return count
    return 0


@dataclass
class Moments:
    """Mean and covariance of vectors that come in pieces, in float64; each piece is centred before it is multiplied."""

    count: int = 0
    _mean: Tensor = field(default_factory=lambda: torch.zeros(0))
    _scatter: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def add(self, rows: Tensor) -> None:
        """Take in vectors, one a row."""
        rows = rows.to(torch.float64)
        if not len(rows):
            return
        mean = rows.mean(0)
        centred = rows - mean
        scatter = centred.T @ centred
        if not self.count:
            self.count, self._mean, self._scatter = len(rows), mean, scatter
            return
        total, gap = self.count + len(rows), mean - self._mean
        self._scatter += scatter + torch.outer(gap, gap) * (self.count * len(rows) / total)
        self._mean += gap * (len(rows) / total)
        self.count = total

    def eigenvalues(self) -> list[float]:
        """Relative to the largest; empty if there is none above zero."""
        values = torch.linalg.eigvalsh(self._scatter.cpu()).flip(0)
        if not bool(values.isfinite().all()) or not float(values[0]) > 0:
            return []
        relative = (values / values[0]).tolist()
        return [float(f"{value:.4g}") if value > _SMALLEST else 0.0 for value in relative]


def _convolves(module: nn.Module) -> bool:
    return not isinstance(module, nn.Linear)


def _watch(moments: Moments, features: int) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
        moments.add(output.movedim(features, -1).flatten(0, -2))

    return hook

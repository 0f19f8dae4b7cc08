"""What ``finalize`` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shrinkage.core.tables import render


@dataclass(frozen=True)
class Layer:
    """Zeros of one tensor.

    Attributes:
        name: of the parameter.
        zeros: units that are exactly zero.
        units: all units.
    """

    name: str
    zeros: int
    units: int


@dataclass(frozen=True)
class Sparsified:
    """What a sparsifier has reached.

    Attributes:
        method: its name.
        layers: zeros per tensor.
        target: how many zeros were asked for; ``None`` for fixed strengths.
    """

    method: str
    layers: tuple[Layer, ...]
    target: int | None

    @property
    def zeros(self) -> int:
        """Units that are exactly zero."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def units(self) -> int:
        """All selected units."""
        return sum(layer.units for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / self.units

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers and strings."""
        return {
            "method": self.method,
            "zeros": self.zeros,
            "units": self.units,
            "sparsity": self.sparsity,
            "target": self.target,
            "layers": {layer.name: {"zeros": layer.zeros, "units": layer.units} for layer in self.layers},
        }

    def __str__(self) -> str:
        rows: list[list[object]] = [
            [layer.name, layer.units, layer.units - layer.zeros, f"{layer.zeros / layer.units:.2%}"]
            for layer in self.layers
        ]
        rows += [[], ["total", self.units, self.units - self.zeros, f"{self.sparsity:.2%}"]]
        return render(["tensor", "units", "kept", "zeros"], rows, title=self.method)

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
class Spent:
    """Multiply–accumulates of a model on an example.

    Attributes:
        kept: what is left, with everything that is not selected counted in full.
        budget: what may be left at most.
        dense: with nothing zero.
    """

    kept: int
    budget: int
    dense: int

    @property
    def density(self) -> float:
        """kept / dense."""
        return self.kept / self.dense

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers."""
        return {**vars(self), "density": self.density}

    def __str__(self) -> str:
        return (
            f"MACs: {self.kept:,} of {self.dense:,} ({self.density:.2%}) are left, "
            f"at most {self.budget:,} were asked for"
        )


@dataclass(frozen=True)
class Sparsified:
    """What a sparsifier has reached.

    Attributes:
        method: its name.
        layers: zeros per tensor.
        target: how many zeros were asked for; ``None`` for fixed strengths, and for a budget.
        macs: multiply–accumulates that are left, where a budget was asked for.
    """

    method: str
    layers: tuple[Layer, ...]
    target: int | None
    macs: Spent | None = None

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
            **({} if self.macs is None else {"macs": self.macs.to_dict()}),
        }

    def __str__(self) -> str:
        rows: list[list[object]] = [
            [layer.name, layer.units, layer.units - layer.zeros, f"{layer.zeros / layer.units:.2%}"]
            for layer in self.layers
        ]
        rows += [[], ["total", self.units, self.units - self.zeros, f"{self.sparsity:.2%}"]]
        table = render(["tensor", "units", "kept", "zeros"], rows, title=self.method)
        return table if self.macs is None else f"{table}\n{self.macs}"

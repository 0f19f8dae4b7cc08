"""What a network with packed weights stores and computes: bits, bytes, additions and multiplications."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from shrinkage.core.footprint import trace
from shrinkage.core.tables import render
from shrinkage.discrete.packed import PackedLayer

_DOUBLE = 8  # bytes


@dataclass(frozen=True)
class PackedCost:
    """One packed layer.

    Attributes:
        name: its path in the model.
        weights: how many it has, biases left out.
        nonzeros: how many of them are not zero.
        bits: of a weight.
        bytes: of codes, scale and bias as they are stored.
        additions: for the example: one for each weight that is not zero, at each place it is used, as a device would
            do it; the tables that packed layers sum up are not counted.
        multiplications: for the example: those by the scale, and with other values than −1, 0 and 1 by the weights.
    """

    name: str
    weights: int
    nonzeros: int
    bits: int
    bytes: int
    additions: int
    multiplications: int


@dataclass(frozen=True)
class Ledger:
    """All packed layers of a model; prints as a table.

    Attributes:
        layers: in the model's order.
    """

    layers: tuple[PackedCost, ...]

    @property
    def bytes(self) -> int:
        """Of all layers as they are stored."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def ratio(self) -> float:
        """Bytes of the weights in double precision over all stored bytes, those of biases and scales included."""
        return _DOUBLE * sum(layer.weights for layer in self.layers) / self.bytes

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers and strings."""
        return {"layers": [asdict(layer) for layer in self.layers], "bytes": self.bytes, "ratio": self.ratio}

    def __str__(self) -> str:
        rows: list[list[object]] = [list(asdict(layer).values()) for layer in self.layers]
        sums = [sum(getattr(layer, name) for layer in self.layers) for name in ("weights", "nonzeros", "bytes")]
        work = [sum(getattr(layer, name) for layer in self.layers) for name in ("additions", "multiplications")]
        rows += [[], ["total", sums[0], sums[1], None, sums[2], *work]]
        header = ["layer", "weights", "non-zeros", "bits", "bytes", "additions", "multiplications"]
        return render(header, rows, title=f"{self.ratio:.1f} times smaller than in double precision")


def ledger(model: nn.Module, example: Any) -> Ledger:
    """Count what the packed layers of a model store and compute.

    Args:
        model: with packed layers, as :meth:`~shrinkage.discrete.conntra.CoNNTrA.packed` gives it.
        example: an input, as for :func:`shrinkage.footprint`.

    Raises:
        InputError: if the model cannot run on the example.
    """
    notes = trace(model, example)
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, PackedLayer):
            continue
        multiplications = notes.others[module]
        nonzeros = module.nonzeros
        uses = multiplications // (module.rows if module.values.signs else module.rows + nonzeros)
        weights = module.rows * module.columns
        found.append(
            PackedCost(name, weights, nonzeros, module.values.bits, module.stored, nonzeros * uses, multiplications)
        )
    return Ledger(tuple(found))

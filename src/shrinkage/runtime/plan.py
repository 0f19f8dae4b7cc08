"""What an engine does, layer by layer, as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from shrinkage.core.tables import render


@dataclass(frozen=True)
class PlannedLayer:
    """One operation.

    Attributes:
        layer: path of the module in the model.
        operation: with the activation that is fused into it.
        shape: of its output for one item.
        density: share of weights that are not zero; None without weights.
        kernel: how it is computed.
        side_by_side: items at a time.
        seconds: for an item, as measured when the engine was tuned; None where that was not measured.
        gflops: 10⁹ floating-point operations on non-zeros a second; None without weights.
    """

    layer: str
    operation: str
    shape: tuple[int, ...]
    density: float | None
    kernel: str
    side_by_side: int | None
    seconds: float | None
    gflops: float | None


@dataclass(frozen=True)
class EnginePlan:
    """The plan of an engine for a batch of the example's size; prints as a table.

    Attributes:
        machine: the processor.
        threads: how many work at once.
        batch: size the plan is for.
        layers: in order.
        handed_to: the dense engine that runs the whole model because it is faster, or None.
    """

    machine: str
    threads: int
    batch: int
    layers: tuple[PlannedLayer, ...]
    handed_to: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        plural = "s" if self.threads > 1 else ""
        title = f"Engine for {self.machine}, {self.threads} thread{plural}, batch {self.batch}"
        if self.handed_to:
            return f"{title}: the whole model runs in {self.handed_to}, which is faster"
        rows: list[list[object]] = [
            [
                layer.layer,
                layer.operation,
                "×".join(map(str, layer.shape)),
                None if layer.density is None else f"{layer.density:.1%}",
                layer.kernel,
                layer.side_by_side,
                None if layer.seconds is None else round(layer.seconds * 1e6, 2),
                None if layer.gflops is None else round(layer.gflops, 1),
            ]
            for layer in self.layers
        ]
        header = ["layer", "operation", "output", "density", "kernel", "items", "µs an item", "GFLOP/s"]
        total = sum(layer.seconds or 0.0 for layer in self.layers) * 1e6
        rows += [[], ["total", "", "", None, "", None, round(total, 2), None]]
        return render(header, rows, title=title)

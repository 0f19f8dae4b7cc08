"""What one training gave, kept in the run's folder until the report is written."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from shrinkage.core.errors import InputError
from shrinkage.report import Figures
from shrinkage.report.figures import LayerZeros, Point
from shrinkage.training.callbacks import Row


@dataclass(frozen=True)
class Outcome:
    """A training that is complete.

    Attributes:
        accuracy: on the test images, in percent.
        val_accuracy: on the held-out training images, in percent; None if there are none.
        seconds: it took, evaluation after each epoch included.
        rows: one an epoch; see :class:`~shrinkage.training.callbacks.Metrics`.
        figures: what is drawn of the network.
    """

    accuracy: float
    val_accuracy: float | None
    seconds: float
    rows: list[Row]
    figures: Figures

    def to_json(self) -> str:
        """As a JSON document that :func:`read` understands."""
        return json.dumps(dataclasses.asdict(self)) + "\n"


def read(path: Path) -> Outcome:
    """Read an outcome from its file.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        drawn = content.pop("figures")
        layers = [LayerZeros(**layer) for layer in drawn.pop("layers")]
        points = [Point(**point) for point in drawn.pop("points")]
        return Outcome(**content, figures=Figures(**drawn, layers=layers, points=points))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); remove it to repeat that training from its last checkpoint"
        ) from error

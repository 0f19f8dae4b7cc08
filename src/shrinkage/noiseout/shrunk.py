"""What neuron pruning returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shrinkage.core.tables import render


@dataclass(frozen=True)
class Units:
    """The neurons or channels of one layer, or of several that go together.

    Attributes:
        before: how many there were.
        after: how many are left.
    """

    before: int
    after: int


@dataclass(frozen=True)
class Fold:
    """One neuron that went.

    Attributes:
        layer: its name.
        unit: which it was, among those of the layer before this removal.
        partner: the one it was folded into; one that went later took what it had along.
        correlation: ρ's size between the two, in [0, 1]: the root of the share of variance that the partner explains.
            1 for constants.
    """

    layer: str
    unit: int
    partner: int
    correlation: float


@dataclass(frozen=True)
class Round:
    """One removal with the training after it.

    Attributes:
        units: neurons left.
        parameters: parameters left.
        score: what the user's measure gave then; ``None`` if it was not asked.
        kept: whether the removal stayed, or was taken back because the score had fallen too far.
    """

    units: int
    parameters: int
    score: float | None
    kept: bool


@dataclass(frozen=True)
class Shrunk:
    """What neuron pruning has removed; prints as a table.

    Attributes:
        method: its name.
        layers: neurons of every layer that can lose some, by the layer's name.
        parameters: of the whole model, before and after.
        folds: the neurons that went, in their order; of a whole run, none.
        rounds: removals and trainings of a run; of a single removal, none.
        left: layers that stay as they are, because the model's code relies on their size or something unknown
            reads them.
    """

    method: str
    layers: Mapping[str, Units]
    parameters: Units
    folds: Sequence[Fold] = ()
    rounds: Sequence[Round] = ()
    left: Sequence[str] = ()

    @property
    def total(self) -> Units:
        """Neurons of all layers."""
        return Units(
            sum(each.before for each in self.layers.values()), sum(each.after for each in self.layers.values())
        )

    @property
    def removed(self) -> float:
        """Share of the parameters that are gone."""
        return 1 - self.parameters.after / self.parameters.before

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers, texts, lists and dicts."""
        return {
            "method": self.method,
            "layers": {name: vars(each) for name, each in self.layers.items()},
            "units": vars(self.total),
            "parameters": vars(self.parameters),
            "removed": self.removed,
            "folds": [vars(each) for each in self.folds],
            "rounds": [vars(each) for each in self.rounds],
            "left": list(self.left),
        }

    def __str__(self) -> str:
        rows: list[list[object]] = [[name, each.before, each.after] for name, each in self.layers.items()]
        rows += [[], ["neurons", self.total.before, self.total.after]]
        rows += [["parameters", self.parameters.before, self.parameters.after]]
        lines = [render(["layer", "neurons", "left"], rows, title=f"{self.method}, {self.removed:.1%} removed")]
        if self.left:
            lines.append(f"stayed as they are: {', '.join(self.left)}")
        if self.rounds:
            scored = any(each.score is not None for each in self.rounds)
            table: list[list[object]] = [
                [str(index), each.units, each.parameters, each.score, each.kept]
                for index, each in enumerate(self.rounds)
            ]
            header = ["round", "neurons", "parameters", "score", "kept"]
            width = 5 if scored else 3
            lines.append(render(header[:width], [row[:width] for row in table]))
        return "\n\n".join(lines)

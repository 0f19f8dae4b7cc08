"""What training in a finite set has come to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from shrinkage.core.result import Sparsified
from shrinkage.core.tables import render


@dataclass(frozen=True)
class Sweep:
    """One look at every weight.

    Attributes:
        variant: ``"gradient"``, ``"exhaustive"`` or ``"together"``.
        examples: how many the losses are of.
        before: mean loss before it.
        loss: mean loss after it, never above ``before``.
        trials: values tried on single weights.
        naive: loss evaluations that a sweep without any knowledge of the network would take: n·(|S| − 1).
        evaluations: forward passes of the whole network, and gradients.
        moved: weights that were given another value, counted each time.
        seconds: wall-clock time.
        accuracy: on the validation examples after it, in percent; None without.
    """

    variant: str
    examples: int
    before: float
    loss: float
    trials: int
    naive: int
    evaluations: int
    moved: int
    seconds: float
    accuracy: float | None = None


@dataclass(frozen=True)
class Discretised(Sparsified):
    """A network whose weights are from a finite set; prints a line a sweep.

    Attributes:
        values: the set.
        bits: of a weight.
        scale: ``"layer"`` if each layer has a factor, else None.
        temperature: what outputs are divided by before the loss; 1 if that is in the last layer's scale.
        sweeps: in their order.
        rounds: what the user's loop returned, a number a round; empty without one.
    """

    values: tuple[float, ...] = ()
    bits: int = 0
    scale: str | None = None
    temperature: float = 1.0
    sweeps: tuple[Sweep, ...] = ()
    rounds: tuple[float | None, ...] = ()

    @property
    def seconds(self) -> float:
        """Of all sweeps."""
        return sum(sweep.seconds for sweep in self.sweeps)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers and strings, but for the seconds, which differ from run to run."""
        sweeps = [{name: value for name, value in asdict(each).items() if name != "seconds"} for each in self.sweeps]
        return {
            **super().to_dict(),
            "values": list(self.values),
            "bits": self.bits,
            "scale": self.scale,
            "temperature": self.temperature,
            "sweeps": sweeps,
            "rounds": list(self.rounds),
        }

    def __str__(self) -> str:
        values = ", ".join(f"{value:g}" for value in self.values)
        title = (
            f"{self.method}, {self.units:,} weights from {{{values}}}: {self.bits} bits each, "
            f"{self.sparsity:.2%} of them are zero"
        )
        rows: list[list[object]] = [
            [
                str(index), each.variant, each.before, each.loss, each.moved, each.trials,
                f"{each.trials / each.naive:.1%}", each.evaluations, each.seconds,
                None if each.accuracy is None else f"{each.accuracy:.2f} %",
            ]
            for index, each in enumerate(self.sweeps)
        ]  # fmt: skip
        header = [
            "sweep",
            "variant",
            "loss before",
            "loss",
            "moved",
            "trials",
            "of all",
            "passes",
            "seconds",
            "accuracy",
        ]
        table = render(header, rows, title=title)
        if all(value is None for value in self.rounds):
            return table
        return f"{table}\nresults of the rounds: {', '.join(str(value) for value in self.rounds)}"

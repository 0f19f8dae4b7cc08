"""What a benchmark found: a table, a dict, and the one sentence it comes down to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from shrinkage.core.tables import render
from shrinkage.runtime.bench.race import Spread, Times

TOLERANCE = 1e-4
"""The largest difference from eager PyTorch, relative to the largest output, that an engine in float32 may show."""


@dataclass(frozen=True)
class Row:
    """One engine with one form of the network at one batch size.

    Attributes:
        engine: its key; ``title`` as it is called in tables.
        title: see ``engine``.
        precision: of its arithmetic: ``"fp32"`` stands for the network's own type.
        rival: whether it is a maintained dense engine in the network's own type.
        form: ``"as trained"`` or ``"compacted"``.
        batch: examples a call.
        times: milliseconds a call, round by round; None if it did not run.
        ready: seconds from the network to the first answer, compilation included.
        bytes: of the file it was, or could be, loaded from.
        error: largest difference from eager PyTorch on random inputs, relative to the largest output.
        note: why it did not run.
    """

    engine: str
    title: str
    precision: str
    rival: bool
    form: str
    batch: int
    times: Times | None = None
    ready: float | None = None
    bytes: int | None = None
    error: float | None = None
    note: str | None = None

    @property
    def name(self) -> str:
        """What tells it from the other rows of its batch size."""
        precision = "" if self.precision == "fp32" else f" {self.precision}"
        form = "" if self.form == "as trained" else f", {self.form}"
        return f"{self.title}{precision}{form}"

    @property
    def counts(self) -> bool:
        """Whether it ran in the network's own type and gave what eager PyTorch gives."""
        return self.times is not None and self.precision == "fp32" and (self.error or 0) <= TOLERANCE


@dataclass(frozen=True)
class Bench:
    """What :func:`~shrinkage.runtime.bench.bench` measured; prints as tables.

    Attributes:
        model: the name of the model's class.
        threads: every engine's.
        clock: ``"processor"`` or ``"wall"``: which time the figures are.
        rows: by batch size, form and engine.
        machine: what it was measured on.
        remarks: what else there is to know, such as that nothing could be compacted.
    """

    model: str
    threads: int
    clock: str
    rows: tuple[Row, ...]
    machine: dict[str, Any]
    remarks: tuple[str, ...] = ()

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes, in the order they were asked for."""
        return tuple(dict.fromkeys(row.batch for row in self.rows))

    def at(self, batch: int) -> tuple[Row, ...]:
        """The rows of a batch size."""
        return tuple(row for row in self.rows if row.batch == batch)

    def figures(self, row: Row) -> tuple[float, ...]:
        """Milliseconds a call, round by round, on the clock that counts.

        Raises:
            ValueError: if the engine did not run.
        """
        if row.times is None:
            raise ValueError(f"{row.name} did not run at batch {row.batch}: {row.note}")
        return row.times.processor if self.clock == "processor" else row.times.wall

    def rival(self, batch: int) -> Row | None:
        """The fastest maintained dense engine on the network as trained; None if none ran."""
        return self._fastest(row for row in self.at(batch) if row.rival and row.counts and row.form == "as trained")

    def winner(self, batch: int) -> Row | None:
        """The fastest of all in the network's own type, dense or not; None if none ran."""
        return self._fastest(row for row in self.at(batch) if row.counts)

    def speed(self, row: Row) -> Spread | None:
        """How many times as fast as the rival, from the figures of the same rounds; None without a rival."""
        rival = self.rival(row.batch)
        return None if rival is None else self._over(rival, row)

    def verdict(self, batch: int) -> str:
        """Who was the fastest, and by how much."""
        winner, rival = self.winner(batch), self.rival(batch)
        if winner is None:
            return f"batch {batch}: no engine gave the right outputs"
        if rival is None:
            return (
                f"batch {batch}: no maintained dense engine ran, so there is nothing to be measured against; "
                'pip install "shrinkage[export,openvino]"'
            )
        parts = [f"batch {batch}: {winner.name} is the fastest at fp32"]
        if winner is not rival:
            by = self._over(rival, winner).median
            parts.append(f"{by:.2f} × as fast as {rival.name}, the fastest dense engine on the whole network")
        dense = self._fastest(row for row in self.at(batch) if row.counts and row.rival)
        own = self._fastest(row for row in self.at(batch) if row.counts and row.engine == "shrinkage")
        others = [other for other in (dense, own) if other is not None and other not in (winner, rival)]
        parts += [
            f"{other.name} is {self._over(rival, other).median:.2f} × as fast as {rival.name}" for other in others
        ]
        coarse = self._fastest(row for row in self.at(batch) if row.times is not None and row.precision != "fp32")
        if coarse is not None and self._median(coarse) < self._median(winner):
            parts.append(f"faster still, with an error of {coarse.error:.1e}: {coarse.name}")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers, texts, lists and dicts, ready for JSON."""
        return {
            "model": self.model,
            "threads": self.threads,
            "clock": self.clock,
            "rows": [self._row(row) for row in self.rows],
            "verdicts": [self.verdict(batch) for batch in self.batches],
            "remarks": list(self.remarks),
            "machine": self.machine,
        }

    def __str__(self) -> str:
        parts = [self._table(batch) for batch in self.batches]
        parts += ["\n".join([*(self.verdict(batch) for batch in self.batches), *self.remarks])]
        return "\n\n".join(parts)

    def _table(self, batch: int) -> str:
        ran = sorted((row for row in self.at(batch) if row.times is not None), key=self._median)
        rows: list[list[object]] = []
        for row in ran:
            ms, speed = Spread.of(self.figures(row)), self.speed(row)
            wrong = row.precision == "fp32" and not row.counts
            rows.append(
                [
                    row.title,
                    row.precision,
                    row.form,
                    f"{ms.median:.4g}",
                    f"{ms.low:.4g}–{ms.high:.4g}",
                    None if speed is None else f"{speed.median:.2f} ×",
                    f"{row.error:.1e}" + (" wrong" if wrong else ""),
                    row.bytes,
                    f"{row.ready:.2f} s",
                ]
            )
        rival = self.rival(batch)
        against = "speed" if rival is None else f"against {rival.name}"
        threads = "one thread" if self.threads == 1 else f"{self.threads} threads"
        clock = "processor time" if self.clock == "processor" else "wall time"
        table = render(
            ["engine", "precision", "network", "ms", "quartiles", against, "error", "file, bytes", "ready in"],
            rows,
            title=f"{self.model}, batch {batch}, {threads}: {clock} a batch",
        )
        notes = [f"not run: {row.name}: {row.note}" for row in self.at(batch) if row.times is None]
        return "\n".join([table, *notes])

    def _row(self, row: Row) -> dict[str, Any]:
        ran = row.times is not None
        return {
            **asdict(row),
            "ms": asdict(Spread.of(self.figures(row))) if ran else None,
            "speed": asdict(speed) if ran and (speed := self.speed(row)) else None,
            "counts": row.counts,
        }

    def _over(self, slower: Row, faster: Row) -> Spread:
        return Spread.of([a / b for a, b in zip(self.figures(slower), self.figures(faster), strict=True)])

    def _median(self, row: Row) -> float:
        return Spread.of(self.figures(row)).median

    def _fastest(self, rows: Iterator[Row]) -> Row | None:
        return min(rows, key=self._median, default=None)

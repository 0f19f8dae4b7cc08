"""Runs a region on any number of items: in chunks, on threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shrinkage.runtime.jit import Machine
from shrinkage.runtime.levels import Levels, make_plan
from shrinkage.runtime.partition import Region
from shrinkage.runtime.remember import remembered_levels, remembered_timings
from shrinkage.runtime.schedule import Chunk, Plan, Works, add_works
from shrinkage.runtime.tuning import Timings

Floats = npt.NDArray[np.float32]
SIZES = (1, 16, 64)
"""Items side by side, and items in a chunk."""

_WORTH_SHARING = 2e-4  # seconds; waking another thread takes some fifty microseconds


@dataclass(frozen=True)
class Piece:
    """``count`` items from ``start``, for a chunk of ``size``."""

    size: int
    start: int
    count: int


@dataclass
class Runner:
    """A region with its programs, which are made when a number of items first needs them.

    Attributes:
        region: what is computed.
        threads: how many work at once.
        host: the machine.
        timings: for each number of items side by side, what was measured.
        levels: for each size of a chunk, what was chosen.
    """

    region: Region
    threads: int
    host: Machine
    timings: dict[int, Timings] = field(default_factory=dict)
    levels: dict[int, Levels] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._works: Works = {}
        self._plans: dict[int, Plan] = {}
        self._chunks: dict[tuple[int, int], Chunk] = {}
        self._pieces: dict[int, list[list[Piece]]] = {}
        self._widths = [(name, int(np.prod(self.region.shapes[name]))) for name in self.region.outputs]
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def plan(self, size: int) -> Plan:
        """How chunks of ``size`` are computed; measured where it has not been."""
        if size not in self._plans:
            sizes = [s for s in SIZES if s <= size]
            for s in sizes:
                if s not in self.timings:
                    self.timings[s] = remembered_timings(self.region, s, self.host)
            if size not in self.levels:
                self.levels[size] = remembered_levels(self.region, size, sizes, self.timings, self._works, self.host)
            plan = make_plan(self.region, self.levels[size].side_by_side, self.timings)
            add_works(self._works, self.region, plan, self.host)
            self._plans[size] = plan
        return self._plans[size]

    def seconds(self, size: int) -> float:
        """What a chunk of ``size`` takes for an item."""
        self.plan(size)
        return self.levels[size].seconds

    def pieces(self, items: int) -> list[list[Piece]]:
        """The chunks of each thread."""
        if items not in self._pieces:
            whole = self._cut(0, items)
            alone = sum(self.seconds(piece.size) * piece.size for piece in whole)
            threads = self.threads if alone > _WORTH_SHARING else 1
            share = -(-items // threads)
            starts = range(0, items, share)
            self._pieces[items] = [self._cut(start, min(share, items - start)) for start in starts]
        return self._pieces[items]

    def _cut(self, start: int, items: int) -> list[Piece]:
        found = []
        end = start + items
        for size in sorted(SIZES, reverse=True):
            while end - start >= size:
                found.append(Piece(size, start, size))
                start += size
            rest = end - start
            # a chunk that is not full may still be faster than what is smaller
            smaller = [s for s in SIZES if s < size]
            if rest and smaller and rest > smaller[-1] and self.seconds(size) * size < self.seconds(smaller[-1]) * rest:
                found.append(Piece(size, start, rest))
                start = end
        return found

    def __call__(self, inputs: Mapping[str, Floats]) -> dict[str, Floats]:
        """Values of the region's outputs, item by item in rows.

        Args:
            inputs: C-contiguous, one row an item.
        """
        items = len(next(iter(inputs.values())))
        outputs = {name: np.empty((items, width), np.float32) for name, width in self._widths}
        shares = self.pieces(items)
        if self._pool is None or len(shares) == 1:
            for number, share in enumerate(shares):
                self._work(number, share, inputs, outputs)
        else:
            jobs = [
                self._pool.submit(self._work, number, share, inputs, outputs) for number, share in enumerate(shares)
            ]
            for job in jobs:
                job.result()
        return outputs

    def direct(self, given: tuple[int, ...], found: tuple[int, ...]) -> Callable[[Floats], Floats] | None:
        """See :meth:`shrinkage.runtime.schedule.Chunk.direct`; None unless one thread does it in one full chunk."""
        shares = self.pieces(given[0])
        if len(shares) != 1 or len(shares[0]) != 1 or shares[0][0].count != shares[0][0].size:
            return None
        return self._chunk(0, shares[0][0].size).direct(given, found)

    def _chunk(self, thread: int, size: int) -> Chunk:
        chunk = self._chunks.get((thread, size))
        if chunk is None:
            plan = self.plan(size)
            chunk = self._chunks[thread, size] = Chunk(self.region, size, plan, self._works, self.host)
        return chunk

    def _work(
        self, thread: int, share: list[Piece], inputs: Mapping[str, Floats], outputs: Mapping[str, Floats]
    ) -> None:
        for piece in share:
            chunk = self._chunk(thread, piece.size)
            if piece.count == len(next(iter(inputs.values()))):
                chunk(inputs, outputs)
                continue
            part = slice(piece.start, piece.start + piece.count)
            chunk({name: x[part] for name, x in inputs.items()}, {name: x[part] for name, x in outputs.items()})

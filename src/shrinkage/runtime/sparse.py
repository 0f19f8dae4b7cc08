"""Ways to compute a convolution or a linear layer with the tile kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shrinkage.runtime.geometry import Ints, Window, turns
from shrinkage.runtime.graph import Node
from shrinkage.runtime.jit import Machine
from shrinkage.runtime.layout import Layout
from shrinkage.runtime.moves import Expand
from shrinkage.runtime.rows import NonZeros, pack_rows
from shrinkage.runtime.steps import At, Step
from shrinkage.runtime.tile import Tile, tile_kernel

SCRATCH = "scratch"
"""Name of the buffer for what only one node needs."""

_CACHE = 24576  # bytes of the first-level cache that inputs may take


@dataclass(frozen=True)
class Way:
    """One way.

    Attributes:
        kind: ``"direct"``: operands are read where they lie; ``"rows"``: from shifted copies of each row;
            ``"copies"``: from one copy for each place of the filter; ``"whole"``: the map lies in the registers, and
            the filter's places that would read padding are left out; ``"turned"``: the map of one image lies in one
            vector, whose lanes are moved for each place of the filter.
        tile: rows and columns of pixels, or vectors of pixels and 1.
        unroll: non-zeros a turn.
        chains: sets of accumulators.
        block: input channels in a block.
    """

    kind: str
    tile: tuple[int, int]
    unroll: int
    chains: int
    block: int

    def to_list(self) -> list[Any]:
        """As plain values."""
        return [self.kind, list(self.tile), self.unroll, self.chains, self.block]

    @classmethod
    def from_list(cls, plain: list[Any]) -> Way:
        """The inverse of :meth:`to_list`."""
        kind, (down, right), unroll, chains, block = plain
        return cls(kind, (down, right), unroll, chains, block)

    def __str__(self) -> str:
        return f"{self.kind} {self.tile[0]}×{self.tile[1]} block {self.block} unroll {self.unroll}/{self.chains}"


@dataclass(frozen=True)
class Work:
    """Steps that compute a node, and the bytes of scratch they need."""

    steps: tuple[Step, ...]
    scratch: int = 0


class SparseLayer:
    """A convolution or a linear layer between two layouts of the same number of images.

    Args:
        node: ``conv`` or ``linear``.
        source: of its input; a linear layer takes an image for the vector of its entries.
        target: of its output.
        host: the machine.
    """

    def __init__(self, node: Node, source: Layout, target: Layout, host: Machine) -> None:
        assert node.weight is not None
        self.node, self.source, self.target, self.host = node, source, target, host
        self.window = Window.of(node)
        self.nonzeros = NonZeros.of(node.weight, node.attrs.get("groups", 1))
        self.vector = target.vector
        self.per_pixel = max(target.images // self.vector, 1)  # vectors a pixel, where images are in the lanes
        self.limit = host.registers - 4

    # ---------------------------------------------------------------- choices

    def shapes(self) -> list[Way]:
        """Tiles and kinds of copies, each with a sensible block."""
        return list(self._shapes())

    def unrolled(self, way: Way) -> list[Way]:
        """The same with more non-zeros a turn or more accumulators."""
        held = self._registers(way)
        pairs = [(2, 1), (2, 2), (4, 2), (4, 4), (8, 8)] if held <= 4 else [(2, 1), (2, 2)] if held <= 12 else [(2, 1)]
        return [replace(way, unroll=u, chains=c) for u, c in [(1, 1), *pairs] if held * c <= self.limit]

    def blocked(self, way: Way) -> list[Way]:
        """The same with other blocks."""
        blocks = (
            {way.block // 2, way.block * 2, way.block * 4, self.nonzeros.inputs}
            if way.kind not in ("whole", "turned")
            else set()
        )
        return [replace(way, block=b) for b in sorted(blocks) if 4 <= b <= self.nonzeros.inputs and b != way.block]

    def _shapes(self) -> Iterator[Way]:
        if self.target.images == 1:
            kinds = ["direct"] if self._straight else ["copies"]
            if not self._straight and self.vector >= 8 and self.window.kernel != (1, 1):
                kinds.append("rows")
            count = self.target.plane // (4 * self.vector)
            sizes = sorted({min(t, count) for t in (4, 8, 16)})
            for kind in kinds:
                for size in sizes:
                    yield self._way(kind, (size, 1))
            one = count == 1 and self.vector > 1 and self.source.plane == self.target.plane
            if one and not self._straight:
                yield Way("turned", (1, 1), 4, 4, self.nonzeros.inputs)
            return
        height, width, n = self.target.height, self.target.width, self.per_pixel
        if not self._straight and height * width * n <= self.limit:
            yield Way("whole", (height, width), 1, 1, self.nonzeros.inputs)
        if self._framed:
            seen = set()
            for shape in ((4, 4), (2, 8), (3, 8), (4, 2), (2, 2), (1, 1)):
                tile = (min(shape[0], height), min(shape[1], width))
                if tile[0] * tile[1] * n <= self.limit and tile not in seen:
                    seen.add(tile)
                    yield self._way("direct", tile)

    def _way(self, kind: str, tile: tuple[int, int]) -> Way:
        block = max(4, min(self.nonzeros.inputs, _CACHE // self._footprint(kind, tile)))
        held = tile[0] * tile[1] * (self.per_pixel if self.target.images > 1 else 1)
        unroll = 4 if held <= 2 else 2 if held <= 4 else 1  # few registers wait for each other's additions
        return Way(kind, tile, unroll, unroll, block)

    def _registers(self, way: Way) -> int:
        return way.tile[0] * way.tile[1] * (self.per_pixel if self.target.images > 1 else 1)

    def _footprint(self, kind: str, tile: tuple[int, int]) -> int:
        """Bytes of one input channel that a tile reads."""
        kh, kw = self.window.kernel
        if self.target.images > 1:
            rows, columns = self.window.extent(*tile)
            return rows * columns * self.source.column
        one = 4 * self.vector * tile[0]
        if kind == "rows":
            return kw * (one + 4 * self.target.width * (kh - 1))
        return one * (1 if kind == "direct" else kh * kw)

    @property
    def _straight(self) -> bool:
        return self.node.op == "linear" or self.window.point

    @property
    def _framed(self) -> bool:
        """Whether the input's frame of zeros is as wide as the padding."""
        return all(have >= want for have, want in zip(self.source.frame, self.window.padding, strict=True))

    # ------------------------------------------------------------------ steps

    def work(self, way: Way, source: At, target: At, residual: At | None = None) -> Work:
        """The steps of one way."""
        if way.kind in ("rows", "copies"):
            return self._expanded(way, source, target, residual)
        if way.kind == "turned":
            return self._turned(way, source, target, residual)
        if way.kind == "whole":
            return self._whole(way, source, target, residual)
        places = self._places()
        if self.target.images == 1:
            reads, starts = self._run(way.tile[0])
            return Work((self._tile(way, source, target, residual, places, reads, starts, starts, reads),))
        (th, tw), (sh, sw) = way.tile, self.window.stride
        pixels = [(y, x) for y in range(th) for x in range(tw)]
        lanes = range(0, self.target.column, 4 * self.vector)
        reads = [y * sh * self.source.row + x * sw * self.source.column + v for y, x in pixels for v in lanes]
        writes = [y * self.target.row + x * self.target.column + v for y, x in pixels for v in lanes]
        corners = [(y, x) for y in _cover(self.target.height, th) for x in _cover(self.target.width, tw)]
        starts_in = [y * sh * self.source.row + x * sw * self.source.column for y, x in corners]
        starts_out = [self.target.place(y, x) for y, x in corners]
        return Work((self._tile(way, source, target, residual, places, reads, starts_in, starts_out, writes),))

    def _places(self) -> Ints:
        """Of each operand of the output's first pixel, by input channel and tap, as the input lies."""
        if self.node.op == "linear":
            return self.source.features()[:, None]
        kh, kw = self.window.kernel
        taps = [
            self.source.place(self.window.row(0, i), self.window.column(0, j)) for i in range(kh) for j in range(kw)
        ]
        planes: Ints = np.arange(self.nonzeros.inputs, dtype=np.int64)[:, None] * self.source.plane
        return planes + np.array(taps, np.int64)

    def _run(self, size: int) -> tuple[list[int], list[int]]:
        """Distances of a tile of ``size`` vectors, and the starts of those that cover a plane."""
        step = 4 * self.vector
        return [t * step for t in range(size)], [t * step for t in _cover(self.target.plane // step, size)]

    def _expanded(self, way: Way, source: At, target: At, residual: At | None) -> Work:
        window, image, out = self.window, self.source, self.target
        (kh, kw), stride = window.kernel, window.stride[0]
        line = 4 * out.width
        if way.kind == "copies":  # the copy for filter row i and column j holds the operands of all outputs
            copy = out.plane
            rows = [(window.row(y, i), i * kw * copy + y * line) for i in range(kh) for y in range(out.height)]
            taps = [(i * kw + j) * copy for i in range(kh) for j in range(kw)]
            plane, aligned = kh * kw * copy, True
        else:  # rows of the padded image, those that are a stride apart together
            reach = [(kh - 1) * window.dilation[0] // stride + out.height] * stride
            copy = sum(reach) * line
            at = np.cumsum([0, *reach[:-1]])
            rows = [
                (r * stride + phase - window.padding[0], int(at[phase] + r) * line)
                for phase in range(stride)
                for r in range(reach[phase])
            ]
            far = [i * window.dilation[0] for i in range(kh)]
            taps = [j * copy + int(at[f % stride] + f // stride) * line for f in far for j in range(kw)]
            plane, aligned = kw * copy, out.width % self.vector == 0
        inside = [(y * image.row if 0 <= y < image.height else -1, place) for y, place in rows]
        sources, targets = (np.array(column, np.int64) for column in zip(*inside, strict=True))
        expand = Expand(
            image.width, out.width, fitting(out.width, self.host.lanes), window.stride[1],
            tuple(window.column(0, j) for j in range(kw)),
        )  # fmt: skip
        fill = Step(
            expand.text(),
            (source, At(SCRATCH), self.nonzeros.inputs, image.plane, plane, len(rows), sources, targets, copy),
        )
        places = np.arange(self.nonzeros.inputs)[:, None] * plane + np.array(taps)
        reads, starts = self._run(way.tile[0])
        tile = self._tile(way, At(SCRATCH), target, residual, places, reads, starts, starts, reads, aligned=aligned)
        return Work((fill, tile), plane * self.nonzeros.inputs)

    def _turned(self, way: Way, source: At, target: At, residual: At | None) -> Work:
        window, image, out = self.window, self.source, self.target
        tile = Tile(
            lanes=self.vector, reads=(((0, 0),),) * window.taps, writes=(0,), unroll=way.unroll, chains=way.chains,
            activation=self.node.activation, turns=turns(window, image, out), residual=residual is not None,
        )  # fmt: skip
        places = np.arange(self.nonzeros.inputs, dtype=np.int64) * image.plane
        start = np.zeros(1, np.int64)
        return Work((self._call(tile, way, source, target, residual, places, start, start, window.taps),))

    def _whole(self, way: Way, source: At, target: At, residual: At | None) -> Work:
        window, image, out = self.window, self.source, self.target
        lanes = range(0, out.column, 4 * self.vector)
        pixels = [(y, x) for y in range(out.height) for x in range(out.width)]
        taps = []
        for i in range(window.kernel[0]):
            for j in range(window.kernel[1]):
                read = []
                for number, (y, x) in enumerate(pixels):
                    row, column = window.row(y, i), window.column(x, j)
                    if 0 <= row < image.height and 0 <= column < image.width:
                        at = image.place(row, column)
                        read += [(number * len(lanes) + k, at + v) for k, v in enumerate(lanes)]
                taps.append(tuple(read))
        tile = Tile(
            lanes=self.vector, reads=tuple(taps), writes=tuple(out.place(y, x) + v for y, x in pixels for v in lanes),
            unroll=way.unroll, activation=self.node.activation, residual=residual is not None,
        )  # fmt: skip
        places = np.arange(self.nonzeros.inputs) * image.plane
        start = np.zeros(1, np.int64)
        return Work((self._call(tile, way, source, target, residual, places, start, start, window.taps),))

    def _tile(
        self, way: Way, source: At, target: At, residual: At | None, places: Ints, reads: list[int],
        starts_in: list[int], starts_out: list[int], writes: list[int], aligned: bool = True,
    ) -> Step:  # fmt: skip
        tile = Tile(
            lanes=self.vector, reads=(tuple(enumerate(reads)),), writes=tuple(writes), unroll=way.unroll,
            chains=way.chains, aligned=aligned, activation=self.node.activation, residual=residual is not None,
        )  # fmt: skip
        starts = np.array(starts_in, np.int64), np.array(starts_out, np.int64)
        return self._call(tile, way, source, target, residual, places, *starts, 1)

    def _call(
        self, tile: Tile, way: Way, source: At, target: At, residual: At | None, places: Ints, starts_in: Ints,
        starts_out: Ints, taps: int,
    ) -> Step:  # fmt: skip
        rows = pack_rows(self.nonzeros, places, self.node.bias, self.target.plane, way.block, taps, way.unroll)
        return Step(
            tile_kernel(replace(tile, shift=rows.shift)),
            (
                source, target, starts_in, starts_out, len(starts_in), rows.rows, rows.ends, len(rows.rows),
                rows.weights, rows.offsets, rows.bias, residual,
            ),
        )  # fmt: skip


def _cover(count: int, size: int) -> list[int]:
    """Starts of blocks of ``size`` that cover ``count``; the last overlaps the one before if it must."""
    return sorted({min(start, count - size) for start in range(0, count, size)})


def fitting(width: int, lanes: int) -> int:
    """The longest vector that is not longer than a row."""
    return max(n for n in (1, 4, 8, 16) if n <= width and n <= lanes)

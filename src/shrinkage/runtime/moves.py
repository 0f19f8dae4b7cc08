"""Kernels that move values from one layout to another: transposes, shifted copies, plain copies."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from shrinkage.runtime.emit import F32, I32, I64, Emit, Value, whole


def transpose(e: Emit, vectors: list[Value]) -> list[Value]:
    """n vectors of n floats, transposed: log₂ n rounds of interleaving each vector with the one half the list away."""
    n = len(vectors)
    if n == 1:
        return vectors
    low = [i // 2 + (n if i % 2 else 0) for i in range(n)]
    high = [i + n // 2 for i in low]
    masks = [ir.Constant(ir.VectorType(I32, n), order) for order in (low, high)]
    for _ in range(n.bit_length() - 1):
        pairs = list(zip(vectors[: n // 2], vectors[n // 2 :], strict=True))
        vectors = [e.b.shuffle_vector(a, b, mask) for a, b in pairs for mask in masks]
    return vectors


@dataclass(frozen=True)
class Pack:
    """From images one after the other to images side by side, or back.

    Attributes:
        side: length of the square blocks that are transposed, at most the run and a divisor of ``images``.
        images: how many.
        back: from side by side to one after the other.
    """

    side: int
    images: int
    back: bool = False

    #: ``one``: images one after the other, ``step`` bytes apart; ``many``: side by side
    ARGUMENTS = ("one", "step", "many", "channels", "one_plane", "many_plane", "rows", "one_row", "many_row", "run")

    def text(self) -> str:
        """The kernel."""
        side = self.side
        e = Emit("kernel", side)
        kind = e.vector if side > 1 else F32
        arg = {key: e.argument(i) for i, key in enumerate(self.ARGUMENTS)}
        last = e.b.sub(arg["run"], whole(side))
        with e.loop(0, arg["channels"]) as c, e.loop(0, arg["rows"]) as y, e.loop(0, arg["run"], side) as x:
            # the last block overlaps the one before rather than leave the row
            column = e.b.select(e.b.icmp_signed("<", x.index, last), x.index, last)
            one = e.add(
                arg["one"], e.times(c.index, arg["one_plane"]), e.times(y.index, arg["one_row"]), e.times(column, 4)
            )
            many = e.add(
                arg["many"],
                e.times(c.index, arg["many_plane"]),
                e.times(y.index, arg["many_row"]),
                e.times(column, 4 * self.images),
            )
            with e.loop(0, self.images, side) as group:
                near = e.add(one, e.times(group.index, arg["step"]))
                ones = [e.add(near, e.times(arg["step"], i)) for i in range(side)]
                far = e.add(many, e.times(group.index, 4))
                manys = [e.at(far, 4 * self.images * i) for i in range(side)]
                sources, targets = (manys, ones) if self.back else (ones, manys)
                for value, place in zip(transpose(e, [e.load(s, kind, 4) for s in sources]), targets, strict=True):
                    e.store(value, place, 4)
        return e.finish()


@dataclass(frozen=True)
class Expand:
    """Copies of each row of an image, shifted for each column of a filter and thinned by its stride.

    Thus every operand of a convolution lies as its outputs do, side by side.

    Attributes:
        width: of the image.
        out: of a copy, which is the output's width.
        vector: floats at a time, at most ``out``.
        stride: horizontal.
        shifts: for each column of the filter, where in the row its first operand lies (negative: in the padding).
    """

    width: int
    out: int
    vector: int
    stride: int
    shifts: tuple[int, ...]

    #: ``sources``, ``targets``: for each row of the copy its place in a plane of the image (−1: zeros) and of the copy
    ARGUMENTS = ("source", "target", "channels", "source_plane", "target_plane", "rows", "sources", "targets", "copy")

    def text(self) -> str:
        """The kernel; ``copy`` is the distance in bytes between the copies for two columns of the filter."""
        e = Emit("kernel", self.vector)
        arg = {key: e.argument(i) for i, key in enumerate(self.ARGUMENTS)}
        starts = sorted({min(x, self.out - self.vector) for x in range(0, self.out, self.vector)})
        with e.loop(0, arg["channels"]) as c, e.loop(0, arg["rows"]) as row:
            place = e.load(e.add(arg["sources"], e.times(row.index, 8)), I64)
            source = e.add(arg["source"], e.times(c.index, arg["source_plane"]), place)
            target = e.add(
                arg["target"],
                e.times(c.index, arg["target_plane"]),
                e.load(e.add(arg["targets"], e.times(row.index, 8)), I64),
            )

            def put(value: Value, k: int, x: int, target: Value = target) -> None:
                e.store(value, e.add(target, e.times(arg["copy"], k), whole(4 * x)), 4)

            def copies(source: Value = source) -> list[Value]:
                for k, shift in enumerate(self.shifts):
                    for x in starts:
                        put(self._read(e, source, self.stride * x + shift), k, x)
                return []

            def zeros() -> list[Value]:
                for k in range(len(self.shifts)):
                    for x in starts:
                        put(e.constant(0.0, e.vector if self.vector > 1 else F32), k, x)
                return []

            e.choose(e.b.icmp_signed(">=", place, whole(0)), copies, zeros)
        return e.finish()

    def _read(self, e: Emit, source: Value, first: int) -> Value:
        """Every ``stride``-th entry of a row from ``first``, zeros outside of it."""
        n, stride = self.vector, self.stride
        return masked(e, strided(e, source, first, n, stride), first, n, stride, self.width, 0.0)


def strided(e: Emit, source: Value, first: int, n: int, stride: int) -> Value:
    """``n`` floats from number ``first`` of a row, ``stride`` apart; those outside of the row are anything."""
    if n == 1:
        return e.load(e.at(source, 4 * first), F32, 4)
    kind = ir.VectorType(F32, n)
    if stride == 1:
        return e.load(e.at(source, 4 * first), kind, 4)
    if stride == 2:
        a, b = (e.load(e.at(source, 4 * (first + i)), kind, 4) for i in (0, n))
        return e.b.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, n), [2 * i for i in range(n)]))
    value: Value = ir.Constant(kind, ir.Undefined)
    for i in range(n):
        part = e.load(e.at(source, 4 * (first + stride * i)), F32, 4)
        value = e.b.insert_element(value, part, ir.Constant(I32, i))
    return value


def masked(e: Emit, value: Value, first: int, n: int, stride: int, width: int, outside: float) -> Value:
    """With ``outside`` in the entries that lie outside of the row."""
    inside = [0 <= first + stride * i < width for i in range(n)]
    if all(inside):
        return value
    if n == 1:
        return ir.Constant(F32, outside)
    mask = ir.Constant(ir.VectorType(ir.IntType(1), n), [int(ok) for ok in inside])
    return e.b.select(mask, value, ir.Constant(ir.VectorType(F32, n), [outside] * n))


@dataclass(frozen=True)
class Widen:
    """From some images side by side to a part of more of them.

    Attributes:
        images: how many.
        of: how many there are in the target.
        lanes: floats in a vector.
    """

    images: int
    of: int
    lanes: int

    ARGUMENTS = (
        "source",
        "target",
        "channels",
        "source_plane",
        "target_plane",
        "rows",
        "source_row",
        "target_row",
        "run",
    )

    def text(self) -> str:
        """The kernel."""
        e = Emit("kernel", self.lanes)
        arg = {key: e.argument(i) for i, key in enumerate(self.ARGUMENTS)}
        with e.loop(0, arg["channels"]) as c, e.loop(0, arg["rows"]) as y, e.loop(0, arg["run"]) as x:
            source, target = (
                e.add(
                    arg[end],
                    e.times(c.index, arg[end + "_plane"]),
                    e.times(y.index, arg[end + "_row"]),
                    e.times(x.index, 4 * images),
                )
                for end, images in (("source", self.images), ("target", self.of))
            )
            for i in range(0, 4 * self.images, 4 * self.lanes):
                e.store(e.load(e.at(source, i), e.vector, 4), e.at(target, i), 4)
        return e.finish()

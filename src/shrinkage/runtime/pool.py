"""Kernels for pooling."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shrinkage.runtime.emit import F32, I64, Emit, Value, whole
from shrinkage.runtime.moves import masked, strided


@dataclass(frozen=True)
class PixelPool:
    """Over planes of one image, whose pixels lie in the lanes.

    Attributes:
        maximum: or else the sum, times a factor a pixel.
        width: of the image.
        out: width of the output.
        vector: floats at a time, at most ``out``.
        stride: horizontal.
        shifts: for each column of the window, where in the row its first operand lies.
    """

    maximum: bool
    width: int
    out: int
    vector: int
    stride: int
    shifts: tuple[int, ...]

    #: ``firsts``, ``counts``: for each row of the output the place of the window's first row, and how many it has
    ARGUMENTS = (
        "source", "target", "channels", "source_plane", "target_plane", "rows", "firsts", "counts", "step", "factors",
    )  # fmt: skip

    def text(self) -> str:
        """The kernel; ``step`` is the distance in bytes between a window's rows, ``factors`` a float a pixel."""
        e = Emit("kernel", self.vector)
        kind = e.vector if self.vector > 1 else F32
        arg = {key: e.argument(i) for i, key in enumerate(self.ARGUMENTS)}
        outside = -math.inf if self.maximum else 0.0
        starts = sorted({min(x, self.out - self.vector) for x in range(0, self.out, self.vector)})
        with e.loop(0, arg["channels"]) as c, e.loop(0, arg["rows"]) as y:
            eight = e.times(y.index, 8)
            source = e.add(
                arg["source"], e.times(c.index, arg["source_plane"]), e.load(e.add(arg["firsts"], eight), I64)
            )
            row = e.times(y.index, 4 * self.out)
            target = e.add(arg["target"], e.times(c.index, arg["target_plane"]), row)
            count = e.load(e.add(arg["counts"], eight), I64)
            with e.loop(0, count, carried=[e.constant(outside, kind)] * len(starts)) as turn:
                line = e.add(source, e.times(turn.index, arg["step"]))
                values = list(turn.values)
                for i, x in enumerate(starts):
                    for shift in self.shifts:
                        at = self.stride * x + shift
                        value = strided(e, line, at, self.vector, self.stride)
                        value = masked(e, value, at, self.vector, self.stride, self.width, outside)
                        values[i] = _join(e, self.maximum, values[i], value)
                turn.values = values
            for value, x in zip(turn.values, starts, strict=True):
                if not self.maximum:
                    factor = e.load(e.add(arg["factors"], row, whole(4 * x)), kind, 4)
                    value = e.b.fmul(value, factor)
                e.store(value, e.at(target, 4 * x), 4)
        return e.finish()


@dataclass(frozen=True)
class TurnedPool:
    """Over planes that lie in one vector each: its lanes are moved for each place of the window.

    Attributes:
        maximum: or else the sum, times a factor a pixel.
        source: floats in a plane of the image.
        target: floats in a plane of the output.
        turns: for each place of the window the lane of each output pixel's operand; −1: outside.
    """

    maximum: bool
    source: int
    target: int
    turns: tuple[tuple[int, ...], ...]

    #: ``factors``: a float a pixel
    ARGUMENTS = ("source", "target", "channels", "factors")

    def text(self) -> str:
        """The kernel."""
        e = Emit("kernel", self.source)
        arg = {key: e.argument(i) for i, key in enumerate(self.ARGUMENTS)}
        outside = -math.inf if self.maximum else 0.0
        with e.loop(0, arg["channels"]) as c:
            plane = e.load(e.add(arg["source"], e.times(c.index, 4 * self.source)), e.vector, 4)
            total = e.pick(plane, self.turns[0], outside)
            for turn in self.turns[1:]:
                total = _join(e, self.maximum, total, e.pick(plane, turn, outside))
            if not self.maximum:
                total = e.b.fmul(total, e.load(arg["factors"], total.type, 4))
            e.store(total, e.add(arg["target"], e.times(c.index, 4 * self.target)), 4)
        return e.finish()


@dataclass(frozen=True)
class WholePool:
    """Over whole planes of one image.

    Attributes:
        maximum: or else the sum, times a factor.
        vector: floats at a time.
        count: vectors in a plane, all of them full.
    """

    maximum: bool
    vector: int
    count: int

    ARGUMENTS = ("source", "target", "channels", "factors")

    def text(self) -> str:
        """The kernel."""
        e = Emit("kernel", self.vector)
        arg = {key: e.argument(i) for i, key in enumerate(self.ARGUMENTS)}
        size = 4 * self.vector
        with e.loop(0, arg["channels"]) as c:
            plane = e.add(arg["source"], e.times(c.index, size * self.count))
            total = e.load(plane, e.vector, 4)
            if self.count > 1:
                with e.loop(1, self.count, carried=[total]) as turn:
                    value = e.load(e.add(plane, e.times(turn.index, size)), e.vector, 4)
                    turn.values = [_join(e, self.maximum, turn.values[0], value)]
                (total,) = turn.values
            half = self.vector // 2
            while half:
                total = _join(
                    e, self.maximum, total, e.pick(total, [(i + half) % self.vector for i in range(self.vector)])
                )
                half //= 2
            result = e.lane(total, 0)
            if not self.maximum:
                result = e.b.fmul(result, e.load(arg["factors"], F32, 4))
            e.store(result, e.add(arg["target"], e.times(c.index, 4)), 4)
        return e.finish()


@dataclass(frozen=True)
class ImagePool:
    """Over images that lie side by side.

    Attributes:
        maximum: or else the sum, times a factor a pixel.
        images: how many.
        lanes: floats in a vector.
    """

    maximum: bool
    images: int
    lanes: int

    #: ``windows``: for each output pixel its place, its window's first place, and the window's rows and columns
    ARGUMENTS = (
        "source", "target", "channels", "source_plane", "target_plane", "pixels", "windows", "down", "right", "factors",
    )  # fmt: skip

    def text(self) -> str:
        """The kernel; ``down`` and ``right`` are the distances in bytes between a window's rows and columns."""
        e = Emit("kernel", self.lanes)
        arg = {key: e.argument(i) for i, key in enumerate(self.ARGUMENTS)}
        vectors = range(0, 4 * self.images, 4 * self.lanes)
        first = [e.constant(-math.inf if self.maximum else 0.0)] * len(vectors)
        with e.loop(0, arg["channels"]) as c, e.loop(0, arg["pixels"]) as pixel:
            window = e.add(arg["windows"], e.times(pixel.index, 32))
            place, start, rows, columns = (e.load(e.at(window, 8 * i), I64) for i in range(4))
            source = e.add(arg["source"], e.times(c.index, arg["source_plane"]), start)
            target = e.add(arg["target"], e.times(c.index, arg["target_plane"]), place)
            with e.loop(0, rows, carried=first) as y:
                line = e.add(source, e.times(y.index, arg["down"]))
                with e.loop(0, columns, carried=y.values) as x:
                    at = e.add(line, e.times(x.index, arg["right"]))
                    x.values = [
                        _join(e, self.maximum, value, e.load(e.at(at, i), e.vector, 4))
                        for value, i in zip(x.values, vectors, strict=True)
                    ]
                y.values = x.values
            values = y.values
            if not self.maximum:
                factor = e.splat(e.load(e.add(arg["factors"], e.times(pixel.index, 4)), F32, 4))
                values = [e.b.fmul(value, factor) for value in values]
            for value, i in zip(values, vectors, strict=True):
                e.store(value, e.at(target, i), 4)
        return e.finish()


def _join(e: Emit, maximum: bool, total: Value, value: Value) -> Value:
    # the new value first: a NaN in it stays, and one in the total fails the comparison and stays too
    if not maximum:
        return e.b.fadd(total, value)
    keep = e.b.fcmp_ordered("<=", value, total)
    isnan = e.b.fcmp_unordered("uno", total, total)
    return e.b.select(e.b.or_(keep, isnan), total, value)

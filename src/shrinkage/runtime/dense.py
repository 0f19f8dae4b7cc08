"""Steps for everything that has no sparse weight: pools, sums, scales, activations, concatenations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

from shrinkage.runtime.geometry import Window, turns
from shrinkage.runtime.graph import Node
from shrinkage.runtime.jit import Machine
from shrinkage.runtime.layout import Layout
from shrinkage.runtime.pointwise import Pointwise
from shrinkage.runtime.pool import ImagePool, PixelPool, TurnedPool, WholePool
from shrinkage.runtime.sparse import Work, fitting
from shrinkage.runtime.steps import Argument, At, Step

Placed = tuple[At, Layout]


def dense_work(node: Node, sources: Sequence[Placed], target: Placed, host: Machine) -> Work:
    """The steps of a node between layouts of the same number of images."""
    return Work(tuple(_OPS[node.op](node, sources, target, host)))


def _pointwise(op: str, activation: str | None, sources: Sequence[Placed], target: Placed, *numbers: Argument) -> Step:
    """One pass over ``sources``; ``numbers``: a scale and a shift for each channel."""
    out = target[1]
    if out.images > 1:
        channels, rows, run, vector = out.channels, out.height, out.width * out.images, out.lanes
    elif out.pixels > 1:
        channels, rows, run, vector = out.channels, 1, out.plane // 4, out.vector
    elif numbers:
        channels, rows, run, vector = out.channels, 1, 1, 1
    else:  # a vector of features is one row; its buffer ends with a whole vector
        channels, rows, vector = 1, 1, out.lanes
        run = -(-out.channels // vector) * vector
    places = [(At(a.buffer, a.offset + layout.place(0, 0)), layout) for a, layout in [*sources, target]]
    first, second = places[0], places[1] if len(sources) > 1 else (None, places[0][1])
    goal = places[-1]
    scale, shift = numbers or (None, None)
    return Step(
        Pointwise(op, vector, activation).text(),
        (
            first[0], second[0], goal[0], channels, first[1].plane, second[1].plane, goal[1].plane, rows,
            first[1].row, second[1].row, goal[1].row, run, scale, shift,
        ),
    )  # fmt: skip


def _sum(node: Node, sources: Sequence[Placed], target: Placed, host: Machine) -> list[Step]:
    return [_pointwise(node.op, node.activation, sources, target)]


def _activation(node: Node, sources: Sequence[Placed], target: Placed, host: Machine) -> list[Step]:
    return [_pointwise("copy", node.activation, sources, target)]


def _affine(node: Node, sources: Sequence[Placed], target: Placed, host: Machine) -> list[Step]:
    return [_pointwise("affine", node.activation, sources, target, node.weight, node.bias)]


def _concat(node: Node, sources: Sequence[Placed], target: Placed, host: Machine) -> list[Step]:
    at, out = target
    steps, channel = [], 0
    for source in sources:
        here = At(at.buffer, at.offset + channel * out.plane)
        part = Layout(out.images, source[1].channels, out.height, out.width, out.lanes, out.frame)
        steps.append(_pointwise("copy", node.activation, [source], (here, part)))
        channel += source[1].channels
    return steps


def _pool(node: Node, sources: Sequence[Placed], target: Placed, host: Machine) -> list[Step]:
    (source, image), (goal, out) = sources[0], target
    whole = node.op == "global_avg_pool"
    window = Window((image.height, image.width)) if whole else Window.of(node)
    maximum = node.op == "max_pool"
    (kh, kw), (dh, dw) = window.kernel, window.dilation
    rows = [_inside(window.row(y, 0), kh, dh, image.height) for y in range(out.height)]
    factors = None if maximum else _factors(node, window, image, out)
    if out.images == 1 and _all(window, image) and image.vector > 1 and image.pixels % image.vector == 0:
        whole_kernel = WholePool(maximum, image.vector, image.pixels // image.vector)
        return [Step(whole_kernel.text(), (source, goal, out.channels, factors))]
    if out.images == 1 and image.plane == 4 * image.vector and image.vector > 1 and out.vector > 1:
        turned = TurnedPool(maximum, image.vector, out.vector, turns(window, image, out))
        padded = None if factors is None else np.concatenate([factors, np.zeros(out.vector, np.float32)])
        return [Step(turned.text(), (source, goal, out.channels, padded))]
    if out.images == 1:
        vector = fitting(out.width, host.lanes)
        kernel = PixelPool(
            maximum, image.width, out.width, vector, window.stride[1], tuple(window.column(0, j) for j in range(kw))
        )
        firsts = np.array([first * image.row for first, _ in rows], np.int64)
        counts = np.array([count for _, count in rows], np.int64)
        return [
            Step(
                kernel.text(),
                (
                    source, goal, out.channels, image.plane, out.plane, out.height, firsts, counts, dh * image.row,
                    factors,
                ),
            )
        ]  # fmt: skip
    columns = [_inside(window.column(x, 0), kw, dw, image.width) for x in range(out.width)]
    windows = np.array(
        [
            (out.place(y, x), image.place(top, left), down, right)
            for y, (top, down) in enumerate(rows)
            for x, (left, right) in enumerate(columns)
        ],
        np.int64,
    )
    return [
        Step(
            ImagePool(maximum, out.images, host.lanes).text(),
            (
                source, goal, out.channels, image.plane, out.plane, out.pixels, windows, dh * image.row,
                dw * image.column, factors,
            ),
        )
    ]  # fmt: skip


def _all(window: Window, image: Layout) -> bool:
    """Whether the window is the image."""
    return window.kernel == (image.height, image.width) and not any(window.padding) and window.dilation == (1, 1)


def _inside(first: int, count: int, step: int, size: int) -> tuple[int, int]:
    """Of ``count`` places from ``first``, ``step`` apart: the first that lies in [0, size), and how many do."""
    places = [place for place in range(first, first + count * step, step) if 0 <= place < size]
    return (places[0], len(places)) if places else (0, 0)


def _factors(
    node: Node, window: Window, image: Layout, out: Layout
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """What the sum over the inside of each window is multiplied by."""
    if node.op == "global_avg_pool":
        return np.full(out.pixels, 1 / image.pixels, np.float32)
    a = node.attrs
    ones = torch.ones(1, 1, image.height, image.width)
    padding = (a["padding"][0], a["padding"][2])
    mean = functional.avg_pool2d(ones, a["kernel"], a["stride"], padding, a["ceil_mode"], a["count_include_pad"])
    count = [
        _inside(window.row(y, 0), window.kernel[0], 1, image.height)[1]
        * _inside(window.column(x, 0), window.kernel[1], 1, image.width)[1]
        for y in range(out.height)
        for x in range(out.width)
    ]
    return (mean.reshape(-1).numpy() / np.maximum(count, 1)).astype(np.float32)


_OPS: dict[str, Callable[[Node, Sequence[Placed], Placed, Machine], list[Step]]] = {
    "add": _sum,
    "mul": _sum,
    "activation": _activation,
    "affine": _affine,
    "concat": _concat,
    "max_pool": _pool,
    "avg_pool": _pool,
    "global_avg_pool": _pool,
}

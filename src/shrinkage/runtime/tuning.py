"""Choosing the way of each layer by measuring."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from shrinkage.runtime.graph import Node
from shrinkage.runtime.jit import Machine
from shrinkage.runtime.layout import Layout, address, allocate
from shrinkage.runtime.partition import SPARSE, Region
from shrinkage.runtime.schedule import layouts, node_work
from shrinkage.runtime.sparse import SCRATCH, SparseLayer, Way
from shrinkage.runtime.steps import At, Program

# time on the processor is not disturbed by other programs; some systems measure it too coarsely
clock = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-6 else time.perf_counter


RUNS, ENOUGH = 3, 0.004
"""Each way runs so often at least, and so many seconds."""


@dataclass(frozen=True)
class Timing:
    """The best way found for a node (None: there is one only), and seconds for an item."""

    way: Way | None
    seconds: float


@cache
def _disturbance(host: Machine) -> Program:
    """Something that runs between two measurements, as the other layers do in a network.

    A layer that runs again and again has its weights in the cache, and the processor learns by heart where its loops
    end. This reads half a megabyte and ends twenty thousand loops at places of its own.
    """
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((20_000, 16), np.float32)
    weight *= rng.random(weight.shape) < rng.random((len(weight), 1)) * 0.5
    node = Node("y", "", "linear", ("x",), weight=weight)
    source, target = (Layout(1, size, 1, 1, host.lanes) for size in weight.shape[::-1])
    layer = SparseLayer(node, source, target, host)
    work = layer.work(Way("direct", (1, 1), 1, 1, weight.shape[1]), At("x"), At("y"))
    buffers = {"x": allocate(source.size), "y": allocate(target.size)}
    program = Program(
        [(step, {name: address(buffer) for name, buffer in buffers.items()}) for step in work.steps], host
    )
    program.keep(buffers)
    return program


class Bench:
    """Measures one node between given layouts, on random values."""

    def __init__(self, node: Node, where: Mapping[str, Layout], host: Machine) -> None:
        self.node, self.where, self.host = node, where, host
        rng = np.random.default_rng(0)
        self.buffers = {}
        for name in {*node.inputs, node.name}:
            buffer = allocate(where[name].size)
            floats = buffer.view(np.float32)
            floats[:] = rng.standard_normal(len(floats), np.float32)
            self.buffers[name] = buffer
        self.places = {name: At(name) for name in self.buffers}

    def seconds(self, way: Way | None) -> float:
        """For all items side by side: the least of a few runs."""
        work = node_work(self.node, way, self.places, self.where, self.host)
        scratch = allocate(work.scratch)
        addresses = {name: address(buffer) for name, buffer in self.buffers.items()} | {SCRATCH: address(scratch)}
        program = Program([(step, addresses) for step in work.steps], self.host)
        program()
        disturb = _disturbance(self.host)
        best, spent, runs = float("inf"), 0.0, 0
        while runs < RUNS or (spent < ENOUGH and runs < 50):
            disturb()
            start = clock()
            program()
            took = clock() - start
            best, spent, runs = min(best, took), spent + took, runs + 1
        return best


def best_way(node: Node, where: Mapping[str, Layout], host: Machine) -> Timing:
    """Search for the fastest way: first the shape of the tile, then the blocks, then how far loops are unrolled."""
    images = where[node.name].images
    bench = Bench(node, where, host)
    if node.op not in SPARSE:
        return Timing(None, bench.seconds(None) / images)
    layer = SparseLayer(node, where[node.inputs[0]], where[node.name], host)
    times: dict[Way, float] = {}

    def fastest(ways: list[Way]) -> Way:
        for way in ways:
            if way not in times:
                times[way] = bench.seconds(way)
        return min(times, key=times.__getitem__)

    way = fastest(layer.shapes())
    way = fastest(layer.blocked(way))
    way = fastest(layer.unrolled(way))
    way = fastest(layer.blocked(way))
    return Timing(way, times[way] / images)


Timings = dict[str, Timing]
"""By the node's name."""


def measure(region: Region, size: int, host: Machine) -> Timings:
    """The fastest way of each node for ``size`` items side by side."""
    where = layouts(region, size, host)
    return {node.name: best_way(node, where, host) for node in region.nodes if node.op != "flatten"}

"""Choosing how many items each node works on side by side.

What a node takes by itself is known from :mod:`shrinkage.runtime.tuning`, but a whole program is more than their sum:
values that the node before has just written are in the cache or are not. So the sums only say which programs are worth
a try, and those race each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np

from shrinkage.runtime import tuning
from shrinkage.runtime.jit import Machine
from shrinkage.runtime.partition import Region
from shrinkage.runtime.schedule import Chunk, Plan, Works, add_works
from shrinkage.runtime.tuning import Timings, clock

_STAGES = 6  # at most so many parts of a region are told apart
_PROMISING, _MOST = 2.0, 12  # programs with sums up to so many times the least race, at most so many


@dataclass(frozen=True)
class Levels:
    """What was chosen for chunks of one size.

    Attributes:
        side_by_side: items that each node works on at a time, by its name.
        seconds: that the program takes for an item.
    """

    side_by_side: Mapping[str, int]
    seconds: float


def make_plan(region: Region, side_by_side: Mapping[str, int], timings: Mapping[int, Timings]) -> Plan:
    """The plan in which every node works on so many items, in its fastest way."""
    sizes = sorted(set(side_by_side.values()))
    ways = {
        name: timings[size][name].way for name, size in side_by_side.items() if name in timings[size]
    }  # a flattened image needs nothing
    return Plan(
        tuple(sizes),
        {name: sizes.index(size) for name, size in side_by_side.items()},
        {name: way for name, way in ways.items() if way is not None},
    )


def choose_levels(
    region: Region, items: int, sizes: Sequence[int], timings: Mapping[int, Timings], works: Works, host: Machine
) -> Levels:
    """Race the promising programs for ``items``: nodes work on one of ``sizes`` items, never on fewer than before."""
    stages = _stages(region)
    sums = []
    for choice in combinations_with_replacement(sorted(sizes), len(stages)):
        side = {name: size for names, size in zip(stages, choice, strict=True) for name in names}
        total = sum(timings[size][name].seconds for name, size in side.items() if name in timings[size])
        sums.append((total, side))
    sums.sort(key=lambda entry: entry[0])
    promising = [side for total, side in sums if total <= _PROMISING * sums[0][0]][:_MOST]
    if len(promising) == 1:
        return Levels(promising[0], sums[0][0])
    rng = np.random.default_rng(0)
    inputs = {
        name: rng.standard_normal((items, int(np.prod(region.shapes[name]))), np.float32) for name in region.inputs
    }
    outputs = {name: np.empty((items, int(np.prod(region.shapes[name]))), np.float32) for name in region.outputs}
    best = None
    for side in promising:
        plan = make_plan(region, side, timings)
        add_works(works, region, plan, host)
        chunk = Chunk(region, items, plan, works, host)
        chunk(inputs, outputs)
        times = []
        for _ in range(tuning.RUNS):
            start = clock()
            chunk(inputs, outputs)
            times.append(clock() - start)
        if best is None or min(times) / items < best.seconds:
            best = Levels(side, min(times) / items)
    assert best is not None
    return best


def _stages(region: Region) -> list[list[str]]:
    """Nodes in runs of one size of map, of which there are not too many."""
    runs: list[list[str]] = []
    before = None
    for node in region.nodes:
        shape = region.shapes[node.name][1:]
        if shape != before and len(runs) < _STAGES:
            runs.append([])
        before = shape
        runs[-1].append(node.name)
    return runs

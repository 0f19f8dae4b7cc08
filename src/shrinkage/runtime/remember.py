"""Measurements kept on disk, so that a network is tuned once on a machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shrinkage.runtime.graph import Node
from shrinkage.runtime.jit import FORMAT, Machine, cache_folder, read_checked, write_checked
from shrinkage.runtime.levels import Levels, choose_levels
from shrinkage.runtime.partition import Region
from shrinkage.runtime.schedule import Works
from shrinkage.runtime.sparse import Way
from shrinkage.runtime.tuning import Timing, Timings, measure


def remembered_timings(region: Region, size: int, host: Machine) -> Timings:
    """The fastest way of each node for ``size`` items side by side: from the disk, or measured and kept."""
    path = _path(region, host, f"{size} side by side")
    data = read_checked(path)
    if data is not None:
        return load_timings(json.loads(data))
    found = measure(region, size, host)
    write_checked(path, json.dumps(dump_timings(found)).encode())
    return found


def remembered_levels(
    region: Region, items: int, sizes: Sequence[int], timings: Mapping[int, Timings], works: Works, host: Machine
) -> Levels:
    """How many items each node works on side by side, in chunks of ``items``: from the disk, or measured and kept."""
    path = _path(region, host, f"chunks of {items}")
    data = read_checked(path)
    if data is not None:
        return load_levels(json.loads(data))
    found = choose_levels(region, items, sizes, timings, works, host)
    write_checked(path, json.dumps(dump_levels(found)).encode())
    return found


def dump_timings(found: Timings) -> dict[str, Any]:
    """As plain values."""
    return {
        name: [timing.seconds, None if timing.way is None else timing.way.to_list()] for name, timing in found.items()
    }


def load_timings(plain: dict[str, Any]) -> Timings:
    """The inverse of :func:`dump_timings`."""
    return {
        name: Timing(None if way is None else Way.from_list(way), seconds) for name, (seconds, way) in plain.items()
    }


def dump_levels(found: Levels) -> list[Any]:
    """As plain values."""
    return [dict(found.side_by_side), found.seconds]


def load_levels(plain: list[Any]) -> Levels:
    """The inverse of :func:`dump_levels`."""
    side_by_side, seconds = plain
    return Levels(side_by_side, seconds)


def _path(region: Region, host: Machine, what: str) -> Path:
    return cache_folder() / "tuning" / f"{_key(region, host, what)}.json"


def _key(region: Region, host: Machine, what: str) -> str:
    """The same for regions that differ in the values of their weights alone, not in which of them are zero."""
    digest = hashlib.sha256(f"{FORMAT}\0{host}\0{what}\0{sorted(region.shapes.items())}\0".encode())
    for node in region.nodes:
        digest.update(_describe(node).encode())
        if node.weight is not None:
            digest.update(np.packbits(node.weight != 0).tobytes())
    return digest.hexdigest()


def _describe(node: Node) -> str:
    attrs = sorted((key, str(value)) for key, value in node.attrs.items())
    shape = None if node.weight is None else node.weight.shape
    return f"{node.name}\0{node.op}\0{node.inputs}\0{attrs}\0{shape}\0{node.activation}\0"

"""Layers that PyTorch computes faster than a sparse kernel does: those with few zeros."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from shrinkage.runtime.evaluate import bind, walk
from shrinkage.runtime.graph import Graph
from shrinkage.runtime.jit import Machine
from shrinkage.runtime.partition import SPARSE, Region, partition
from shrinkage.runtime.remember import remembered_timings
from shrinkage.runtime.runner import SIZES

_DENSE_ENOUGH = 0.25  # below this share of non-zeros the kernels have always won
_HANDING_OVER = 1.2  # a layer in PyTorch ends a region, and its values move to and fro


def leave_dense(graph: Graph, tensors: Sequence[Tensor], host: Machine) -> Graph:
    """Mark the layers that PyTorch computes faster on the example, so that the engine leaves them to it."""
    suspects = {
        node.name
        for node in graph.nodes.values()
        if node.op in SPARSE
        and node.weight is not None
        and np.count_nonzero(node.weight) > _DENSE_ENOUGH * node.weight.size
    }
    if not suspects:
        return graph
    theirs = _times(graph, tensors, suspects)
    nodes = dict(graph.nodes)
    for part in partition(graph):
        if not isinstance(part, Region) or not suspects & {node.name for node in part.nodes}:
            continue
        example = graph.nodes[part.nodes[0].name]
        items = int(np.prod(example.shape[:-1])) if part.rows else example.shape[0]
        size = max(s for s in SIZES if s <= items)
        own = remembered_timings(part, size, host)
        for name in suspects & set(own):
            if theirs[name] * _HANDING_OVER < own[name].seconds * items:
                nodes[name] = replace(nodes[name], attrs=nodes[name].attrs | {"dense": True})
    return replace(graph, nodes=nodes)


def _times(graph: Graph, tensors: Sequence[Tensor], names: set[str]) -> dict[str, float]:
    """Seconds that PyTorch takes for each of these nodes on the example."""
    found: dict[str, float] = {}
    values: dict[str, object] = dict(zip(graph.inputs, tensors, strict=True))
    with torch.no_grad():
        for node, value in walk(graph, tensors):
            values[node.name] = value
            if node.name in names:
                run, best = bind(node), float("inf")
                for _ in range(4):
                    start = time.perf_counter()
                    run(values)
                    best = min(best, time.perf_counter() - start)
                found[node.name] = best
    return found

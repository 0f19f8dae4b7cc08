"""Which nodes the engine computes itself, and in which runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from shrinkage.runtime.graph import Graph, Node

SPARSE = ("conv", "linear")
_DENSE = ("add", "mul", "activation", "affine", "concat", "max_pool", "avg_pool", "global_avg_pool", "flatten")

Shape = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True)
class Region:
    """Nodes that are computed together, item by item: an item is an image, or a row of features.

    Attributes:
        nodes: in order.
        inputs: names of the values from outside.
        outputs: names of the values that are used outside.
        shapes: of an item of each value, by name.
        rows: whether the items are rows: all axes but the last count them.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: dict[str, Shape]
    rows: bool

    @property
    def name(self) -> str:
        """That of its first node."""
        return self.nodes[0].name


def fuse_sums(graph: Graph) -> Graph:
    """Let a convolution or linear layer add the other term of a sum before it is stored, where it can.

    Such a node has a second input, and the sum's name.
    """
    users = graph.consumers()
    order = {name: i for i, name in enumerate(graph.nodes)}
    nodes = dict(graph.nodes)
    for node in graph.nodes.values():
        if node.op != "add" or len(set(node.inputs)) != 2:
            continue
        for late, early in (node.inputs, node.inputs[::-1]):
            layer = nodes.get(late)
            if (
                layer is not None
                and layer.op in SPARSE
                and len(layer.inputs) == 1
                and layer.activation is None
                and users[late] == [node.name]
                and late not in graph.outputs
                and order[early] < order[late]
                and supported(layer, graph)
            ):
                del nodes[late]
                nodes[node.name] = replace(
                    layer, name=node.name, inputs=(*layer.inputs, early), activation=node.activation
                )
                break
    # a fused node keeps the sum's place, after both of its inputs
    ordered = {name: nodes[name] for name in graph.nodes if name in nodes}
    return replace(graph, nodes=ordered)


def supported(node: Node, graph: Graph) -> bool:
    """Whether the engine has kernels for a node, and is not to leave it to PyTorch."""
    if node.attrs.get("dense"):
        return False
    if node.op in SPARSE:
        return len(node.shape) in ((4,) if node.op == "conv" else (2, 3)) and node.dtype == torch.float32
    if node.op not in _DENSE or node.dtype != torch.float32 or len(node.shape) not in (2, 3, 4):
        return False
    shapes = [graph.nodes[name].shape for name in node.inputs]
    if node.op == "flatten":
        plain = len(shapes[0]) == 4 and shapes[0][2:] == (1, 1)
        return len(shapes[0]) == 4 and (
            plain or all(graph.nodes[n].op == "linear" for n in graph.consumers()[node.name])
        )
    if len(node.shape) == 3 and node.op not in ("add", "mul", "activation"):
        return False
    if node.op in ("affine", "concat"):
        return int(node.attrs["axis"]) == 1
    return True


def item_shape(node: Node) -> Shape:
    """Channels, rows and columns of one item of a node's value."""
    if len(node.shape) == 4:
        return node.shape[1], node.shape[2], node.shape[3]
    return node.shape[-1], 1, 1


def partition(graph: Graph) -> list[Region | Node]:
    """Regions, and nodes for PyTorch, in an order in which they can run.

    A region takes up supported nodes one after the other until a node that is not supported needs one of
    its values. One without a convolution or a linear layer is left to PyTorch.
    """
    plan: list[Region | Node] = []
    open_nodes: list[Node] = []
    key: tuple[int | None, ...] | None = None

    def close() -> None:
        if any(node.op in SPARSE for node in open_nodes):
            region = _region(open_nodes, graph)
            # what is only another shape of an input is no result of the region: who needs it gets it from PyTorch
            views = _views(region)
            plan.extend(node for node in region.nodes if node.name in views)
            plan.append(replace(region, outputs=tuple(name for name in region.outputs if name not in views)))
        else:
            plan.extend(open_nodes)
        open_nodes.clear()

    for node in graph.nodes.values():
        if node.op == "input":
            continue
        inside = {other.name for other in open_nodes}
        if supported(node, graph):
            own = (node.batch_axis, *(node.shape[:-1] if len(node.shape) == 3 else node.shape[:1]))
            # where no axis is the batch, only what is made of the same items has as many at every batch size
            if open_nodes and (own != key or (node.batch_axis is None and not set(node.inputs) <= inside)):
                close()
            key = own
            open_nodes.append(node)
        else:
            if inside & set(node.inputs):
                close()
            plan.append(node)
    close()
    return plan


def _views(region: Region) -> set[str]:
    """Names of the outputs that are a flattened input, and of what they are flattened from on the way."""
    flattened: dict[str, str] = {}
    for node in region.nodes:
        if node.op == "flatten" and (node.inputs[0] in region.inputs or node.inputs[0] in flattened):
            flattened[node.name] = node.inputs[0]
    found: set[str] = set()
    for name in region.outputs:
        while name in flattened:
            found.add(name)
            name = flattened[name]
    return found


def _region(nodes: Sequence[Node], graph: Graph) -> Region:
    names = {node.name for node in nodes}
    users = graph.consumers()
    inputs = dict.fromkeys(name for node in nodes for name in node.inputs if name not in names)
    outputs = [
        node.name for node in nodes if node.name in graph.outputs or any(user not in names for user in users[node.name])
    ]
    shapes = {name: item_shape(graph.nodes[name]) for name in [*inputs, *names]}
    return Region(tuple(nodes), tuple(inputs), tuple(outputs), shapes, rows=len(nodes[0].shape) == 3)

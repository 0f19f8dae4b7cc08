"""Fewer operations for the same result: BatchNorm folded into weights, activations fused, dead nodes dropped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from shrinkage.runtime.graph import Graph, Node, Ref, reachable, rename

_FUSE_INTO = ("conv", "linear", "add", "affine")
_RECTIFIERS = ("relu", "relu6")  # they commute with a maximum
_PADS = (torch.ops.aten.pad.default, torch.ops.aten.constant_pad_nd.default)

Double = npt.NDArray[np.float64]


def simplify(graph: Graph) -> Graph:
    """A graph with the same inputs and outputs that computes the same with fewer operations.

    - An ``affine`` (BatchNorm, a scale, normalisation by constants) goes into the weights of the conv, linear or
      affine before it, else of the linear or conv after it, if nothing else uses the value between them. Weights
      that are zero stay zero.
    - An activation goes into the conv, linear, add or affine before it, if nothing else uses that; a ReLU past a
      maximum pool too. A ReLU of what is rectified already goes.
    - Zeros padded around an image go into the conv after it.

    What results has the name and label of the first of the nodes (for zeros: of the conv). The graph given is left as
    it was; arrays that do not change are shared.

    >>> from shrinkage.runtime.trace import trace
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.ReLU())
    >>> [(node.op, node.activation) for node in simplify(trace(net, torch.zeros(1, 1, 8, 8))).nodes.values()]
    [('input', None), ('conv', 'relu')]
    """
    work = _Work(graph)
    for name in graph.nodes:
        work.visit(name)
    outputs = tuple(work.stands_for.get(name, name) for name in graph.outputs)
    for node in work.nodes.values():
        if node.op == "affine":
            attrs = {key: value for key, value in node.attrs.items() if key != "exact"}
            work.nodes[node.name] = replace(node, attrs=attrs)
    return replace(graph, nodes=reachable(work.nodes, outputs), outputs=outputs)


class _Work:
    """A graph in the making; nodes up to the one visited are done."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = dict(graph.nodes)
        self.uses = {name: len(users) for name, users in graph.consumers().items()}
        for name in graph.outputs:
            self.uses[name] += 1
        self.stands_for: dict[str, str] = {}  # a node that is gone: the one that gives its value

    def visit(self, name: str) -> None:
        node = rename(self.nodes[name], self.stands_for)
        self.nodes[name] = node
        before = self._only_feeding(node)
        if node.op == "activation":
            self._activation(node, before)
        elif node.op == "affine" and before is not None:
            folded = _after(before, node)
            if folded is not None:
                self.nodes[before.name] = folded
                self._drop(node, before)
        elif node.op in ("linear", "conv") and before is not None:
            self.nodes[name] = _before(before, node) or node

    def _activation(self, node: Node, before: Node | None) -> None:
        source = self.nodes[node.inputs[0]]
        if node.activation == "relu" and self._rectified(source):
            self._drop(node, source)
        elif before is not None:
            past_pool = before.op == "max_pool" and node.activation in _RECTIFIERS
            into = self._only_feeding(before) if past_pool else before
            if into is not None and into.op in _FUSE_INTO and into.activation is None:
                self.nodes[into.name] = replace(into, activation=node.activation)
                self._drop(node, before)

    def _rectified(self, node: Node) -> bool:
        while node.op == "max_pool":
            node = self.nodes[node.inputs[0]]
        return node.activation in _RECTIFIERS

    def _only_feeding(self, node: Node) -> Node | None:
        """The node before, if this one has one input and is all that uses it."""
        if len(node.inputs) != 1 or self.uses[node.inputs[0]] != 1:
            return None
        return self.nodes[node.inputs[0]]

    def _drop(self, node: Node, stands: Node) -> None:
        """Let ``stands``, a node before, give the value of ``node``."""
        del self.nodes[node.name]
        self.stands_for[node.name] = stands.name
        self.uses[stands.name] += self.uses[node.name] - 1


def _after(first: Node, affine: Node) -> Node | None:
    """The conv, linear or affine ``first`` with the affine after it in its weights."""
    if first.activation is not None:
        return None
    scale, shift = _exact(affine)
    axis = affine.attrs["axis"]
    if first.op == "affine" and first.attrs["axis"] == axis:
        inner_scale, inner_shift = _exact(first)
        scale, shift = inner_scale * scale, inner_shift * scale + shift
        return _with(replace(first, attrs=first.attrs | {"exact": (scale, shift)}), scale, shift)
    if (first.op == "conv" and axis == 1) or (first.op == "linear" and axis == affine.attrs["rank"] - 1):
        assert first.weight is not None
        weight = first.weight * scale.reshape(-1, *[1] * (first.weight.ndim - 1))
        return _with(first, weight, shift if first.bias is None else first.bias * scale + shift)
    return None


def _before(first: Node, layer: Node) -> Node | None:
    """The conv or linear ``layer`` with the affine or the padding before it taken in."""
    if first.op == "torch" and layer.op == "conv":
        return _padded(first, layer)
    if first.op != "affine" or first.activation is not None:
        return None
    assert layer.weight is not None
    scale, shift = _exact(first)
    axis, weight = first.attrs["axis"], layer.weight.astype(np.float64)
    if layer.op == "linear" and axis == first.attrs["rank"] - 1:
        factors, offsets = scale, weight @ shift
    elif layer.op == "conv" and axis == 1 and (not any(layer.attrs["padding"]) or not shift.any()):
        # The zeros around an image are not shifted, so that a shift would be wrong at the border.
        group = np.arange(len(weight)) // (len(weight) // layer.attrs["groups"])
        by_group = (layer.attrs["groups"], -1, 1, 1)
        factors = scale.reshape(by_group)[group]
        offsets = (weight * shift.reshape(by_group)[group]).sum((1, 2, 3))
    else:
        return None
    bias = offsets if layer.bias is None else offsets + layer.bias
    return _with(replace(layer, inputs=first.inputs), weight * factors, bias)


def _exact(affine: Node) -> tuple[Double, Double]:
    assert affine.weight is not None
    assert affine.bias is not None
    scale, shift = affine.attrs.get("exact", (affine.weight, affine.bias))
    return scale.astype(np.float64), shift.astype(np.float64)


def _with(layer: Node, weight: Double, bias: Double) -> Node | None:
    """The layer with other numbers, if float32 can hold them."""
    with np.errstate(over="ignore"):
        weights, biases = weight.astype(np.float32), bias.astype(np.float32)
    if not (np.isfinite(weights).all() and np.isfinite(biases).all()):
        return None
    weights[weights == 0] = 0  # no −0
    return replace(layer, weight=np.ascontiguousarray(weights), bias=biases)


def _padded(pad: Node, conv: Node) -> Node | None:
    if pad.attrs["target"] not in _PADS or pad.attrs["kwargs"] or len(pad.shape) != 4:
        return None
    _, sides, *rest = pad.attrs["args"]
    mode = rest.pop(0) if pad.attrs["target"] is _PADS[0] and rest else "constant"
    if mode != "constant" or any(rest) or len(sides) > 4 or any(isinstance(side, Ref) or side < 0 for side in sides):
        return None
    left, right, top, bottom = [*sides, 0, 0][:4]
    old = conv.attrs["padding"]
    padding = (old[0] + top, old[1] + bottom, old[2] + left, old[3] + right)
    return replace(conv, inputs=pad.inputs, attrs=conv.attrs | {"padding": padding})

"""Running a graph by PyTorch: slow but sure, whole or node by node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from shrinkage.runtime.graph import Array, Graph, Node, Ref, refs

Values = Mapping[str, Any]


def evaluate(graph: Graph, *args: Any, **kwargs: Any) -> Any:
    """Run the graph by PyTorch, called as the model is.

    Raises:
        InputError: if the call does not fit the example; see :meth:`Graph.flatten_inputs`.

    >>> from shrinkage.runtime.trace import trace
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
    >>> x = torch.randn(5, 4)
    >>> torch.equal(evaluate(trace(net, torch.zeros(1, 4)), x), net(x))
    True
    """
    tensors = graph.flatten_inputs(args, kwargs)
    found = {node.name: value for node, value in walk(graph, tensors) if node.name in graph.outputs}
    return graph.rebuild([found[name] for name in graph.outputs])


def walk(graph: Graph, tensors: Sequence[Tensor]) -> Iterator[tuple[Node, Any]]:
    """Run node by node, yielding each with its value; a value is forgotten after its last use."""
    left = {name: len(users) for name, users in graph.consumers().items()}
    values: dict[str, Any] = dict(zip(graph.inputs, tensors, strict=True))
    for node in graph.nodes.values():
        if node.op != "input":
            with torch.no_grad():
                values[node.name] = run_node(node, values)
        for name in node.inputs:
            left[name] -= 1
        yield node, values[node.name]
        for name in {node.name, *node.inputs}:
            if not left[name]:
                values.pop(name, None)


def run_node(node: Node, values: Values) -> Any:
    """The value of one node from those of its inputs, by PyTorch; :func:`bind` is faster for many calls."""
    return bind(node)(values)


def bind(node: Node) -> Callable[[Values], Any]:
    """A function from the values of other nodes, by name, to this node's; what can be prepared, is.

    The function does not switch gradients off.
    """
    if node.op == "torch":
        return _bind_torch(node)
    compute = _COMPUTE[node.op](node)
    finish = None if node.activation is None else ACTIVATIONS[node.activation]
    names = node.inputs

    def run(values: Values) -> Tensor:
        value = compute(*[values[name] for name in names])
        return value if finish is None else finish(value)

    return run


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "hardswish": functional.hardswish,
}


def _bind_torch(node: Node) -> Callable[[Values], Any]:
    target, args, kwargs = node.attrs["target"], list(node.attrs["args"]), dict(node.attrs["kwargs"])
    places = [(index, _filler(arg)) for index, arg in enumerate(args) if any(refs(arg))]
    words = [(key, _filler(arg)) for key, arg in kwargs.items() if any(refs(arg))]

    def run(values: Values) -> Any:
        now = args.copy()
        for index, fill in places:
            now[index] = fill(values)
        return target(*now, **kwargs)

    def run_with_words(values: Values) -> Any:
        now = args.copy()
        for index, fill in places:
            now[index] = fill(values)
        return target(*now, **kwargs | {key: fill(values) for key, fill in words})

    return run_with_words if words else run


def _filler(structure: Any) -> Callable[[Values], Any]:
    if isinstance(structure, Ref):
        name = structure.name
        return lambda values: values[name]
    if not any(refs(structure)):
        return lambda values: structure
    if isinstance(structure, Mapping):
        fields = {key: _filler(item) for key, item in structure.items()}
        return lambda values: {key: fill(values) for key, fill in fields.items()}
    if isinstance(structure, slice):
        ends = _filler((structure.start, structure.stop, structure.step))
        return lambda values: slice(*ends(values))
    parts = [_filler(item) for item in structure]
    if isinstance(structure, tuple):
        return lambda values: tuple([fill(values) for fill in parts])
    return lambda values: [fill(values) for fill in parts]


def _tensor(array: Array | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)


def _conv(node: Node) -> Callable[..., Tensor]:
    weight, bias, attrs = _tensor(node.weight), _tensor(node.bias), node.attrs
    assert weight is not None
    top, bottom, left, right = attrs["padding"]
    even = top == bottom and left == right
    inner = (top, left) if even else (0, 0)

    def compute(x: Tensor) -> Tensor:
        if not even:
            x = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(x, weight, bias, attrs["stride"], inner, attrs["dilation"], attrs["groups"])

    return compute


def _linear(node: Node) -> Callable[..., Tensor]:
    weight, bias = _tensor(node.weight), _tensor(node.bias)
    assert weight is not None
    return lambda x: functional.linear(x, weight, bias)


def _affine(node: Node) -> Callable[..., Tensor]:
    assert node.weight is not None
    assert node.bias is not None
    shape = (-1, *[1] * (node.attrs["rank"] - node.attrs["axis"] - 1))
    scale, shift = torch.from_numpy(node.weight).reshape(shape), torch.from_numpy(node.bias).reshape(shape)
    if not node.bias.any():
        return lambda x: x * scale
    if (node.weight == 1).all():
        return lambda x: x + shift
    return lambda x: torch.addcmul(shift, x, scale)


def _max_pool(node: Node) -> Callable[..., Tensor]:
    a = node.attrs
    padding = (a["padding"][0], a["padding"][2])
    return lambda x: functional.max_pool2d(x, a["kernel"], a["stride"], padding, a["dilation"], a["ceil_mode"])


def _avg_pool(node: Node) -> Callable[..., Tensor]:
    a = node.attrs
    padding = (a["padding"][0], a["padding"][2])
    return lambda x: functional.avg_pool2d(x, a["kernel"], a["stride"], padding, a["ceil_mode"], a["count_include_pad"])


def _layer_norm(node: Node) -> Callable[..., Tensor]:
    weight, bias, eps = _tensor(node.weight), _tensor(node.bias), node.attrs["eps"]
    assert weight is not None
    return lambda x: functional.layer_norm(x, weight.shape, weight, bias, eps)


_COMPUTE: dict[str, Callable[[Node], Callable[..., Tensor]]] = {
    "conv": _conv,
    "linear": _linear,
    "affine": _affine,
    "add": lambda node: torch.add,
    "mul": lambda node: torch.mul,
    "concat": lambda node: lambda *xs: torch.cat(xs, node.attrs["axis"]),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "global_avg_pool": lambda node: lambda x: x.mean((2, 3), keepdim=node.attrs["keepdim"]),
    "flatten": lambda node: lambda x: x.flatten(1),
    "activation": lambda node: lambda x: x,
    "layer_norm": _layer_norm,
    "softmax": lambda node: lambda x: functional.softmax(x, node.attrs["axis"]),
}

"""Two questions about every number in a forward pass: does it depend on the input, and does the output depend on it?

The graph is run once on the example. A rule per operation says, element by element, which results vary with the
input (everything else is constant, and its value is known), then, on the way back, which elements are *live*, that
is, can reach an output. Rules also tie slices together (see :mod:`shrinkage.deploy.slices`) and record *products*,
the places where slices are summed over. All err on the safe side: what no rule knows varies, is live, and stays.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from shrinkage.deploy.slices import STAYS, Slices
from shrinkage.deploy.tracing import Trace, operation


@dataclass(eq=False)
class Value:
    """A tensor of the forward pass.

    Attributes:
        data: its value on the example.
        varying: which elements depend on the input; bool, of the same shape.
        nonzero: which elements can be other than zero: they vary, or are not zero.
        slices: for each dimension, the slice that each index belongs to.
        live: which elements an output can depend on; complete after the way back.
        name: of the parameter or buffer that it is.
    """

    data: Tensor
    varying: Tensor
    nonzero: Tensor
    slices: list[Tensor]
    live: Tensor
    name: str | None = None


@dataclass(eq=False)
class Product:
    """A sum over slices: ``outputs[o] += Σ_k inputs[k] · weight[o, k]``.

    Attributes:
        inputs: slices that are summed over, shape (K,).
        outputs: slices of the results, shape (O,); those that stay where a result belongs to none.
        constant: the value of an input that is one and the same everywhere, shape (K,); not a number elsewhere.
        matters: whether taking ``inputs[k]`` away changes an output that is live, shape (K, O); filled on the way back.
        home: where constants can be folded in, if anywhere.
    """

    inputs: Tensor
    outputs: Tensor
    constant: Tensor
    matters: Tensor
    home: Bias | Weight | None


@dataclass(frozen=True, eq=False)
class Bias:
    """A parameter or buffer that can take constants in, all of them.

    Attributes:
        name: of the bias, or of the running mean behind it.
        sign: of a constant in it.
        matrix: gives the weights (O, K) that multiply constants.
    """

    name: str
    sign: int
    matrix: Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight that can take constants in, as long as one of them stays to be multiplied by it.

    Attributes:
        name: of the weight.
        data: its value.
        dim: its dimension that counts inputs.
    """

    name: str
    data: Tensor
    dim: int


@dataclass(frozen=True, eq=False)
class Grouped:
    """A convolution in groups, whose channels can go only so that the groups stay alike.

    Attributes:
        weight: the name of its weight, of shape (outputs, inputs / groups, …).
        groups: how many there are.
        inputs: slices of its input channels.
        outputs: slices of its output channels.
    """

    weight: str
    groups: int
    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class Call:
    """One operation: its node, its arguments by their names in ATen's schema, and what it gave."""

    node: Node
    bound: Mapping[str, Any]
    result: Any

    @property
    def tensors(self) -> list[Value]:
        """The tensors among the arguments, also those in lists."""
        return list(values(list(self.bound.values())))

    def again(self, changed: Mapping[str, Any]) -> Any:
        """What the operation gives with some arguments replaced."""
        bound = {name: unwrapped(value) for name, value in self.bound.items()}
        return self.node.target(**{**bound, **changed})  # type: ignore[operator]


Rule = Callable[["Flow", Call], Any]


class Flow:
    """The run of a graph with its masks.

    Args:
        trace: of the model.
        rules: by the operation's name, such as ``"linear"``; for any other one, :func:`unknown`.

    Attributes:
        trace: of the model.
        slices: which of them can only go together.
        products: where slices are summed over.
        grouped: convolutions in groups.
        sources: parameters and buffers by name.
    """

    def __init__(self, trace: Trace, rules: Mapping[str, Rule]) -> None:
        self.slices = Slices()
        self.products: list[Product] = []
        self.grouped: list[Grouped] = []
        self.sources: dict[str, Value] = {}
        self.trace = trace
        self._rules = rules
        self._back: list[Callable[[], None]] = []
        self._known: dict[Node, Any] = {}
        with torch.no_grad():
            self._run()
            for step in reversed(self._back):
                step()
        self._back.clear()

    def back(self, step: Callable[[], None]) -> None:
        """Do this on the way back."""
        self._back.append(step)

    def value(self, data: Tensor, varying: Tensor, slices: list[Tensor], name: str | None = None) -> Value:
        """A new tensor of the forward pass."""
        varying = varying.expand(data.shape).contiguous()
        return Value(data, varying, varying | (data != 0), slices, torch.zeros_like(varying), name)

    def fix(self, *values: Value | None) -> None:
        """No slice of these can go."""
        for value in values:
            for dimension in value.slices if value is not None else ():
                self.slices.fix(dimension)

    def broadcast(self, slices: Iterable[list[Tensor]], shape: Iterable[int]) -> list[Tensor]:
        """Slices of a result of this shape, after tying those that meet."""
        slices, shape = list(slices), list(shape)
        result = []
        for dim in range(-len(shape), 0):
            size = shape[dim]
            found = [one[dim] for one in slices if len(one) >= -dim and len(one[dim]) == size]
            for other in found[1:]:
                self.slices.join(found[0], other)
            result.append(found[0] if found else still(size))
        return result

    def alone(self, value: Value | None) -> bool:
        """Whether this is a parameter or buffer that one operation uses, once."""
        return value is not None and value.name is not None and self.trace.uses[id(value.data)] == 1

    def norm_after(self, node: Node) -> str | None:
        """The running mean of the BatchNorm that is all that reads ``node``, if nothing else uses it."""
        norm = self.trace.norm_after(node)
        mean = norm.args[3] if norm is not None else None
        return self.trace.names[mean] if isinstance(mean, Node) and self.trace.alone(mean) else None

    def _run(self) -> None:
        trace = self.trace
        shared: dict[int, Value] = {}
        for node, data in trace.values.items():
            if id(data) not in shared:
                name = trace.names.get(node)
                tied = name is not None
                slices = [self.slices.new(size) if tied else still(size) for size in data.shape]
                varying = torch.full_like(data, node in trace.inputs, dtype=torch.bool)
                shared[id(data)] = self.value(data, varying, slices, name)
                if name is not None:
                    self.sources[name] = shared[id(data)]
            self._known[node] = shared[id(data)]
        for value in shared.values():
            if not trace.uses[id(value.data)]:  # of a module that does not run
                self.fix(value)
        last = {used: node for node in trace.graph.graph.nodes for used in node.all_input_nodes}
        for node in trace.graph.graph.nodes:
            if node.op == "get_attr":
                self._known[node] = getattr(trace.graph, str(node.target))
            elif node.op == "call_function":
                self._known[node] = self._call(node)
            elif node.op == "output":
                for value in values(self._argument(list(node.args))):
                    self.fix(value)
                    value.live.fill_(True)
            for used in node.all_input_nodes:
                value = self._known[used]
                if last[used] is node and used.op == "call_function" and isinstance(value, Value):
                    value.data = value.data.new_empty(0)  # the masks are all that the way back needs

    def _call(self, node: Node) -> Any:
        args = [self._argument(arg) for arg in node.args]
        kwargs = {key: self._argument(arg) for key, arg in node.kwargs.items()}
        if node.target is operator.getitem:
            return args[0][args[1]]
        result = node.target(*map(unwrapped, args), **{k: unwrapped(v) for k, v in kwargs.items()})  # type: ignore[operator]
        if not isinstance(node.target, OpOverload):
            return unknown(self, Call(node, {**{str(i): arg for i, arg in enumerate(args)}, **kwargs}, result))
        parameters = [argument.name for argument in node.target._schema.arguments]
        call = Call(node, {**dict(zip(parameters, args, strict=False)), **kwargs}, result)
        if any(not value.data.numel() or value.data.is_complex() for value in call.tensors):
            return unknown(self, call)
        rule = self._rules.get(operation(node))
        if rule is None and torch.Tag.pointwise in node.target.tags:
            rule = self._rules["pointwise"]
        return (rule or unknown)(self, call)

    def _argument(self, thing: Any) -> Any:
        if isinstance(thing, Node):
            return self._known[thing]
        if isinstance(thing, tuple | list):
            return [self._argument(each) for each in thing]
        return thing


def values(thing: Any) -> Iterator[Value]:
    """The tensors of the forward pass in nested lists and tuples."""
    if isinstance(thing, Value):
        yield thing
    elif isinstance(thing, tuple | list):
        for each in thing:
            yield from values(each)


def unwrapped(thing: Any) -> Any:
    """The same with plain tensors."""
    if isinstance(thing, Value):
        return thing.data
    if isinstance(thing, tuple | list):
        return [unwrapped(each) for each in thing]
    return thing


def still(size: int) -> Tensor:
    """Slices of a dimension of which none can go."""
    return torch.full((size,), STAYS)


def reduced(mask: Tensor, shape: torch.Size) -> Tensor:
    """The reverse of broadcasting from ``shape``: whether anything that an element was spread to is marked."""
    while mask.ndim > len(shape):
        mask = mask.any(0)
    for dimension, size in enumerate(shape):
        if size == 1 != mask.shape[dimension]:
            mask = mask.any(dimension, keepdim=True)
    return mask


def unknown(flow: Flow, call: Call) -> Any:
    """Everything depends on everything, and all of it stays."""
    inputs = call.tensors
    chance = torch.Tag.nondeterministic_seeded in getattr(call.node.target, "tags", ())
    varying = torch.tensor(chance or any(bool(x.varying.any()) for x in inputs))
    flow.fix(*inputs)
    outputs = [
        flow.value(out, varying.to(out.device), [still(size) for size in out.shape])
        for out in each(call.result)
        if isinstance(out, Tensor)
    ]

    def back() -> None:
        if any(bool(out.live.any()) for out in outputs):
            for x in inputs:
                x.live.fill_(True)

    flow.back(back)
    found = iter(outputs)
    return alike(call.result, [next(found) if isinstance(out, Tensor) else out for out in each(call.result)])


def each(result: Any) -> list[Any]:
    """What an operation gave, as a list."""
    return list(result) if isinstance(result, tuple | list) else [result]


def alike(result: Any, parts: list[Any]) -> Any:
    """The parts alone or together, as the operation gave them."""
    return tuple(parts) if isinstance(result, tuple | list) else parts[0]

"""From an exported program to a graph."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from shrinkage.core.errors import InputError
from shrinkage.runtime.aten import lower
from shrinkage.runtime.evaluate import walk
from shrinkage.runtime.graph import Graph, Node, Ref, reachable, refs
from shrinkage.runtime.site import Site, Value, torch_node

_CHECKS = {
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten.sym_constrain_range.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
}


def to_graph(program: ExportedProgram, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Graph:
    """The graph of a program without in-place changes; ``call``: arguments for which to note the shapes."""
    nodes: dict[str, Node] = {}
    values: dict[str, Value] = {}
    bound, leaves = _placeholders(program, nodes, values)
    for item in program.graph.nodes:
        if item.op == "get_attr":
            bound[item.name] = operator.attrgetter(item.target)(program.graph_module)
        elif item.op == "call_function" and item.target not in _CHECKS:
            args = fx.node.map_arg(item.args, lambda used: bound[used.name])
            kwargs = fx.node.map_arg(item.kwargs, lambda used: bound[used.name])
            bound[item.name] = _operation(item, args, kwargs, nodes, values)
    outputs = _outputs(program, bound, nodes)
    assert program.call_spec.in_spec is not None
    assert program.call_spec.out_spec is not None
    inputs = [node for node in nodes.values() if node.op == "input"]
    free = [str(values[node.name].sizes[0]) for node in inputs if node.attrs["batch"]]
    graph = Graph(
        tuple(node.name for node in inputs),
        outputs,
        reachable(nodes, outputs),
        program.call_spec.in_spec,
        leaves,
        program.call_spec.out_spec,
        tuple(call[1]),
        static_batch=not free,
        batch_range=_limits(program, free),
    )
    tensors = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor)]
    for node, value in walk(graph, tensors):
        _note(node, value, values[node.name].sizes if node.name in values else (), free)
    return graph


def _placeholders(
    program: ExportedProgram, nodes: dict[str, Node], values: dict[str, Value]
) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """What the program's placeholders stand for, by name, and the leaves of the call in their order.

    Weights and other tensors are copied, a shared one once.
    """
    copies: dict[int, Any] = {}
    bound: dict[str, Any] = {}
    leaves: list[Any] = []
    known = {item.name: item.meta.get("val") for item in program.graph.nodes if item.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind == InputKind.USER_INPUT:
            if isinstance(spec.arg, TensorArgument):
                values[name] = value = _value(known[name])
                nodes[name] = Node(name, name, "input", attrs={"batch": isinstance((*value.sizes, 0)[0], str)})
                bound[name] = Ref(name)
            else:
                assert isinstance(spec.arg, ConstantArgument)
                bound[name] = spec.arg.value
            leaves.append(bound[name])
        else:
            assert spec.target is not None
            held = program.state_dict if spec.target in program.state_dict else program.constants
            value = held[spec.target]
            if isinstance(value, Tensor) and id(value) not in copies:
                copies[id(value)] = value.detach().clone(memory_format=torch.contiguous_format)
            bound[name] = copies.get(id(value), value)
    return bound, tuple(leaves)


def _operation(item: fx.Node, args: Any, kwargs: Any, nodes: dict[str, Node], values: dict[str, Value]) -> Any:
    """A reference to a node, made for the operation or passed on; or a constant."""
    if not any(refs((args, kwargs))) and torch.Tag.nondeterministic_seeded not in getattr(item.target, "tags", ()):
        assert callable(item.target)
        return item.target(*args, **kwargs)
    if item.target is operator.getitem and nodes[args[0].name].op != "torch":
        return args[0]  # BatchNorm's first value; it has no others in evaluation mode
    known = item.meta.get("val")
    first = known[0] if isinstance(known, tuple | list) and known else known
    if isinstance(first, Tensor):
        values[item.name] = _value(first)
    found = lower(Site(item.name, _label(item), values.get(item.name), values, nodes), item.target, args, kwargs)
    if isinstance(found, Ref):
        return found
    nodes[item.name] = found
    return Ref(item.name)


def _outputs(program: ExportedProgram, bound: dict[str, Any], nodes: dict[str, Node]) -> tuple[str, ...]:
    outputs = []
    for place, spec in enumerate(program.graph_signature.output_specs):
        if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
            raise InputError(
                f"the model changes its tensor {spec.target!r} as it runs, which a graph cannot; "
                "leave that out in evaluation mode"
            )
        if spec.kind != OutputKind.USER_OUTPUT:  # a change of the caller's tensor, which is left as it was
            continue
        value = spec.arg.value if isinstance(spec.arg, ConstantArgument) else bound[spec.arg.name]
        if not isinstance(value, Ref):
            name = f"constant_{place}"
            nodes[name] = torch_node(Site(name, name, None, {}, {}), operator.getitem, ((value,), 0), {})
            value = Ref(name)
        outputs.append(value.name)
    return tuple(outputs)


def _value(tensor: Tensor) -> Value:
    return Value(tuple(size if isinstance(size, int) else str(size) for size in tensor.shape), tensor.dtype)


def _label(item: fx.Node) -> str:
    stack = list((item.meta.get("nn_module_stack") or {"": ("", None)}).values())
    path = str(stack[-1][0]).partition("@")[0]  # "@1" marks the second call of a module
    return item.name if not path or path.startswith("_empty_nn_module_stack") else path


def _limits(program: ExportedProgram, symbols: list[str]) -> tuple[int, int | None]:
    low, high = 1, None
    for symbol, limits in program.range_constraints.items():
        if str(symbol) in symbols:
            low = max(low, int(limits.lower))
            if str(limits.upper).isdigit():  # not infinity
                high = min(int(limits.upper), int(limits.upper) if high is None else high)
    return low, high


def _note(node: Node, value: Any, sizes: tuple[int | str, ...], symbols: list[str]) -> None:
    """Write what a node's value is like for the example into it."""
    if isinstance(value, Tensor):
        node.shape, node.dtype = tuple(value.shape), value.dtype
        varying = [axis for axis, size in enumerate(sizes) if isinstance(size, str)]
        if not symbols:
            node.batch_axis = 0 if value.dim() else None
        elif len(varying) == 1 and sizes[varying[0]] in symbols:
            node.batch_axis = varying[0]
    elif isinstance(value, int):
        node.dtype = torch.int64
    if node.op == "torch":
        scalar = isinstance(value, int | float)
        node.attrs["returns"] = "tensor" if isinstance(value, Tensor) else "scalar" if scalar else "other"

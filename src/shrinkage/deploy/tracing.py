"""A model's forward pass as a graph of tensor operations, with the values it runs on."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node
from torch.utils import _pytree

from shrinkage.core.errors import InputError


@dataclass(frozen=True)
class Trace:
    """What ``torch.export`` saw.

    Attributes:
        graph: operations of ATen that change nothing in place.
        values: the tensor behind each placeholder; equal objects where the model uses one tensor under two names.
        names: the parameter or buffer behind a placeholder, by its name in the model; buffers that are not
            in its ``state_dict`` are constants.
        inputs: placeholders of the example.
        uses: how many operations use a tensor of the model's, by its ``id``.
    """

    graph: GraphModule
    values: Mapping[Node, Tensor]
    names: Mapping[Node, str]
    inputs: frozenset[Node]
    uses: Mapping[int, int]

    @property
    def epsilon(self) -> float:
        """The largest machine epsilon of the types that the model computes in; 0 if it knows no fractions."""
        results = [tensor for node in self.graph.graph.nodes for tensor in tensors(node.meta.get("val"))]
        types = {tensor.dtype for tensor in results if tensor.is_floating_point()}
        return max((torch.finfo(kind).eps for kind in types), default=0.0)

    def alone(self, node: Any) -> bool:
        """Whether this is a parameter or buffer that one operation uses, once."""
        return isinstance(node, Node) and node in self.names and self.uses[id(self.values[node])] == 1

    def norm_after(self, node: Node) -> Node | None:
        """The BatchNorm with running statistics that is all that reads ``node``."""
        (user,) = node.users if len(node.users) == 1 else (None,)
        normal = user is not None and operation(user) == "_native_batch_norm_legit_no_training" and user.args[0] is node
        return user if normal else None


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example as the positional and keyword arguments that it stands for.

    >>> arguments({"x": 1}), arguments((1, 2)), arguments(1)
    (((), {'x': 1}), ((1, 2), {}), ((1,), {}))
    """
    if isinstance(example, Mapping):
        return (), dict(example)
    if type(example) in (tuple, list):  # not a named tuple, such as PackedSequence: that is one argument
        return tuple(example), {}
    return (example,), {}


def tensors(thing: Any) -> list[Tensor]:
    """All tensors in what a model returns, however it is wrapped, in a fixed order.

    >>> [t.item() for t in tensors({"logits": torch.tensor(1.0), "more": (torch.tensor(2.0), None, "text")})]
    [1.0, 2.0]
    """
    return list(_tensors(thing, set()))


def _tensors(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
        return
    if id(thing) in seen or isinstance(thing, type | nn.Module):
        return
    seen.add(id(thing))
    inside: Sequence[Any] = ()
    if isinstance(thing, Mapping):
        inside = list(thing.values())
    elif isinstance(thing, tuple | list):
        inside = thing
    elif hasattr(thing, "__dict__") and not callable(thing):  # a data class, or a cache of keys and values
        inside = list(vars(thing).values())
    for each in inside:
        yield from _tensors(each, seen)


class _Flat(nn.Module):
    """The model as a function of the example's tensors alone, which returns a list of tensors."""

    def __init__(self, model: nn.Module, spec: Any, leaves: Sequence[Any]) -> None:
        super().__init__()
        self.model = model
        self.spec, self.leaves = spec, leaves

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        given = iter(inputs)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = _pytree.tree_unflatten(leaves, self.spec)
        return tensors(self.model(*args, **kwargs))


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    """Trace a model that is in evaluation mode.

    Raises:
        InputError: if it cannot be traced.
    """
    leaves, spec = _pytree.tree_flatten((args, kwargs))
    given = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
    if not given:
        raise InputError("the example holds no tensor; give an input that the model can run on")
    try:
        with torch.no_grad(), _plainly():
            program = torch.export.export(_Flat(model, spec, leaves), given, strict=False).run_decompositions({})
    except Exception as error:  # whatever the user's code or the exporter raises
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{type(model).__name__} cannot be traced by torch.export ({type(error).__name__}: {first}); "
            "its forward must not branch on the values of tensors, and may use only PyTorch's operations"
        ) from error
    signature = program.graph_signature
    if not signature.user_outputs:
        raise InputError(f"{type(model).__name__} returns no tensor, so that nothing in it could be told from dead")
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    values: dict[Node, Tensor] = {}
    names: dict[Node, str] = {}
    inputs: list[Node] = []
    own = stored(model)
    for spec in signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            values[node] = given[len(inputs)]
            inputs.append(node)
            continue
        name = (spec.target or "").removeprefix("model.")
        if name in own:
            values[node], names[node] = own[name], name
        else:
            constant = program.constants[str(spec.target)]
            if isinstance(constant, Tensor):
                values[node] = constant
    uses = Counter[int]()
    for node, value in values.items():
        uses[id(value)] += len(node.users)
    return Trace(program.graph_module, values, names, frozenset(inputs), uses)


def stored(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model's ``state_dict``, under all of their names."""
    own: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for path, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                own[f"{path}.{name}" if path else name] = buffer
    return own


def operation(node: Node) -> str:
    """Its name in ATen without the overload, such as ``"linear"``; empty for anything else."""
    return node.target._schema.name.removeprefix("aten::") if isinstance(node.target, OpOverload) else ""


@contextmanager
def _plainly() -> Iterator[None]:
    """Module by module, without PyTorch's fused Transformer layers, and without the exporter's own warnings."""
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)

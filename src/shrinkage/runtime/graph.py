"""A network as a short list of operations.

:func:`shrinkage.runtime.trace.trace` makes a :class:`Graph` of a PyTorch model,
:func:`shrinkage.runtime.simplify.simplify` folds and fuses it, and :mod:`shrinkage.runtime.evaluate` runs it by
PyTorch: the oracle for faster ways, and what they fall back to, node by node.

The operations (``Node.op``), with x of shape (B, …) the only input unless said otherwise:

``input``
    a tensor given by the caller; attrs ``batch``: whether axis 0 may have another size than in the example.
``conv``
    x (B, I, H, W), weight (O, I / groups, kh, kw), bias (O,) or None; attrs ``stride`` (sh, sw), ``padding`` with zeros
    (top, bottom, left, right), ``dilation`` (dh, dw), ``groups``.
``linear``
    the last axis of x is multiplied by weight (O, I), then bias (O,) or None is added.
``affine``
    x · weight + bias, both of the size of x along attrs ``axis``; attrs ``rank``: how many axes x has;
    ``exact``: both as float64, for folding, until :func:`~shrinkage.runtime.simplify.simplify`.
``add``, ``mul``
    of two inputs of the same shape at every batch size.
``concat``
    of several inputs along attrs ``axis``.
``max_pool``, ``avg_pool``
    x (B, C, H, W); attrs ``kernel``, ``stride``, ``dilation`` (pairs), ``padding`` (top, bottom, left, right, with
    top = bottom and left = right), ``ceil_mode``, ``count_include_pad``, as in PyTorch.
``global_avg_pool``
    the mean of x (B, C, H, W) over H and W; attrs ``keepdim``.
``flatten``
    x to (B, rest).
``activation``
    nothing but ``Node.activation``.
``layer_norm``
    over the last axis, with weight and bias of its size; attrs ``eps``.
``softmax``
    attrs ``axis``.
``torch``
    anything else; attrs ``target`` (a callable), ``args`` and ``kwargs`` for it, in which a :class:`Ref` stands for
    another node's value and everything else, tensors included, is constant; ``returns``: ``"tensor"``, ``"scalar"``
    (a Python number, such as a size) or ``"other"`` (a tuple of tensors, as a rule); ``alias``: whether the value may
    share memory with an input's.

Axes count from the front. Values are float32 unless ``Node.dtype`` says otherwise, which only inputs and ``torch`` do.
The batch need not be at axis 0: ``Node.batch_axis`` says where it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from shrinkage.core.errors import InputError
from shrinkage.core.tables import render

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ref:
    """In the arguments of a ``torch`` node: the value of the node called ``name``."""

    name: str


@dataclass(eq=False)
class Node:
    """One operation.

    Attributes:
        name: unique in the graph, such as ``"conv2d_3"``.
        label: for people: the path of the module that computes it, or ``name`` where that is the model itself.
        op: what it does; see :mod:`shrinkage.runtime.graph`.
        inputs: names of the nodes whose values it needs.
        shape: of its value for the example; empty where the value is not a tensor.
        dtype: of its value; ``torch.int64`` for a whole number.
        batch_axis: the axis that is the batch, the others being of fixed size; None if there is none, as where
            batch and tokens are one axis. 0 for every tensor of a graph with a static batch.
        attrs: what ``op`` needs beside weight and bias.
        weight: float32, C-contiguous.
        bias: float32, one-dimensional.
        activation: applied last: ``"relu"``, ``"relu6"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"`` or ``"hardswish"``.
    """

    name: str
    label: str
    op: str
    inputs: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    batch_axis: int | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    weight: Array | None = None
    bias: Array | None = None
    activation: str | None = None


@dataclass(eq=False)
class Graph:
    """Operations in an order in which they can run; prints as a table.

    Attributes:
        inputs: names of the ``input`` nodes, in the order of the tensors in the call.
        outputs: names of the nodes whose values are the leaves of the output.
        nodes: by name.
        input_spec: structure of ``(args, kwargs)`` in the call.
        input_leaves: its leaves: a :class:`Ref` for an input, anything else as it was in the example.
        output_spec: structure of the output.
        keywords: names of the arguments given by name, in the order of the structure.
        static_batch: True where only the batch size of the example works.
        batch_range: smallest and largest batch size the graph holds for; None for no limit.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: dict[str, Node]
    input_spec: pytree.TreeSpec
    input_leaves: tuple[Any, ...]
    output_spec: pytree.TreeSpec
    keywords: tuple[str, ...] = ()
    static_batch: bool = False
    batch_range: tuple[int, int | None] = (1, None)

    def __post_init__(self) -> None:
        positional = self.input_spec.child(0)
        plain = not self.keywords and positional.num_children == positional.num_leaves
        self._plain = positional.num_leaves if plain else None

    def consumers(self) -> dict[str, list[str]]:
        """Names of the nodes that use each value, once per use; being an output of the graph is not among them."""
        users: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for name in node.inputs:
                users[name].append(node.name)
        return users

    def flatten_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of a call of the model, in the order of ``inputs``.

        Raises:
            InputError: if the call is of another form than the example was, or its tensors have other shapes
                (but for the batch) or types.
        """
        if not kwargs and len(args) == self._plain and all(isinstance(arg, Tensor) for arg in args):
            leaves: Sequence[Any] = args  # the usual case, in a tenth of the time
        else:
            if set(kwargs) == set(self.keywords):
                kwargs = {key: kwargs[key] for key in self.keywords}
            leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
            if spec != self.input_spec:
                raise InputError(f"called with {_form(spec)}, but the example was {_form(self.input_spec)}")
        tensors = []
        for leaf, wanted in zip(leaves, self.input_leaves, strict=True):
            if isinstance(wanted, Ref):
                self._check(wanted.name, leaf)
                tensors.append(leaf)
            elif type(leaf) is not type(wanted) or leaf != wanted:
                raise InputError(f"called with {leaf!r} where the example had {wanted!r}, which is a constant now")
        self._check_batch(
            {len(x) for x, name in zip(tensors, self.inputs, strict=True) if self.nodes[name].attrs["batch"]}
        )
        return tensors

    def _check(self, name: str, value: Any) -> None:
        node = self.nodes[name]
        free = int(node.attrs["batch"])
        if not isinstance(value, Tensor):
            raise InputError(f"{name} is of type {type(value).__name__}, the example's was a tensor")
        if value.dtype != node.dtype:
            raise InputError(f"{name} is of {value.dtype}, the example's was of {node.dtype}")
        if value.dim() != len(node.shape) or value.shape[free:] != node.shape[free:]:
            wanted = ", ".join([*["batch"][:free], *map(str, node.shape[free:])])
            raise InputError(f"{name} has shape {tuple(value.shape)}, expected ({wanted})")

    def _check_batch(self, sizes: set[int]) -> None:
        if len(sizes) > 1:
            raise InputError(f"the inputs have different batch sizes: {', '.join(map(str, sorted(sizes)))}")
        low, high = self.batch_range
        for size in sizes:
            if size < low or (high is not None and size > high):
                limits = f"{low} or more" if high is None else f"{low} to {high}"
                raise InputError(
                    f"a batch of {size}: with the example given, the model can be followed for {limits}; "
                    "give an example of that size"
                )

    def rebuild(self, leaves: Sequence[Any]) -> Any:
        """The model's output from the values of ``outputs``."""
        return leaves[0] if self.output_spec.is_leaf() else pytree.tree_unflatten(leaves, self.output_spec)

    def __str__(self) -> str:
        def row(node: Node) -> list[object]:
            op = str(node.attrs["target"]) if node.op == "torch" else node.op
            size = None if node.weight is None else node.weight.size
            nonzeros = None if node.weight is None else int(np.count_nonzero(node.weight))
            shape = "×".join(map(str, node.shape)) if node.shape else None
            return [node.name, node.label, op, node.activation, shape, size, nonzeros]

        header = ["node", "module", "operation", "activation", "shape", "weights", "non-zeros"]
        return render(header, [row(node) for node in self.nodes.values()])


def refs(structure: Any) -> Iterator[str]:
    """Names of the nodes that nested arguments refer to, in order, each as often as it occurs."""
    if isinstance(structure, Ref):
        yield structure.name
    elif isinstance(structure, list | tuple):
        for item in structure:
            yield from refs(item)
    elif isinstance(structure, Mapping):
        yield from refs(tuple(structure.values()))
    elif isinstance(structure, slice):
        yield from refs((structure.start, structure.stop, structure.step))


def rename(node: Node, names: Mapping[str, str]) -> Node:
    """The node with other names in its inputs and arguments, where ``names`` has them."""
    if not any(name in names for name in node.inputs):
        return node

    def exchange(part: Any) -> Any:
        if isinstance(part, Ref):
            return Ref(names.get(part.name, part.name))
        if isinstance(part, list | tuple):
            return type(part)(exchange(item) for item in part)
        if isinstance(part, dict):
            return {key: exchange(item) for key, item in part.items()}
        if isinstance(part, slice):
            return slice(exchange(part.start), exchange(part.stop), exchange(part.step))
        return part

    attrs = dict(node.attrs)
    if node.op == "torch":
        attrs |= {"args": exchange(attrs["args"]), "kwargs": exchange(attrs["kwargs"])}
    return replace(node, inputs=tuple(names.get(name, name) for name in node.inputs), attrs=attrs)


def reachable(nodes: Mapping[str, Node], outputs: Sequence[str]) -> dict[str, Node]:
    """The nodes that the outputs depend on, and the inputs."""
    needed = set(outputs)
    for node in reversed(list(nodes.values())):
        if node.name in needed:
            needed.update(node.inputs)
    return {name: node for name, node in nodes.items() if name in needed or node.op == "input"}


def _form(spec: pytree.TreeSpec) -> str:
    args, kwargs = pytree.tree_unflatten(["·"] * spec.num_leaves, spec)
    parts = [str(arg) for arg in args] + [f"{key}={value}" for key, value in kwargs.items()]
    return f"({', '.join(parts)})".replace("'·'", "·")

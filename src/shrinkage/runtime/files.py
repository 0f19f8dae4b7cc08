"""Engines as files: the graph and the measurements as text, the weights packed as :func:`shrinkage.save` packs them."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from shrinkage.core.errors import FileError, InputError
from shrinkage.deploy.files import describe, load, save
from shrinkage.runtime.graph import Array, Graph, Node, Ref
from shrinkage.runtime.jit import FORMAT, Machine
from shrinkage.runtime.levels import Levels
from shrinkage.runtime.remember import dump_levels, dump_timings, load_levels, load_timings
from shrinkage.runtime.tuning import Timings

_KEY = "engine"
_VERSION = 1
_NAMED: dict[str, type] = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}
"""Constants that PyTorch has names for."""


@dataclass(frozen=True)
class Tuned:
    """What was measured for a region; see :class:`shrinkage.runtime.runner.Runner`."""

    timings: dict[int, Timings]
    levels: dict[int, Levels]


def write_engine(path: str | os.PathLike[str], graph: Graph, tuned: Mapping[str, Tuned], host: Machine) -> None:
    """Write a graph and what was measured.

    Raises:
        InputError: if an operation that runs through PyTorch is of a library of its own, or the output is of a
            class that torch cannot write down.
    """
    tensors: dict[str, Tensor] = {}
    nodes = [_plain_node(node, tensors) for node in graph.nodes.values()]
    try:
        specs = {name: pytree.treespec_dumps(getattr(graph, name)) for name in ("input_spec", "output_spec")}
    except NotImplementedError as error:
        raise InputError(f"the model's output cannot be written down: {error}") from error
    content = {
        "version": _VERSION,
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "nodes": nodes,
        **specs,
        "input_leaves": [
            _plain(leaf, next(iter(graph.nodes.values())), "input", tensors) for leaf in graph.input_leaves
        ],
        "keywords": graph.keywords,
        "static_batch": graph.static_batch,
        "batch_range": graph.batch_range,
        "machine": _machine(host),
        "tuned": {
            region: {
                "timings": {str(size): dump_timings(found) for size, found in known.timings.items()},
                "levels": {str(size): dump_levels(found) for size, found in known.levels.items()},
            }
            for region, known in tuned.items()
        },
    }
    save(tensors, path, metadata={_KEY: json.dumps(content)})


def read_engine(path: str | os.PathLike[str], host: Machine) -> tuple[Graph, dict[str, Tuned]]:
    """What :func:`write_engine` wrote; without the measurements if they are of another kind of machine.

    Raises:
        FileError: if the file is damaged or not of an engine.
    """
    text = describe(path).metadata.get(_KEY)
    if text is None:
        raise FileError(f"{path} is not of an engine; shrinkage.load reads the weights of a model")
    tensors = load(path)
    try:
        content = json.loads(text)
        if content["version"] > _VERSION:
            raise FileError(f"{path} was written by a newer version of shrinkage (engine format {content['version']})")
        nodes = {plain["name"]: _node(plain, tensors) for plain in content["nodes"]}
        low, high = content["batch_range"]
        graph = Graph(
            inputs=tuple(content["inputs"]),
            outputs=tuple(content["outputs"]),
            nodes=nodes,
            input_spec=pytree.treespec_loads(content["input_spec"]),
            input_leaves=tuple(_value(leaf, tensors) for leaf in content["input_leaves"]),
            keywords=tuple(content["keywords"]),
            output_spec=pytree.treespec_loads(content["output_spec"]),
            static_batch=bool(content["static_batch"]),
            batch_range=(low, high),
        )
        tuned = {}
        if content["machine"] == _machine(host):
            tuned = {
                region: Tuned(
                    {int(size): load_timings(found) for size, found in known["timings"].items()},
                    {int(size): load_levels(found) for size, found in known["levels"].items()},
                )
                for region, known in content["tuned"].items()
            }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{path} does not describe an engine: {error!r}") from error
    return graph, tuned


def _machine(host: Machine) -> dict[str, Any]:
    return asdict(host) | {"kernels": FORMAT}


def _plain_node(node: Node, tensors: dict[str, Tensor]) -> dict[str, Any]:
    for kind in ("weight", "bias"):
        array = getattr(node, kind)
        if array is not None:
            tensors[f"{node.name}.{kind}"] = torch.from_numpy(np.ascontiguousarray(array))
    return {
        "name": node.name,
        "label": node.label,
        "op": node.op,
        "inputs": node.inputs,
        "shape": [int(size) for size in node.shape],
        "dtype": str(node.dtype).removeprefix("torch."),
        "batch_axis": node.batch_axis,
        "attrs": {key: _plain(value, node, key, tensors) for key, value in node.attrs.items()},
        "activation": node.activation,
    }


def _node(plain: dict[str, Any], tensors: Mapping[str, Tensor]) -> Node:
    return Node(
        name=plain["name"],
        label=plain["label"],
        op=plain["op"],
        inputs=tuple(plain["inputs"]),
        shape=tuple(plain["shape"]),
        dtype=getattr(torch, plain["dtype"]),
        batch_axis=plain["batch_axis"],
        attrs={key: _value(value, tensors) for key, value in plain["attrs"].items()},
        activation=plain["activation"],
        weight=_array(plain, "weight", tensors),
        bias=_array(plain, "bias", tensors),
    )


def _array(plain: dict[str, Any], kind: str, tensors: Mapping[str, Tensor]) -> Array | None:
    tensor = tensors.get(f"{plain['name']}.{kind}")
    return None if tensor is None else tensor.numpy()


def _plain(value: Any, node: Node, place: str, tensors: dict[str, Tensor]) -> Any:
    """Nested arguments as JSON; what JSON does not know is an object with one key that says what it is."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, Tensor):
        key = f"{node.name}.{place}.{len(tensors)}"
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, list | tuple):
        sequence = "list" if isinstance(value, list) else "tuple"
        return {sequence: [_plain(item, node, place, tensors) for item in value]}
    if isinstance(value, slice):
        return {"slice": [_plain(item, node, place, tensors) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, Mapping):
        return {"dict": {key: _plain(item, node, place, tensors) for key, item in value.items()}}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for name, kind in _NAMED.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    if place == "target":
        target = _target_name(value)
        if target is not None:
            return {"target": target}
    raise InputError(f"{node.label} runs {value!r} through PyTorch, which cannot be written to a file")


def _target_name(target: Any) -> str | None:
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return str(target)
    name = getattr(target, "__name__", "")
    return f"operator.{name}" if getattr(operator, name, None) is target else None


def _value(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "ref":
        return Ref(content)
    if kind == "tensor":
        return tensors[content]
    if kind in ("list", "tuple", "slice"):
        items = [_value(item, tensors) for item in content]
        return items if kind == "list" else tuple(items) if kind == "tuple" else slice(*items)
    if kind == "dict":
        return {key: _value(item, tensors) for key, item in content.items()}
    if kind == "device":
        return torch.device(content)
    if kind == "target":
        return _target(content)
    found = getattr(torch, content)
    if not isinstance(found, _NAMED[kind]):
        raise ValueError(f"{content!r} is no {kind}")
    return found


def _target(name: str) -> Any:
    """Only operators of PyTorch and of the module ``operator``: a file cannot name anything else."""
    parts = name.split(".")
    if parts[0] == "operator" and len(parts) == 2 and not parts[1].startswith("_"):
        return getattr(operator, parts[1])
    if parts[0] == "aten" and len(parts) == 3:
        return getattr(getattr(torch.ops.aten, parts[1]), parts[2])
    raise ValueError(f"unknown operation {name!r}")

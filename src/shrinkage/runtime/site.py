"""Where in a model an operation is called, and the node it becomes when nothing better is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from shrinkage.runtime.graph import Node, Ref, refs


@dataclass(frozen=True)
class Value:
    """What is known of a tensor before it is computed; ``sizes`` holds texts such as ``"s77"`` where it varies."""

    sizes: tuple[int | str, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Site:
    """Where in the network an operation is called."""

    name: str
    label: str
    out: Value | None
    values: Mapping[str, Value]
    nodes: Mapping[str, Node]

    def node(self, op: str, *inputs: Ref, **fields: Any) -> Node:
        """A node for this operation."""
        return Node(self.name, self.label, op, tuple(ref.name for ref in inputs), **fields)

    def sizes(self, x: Any, rank: int | None = None) -> tuple[int | str, ...] | None:
        """Sizes of a float32 tensor that is not constant, if it has ``rank`` axes; else None."""
        value = self.values.get(x.name) if isinstance(x, Ref) else None
        if value is None or value.dtype != torch.float32 or (rank is not None and len(value.sizes) != rank):
            return None
        return value.sizes

    def unchanged(self, x: Any) -> bool:
        """Whether the result has the shape and type of ``x``, which is not constant."""
        return isinstance(x, Ref) and self.out is not None and self.values.get(x.name) == self.out


def torch_node(site: Site, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Node:
    """A node that calls ``target``."""
    inputs = dict.fromkeys(refs((args, kwargs)))
    # Only PyTorch's core operations promise to share memory where they say so and nowhere else.
    core = torch.Tag.core in getattr(target, "tags", ())
    alias = not core or bool(getattr(target, "is_view", True))
    attrs = {"target": target, "args": tuple(args), "kwargs": dict(kwargs), "alias": alias}
    return Node(site.name, site.label, "torch", tuple(inputs), attrs=attrs)

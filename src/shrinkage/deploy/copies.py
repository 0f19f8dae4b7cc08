"""What operations that only copy elements, to another place or shape, do to masks and slices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shrinkage.deploy.dataflow import Call, Flow, Rule, Value, alike, each, still, unknown


def moved(flow: Flow, call: Call, name: str = "self", numbered: bool = False) -> Any:
    """Results that are copies of elements, in another place or shape: the operation is run on places.

    Args:
        flow: the run.
        call: the operation.
        name: of the argument that is copied from.
        numbered: elements are picked by numbers, which would be others if slices before them were gone.
    """
    x = call.bound[name]
    places = torch.arange(1, x.data.numel() + 1, dtype=torch.float64, device=x.data.device).view(x.data.shape)
    changed: dict[str, Any] = {name: places}
    if call.bound.get("value"):
        changed["value"] = 0.0  # of padding, which is from nowhere
    found = call.again(changed)
    return alike(
        call.result,
        [
            _copied(flow, x, out, place.long() - 1, numbered)
            for out, place in zip(each(call.result), each(found), strict=True)
        ],
    )


def picked(flow: Flow, call: Call) -> Any:
    """Elements at given numbers; where these depend on the input, all may be meant."""
    numbers = call.tensors[1:]
    if any(bool(number.varying.any()) for number in numbers):
        return unknown(flow, call)
    for number in numbers:
        flow.fix(number)
    return moved(flow, call, numbered=True)


def joined(flow: Flow, call: Call, new: bool = False) -> Any:
    """Tensors side by side, along a dimension or along a new one."""
    parts: list[Value] = call.bound["tensors"]
    if len({part.data.ndim for part in parts}) > 1:
        return unknown(flow, call)
    dim = call.bound.get("dim", 0) % call.result.ndim
    slices: list[Tensor] = []
    for dimension, size in enumerate(call.result.shape):
        if dimension == dim:
            slices.append(still(size) if new else torch.cat([part.slices[dim] for part in parts]))
            continue
        source = dimension - (new and dimension > dim)
        ids = parts[0].slices[source]
        for part in parts[1:]:
            flow.slices.join(ids, part.slices[source])
        slices.append(ids)
    put: Callable[..., Tensor] = torch.stack if new else torch.cat
    out = flow.value(call.result, put([part.varying for part in parts], dim), slices)

    def back() -> None:
        sizes = [1 if new else part.live.shape[dim] for part in parts]
        for part, live in zip(parts, torch.split(out.live, sizes, dim), strict=True):
            part.live |= live.squeeze(dim) if new else live

    flow.back(back)
    return out


def embedding(flow: Flow, call: Call) -> Value:
    """Rows of a table; a column that is the same in all of them is a constant."""
    table, rows = call.bound["weight"], call.bound["indices"]
    flow.slices.fix(table.slices[0])
    same = (table.data == table.data[:1]).all(0) & ~table.varying.any(0)
    varying = rows.varying.unsqueeze(-1) & ~same | table.varying.any(0)
    out = flow.value(call.result, varying, [*rows.slices, table.slices[1]])

    def back() -> None:
        rows.live |= (out.live & ~same).any(-1)
        table.live |= out.live.reshape(-1, out.live.shape[-1]).any(0)

    flow.back(back)
    return out


def _copied(flow: Flow, x: Value, result: Tensor, places: Tensor, numbered: bool) -> Value:
    somewhere = places >= 0
    source = places.clamp_min(0)
    varying = x.varying.flatten()[source] & somewhere
    out = flow.value(result, varying, _followed(flow, x, places, numbered))

    def back() -> None:
        x.live.view(-1)[source[out.live & somewhere]] = True

    flow.back(back)
    return out


def _followed(flow: Flow, x: Value, places: Tensor, numbered: bool) -> list[Tensor]:
    """Where the slices of ``x`` are in a tensor of elements copied from ``places`` of it (−1: from nowhere)."""
    slices = [still(size) for size in places.shape]
    stride = x.varying.numel()
    for dimension, size in enumerate(x.varying.shape):
        stride //= max(size, 1)
        ids = x.slices[dimension]
        if size < 2 or not bool(ids.any()):
            continue
        index = torch.where(places >= 0, places // stride % size, -1)
        if not (_same(flow, ids, index, slices, numbered) or (not numbered and _blocks(flow, ids, index, slices))):
            flow.slices.fix(ids)
    return slices


def _same(flow: Flow, ids: Tensor, index: Tensor, slices: list[Tensor], numbered: bool) -> bool:
    """Is there a dimension along which the index alone says which slice it is, and are all of them there?

    Found, it gets their numbers. An index of −1 is padding, which stays.
    """
    for dim in range(index.ndim):
        low, high = torch.aminmax(index.movedim(dim, 0).flatten(1), dim=1) if index.ndim > 1 else (index, index)
        if not torch.equal(low, high):
            continue
        low = low.cpu()
        there = low[low >= 0]
        if len(set(there.tolist())) < len(ids) or (numbered and not torch.equal(low, torch.arange(len(ids)))):
            continue
        found = torch.where(low >= 0, ids[low.clamp_min(0)], 0)
        slices[dim] = flow.slices.join(found, slices[dim]) if bool(slices[dim].any()) else found
        return True
    return False


def _blocks(flow: Flow, ids: Tensor, index: Tensor, slices: list[Tensor]) -> bool:
    """Is there a dimension that counts blocks of slices, such as heads? Then the slices of a block go together."""
    if bool((index < 0).any()):
        return False
    for dim, size in enumerate(index.shape):
        if not 1 < size < len(ids):
            continue
        view = [-1 if d == dim else 1 for d in range(index.ndim)]
        block = torch.arange(size, device=index.device).view(view).expand(index.shape).flatten()
        start = torch.full((len(ids),), -1, device=index.device)
        low = start.scatter_reduce(0, index.flatten(), block, "amin", include_self=False).cpu()
        high = start.scatter_reduce(0, index.flatten(), block, "amax", include_self=False).cpu()
        if not torch.equal(low, high) or bool((low < 0).any()):
            continue
        heads = torch.stack([ids[low == one][0] for one in range(size)])
        flow.slices.join(ids, heads[low])
        slices[dim] = flow.slices.join(heads, slices[dim]) if bool(slices[dim].any()) else heads
        return True
    return False


def _table() -> dict[str, Rule]:
    rules: dict[str, Rule] = {"embedding": embedding, "cat": joined, "stack": partial(joined, new=True)}
    several: list[tuple[Rule, str]] = [
        (moved, "view _unsafe_view reshape view_as flatten unflatten permute transpose t movedim swapaxes unsqueeze"),
        (moved, "squeeze expand expand_as broadcast_to flip repeat tile repeat_interleave roll split split_with_sizes"),
        (moved, "chunk unbind select slice narrow pad constant_pad_nd pixel_shuffle pixel_unshuffle channel_shuffle"),
        (moved, "unfold im2col diagonal"),
        (picked, "index index_select gather take_along_dim"),
    ]
    for rule, names in several:
        rules.update(dict.fromkeys(names.split(), rule))
    return rules


COPIES = _table()
"""The rules of this file by the operation's name."""

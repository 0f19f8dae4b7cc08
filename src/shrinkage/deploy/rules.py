"""What operations without a sum over slices do to what varies, what is live, and which slices go together."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shrinkage.deploy.dataflow import Call, Flow, Rule, Value, alike, each, reduced, still, unknown

# ---------------------------------------------------------------------------------- element by element


def pointwise(flow: Flow, call: Call) -> Value:
    """Results that depend on the elements at their own place, with broadcasting."""
    return _spread(flow, call.result, call.tensors)


def first(flow: Flow, call: Call) -> Value:
    """The first tensor, converted or copied; others say how."""
    return _spread(flow, call.result, call.tensors[:1])


def like(flow: Flow, call: Call) -> Value:
    """A constant in the shape of a tensor."""
    if torch.Tag.nondeterministic_seeded in call.node.target.tags:  # type: ignore[union-attr]
        return unknown(flow, call)  # type: ignore[no-any-return]
    (x,) = call.tensors[:1]
    return flow.value(call.result, torch.zeros_like(x.varying), x.slices)


def fresh(flow: Flow, call: Call) -> Any:
    """A constant of its own size, or a check of sizes."""
    if not isinstance(call.result, Tensor):
        return call.result
    return flow.value(call.result, torch.zeros_like(call.result, dtype=torch.bool), list(map(still, call.result.shape)))


def multiply(flow: Flow, call: Call) -> Value:
    """A constant zero times anything is zero."""
    a, b = call.bound["self"], call.bound["other"]
    if not isinstance(a, Value) or not isinstance(b, Value):
        return pointwise(flow, call)
    varying = (a.varying & b.nonzero) | (b.varying & a.nonzero)
    out = flow.value(call.result, varying, flow.broadcast([a.slices, b.slices], call.result.shape))

    def back() -> None:
        # Where both are zero, one has to stay zero: the first.
        a.live |= reduced(out.live & (b.nonzero | ~a.nonzero), a.live.shape)
        b.live |= reduced(out.live & a.nonzero, b.live.shape)

    flow.back(back)
    return out


def prelu(flow: Flow, call: Call) -> Any:
    """A slope for each channel."""
    x, weight = call.bound["self"], call.bound["weight"]
    if x.data.ndim < 2:
        return unknown(flow, call)
    if weight.data.numel() == 1:
        flow.fix(weight)
    else:
        flow.slices.join(x.slices[1], weight.slices[0])
    weight.live.fill_(True)
    return _spread(flow, call.result, [x])


def glu(flow: Flow, call: Call) -> Value:
    """Halves of one dimension that meet."""
    x, dim = call.bound["self"], call.bound.get("dim", -1)
    half = x.data.shape[dim] // 2
    slices = list(x.slices)
    slices[dim] = flow.slices.join(slices[dim][:half], slices[dim][half:])
    one, other = x.varying.split(half, dim)
    out = flow.value(call.result, one | other, slices)

    def back() -> None:
        x.live |= torch.cat([out.live, out.live], dim)

    flow.back(back)
    return out


def batch_norm(flow: Flow, call: Call) -> Any:
    """With running statistics a scale and a shift for each channel."""
    x, weight = call.bound["input"], call.bound.get("weight")
    parts = [part for part in map(call.bound.get, ("weight", "bias", "running_mean", "running_var")) if part]
    for part in parts:
        flow.slices.join(x.slices[1], part.slices[0])
        part.live.fill_(True)
    scaled = x.varying
    if weight is not None:
        scaled = x.varying & _channels(weight.nonzero, x.varying.ndim)
    out = flow.value(call.result[0], scaled, x.slices)

    def back() -> None:
        x.live |= out.live if weight is None else out.live & _channels(weight.nonzero, out.live.ndim)

    flow.back(back)
    return (out, *call.result[1:])  # what else it gives is for training


# --------------------------------------------------------------------------- mixtures of what lies beside


def over(flow: Flow, call: Call, dims: Iterable[int] | None, name: str = "self") -> Any:
    """Each result depends on all elements along some dimensions (None: all of them): sums, norms, softmax."""
    x = call.bound[name]
    ndim = x.data.ndim
    gone = sorted({dim % ndim for dim in dims}) if dims is not None else list(range(ndim))
    others = [other for other in call.tensors if other is not x]
    flow.fix(*others)
    varying = x.varying
    for dim in gone:
        flow.slices.fix(x.slices[dim])
        varying = varying.any(dim, keepdim=True)
    changes = any(bool(other.varying.any()) for other in others)
    outputs: list[Value] = []
    for result in each(call.result):
        keeps = result.ndim == ndim
        slices = [
            still(result.shape[dim]) if dim in gone else x.slices[dim]
            for dim in range(ndim)
            if keeps or dim not in gone
        ]
        outputs.append(flow.value(result, (varying if keeps else varying.reshape(result.shape)) | changes, slices))

    def back() -> None:
        for out in outputs:
            live = out.live
            for dim in gone if live.ndim == ndim else ():
                live = live.any(dim, keepdim=True)
            x.live |= live.reshape(varying.shape)
            for other in others:
                other.live |= out.live.any()

    flow.back(back)
    return alike(call.result, outputs)


def along(flow: Flow, call: Call) -> Any:
    """A reduction, or softmax: over the dimensions that its arguments name, or all."""
    if isinstance(call.bound.get("other"), Value):  # the larger of two tensors
        return pointwise(flow, call)
    dim = call.bound.get("dim")
    if dim is None or dim == []:
        return over(flow, call, None)
    return over(flow, call, dim if isinstance(dim, list) else [dim])


def layer_norm(flow: Flow, call: Call) -> Any:
    """Over the trailing dimensions, which therefore stay."""
    return over(flow, call, range(-len(call.bound["normalized_shape"]), 0), "input")


def group_norm(flow: Flow, call: Call) -> Any:
    """Over groups of channels, which therefore stay."""
    return over(flow, call, range(1, call.bound["input"].data.ndim), "input")


def instance_norm(flow: Flow, call: Call) -> Any:
    """Each channel by itself."""
    x = call.bound["input"]
    parts = [part for part in call.tensors if part is not x]
    for part in parts:
        flow.slices.join(x.slices[1], part.slices[0])
        part.live.fill_(True)
    alone = Call(call.node, {"input": x}, call.result)
    return over(flow, alone, range(2, x.data.ndim), "input")


def pooled(flow: Flow, call: Call, dims: int) -> Any:
    """Each channel by itself, mixed over its ``dims`` trailing dimensions, to another size."""
    x = call.tensors[0]
    for slices in x.slices[-dims:]:
        flow.slices.fix(slices)
    plane = tuple(range(-dims, 0))
    # In a mean beside padding a constant other than zero is another one.
    padded = any(each(call.bound.get("padding", 0))) and "avg" in str(call.node.target)
    varying = (x.nonzero if padded else x.varying).any(plane, keepdim=True)
    outputs = [
        flow.value(result, varying, [*x.slices[:-dims], *map(still, result.shape[-dims:])])
        for result in each(call.result)
    ]

    def back() -> None:
        for out in outputs:
            x.live |= out.live.any(plane, keepdim=True)

    flow.back(back)
    return alike(call.result, outputs)


# ----------------------------------------------------------------------------------------------- parts


def _channels(mask: Tensor, ndim: int) -> Tensor:
    """A mask of channels so that it broadcasts along dimension 1."""
    return mask.view(1, -1, *[1] * (ndim - 2))


def _spread(flow: Flow, result: Tensor, inputs: list[Value]) -> Value:
    varying = torch.zeros((), dtype=torch.bool, device=result.device)
    for x in inputs:
        varying = varying | x.varying.to(result.device)
    out = flow.value(result, varying, flow.broadcast([x.slices for x in inputs], result.shape))

    def back() -> None:
        for x in inputs:
            x.live |= reduced(out.live, x.live.shape).to(x.live.device)

    flow.back(back)
    return out


def _table() -> dict[str, Rule]:
    rules: dict[str, Rule] = {
        "pointwise": pointwise,
        "mul": multiply,
        "prelu": prelu,
        "glu": glu,
        "_native_batch_norm_legit_no_training": batch_norm,
        "layer_norm": layer_norm,
        "rms_norm": layer_norm,
        "group_norm": group_norm,
        "instance_norm": instance_norm,
    }
    several: list[tuple[Rule, str]] = [
        (pointwise, "hardswish log_sigmoid where"),
        (first, "clone contiguous detach alias lift_fresh_copy _to_copy type_as"),
        (fresh, "new_zeros new_ones new_full new_empty _assert_tensor_metadata"),
        (like, "zeros_like ones_like full_like empty_like"),
        (along, "mean sum amax amin max min var std prod norm linalg_vector_norm logsumexp argmax argmin any all"),
        (along, "softmax _softmax log_softmax _log_softmax cumsum cumprod"),
    ]
    for rule, names in several:
        rules.update(dict.fromkeys(names.split(), rule))
    for dims in (1, 2, 3):
        for kind in ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest"):
            rules[f"{kind}{dims}d"] = partial(pooled, dims=dims)
        rules[f"max_pool{dims}d_with_indices"] = partial(pooled, dims=dims)
    for dims, kind in ((1, "linear1d"), (2, "bilinear2d"), (2, "bicubic2d"), (3, "trilinear3d")):
        rules[f"upsample_{kind}"] = partial(pooled, dims=dims)
    return rules


ELEMENTS = _table()
"""The rules of this file by the operation's name."""

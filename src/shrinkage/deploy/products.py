"""What sums over slices do: linear layers, convolutions, products of matrices, attention."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from shrinkage.deploy.dataflow import Bias, Call, Flow, Grouped, Product, Rule, Value, Weight, reduced, still, unknown
from shrinkage.deploy.slices import STAYS


def linear(flow: Flow, call: Call) -> Any:
    """``x @ weight.T + bias``."""
    x, weight, bias = call.bound["input"], call.bound["weight"], call.bound.get("bias")
    return _sums(flow, call, x, weight, bias) if weight.data.ndim == 2 else unknown(flow, call)


def matrix(flow: Flow, call: Call) -> Any:
    """``x @ matrix``, where the matrix is the same for all of ``x``; else a batch of products."""
    x, weight = call.bound["self"], call.bound.get("mat2", call.bound.get("other"))
    if x.data.ndim < 2 or weight.data.ndim < 2:
        return unknown(flow, call)
    if weight.data.ndim == 2:
        return _sums(flow, call, x, weight, None, transposed=True)
    return _batched(flow, call, x, weight)


def matrix_plus(flow: Flow, call: Call) -> Any:
    """``bias + x @ matrix``, as in Hugging Face's ``Conv1D``."""
    bias, x, weight = (call.bound[name] for name in ("self", "mat1", "mat2"))
    plain = call.bound.get("beta", 1) == 1 == call.bound.get("alpha", 1)
    if not plain or bias.data.shape != weight.data.shape[1:]:
        return unknown(flow, call)
    return _sums(flow, call, x, weight, bias, transposed=True)


def convolution(flow: Flow, call: Call, dims: int, transposed: bool = False) -> Any:
    """Channels are summed over; along the plane everything is taken to mix."""
    x, weight, bias = call.bound["input"], call.bound["weight"], call.bound.get("bias")
    groups = call.bound.get("groups", 1)
    if groups > 1 and (weight.name is None or transposed):
        return unknown(flow, call)
    # A constant other than zero is another one beside padding, and in a transposed convolution.
    padded = transposed or call.bound.get("padding", 0) not in (0, [0], [0] * dims, "valid")
    return _sums(flow, call, x, weight, bias, dims, groups, transposed, padded)


def attention(flow: Flow, call: Call) -> Any:
    """Scaled dot products: weights that depend on queries and keys, for a mean over values."""
    query, key, value = (call.bound[name] for name in ("query", "key", "value"))
    mask = call.bound.get("attn_mask")
    if not query.data.shape[:-2] == key.data.shape[:-2] == value.data.shape[:-2] or call.bound.get("dropout_p"):
        return unknown(flow, call)
    *batch, queries, size = query.slices
    for other in (key, value):
        for one, two in zip(batch, other.slices[:-2], strict=True):
            flow.slices.join(one, two)
    for fixed in (size, *key.slices[-2:], value.slices[-2]):  # the scale depends on the size
        flow.slices.fix(fixed)
    if mask is not None:
        flow.slices.fix(mask.slices[-1])
        for one, two in zip(reversed([*batch, queries]), reversed(mask.slices[:-1]), strict=False):
            if len(one) == len(two):
                flow.slices.join(one, two)
    weights = (query.varying.any(-1).any(-1) | key.varying.any(-1).any(-1))[..., None, None]
    weights = weights if mask is None else weights | mask.varying.any(-1, keepdim=True)
    # A mean of one and the same constant is that constant, whatever the weights.
    low, high = torch.aminmax(value.data, dim=-2, keepdim=True)
    changing = value.varying.any(-2, keepdim=True)
    same = (low == high) & ~changing
    if mask is not None:  # may leave no weights at all, and then the mean is 0
        same &= low == 0
    out = flow.value(call.result, changing | (weights & ~same), [*batch, queries, value.slices[-1]])

    def back() -> None:
        value.live |= out.live.any(-2, keepdim=True)
        reached = (out.live & ~same).any(-1, keepdim=True)
        query.live |= reached
        key.live |= reached.any(-2, keepdim=True)
        if mask is not None:
            mask.live |= reduced(reached.expand(*reached.shape[:-1], key.live.shape[-2]), mask.live.shape)

    flow.back(back)
    return out


# ----------------------------------------------------------------------------------------------- parts


def _sums(
    flow: Flow,
    call: Call,
    x: Value,
    weight: Value,
    bias: Value | None,
    dims: int = 0,
    groups: int = 1,
    transposed: bool = False,
    padded: bool = False,
) -> Value:
    """``out[p, o] = Σ_k x[p, k] · weight[o, k] + bias[o]``, in convolutions with ``dims`` more dimensions that mix."""
    plane = list(range(-dims, 0))
    for fixed in [*x.slices[x.data.ndim - dims :], *weight.slices[2:]]:
        flow.slices.fix(fixed)
    inputs, outputs = x.slices[-dims - 1], weight.slices[int(transposed)]
    if groups == 1:
        flow.slices.join(inputs, weight.slices[1 - transposed])
    else:  # cut group by group instead
        flow.slices.fix(weight.slices[1])
        flow.grouped.append(Grouped(str(weight.name), groups, inputs, outputs))
    if bias is not None:
        flow.slices.join(outputs, bias.slices[0])
        bias.live.fill_(True)

    def rows(mask: Tensor) -> Tensor:
        """Of the inputs or results, (P, K or O)."""
        channels = mask.shape[-dims - 1]
        for dim in plane:
            mask = mask.any(dim, keepdim=True)
        return mask.reshape(-1, channels)

    def dense(weights: Tensor) -> Tensor:
        """Of the weights, (O, K)."""
        if groups == 1:
            return weights.mT if transposed else weights
        blocks: Tensor = torch.block_diag(*weights.chunk(groups))  # type: ignore[no-untyped-call]
        return blocks

    def taps(mask: Tensor) -> Tensor:
        return dense(mask.flatten(2).any(-1).float() if dims else mask.float()) > 0

    x_varying, x_nonzero = rows(x.nonzero if padded else x.varying), rows(x.nonzero)
    w_varying, w_nonzero = taps(weight.varying), taps(weight.nonzero)
    varying = _meet(x_varying, w_nonzero.mT) | _meet(x_nonzero, w_varying.mT)
    slices = [*x.slices[: x.data.ndim - dims - 1], outputs, *map(still, call.result.shape[call.result.ndim - dims :])]
    varying = varying.view(*call.result.shape[: call.result.ndim - dims], *[1] * dims)
    if bias is not None:
        varying = varying | bias.varying.view(-1, *[1] * dims)
    out = flow.value(call.result, varying, slices)

    constant = _constants(x.data.movedim(-dims - 1, -1).flatten(0, -2), rows(x.varying).any(0))
    data = weight.data  # later on only the masks are there

    def matrix() -> Tensor:
        return dense(data.flatten(2).sum(-1) if dims else data)

    home: Bias | Weight | None = None
    norm = flow.norm_after(call.node) if call.result.ndim == dims + 2 else None
    if bias is not None and flow.alone(bias) and not padded:
        home = Bias(str(bias.name), 1, matrix)
    elif bias is None and norm is not None and not padded:
        home = Bias(norm, -1, matrix)
    elif flow.alone(weight) and groups == 1:
        home = Weight(str(weight.name), data, 1 - transposed)
    product = Product(inputs, outputs, constant, torch.empty(0), home)
    flow.products.append(product)

    def back() -> None:
        live = rows(out.live)
        x.live |= _meet(live, w_nonzero).view(*x.live.shape[: x.live.ndim - dims], *[1] * dims)
        product.matters = _meet(x_nonzero.mT, live) & w_nonzero.mT
        if isinstance(home, Bias):
            product.matters[~constant.isnan()] = False
        weight.live |= live.any()

    flow.back(back)
    return out


def _batched(flow: Flow, call: Call, a: Value, b: Value) -> Value:
    """Products of matrices that are both results."""
    flow.slices.join(a.slices[-1], b.slices[-2])
    batch = flow.broadcast([a.slices[:-2], b.slices[:-2]], call.result.shape[:-2])
    varying = _meet(a.varying, b.nonzero) | _meet(a.nonzero, b.varying)
    out = flow.value(call.result, varying, [*batch, a.slices[-2], b.slices[-1]])
    summed = a.slices[-1]
    product = Product(summed, torch.tensor([STAYS]), torch.full(summed.shape, torch.nan), torch.empty(0), None)
    flow.products.append(product)

    def back() -> None:
        reached = _meet(out.live, b.nonzero.mT)
        a.live |= reduced(reached, a.live.shape)
        # Where both are zero, one has to stay zero: the second.
        read = _meet(a.nonzero.mT, out.live) | (~b.nonzero & out.live.any(-2, keepdim=True))
        b.live |= reduced(read, b.live.shape)
        product.matters = (reached & a.nonzero).flatten(0, -2).any(0).unsqueeze(1)

    flow.back(back)
    return out


def _meet(one: Tensor, other: Tensor) -> Tensor:
    """Whether row and column have a marked place in common: the product of matrices over truth values."""
    return one.float() @ other.float() > 0


def _constants(rows: Tensor, varying: Tensor) -> Tensor:
    """The value of each column that holds one and the same, as the order of additions lets it; else not a number."""
    low, high = torch.aminmax(rows, dim=0)
    unsure = 16 * torch.finfo(rows.dtype).eps if rows.is_floating_point() else 0
    same = (high - low <= unsure * high.abs()) & ~varying
    return torch.where(same, low, torch.nan)


def _table() -> dict[str, Rule]:
    rules: dict[str, Rule] = {
        "linear": linear,
        "mm": matrix,
        "bmm": matrix,
        "matmul": matrix,
        "addmm": matrix_plus,
        "scaled_dot_product_attention": attention,
    }
    for dims in (1, 2, 3):
        rules[f"conv{dims}d"] = partial(convolution, dims=dims)
        rules[f"conv_transpose{dims}d"] = partial(convolution, dims=dims, transposed=True)
    return rules


SUMS = _table()
"""The rules of this file by the operation's name."""

"""One rule for each kind of operation of PyTorch that the graph has a kind for.

A rule is called with the operation's own arguments: a :class:`~shrinkage.runtime.graph.Ref` for a value known only when
the network runs, anything else for a constant. It gives a node, a ``Ref`` where the operation changes nothing, or None
where it is another case than the one the graph has an operation for. The operations are those of a program without
in-place changes, so a value may be passed on instead of copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shrinkage.core.errors import InputError
from shrinkage.runtime.graph import Array, Node, Ref
from shrinkage.runtime.site import Site, torch_node

Double = npt.NDArray[np.float64]
Result = Node | Ref | None
Rule = Callable[..., Result]

_aten = torch.ops.aten
_RESHAPES = (_aten.reshape.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.unsqueeze.default)


# ------------------------------------------------------------------ products


def conv2d(
    site: Site,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Result:
    """Convolution of a batch of images with constant weights."""
    if site.sizes(x, 4) is None or not _constants(weight, bias):
        return None
    kernel, stride, dilation = weight.shape[2:], _pair(stride), _pair(dilation)
    if padding == "valid":
        padding = (0, 0, 0, 0)
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = tuple(side for t in total for side in (t // 2, t - t // 2))
    else:
        padding = _sides(padding)
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return site.node("conv", x, weight=_array(weight), bias=_array(bias), attrs=attrs)


def linear(site: Site, x: Any, weight: Any, bias: Any = None) -> Result:
    """x · weightᵀ + bias with constant weights."""
    if site.sizes(x) is None or not _constants(weight, bias) or weight.dim() != 2:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return site.node("linear", x, weight=_array(weight), bias=_array(bias))


def matmul(site: Site, x: Any, weight: Any) -> Result:
    """x · weight with a constant matrix."""
    if not isinstance(weight, Tensor) or weight.dim() != 2 or len(site.sizes(x) or ()) < 2:
        return None
    return linear(site, x, weight.T)


def addmm(site: Site, bias: Any, x: Any, weight: Any) -> Result:
    """x · weight + bias with constants, a bias for each column."""
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or bias.shape != weight.shape[1:]:
        return None
    return linear(site, x, weight.T, bias)


# ------------------------------------------------------------------ scales, shifts and sums


def batch_norm(
    site: Site,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Result:
    """BatchNorm by its running statistics."""
    return None if training else batch_norm_eval(site, x, weight, bias, mean, var, momentum, eps)


def batch_norm_eval(
    site: Site, x: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> Result:
    """The same where PyTorch has taken the decision already."""
    if mean is None or site.sizes(x) is None or not _constants(mean, var, weight, bias):
        return None
    mean, var = mean.double(), var.double()
    scale = (torch.ones_like(var) if weight is None else weight.double()) / torch.sqrt(var + eps)
    shift = (torch.zeros_like(mean) if bias is None else bias.double()) - mean * scale
    if not bool(torch.isfinite(scale).all() and torch.isfinite(shift).all()):
        raise InputError(
            f"the BatchNorm {site.label!r} divides by zero or by the root of a negative number: "
            f"its smallest running_var is {var.min():.3g}, its eps {eps:g}"
        )
    return affine(site, x, scale.numpy(), shift.numpy(), axis=1)


def affine(site: Site, x: Ref, scale: Double, shift: Double, axis: int) -> Node:
    """A node for x · scale + shift along ``axis``, which keeps them in double precision for folding."""
    attrs = {"axis": axis, "rank": len(site.values[x.name].sizes), "exact": (scale, shift)}
    return site.node("affine", x, weight=scale.astype(np.float32), bias=shift.astype(np.float32), attrs=attrs)


def add(site: Site, x: Any, y: Any, *, alpha: Any = 1) -> Result:
    """x + alpha · y."""
    return _sum(site, x, y, 1, alpha)


def sub(site: Site, x: Any, y: Any, *, alpha: Any = 1) -> Result:
    """x − alpha · y."""
    return _sum(site, x, y, 1, -alpha)


def rsub(site: Site, x: Any, y: Any, alpha: Any = 1) -> Result:
    """y − alpha · x."""
    return _sum(site, x, y, -alpha, 1)


def _sum(site: Site, x: Any, y: Any, first: float, second: float) -> Result:
    if isinstance(x, Ref) and isinstance(y, Ref):
        return site.node("add", x, y) if second == 1 and _alike(site, x, y) else None
    if isinstance(y, Ref):
        x, y, first, second = y, x, second, first
    return _by_channel(site, x, y, lambda constant: (np.full_like(constant, first), second * constant))


def mul(site: Site, x: Any, y: Any) -> Result:
    """x · y."""
    if isinstance(x, Ref) and isinstance(y, Ref):
        return site.node("mul", x, y) if _alike(site, x, y) else None
    if isinstance(y, Ref):
        x, y = y, x
    return _by_channel(site, x, y, lambda constant: (constant, np.zeros_like(constant)))


def div(site: Site, x: Any, y: Any) -> Result:
    """x / y for a constant y."""
    if isinstance(y, Ref):
        return None
    return _by_channel(site, x, y, lambda constant: (1 / constant, np.zeros_like(constant)))


def _alike(site: Site, x: Ref, y: Ref) -> bool:
    sizes = site.sizes(x)
    return sizes is not None and sizes == site.sizes(y)


def _by_channel(site: Site, x: Any, constant: Any, factors: Callable[[Double], tuple[Double, Double]]) -> Result:
    """An affine node, if ``constant`` is a number or varies along one axis of ``x`` alone."""
    sizes = site.sizes(x)
    if sizes is None or not 2 <= len(sizes) <= 4 or not site.unchanged(x):
        return None
    axis = 1 if len(sizes) == 4 else len(sizes) - 1
    if isinstance(constant, Tensor):
        if not constant.dtype.is_floating_point or constant.dim() > len(sizes):
            return None
        long = [axis for axis, size in enumerate(constant.shape, len(sizes) - constant.dim()) if size != 1]
        if len(long) > 1 or long == [0]:
            return None
        axis = long[0] if long else axis
        constant = constant.double().reshape(-1).numpy()
    elif isinstance(constant, bool) or not isinstance(constant, int | float):
        return None
    channels = sizes[axis]
    if not isinstance(channels, int):
        return None
    with np.errstate(all="ignore"):
        scale, shift = factors(np.full(channels, constant, np.float64))
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return None
    return affine(site, x, scale, shift, axis)


# ------------------------------------------------------------------ pools, shapes and the rest


def max_pool2d(
    site: Site, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Result:
    """Maximum pool without indices."""
    if site.sizes(x, 4) is None:
        return None
    return _pool(site, "max_pool", x, kernel, stride, padding, dilation, ceil_mode)


def avg_pool2d(
    site: Site,
    x: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Result:
    """Average pool; one over the whole plane is a global one."""
    sizes = site.sizes(x, 4)
    if sizes is None or divisor_override is not None:
        return None
    if sizes[2:] == _pair(kernel) and _pair(padding) == (0, 0):
        return site.node("global_avg_pool", x, attrs={"keepdim": True})
    return _pool(site, "avg_pool", x, kernel, stride, padding, 1, ceil_mode, count_include_pad)


def _pool(
    site: Site, op: str, x: Ref, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, count: bool = True
) -> Node:
    attrs = {
        "kernel": _pair(kernel),
        "stride": _pair(stride or kernel),
        "padding": _sides(padding),
        "dilation": _pair(dilation),
        "ceil_mode": ceil,
        "count_include_pad": count,
    }
    return site.node(op, x, attrs=attrs)


def adaptive_avg_pool2d(site: Site, x: Any, size: Any) -> Result:
    """Average pool to a given size, where each output has a window of the same size."""
    sizes, wanted = site.sizes(x, 4), _pair(size)
    if sizes is None:
        return None
    if wanted == (1, 1):
        return site.node("global_avg_pool", x, attrs={"keepdim": True})
    if sizes[2:] == wanted:
        return _as_it_is(x)
    rows, columns = sizes[2:]
    if isinstance(rows, str) or isinstance(columns, str) or rows % wanted[0] or columns % wanted[1]:
        return None
    kernel = rows // wanted[0], columns // wanted[1]
    return _pool(site, "avg_pool", x, kernel, kernel, 0, 1, False)


def mean(site: Site, x: Any, axes: Any, keepdim: bool = False) -> Result:
    """Mean over the plane of an image."""
    if site.sizes(x, 4) is None or not axes or sorted(axis % 4 for axis in axes) != [2, 3]:
        return None
    return site.node("global_avg_pool", x, attrs={"keepdim": keepdim})


def cat(site: Site, tensors: Any, axis: int = 0) -> Result:
    """Concatenation of values none of which is constant."""
    sizes = [site.sizes(tensor) for tensor in tensors]
    if any(size is None for size in sizes) or len({len(size) for size in sizes if size is not None}) != 1:
        return None
    assert sizes[0] is not None
    return site.node("concat", *tensors, attrs={"axis": axis % len(sizes[0])})


def layer_norm(
    site: Site, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = True
) -> Result:
    """LayerNorm over the last axis."""
    if site.sizes(x) is None or len(shape) != 1:
        return None
    weight = torch.ones(shape[0]) if weight is None else weight
    bias = torch.zeros(shape[0]) if bias is None else bias
    if not _constants(weight, bias):
        return None
    return site.node("layer_norm", x, weight=_array(weight), bias=_array(bias), attrs={"eps": eps})


def softmax(site: Site, x: Any, axis: int, dtype: Any = None) -> Result:
    """Softmax in float32."""
    sizes = site.sizes(x)
    if not sizes or dtype not in (None, False, torch.float32):
        return None
    return site.node("softmax", x, attrs={"axis": axis % len(sizes)})


def activation(name: str) -> Rule:
    """The rule for an activation without options."""

    def rule(site: Site, x: Any) -> Result:
        return None if site.sizes(x) is None else site.node("activation", x, activation=name)

    return rule


def gelu(site: Site, x: Any, *, approximate: str = "none") -> Result:
    """GELU, exact or by tanh."""
    return activation("gelu" if approximate == "none" else "gelu_tanh")(site, x)


def clamp(site: Site, x: Any, low: Any = None, high: Any = None) -> Result:
    """ReLU or ReLU6 written as limits."""
    name = {(0, None): "relu", (0, 6): "relu6"}.get((low, high))
    return None if name is None else activation(name)(site, x)


def hardtanh(site: Site, x: Any, low: float = -1, high: float = 1) -> Result:
    """The same by another name."""
    return clamp(site, x, low, high)


def reshape(site: Site, x: Any, size: Any) -> Result:
    """A reshape or view; flatten where that is what it amounts to."""
    flat = _flat(site, x)
    if flat is not None:
        return flat
    x = _origin(site, x)
    # One size that varies with the batch follows from the others; without it the sizes are constants.
    if sum(isinstance(part, Ref) for part in size) == 1 and -1 not in size:
        size = [-1 if isinstance(part, Ref) else part for part in size]
    # A view needs its input to lie in memory in a certain way, and inputs may come from anywhere here.
    return torch_node(site, _aten.reshape.default, (x, size), {})


def reshaped(site: Site, x: Any, *how: Any) -> Result:
    """An operation that keeps the numbers and their order, as far as it is a flatten or nothing."""
    return _flat(site, x)


def _flat(site: Site, x: Any) -> Result:
    """``x``, or a flatten node, if that is what a reshape of ``x`` amounts to."""
    if site.unchanged(x):
        return _as_it_is(x)
    for source in (_origin(site, x), x):
        sizes = site.sizes(source)
        if sizes is None or site.out is None or len(site.out.sizes) != 2 or site.out.sizes[0] != sizes[0]:
            continue
        if sizes == site.out.sizes:
            return _as_it_is(source)
        if len(sizes) > 2 and all(isinstance(size, int) for size in sizes[1:]):
            return site.node("flatten", source)
    return None


def _origin(site: Site, x: Any) -> Any:
    """What ``x`` is a reshape of, which keeps the order of the numbers."""
    while isinstance(x, Ref) and x.name in site.nodes:
        node = site.nodes[x.name]
        if node.op != "torch" or node.attrs["target"] not in _RESHAPES:
            break
        x = node.attrs["args"][0]
    return x


def _as_it_is(x: Any) -> Ref:
    assert isinstance(x, Ref)
    return x


def if_unchanged(site: Site, x: Any, *args: Any, **kwargs: Any) -> Result:
    """An operation that does nothing where shape and type stay the same."""
    return _as_it_is(x) if site.unchanged(x) else None


def dropout(site: Site, x: Any, p: float, train: bool) -> Result:
    """Dropout, which does nothing in evaluation mode."""
    return None if train else if_unchanged(site, x)


def _pair(value: Any) -> tuple[Any, Any]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * 2 if len(values) == 1 else values


def _sides(padding: Any) -> tuple[int, int, int, int]:
    rows, columns = _pair(padding)
    return rows, rows, columns, columns


def _constants(weight: Any, *others: Any) -> bool:
    """Whether the first is a constant float32 tensor, and the others too or None."""
    found = [weight, *(other for other in others if other is not None)]
    return all(isinstance(value, Tensor) and value.dtype == torch.float32 for value in found)


def _array(tensor: Tensor | None) -> Array | None:
    return None if tensor is None else tensor.contiguous().numpy()

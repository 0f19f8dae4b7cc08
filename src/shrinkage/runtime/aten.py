"""Which rule is for which operation of PyTorch; what no rule takes stays a ``torch`` node."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from shrinkage.runtime import rules
from shrinkage.runtime.graph import Node, Ref
from shrinkage.runtime.site import Site, torch_node

aten = torch.ops.aten


def lower(site: Site, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Node | Ref:
    """The node for a call of ``target``, or the value it passes on."""
    rule = RULES.get(target)
    if rule is not None:
        try:
            inspect.signature(rule).bind(site, *args, **kwargs)
        except TypeError:  # an argument that the rule does not know
            rule = None
    found = None if rule is None else rule(site, *args, **kwargs)
    return torch_node(site, target, args, kwargs) if found is None else found


RULES: dict[Any, rules.Rule] = {
    aten.conv2d.default: rules.conv2d,
    aten.conv2d.padding: rules.conv2d,
    aten.linear.default: rules.linear,
    aten.matmul.default: rules.matmul,
    aten.mm.default: rules.matmul,
    aten.addmm.default: rules.addmm,
    aten.batch_norm.default: rules.batch_norm,
    aten._native_batch_norm_legit_no_training.default: rules.batch_norm_eval,
    aten.add.Tensor: rules.add,
    aten.sub.Tensor: rules.sub,
    aten.mul.Tensor: rules.mul,
    aten.div.Tensor: rules.div,
    aten.add.Scalar: rules.add,
    aten.sub.Scalar: rules.sub,
    aten.rsub.Scalar: rules.rsub,
    aten.rsub.Tensor: rules.rsub,
    aten.mul.Scalar: rules.mul,
    aten.div.Scalar: rules.div,
    aten.max_pool2d.default: rules.max_pool2d,
    aten.avg_pool2d.default: rules.avg_pool2d,
    aten.adaptive_avg_pool2d.default: rules.adaptive_avg_pool2d,
    aten.mean.dim: rules.mean,
    aten.cat.default: rules.cat,
    aten.layer_norm.default: rules.layer_norm,
    aten.softmax.int: rules.softmax,
    aten._softmax.default: rules.softmax,
    aten.relu.default: rules.activation("relu"),
    aten.relu6.default: rules.activation("relu6"),
    aten.silu.default: rules.activation("silu"),
    aten.hardswish.default: rules.activation("hardswish"),
    aten.gelu.default: rules.gelu,
    aten.hardtanh.default: rules.hardtanh,
    aten.clamp.default: rules.clamp,
    aten.clamp_min.default: rules.clamp,
    aten.view.default: rules.reshape,
    aten._unsafe_view.default: rules.reshape,
    aten.reshape.default: rules.reshape,
    aten.flatten.using_ints: rules.reshaped,
    aten.squeeze.dim: rules.reshaped,
    aten.squeeze.dims: rules.reshaped,
    aten.dropout.default: rules.dropout,
    aten.feature_dropout.default: rules.dropout,
    aten.alpha_dropout.default: rules.dropout,
    aten.feature_alpha_dropout.default: rules.dropout,
    **dict.fromkeys(
        [
            aten.clone.default,
            aten.contiguous.default,
            aten.alias.default,
            aten.detach.default,
            aten.lift_fresh_copy.default,
            aten._to_copy.default,
            aten.to.dtype,
            aten.to.dtype_layout,
            aten.expand.default,
            aten.slice.Tensor,
            aten.type_as.default,
        ],
        rules.if_unchanged,
    ),
}

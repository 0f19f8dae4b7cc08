"""The kernel for convolutions and linear layers, in every way it can be used, against PyTorch."""

from __future__ import annotations

import kernels
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from shrinkage.runtime import jit
from shrinkage.runtime.evaluate import ACTIVATIONS
from shrinkage.runtime.graph import Node
from shrinkage.runtime.sparse import SparseLayer
from shrinkage.runtime.steps import At

LANES = [
    lanes for lanes in (16, 8, 4) if lanes <= jit.machine().lanes and not (lanes == 4 and jit.machine().lanes != 4)
]


def ways(layer):
    for way in layer.shapes():
        yield way
        yield from layer.unrolled(way)
        yield from layer.blocked(way)


def check(node, x, lanes, side_by_side, frame=None, residual=None):
    """Every way gives what PyTorch gives."""
    host = jit.machine(lanes)
    a = node.attrs
    top, bottom, left, right = a["padding"]
    padded = functional.pad(torch.from_numpy(x), (left, right, top, bottom))
    bias = None if node.bias is None else torch.from_numpy(node.bias)
    want = functional.conv2d(padded, torch.from_numpy(node.weight), bias, a["stride"], 0, a["dilation"], a["groups"])
    if residual is not None:
        want = want + torch.from_numpy(residual(want.shape))
    if node.activation:
        want = ACTIVATIONS[node.activation](want)
    want = want.numpy()
    source, given_buffer = kernels.put(x, lanes, side_by_side, a["padding"] if side_by_side else (0, 0, 0, 0))
    out_frame = frame if frame and side_by_side else (0, 0, 0, 0)
    target, result = kernels.put(np.zeros_like(want), lanes, side_by_side, out_frame)
    buffers = {"x": given_buffer, "y": result}
    if residual is not None:
        _, buffers["r"] = kernels.put(residual(want.shape), lanes, side_by_side, out_frame)
    layer = SparseLayer(node, source, target, host)
    tried = set()
    for way in ways(layer):
        result.view(np.float32)[:] = kernels.NOISE
        kernels.run(layer.work(way, At("x"), At("y"), At("r") if residual else None), buffers, host)
        scale = max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(kernels.get(target, result), want, rtol=0, atol=2e-5 * scale, err_msg=str(way))
        tried.add(way.kind)
    return tried


def conv(weight, bias=None, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1, activation=None):
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Node("y", "y", "conv", ("x",), attrs=attrs, weight=weight, bias=bias, activation=activation)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.mark.parametrize("lanes", LANES)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_convolution_in_every_way(lanes, data):
    draw = data.draw
    groups = draw(st.sampled_from([1, 1, 2]))
    inside, outside = draw(st.integers(1, 5)), draw(st.integers(1, 4)) * groups
    size = draw(st.tuples(st.integers(1, 19), st.integers(1, 19)))
    kernel, stride, dilation = draw(pairs), draw(pairs), draw(st.sampled_from([(1, 1), (1, 2), (2, 1)]))
    padding = tuple(draw(st.integers(0, 2)) for _ in range(4))
    reach = [size[i] + sum(padding[2 * i : 2 * i + 2]) - (kernel[i] - 1) * dilation[i] for i in range(2)]
    assume(min(reach) >= 1)
    seed = draw(st.integers(0, 99))
    weight = kernels.sparse_weight((outside, inside, *kernel), draw(st.sampled_from([0.0, -1, 0.1, 0.5, 1.0])), seed)
    rng = np.random.default_rng(seed)
    bias = rng.standard_normal(outside).astype(np.float32) if draw(st.booleans()) else None
    activation = draw(st.sampled_from([None, "relu"]))
    node = conv(weight, bias, stride, padding, dilation, groups, activation)
    images = draw(st.sampled_from([1, 16]))
    x = rng.standard_normal((images, inside * groups, *size)).astype(np.float32)
    residual = (
        (lambda shape: np.random.default_rng(1).standard_normal(shape).astype(np.float32))
        if draw(st.booleans())
        else None
    )
    check(node, x, lanes, images > 1, frame=(1, 0, 2, 1), residual=residual)


@pytest.mark.parametrize("lanes", LANES)
def test_each_kind_of_way_is_among_those_tested(lanes):
    rng = np.random.default_rng(0)
    weight = kernels.sparse_weight((6, 40, 3, 3), 0.2, 0)
    node = conv(weight, padding=(1, 1, 1, 1))
    large = rng.standard_normal((1, 40, 12, 12)).astype(np.float32)
    assert check(node, large, lanes, False) == {"rows", "copies"}
    assert check(conv(weight[..., :1, :1]), large, lanes, False) == {"direct"}
    small = rng.standard_normal((16, 40, 2, 2)).astype(np.float32)
    assert "whole" in check(node, small, lanes, True)
    assert check(node, rng.standard_normal((16, 40, 9, 9)).astype(np.float32), lanes, True) == {"direct"}


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations(lanes, activation):
    x = np.linspace(-12, 12, 4000, dtype=np.float32)
    x = np.concatenate([x, [0.0, -0.0, 1e-30, -1e-30, 200, -200, 1e30, -1e30]]).astype(np.float32).reshape(1, 1, 8, -1)
    node = conv(np.ones((1, 1, 1, 1), np.float32), activation=activation)
    host = jit.machine(lanes)
    source, given_buffer = kernels.put(x, lanes, False)
    target, result = kernels.put(np.zeros_like(x), lanes, False)
    layer = SparseLayer(node, source, target, host)
    kernels.run(layer.work(layer.shapes()[0], At("x"), At("y")), {"x": given_buffer, "y": result}, host)
    want = ACTIVATIONS[activation](torch.from_numpy(x).double()).numpy()
    error = np.abs(kernels.get(target, result).astype(np.float64) - want)
    assert (error <= 4e-7 * np.maximum(1, np.abs(x))).all(), float(x.flat[error.argmax()])


def test_not_a_number_stays_one():
    x = np.full((1, 2, 2, 4), np.nan, np.float32)
    for name in ACTIVATIONS:
        node = conv(np.ones((1, 2, 1, 1), np.float32), activation=name)
        source, given_buffer = kernels.put(x, 4, False)
        target, result = kernels.put(np.zeros((1, 1, 2, 4), np.float32), 4, False)
        layer = SparseLayer(node, source, target, jit.machine())
        kernels.run(layer.work(layer.shapes()[0], At("x"), At("y")), {"x": given_buffer, "y": result}, jit.machine())
        assert np.isnan(kernels.get(target, result)).all(), name


def test_infinity_reaches_what_it_is_connected_to_and_nothing_else():
    rng = np.random.default_rng(0)
    weight = np.zeros((3, 4, 3, 3), np.float32)
    weight[0, 1, 1, 1], weight[0, 2, 0, 1], weight[1, 2, 1, 1], weight[2, 3] = 0.3, -0.2, -0.7, 1
    x = rng.standard_normal((16, 4, 4, 4)).astype(np.float32)
    x[0, 1, 2, 2] = np.inf
    host = jit.machine()
    for images in (1, 16):
        source, given_buffer = kernels.put(
            x[:images], host.lanes, images > 1, (1, 1, 1, 1) if images > 1 else (0, 0, 0, 0)
        )
        target, result = kernels.put(np.zeros((images, 3, 4, 4), np.float32), host.lanes, images > 1)
        layer = SparseLayer(conv(weight, padding=(1, 1, 1, 1)), source, target, host)
        for way in ways(layer):
            kernels.run(layer.work(way, At("x"), At("y")), {"x": given_buffer, "y": result}, host)
            got = kernels.get(target, result)
            assert got[0, 0, 2, 2] == np.inf, way
            assert np.isfinite(np.delete(got.reshape(-1), 2 * 4 + 2)).all(), way


@pytest.mark.parametrize("lanes", LANES)
def test_a_linear_layer_reads_a_flattened_image(lanes):
    host = jit.machine(lanes)
    rng = np.random.default_rng(0)
    for images in (1, 32):
        x = rng.standard_normal((images, 6, 5, 3)).astype(np.float32)
        weight = kernels.sparse_weight((7, 90), 0.3, 0)
        node = Node("y", "y", "linear", ("x",), weight=weight, bias=np.arange(7, dtype=np.float32))
        want = x.reshape(images, -1) @ weight.T + node.bias
        source, given_buffer = kernels.put(x, lanes, images > 1, (1, 1, 1, 1) if images > 1 else (0, 0, 0, 0))
        target, result = kernels.put(np.zeros((images, 7, 1, 1), np.float32), lanes, images > 1)
        layer = SparseLayer(node, source, target, host)
        for way in ways(layer):
            kernels.run(layer.work(way, At("x"), At("y")), {"x": given_buffer, "y": result}, host)
            np.testing.assert_allclose(kernels.get(target, result).reshape(images, 7), want, rtol=1e-5, atol=1e-5)

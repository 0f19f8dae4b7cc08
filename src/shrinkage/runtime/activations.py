"""Activations on vectors in registers, within a few units in the last place of PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Callable

from shrinkage.runtime.emit import I32, Emit, Value, integers


def activate(e: Emit, name: str | None, x: Value) -> Value:
    """The activation called ``name`` of a vector; None leaves it as it is."""
    return x if name is None else ACTIVATIONS[name](e, x)


def _relu(e: Emit, x: Value) -> Value:
    return e.maximum(x, e.constant(0.0, x.type))


def _relu6(e: Emit, x: Value) -> Value:
    return e.minimum(_relu(e, x), e.constant(6.0, x.type))


def _hardswish(e: Emit, x: Value) -> Value:
    gate = _relu6(e, e.b.fadd(x, e.constant(3.0, x.type)))
    return e.b.fmul(x, e.b.fmul(gate, e.constant(1 / 6, x.type)))


def _silu(e: Emit, x: Value) -> Value:
    return e.b.fdiv(x, e.b.fadd(e.constant(1.0, x.type), exponential(e, e.b.fneg(x))))


def _gelu_tanh(e: Emit, x: Value) -> Value:
    # 0.5·x·(1 + tanh u) = x / (1 + exp(−2u)),  u = √(2/π)·(x + 0.044715·x³)
    scale = -2 * math.sqrt(2 / math.pi)
    square = e.b.fmul(x, x)
    inner = e.fma(square, e.constant(0.044715 * scale, x.type), e.constant(scale, x.type))
    return e.b.fdiv(x, e.b.fadd(e.constant(1.0, x.type), exponential(e, e.b.fmul(x, inner))))


def _gelu(e: Emit, x: Value) -> Value:
    # x·Φ(x); Φ(−|x|) = ½·erfc(|x|/√2) by Abramowitz & Stegun 7.1.26, whose error of 1.5e-7 is below float32's
    z = e.b.fmul(e.absolute(x), e.constant(math.sqrt(0.5), x.type))
    one = e.constant(1.0, x.type)
    t = e.b.fdiv(one, e.fma(z, e.constant(0.3275911, x.type), one))
    tail = e.constant(0.5 * 1.061405429, x.type)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail = e.fma(tail, t, e.constant(0.5 * coefficient, x.type))
    tail = e.b.fmul(e.b.fmul(tail, t), exponential(e, e.b.fneg(e.b.fmul(z, z))))
    positive = e.b.fcmp_unordered(">", x, e.constant(0.0, x.type))
    return e.b.fmul(x, e.b.select(positive, e.b.fsub(one, tail), tail))


ACTIVATIONS: dict[str, Callable[[Emit, Value], Value]] = {
    "relu": _relu,
    "relu6": _relu6,
    "hardswish": _hardswish,
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}


def exponential(e: Emit, x: Value) -> Value:
    """eˣ, by 2ᵏ·eʳ with |r| ≤ ½·ln 2 and a polynomial of degree 6; 0 and infinity at the ends, NaN stays."""
    x = e.minimum(e.maximum(x, e.constant(-104.0, x.type)), e.constant(88.8, x.type))
    k = e.intrinsic("rint", e.b.fmul(x, e.constant(1 / math.log(2), x.type)))
    # ln 2 in two parts, the first exact in few bits, so that r keeps its digits
    r = e.fma(k, e.constant(-0.693359375, x.type), x)
    r = e.fma(k, e.constant(2.12194440e-4, x.type), r)
    series = e.constant(1 / 720, x.type)
    for n in (120, 24, 6, 2, 1, 1):
        series = e.fma(series, r, e.constant(1 / n, x.type))
    # 2ᵏ in two factors: k goes from −150 to 128, beyond what one exponent holds
    whole = e.b.fptosi(k, integers(I32, x.type))
    half = e.b.ashr(whole, e.constant_integer(1, whole.type))
    rest = e.b.sub(whole, half)
    for part in (half, rest):
        bits = e.b.shl(e.b.add(part, e.constant_integer(127, whole.type)), e.constant_integer(23, whole.type))
        series = e.b.fmul(series, e.b.bitcast(bits, x.type))
    return series

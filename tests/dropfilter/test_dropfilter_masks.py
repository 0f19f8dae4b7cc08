"""What is drawn: against enumeration, closed forms, and plain layers with the masks that can be read off."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from shrinkage import InputError
from shrinkage.dropfilter import (
    DropFilterConv1d,
    DropFilterConv2d,
    DropFilterConv3d,
    DropFilterLinear,
    DropFilterPlusConv1d,
    DropFilterPlusConv2d,
    DropFilterPlusConv3d,
)
from shrinkage.dropfilter.masks import positions
from shrinkage.dropfilter.noise import kept, uniform

CONVOLUTIONS = [(1, DropFilterConv1d), (2, DropFilterConv2d), (3, DropFilterConv3d)]
PLUS = [(1, DropFilterPlusConv1d), (2, DropFilterPlusConv2d), (3, DropFilterPlusConv3d)]


def plain(layer, x, weight=None, bias=None):
    """The layer's convolution or product without any hook."""
    weight = layer.weight if weight is None else weight
    bias = layer.bias if bias is None else bias
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, bias)
    return layer._conv_forward(x, weight, bias)


# ------------------------------------------------------------------ random tensors


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 5), min_size=0, max_size=4), st.sampled_from([torch.float32, torch.float64]))
def test_draws_have_the_shape_and_the_range(shape, dtype):
    like = torch.empty(shape, dtype=dtype)
    drawn, mask = uniform(like, 2.0), kept(like, 0.4)
    assert drawn.shape == mask.shape == like.shape
    assert drawn.dtype == mask.dtype == dtype
    assert bool(((drawn > 0) & (drawn < 2)).all())
    assert bool(((mask == 0) | (mask == 1)).all())


def test_uniform_draws_fill_the_interval_evenly_and_are_not_repeated():
    drawn = uniform(torch.empty(400, 500))
    counts = torch.histc(drawn, 50, 0, 1)
    assert ((counts - 4000) ** 2 / 4000).sum().item() < 100  # χ² of 49 degrees: 100 is its 0.9999 quantile
    assert 0 < drawn.min() < drawn.max() < 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=5 * (1 / 12 / 200_000) ** 0.5)
    assert drawn.var().item() == pytest.approx(1 / 12, rel=0.01)
    for lag in (1, 2, 3, 4, 8):  # elements that share a draw of 64 bits are independent
        pair = torch.corrcoef(torch.stack([drawn.flatten()[lag:], drawn.flatten()[:-lag]]))[0, 1]
        assert abs(pair.item()) < 5 / 200_000**0.5


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.25, 0.9, 1 - 1e-3])
def test_masks_drop_the_share_p(p):
    mask = kept(torch.empty(200_000), p)
    assert (mask == 0).double().mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / 200_000) ** 0.5)


def test_draws_lie_in_memory_as_what_they_are_for():
    like = torch.empty(3, 5, 4, 2).to(memory_format=torch.channels_last)
    assert uniform(like).stride() == kept(like, 0.5).stride() == like.stride()
    part = torch.empty(6, 10)[::2, ::3]
    assert uniform(part).shape == kept(part, 0.5).shape == part.shape
    assert uniform(torch.empty(1000, dtype=torch.bfloat16)).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_the_seed_decides():
    for draw in (lambda: uniform(torch.empty(9)), lambda: kept(torch.empty(9), 0.5)):
        torch.manual_seed(3)
        first = draw()
        assert not torch.equal(draw(), first)
        torch.manual_seed(3)
        assert torch.equal(draw(), first)


# ------------------------------------------------------------------ DropFilter


def test_outputs_are_those_of_every_mask_each_as_often_as_it_is_likely():
    p, calls = 0.3, 4000
    layer = DropFilterConv1d(1, 1, 2, p=p, scaling="none", dtype=torch.float64)
    layer.weight.data = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    layer.bias.data = torch.tensor([4.0], dtype=torch.float64)
    x = torch.ones(1, 1, 2, dtype=torch.float64)
    seen = torch.bincount(torch.stack([layer(x).flatten() for _ in range(calls)]).flatten().long(), minlength=8)
    for bits in itertools.product([0, 1], repeat=3):
        value = bits[0] + 2 * bits[1] + 4 * bits[2]
        likely = math.prod(1 - p if bit else p for bit in bits)
        spread = (calls * likely * (1 - likely)) ** 0.5
        assert abs(seen[value].item() - calls * likely) < 5 * spread, bits


@pytest.mark.parametrize("scaling", ["inverted", "test", "none"])
@pytest.mark.parametrize(("dimensions", "kind"), [*CONVOLUTIONS, (0, DropFilterLinear)])
def test_gradients_carry_the_masks_of_the_forward_pass(dimensions, kind, scaling):
    arguments = (6, 5) if dimensions == 0 else (2, 3, 3)
    layer = kind(*arguments, p=0.4, scaling=scaling, dtype=torch.float64)
    x = torch.randn(4, *((6,) if dimensions == 0 else (2, *(5,) * dimensions)), dtype=torch.float64)
    out = layer(x)
    upstream = torch.rand_like(out) + 0.5
    out.backward(upstream)
    masks = [(parameter.grad != 0).double() for parameter in (layer.weight, layer.bias)]
    assert 0 < sum(mask.sum() for mask in masks) < sum(mask.numel() for mask in masks)
    if scaling == "inverted":
        masks = [mask / 0.6 for mask in masks]
    torch.testing.assert_close(out, plain(layer, x, layer.weight * masks[0], layer.bias * masks[1]))
    expected = torch.autograd.grad(plain(layer, x), [layer.weight, layer.bias], upstream)
    for parameter, mask, gradient in zip((layer.weight, layer.bias), masks, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * mask)


@pytest.mark.parametrize("scaling", ["inverted", "test", "none"])
def test_mean_and_variance_of_an_output_are_the_derived_ones(scaling):
    p, calls = 0.3, 3000
    layer = DropFilterConv2d(3, 4, 3, p=p, scaling=scaling, dtype=torch.float64)
    x = torch.randn(1, 3, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        drawn = torch.stack([layer(x).flatten() for _ in range(calls)])
        whole = plain(layer, x).flatten()
        squares = plain(layer, x**2, layer.weight**2, layer.bias**2).flatten()
    factor = 1 if scaling == "inverted" else 1 - p
    variance = squares * p * (1 - p) / ((1 - p) ** 2 if scaling == "inverted" else 1)
    assert ((drawn.mean(0) - factor * whole).abs() < 5 * (variance / calls).sqrt()).all()
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.15, atol=0)
    expected = whole * (1 - p) if scaling == "test" else whole
    torch.testing.assert_close(layer.eval()(x).flatten(), expected)


# ------------------------------------------------------------------ DropFilter-PLUS


@pytest.mark.parametrize(("scaling", "width"), [("inverted", 2), ("test", 1), ("none", 1)])
def test_outputs_are_multiplied_by_independent_uniform_draws(scaling, width):
    layer = DropFilterPlusConv2d(3, 8, 3, p=0.2, scaling=scaling, dtype=torch.float64)
    x = torch.randn(20, 3, 18, 18, dtype=torch.float64)
    with torch.no_grad():
        ratio = layer(x) / plain(layer, x)
        assert 0 < ratio.min() < ratio.max() < width
        counts = torch.histc(ratio, 40, 0, width)
        expected = ratio.numel() / 40
        assert ((counts - expected) ** 2 / expected).sum().item() < 85  # 39 degrees
        assert ratio.unique().numel() > 20_000
        factor = 0.5 if scaling == "test" else 1
        torch.testing.assert_close(layer.eval()(x), factor * plain(layer, x))


@pytest.mark.parametrize(("dimensions", "kind"), PLUS)
def test_gradients_pass_through_the_noise_and_those_of_the_filter_get_masks(dimensions, kind):
    p = 0.36
    layer = kind(8, 24, 3, padding=1, p=p, scaling="none", dtype=torch.float64)
    x = torch.randn(2, 8, *(4,) * dimensions, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    noise = (out / plain(layer, x)).detach()
    parameters = [layer.weight, layer.bias]
    by_x, *by_parameters = torch.autograd.grad(plain(layer, x), [x, *parameters], upstream * noise)
    torch.testing.assert_close(x.grad, by_x)
    n = 2 * 4**dimensions
    masks = torch.cat([(p.grad / g).flatten() for p, g in zip(parameters, by_parameters, strict=True)])
    normal = (masks - (1 - p)) / (p * (1 - p) / n) ** 0.5
    count = normal.numel()
    assert abs(normal.mean().item()) < 5 / count**0.5
    assert normal.var().item() == pytest.approx(1, abs=5 * (2 / count) ** 0.5)
    assert (normal.abs() < 1).double().mean().item() == pytest.approx(0.6827, abs=5 * (0.22 / count) ** 0.5)


def test_scaled_masks_of_gradients_have_the_mean_1():
    layer = DropFilterPlusConv1d(20, 40, 3, p=0.2, dtype=torch.float64)
    x = torch.ones(1, 20, 3, dtype=torch.float64)
    out = layer(x)
    out.sum().backward()
    noise = (out / plain(layer, x)).detach().flatten()
    masks = layer.weight.grad / noise[:, None, None]  # one position: n = 1
    assert masks.mean().item() == pytest.approx(1, abs=5 * (0.25 / 2400) ** 0.5)
    assert masks.var().item() == pytest.approx(0.25, rel=5 * (2 / 2400) ** 0.5)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([0, 1, 2, "same", "valid"]),
    st.sampled_from(["zeros", "reflect", "circular"]),
    st.integers(0, 4),
)
def test_positions_are_counted_as_the_output_has_them(dimensions, size, stride, dilation, padding, mode, batch):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    stride = 1 if padding == "same" else stride
    layer = kind(1, 3, size, stride=stride, dilation=dilation, padding=padding, padding_mode=mode)
    sides = (7, 8, 9)[:dimensions]
    x = torch.zeros(batch, 1, *sides) if batch else torch.zeros(1, *sides)
    assert positions(layer, x) == layer(x).numel() // 3


# ------------------------------------------------------------------ both


@pytest.mark.parametrize("kind", [DropFilterConv2d, DropFilterPlusConv2d])
def test_nothing_is_drawn_at_rate_0_nor_in_evaluation(kind):
    x = torch.randn(2, 3, 6, 6)
    before = torch.get_rng_state()
    idle = kind(3, 4, 3, p=0.0), kind(3, 4, 3, p=0.5).eval()
    state = torch.get_rng_state()
    assert not torch.equal(state, before)
    for layer in idle:
        assert torch.equal(layer(x), plain(layer, x))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", [DropFilterConv2d, DropFilterPlusConv2d])
def test_a_call_that_fails_leaves_the_parameters_in_sight(kind):
    layer = kind(3, 4, 3, p=0.5)
    with pytest.raises(RuntimeError, match="channels"):
        layer(torch.zeros(1, 2, 5, 5))
    assert isinstance(layer.weight, nn.Parameter)
    assert isinstance(layer.bias, nn.Parameter)
    layer(input=torch.zeros(1, 3, 5, 5))
    assert isinstance(layer.weight, nn.Parameter)
    assert set(layer.__dict__).isdisjoint({"weight", "bias"})


@pytest.mark.parametrize("kind", [DropFilterConv2d, DropFilterPlusConv2d])
def test_a_layer_without_bias_and_an_example_without_batch(kind):
    layer = kind(3, 4, 3, bias=False, p=0.5)
    layer(torch.randn(3, 5, 5)).sum().backward()
    assert layer.weight.grad is not None
    assert layer(torch.randn(2, 3, 5, 5)).shape == (2, 4, 3, 3)


@pytest.mark.parametrize("kind", [DropFilterConv2d, DropFilterPlusConv2d])
def test_an_empty_batch_and_an_input_that_is_too_small_are_what_they_are_to_a_plain_layer(kind):
    layer = kind(2, 3, 3, p=0.5)
    assert layer(torch.randn(0, 2, 5, 5)).shape == (0, 3, 3, 3)
    for side in (1, 2):
        with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
            layer(torch.randn(1, 2, side, side))


def test_a_rate_just_below_1_drops_nearly_all():
    assert kept(torch.empty(1000), 1 - 1e-11).sum() == 0


@pytest.mark.parametrize("kind", [kind for _, kind in [*CONVOLUTIONS, *PLUS]] + [DropFilterLinear])
def test_the_layers_are_pytorchs_in_all_else(kind):
    base = next(each for each in kind.__mro__ if each.__module__.startswith("torch.nn.modules"))
    arguments = (4, 6) if base is nn.Linear else (4, 6, 3)
    torch.manual_seed(5)
    expected = base(*arguments)
    torch.manual_seed(5)
    layer = kind(*arguments, p=0.25)
    assert {name: value.tolist() for name, value in layer.state_dict().items()} == {
        name: value.tolist() for name, value in expected.state_dict().items()
    }
    assert repr(layer) == f"{kind.__name__}({expected.extra_repr()}, p=0.25, scaling='inverted')"


@pytest.mark.parametrize("p", [-0.1, 1, 1.0, 1.5, float("nan"), float("inf"), True, "0.5", None])
def test_rates_out_of_range_are_refused(p):
    with pytest.raises(InputError, match=r"drop rate p must be a number in \[0, 1\).*got " + re.escape(repr(p))):
        DropFilterConv2d(1, 1, 1, p=p)


def test_scalings_are_refused_by_name():
    with pytest.raises(InputError, match="inverted, test, none, got 'train'"):
        DropFilterPlusConv2d(1, 1, 1, p=0.1, scaling="train")

"""The exact form against enumeration and PyTorch's convolutions; the closed forms against draws."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shrinkage import InputError
from shrinkage.dropfilter import DropFilterConv2d, DropFilterPlusConv2d, moments, per_position


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([0, 1, 2, "same"]),
    st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_at_rate_0_it_is_the_convolution(dimensions, size, stride, dilation, padding, mode, groups, bias):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    stride = 1 if padding == "same" else stride
    layer = kind(
        4, 6, size, stride=stride, dilation=dilation, padding=padding, padding_mode=mode, groups=groups, bias=bias
    ).double()
    x = torch.randn(2, 4, *(7, 6, 5)[:dimensions], dtype=torch.float64)
    torch.testing.assert_close(per_position(layer, x, 0.0), layer(x))


def test_every_position_of_every_example_has_a_mask_of_its_own():
    p, examples = 0.4, 2000
    layer = nn.Conv1d(1, 1, 2, dtype=torch.float64)
    layer.weight.data, layer.bias.data = layer.weight.new_tensor([[[1.0, 2.0]]]), layer.bias.new_tensor([4.0])
    z = per_position(layer, torch.ones(examples, 1, 3, dtype=torch.float64), p, scaling="none")
    pairs = torch.bincount((8 * z[:, 0, 0] + z[:, 0, 1]).long(), minlength=64)
    for bits in itertools.product([0, 1], repeat=6):  # two positions, their masks independent
        value = sum(bit * 2**i for bit, i in zip(bits, (3, 4, 5, 0, 1, 2), strict=True))
        likely = math.prod(1 - p if bit else p for bit in bits)
        assert abs(pairs[value].item() - examples * likely) < 5 * (examples * likely * (1 - likely)) ** 0.5


@pytest.mark.parametrize("scaling", ["inverted", "none"])
def test_its_mean_and_variance_are_the_derived_ones(scaling):
    p, examples = 0.3, 4000
    layer = nn.Conv2d(2, 3, 2, dtype=torch.float64)
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        z = per_position(layer, x.expand(examples, -1, -1, -1), p, scaling=scaling)
        whole = layer(x)[0]
        squares = layer._conv_forward(x**2, layer.weight**2, layer.bias**2)[0]
    keep = 1 - p
    mean = whole if scaling == "inverted" else keep * whole
    variance = p * keep * squares / (keep**2 if scaling == "inverted" else 1)
    assert ((z.mean(0) - mean).abs() < 5 * (variance / examples).sqrt()).all()
    torch.testing.assert_close(z.var(0), variance, rtol=0.15, atol=0)


def test_dropfilter_differs_from_it_in_what_positions_share():
    layer = DropFilterConv2d(1, 1, 3, p=0.5)
    x = torch.ones(1, 1, 4, 3)
    with torch.no_grad():
        one = torch.stack([layer(x).flatten() for _ in range(500)])
        own = per_position(layer, x.expand(500, -1, -1, -1), 0.5).flatten(1)
    assert torch.corrcoef(one.T)[0, 1] > 0.999
    assert abs(torch.corrcoef(own.T)[0, 1]) < 0.25


@pytest.mark.parametrize("p", [0.1, 0.25, 0.6])
def test_how_far_algorithm_2_is_from_it_is_what_draws_say(p):
    draws = 3000
    fast = DropFilterPlusConv2d(2, 2, 2, p=p, scaling="none", dtype=torch.float64)
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64) + 0.5
    upstream = torch.randn(1, 2, 2, 2, dtype=torch.float64)
    exact = nn.Conv2d(2, 2, 2, dtype=torch.float64)
    exact.load_state_dict(fast.state_dict())

    def drawn(call, layer):
        outputs, gradients = [], []
        for _ in range(draws):
            z = call(layer)
            outputs.append(z.detach().flatten())
            gradients.append(torch.autograd.grad(z, layer.weight, upstream)[0].flatten())
        return torch.stack(outputs), torch.stack(gradients)

    ours, theirs = drawn(lambda layer: layer(x), fast), drawn(lambda c: per_position(c, x, p, scaling="none"), exact)
    found = moments(exact, x, p, upstream)
    ratio = [float(a.var(0).sum() / b.var(0).sum()) for a, b in zip(ours, theirs, strict=True)]
    assert found.output_variance == pytest.approx(ratio[0], rel=0.1)
    assert found.gradient_variance == pytest.approx(ratio[1], rel=0.1)
    slope = [float((a.mean(0) * b.mean(0)).sum() / (b.mean(0) ** 2).sum()) for a, b in zip(ours, theirs, strict=True)]
    assert found.output_mean == pytest.approx(slope[0], rel=0.1) == pytest.approx(0.5 / (1 - p), rel=0.1)
    assert found.gradient_mean == pytest.approx(slope[1], rel=0.1)
    assert found.output_noise == pytest.approx(found.output_variance / found.output_mean**2)
    assert exact.weight.grad is None


def test_the_comparison_prints_and_exports():
    found = moments(nn.Conv1d(2, 3, 3), torch.randn(4, 2, 9), 0.5)
    assert found.to_dict()["output_mean"] == 1.0
    assert "p = 0.5" in str(found)
    assert "filter's gradient" in str(found)
    with torch.no_grad():
        moments(nn.Conv1d(2, 3, 3, bias=False), torch.randn(4, 2, 9), 0.5)


def test_what_cannot_be_is_refused():
    x = torch.zeros(1, 1, 4)
    with pytest.raises(InputError, match="Conv1d, Conv2d or Conv3d, got a Linear"):
        per_position(nn.Linear(4, 4), x, 0.1)
    with pytest.raises(InputError, match=r"in \[0, 1\).*got 1"):
        per_position(nn.Conv1d(1, 1, 1), x, 1)
    with pytest.raises(InputError, match="inverted, test, none, got 'mean'"):
        per_position(nn.Conv1d(1, 1, 1), x, 0.1, scaling="mean")
    with pytest.raises(InputError, match="greater than 0"):
        moments(nn.Conv1d(1, 1, 1), x, 0.0)

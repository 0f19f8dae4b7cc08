"""What stays, against brute force, and the function of random networks."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compactable import assert_same, drawn, thinned, units, without_rows, zero
from shrinkage.deploy.compact import compact


def mlp(widths, share, seed):
    """A random network, of which rows, columns and single weights are zero; and its masks."""
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh()))).double()
    thinned(model, share, seed)
    return model, [layer.weight.detach() != 0 for layer in layers]


def alive(masks):
    """For each hidden layer how many units lie on a path from an input to an output."""
    counts = []
    for cut in range(1, len(masks)):
        fed = torch.ones(masks[0].shape[1], dtype=torch.double)
        for mask in masks[:cut]:
            fed = (mask.double() @ fed > 0).double()
        read = torch.ones(len(masks[-1]), dtype=torch.double)
        for mask in reversed(masks[cut:]):
            read = (mask.double().T @ read > 0).double()
        counts.append(int((fed * read).sum()))
    return counts


@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(1, 12), min_size=3, max_size=6), st.floats(0.3, 0.97), st.integers(0, 10**6))
def test_exactly_the_units_on_a_path_from_input_to_output_stay(widths, share, seed):
    model, masks = mlp(widths, share, seed)
    result = compact(model, torch.randn(2, widths[0]).double())
    assert list(units(result).values())[:-1] == [max(count, 1) for count in alive(masks)]
    assert result.left == ()
    assert_same(result, model, torch.randn(9, widths[0]).double())


ACTIVATIONS = st.sampled_from([nn.ReLU, nn.GELU, nn.Sigmoid, nn.Hardswish, nn.Softplus, nn.Identity])


@st.composite
def convolutional(draw):
    """A random network of convolutions, norms, activations and pools on images of 3×9×9, and one linear layer."""
    layers, channels = [], 3
    for _ in range(draw(st.integers(1, 3))):
        wide = draw(st.integers(1, 4)) * 4
        groups = draw(st.sampled_from([1, 1, 2, 4, channels]))
        groups = groups if channels % groups == 0 == wide % groups else 1
        padding, stride = draw(st.integers(0, 1)), draw(st.integers(1, 2))
        mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular"]))
        layers.append(
            nn.Conv2d(channels, wide, 2, stride, padding, groups=groups, bias=draw(st.booleans()), padding_mode=mode)
        )
        if draw(st.booleans()):
            layers.append(nn.BatchNorm2d(wide, affine=draw(st.booleans())))
        layers.append(draw(ACTIVATIONS)())
        if draw(st.booleans()):
            layers.append(draw(st.sampled_from([nn.MaxPool2d(2, 1, 1), nn.AvgPool2d(2, 1, 1), nn.Dropout2d()])))
        channels = wide
    layers += [nn.AdaptiveAvgPool2d(draw(st.integers(1, 2))), nn.Flatten()]
    size = layers[-2].output_size ** 2 * channels
    model = drawn(nn.Sequential(*layers, nn.Linear(size, 3)), draw(st.integers(0, 999))).double()
    kill = draw(st.sampled_from([thinned, without_rows]))
    model = kill(model, draw(st.floats(0.3, 0.95)), draw(st.integers(0, 999)))
    if draw(st.booleans()):  # some channels whose norm gives them up
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d) and norm.affine:
                zero(norm.weight, slice(0, draw(st.integers(0, 3))))
    return model


@settings(deadline=None, max_examples=12)
@given(convolutional())
def test_random_convolutional_networks_keep_their_function(model):
    x = torch.randn(2, 3, 9, 9).double()
    result = compact(model, x)
    assert result.left == ()  # nothing had to be undone: the analysis was right by itself
    assert_same(result, model, torch.randn(3, 3, 9, 9).double())
    if not any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in model):
        again = compact(result.model, x)
        assert again.total.after == again.total.before == result.total.after  # nothing was overlooked

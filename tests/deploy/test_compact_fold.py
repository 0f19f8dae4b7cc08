"""BatchNorm is folded where that is exact, and left alone where it is not."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from compactable import STRUCTURES, assert_same, drawn
from shrinkage.core.errors import InputError
from shrinkage.deploy.compact import compact
from shrinkage.deploy.fold import _find, fold_batchnorm
from shrinkage.models import MODELS


def norms(result):
    return [
        name for name, module in result.model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_behind_a_convolution_it_is_pytorchs_own_fusion(groups, bias):
    model = drawn(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=groups, bias=bias), nn.BatchNorm2d(6)))
    x = torch.randn(2, 4, 5, 5)
    result = fold_batchnorm(model, x)
    expected = fuse_conv_bn_eval(*copy.deepcopy(model).eval())
    torch.testing.assert_close(result.model[0].weight, expected.weight)
    torch.testing.assert_close(result.model[0].bias, expected.bias)
    assert isinstance(result.model[1], nn.Identity)
    assert isinstance(model[1], nn.BatchNorm2d)  # the original is as it was


LAYERS = {
    "linear": (nn.Linear(4, 6), (3, 4)),
    "conv1d": (nn.Conv1d(4, 6, 3, bias=False), (2, 4, 7)),
    "conv3d": (nn.Conv3d(4, 6, 2), (2, 4, 3, 3, 3)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5)),
    "transposed groups": (nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), (2, 4, 5)),
}


def norm(channels, shape, **options):
    return {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](channels, **options)


@pytest.mark.parametrize("options", [{}, {"affine": False}], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_behind_and_before_every_layer(name, options):
    layer, shape = LAYERS[name]
    model = nn.Sequential(norm(4, shape, **options), copy.deepcopy(layer), norm(6, shape, **options), nn.ReLU())
    model = drawn(model).double()
    result = fold_batchnorm(model, torch.randn(shape).double())
    assert norms(result) == (["0"] if "transposed" in name else [])  # a shift does not pass a transposed convolution
    assert_same(result, model, torch.randn(shape).double())


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("padding", [0, "same", 1])
def test_before_padding_only_without_a_shift(padding, shift):
    model = drawn(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=padding))).double()
    if not shift:
        nn.init.zeros_(model[0].bias.data)
        model[0].running_mean.zero_()
    x = torch.randn(2, 3, 6, 6).double()
    assert bool(_find(model.eval(), ((x,), {})).parts) is not (shift and padding != 0)  # not tried where it is inexact
    result = fold_batchnorm(model, x)
    assert norms(result) == (["0"] if shift and padding else [])
    assert_same(result, model, x)


class Net(nn.Module):
    """Norms that cannot be folded, each for a reason of its own."""

    def __init__(self):
        super().__init__()
        self.twice, self.conv1, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.kept, self.conv3 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)  # its input is used elsewhere
        self.hooked, self.conv4 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.behind, self.relu = nn.BatchNorm2d(4), nn.ReLU()  # an activation lies between
        self.batch, self.conv5 = nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 4, 1)
        self.hooked.register_forward_hook(lambda module, args, out: None)
        self.shared = nn.Conv2d(4, 4, 1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.plain, self.conv6 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.twice(self.conv2(self.twice(self.conv1(x))))
        y = self.conv3(x)
        x = self.hooked(self.conv4(y + self.kept(y)))
        x = self.batch(self.conv5(self.behind(self.relu(x)).sigmoid()))
        x = self.first(self.shared(x)) + self.second(self.shared(x))
        return self.plain(self.conv6(x))


def test_what_is_used_twice_hooked_or_not_a_neighbour_is_left_alone():
    model = drawn(Net()).double()
    x = torch.randn(3, 3, 5, 5).double()
    result = fold_batchnorm(model, x)
    assert norms(result) == ["twice", "kept", "hooked", "behind", "batch", "first", "second"] == list(result.left)
    assert [(pair.norm, pair.layer, pair.behind) for pair in result.pairs] == [("plain", "conv6", True)]
    assert_same(result, model, x)


def test_code_that_looks_at_the_norm_keeps_it():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)) * self.norm.num_features

    model = drawn(Looks()).double()
    result = fold_batchnorm(model, torch.randn(1, 3, 4, 4).double())
    assert result.left == ("norm",)
    assert_same(result, model, torch.randn(1, 3, 4, 4).double())


def test_a_parametrized_layer_is_left_alone():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1))
    model = drawn(nn.Sequential(layer, nn.BatchNorm2d(4), nn.ReLU()))
    assert fold_batchnorm(model, torch.randn(2, 3, 4, 4)).left == ("1",)


@pytest.mark.parametrize(("name", "left"), [("resnet-8", 0), ("concatenation", 4), ("depthwise", 0), ("groups", 0)])
def test_whole_models(name, left):
    make, shape = STRUCTURES.get(name, (lambda: MODELS["resnet-8"]((3, 32, 32), 10), (2, 3, 32, 32)))
    model = drawn(make()).double()
    x = torch.randn(shape).double()
    result = fold_batchnorm(model, x)
    assert len(norms(result)) == left
    assert_same(result, model, torch.randn(shape).double())
    assert_same(compact(result.model, x), model, x)  # both in a row


@settings(deadline=None, max_examples=6)
@given(st.lists(st.sampled_from(["conv", "norm", "relu", "linear"]), min_size=2, max_size=7), st.booleans())
def test_random_sequences(parts, padded):
    make = {
        "conv": lambda: nn.Conv2d(4, 4, 3, padding=1 if padded else "valid"),
        "norm": lambda: nn.BatchNorm2d(4),
        "relu": nn.ReLU,
        "linear": lambda: nn.Conv2d(4, 4, 1, bias=False),
    }
    model = drawn(nn.Sequential(*(make[part]() for part in parts))).double()
    x = torch.randn(2, 4, 17, 17).double()
    result = fold_batchnorm(model, x)
    for i, part in enumerate(parts):
        if part == "norm" and i and parts[i - 1] in ("conv", "linear"):
            assert isinstance(result.model[i], nn.Identity)
    assert_same(result, model, x)


def test_modes_types_and_exports():
    model = drawn(nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4)))
    model[0].weight.requires_grad_(False)
    model.to(torch.bfloat16).train()[1].eval()
    x = torch.randn(5, 3).bfloat16()
    result = fold_batchnorm(model, {"input": x})
    assert result.model.training
    assert not result.model[1].training
    assert result.model[0].bias.dtype == torch.bfloat16
    assert not result.model[0].bias.requires_grad
    torch.testing.assert_close(result.model.eval()(x), model.eval()(x), rtol=0.05, atol=0.05)
    exported = json.loads(json.dumps(result.to_dict()))
    assert exported == {
        "model": "Sequential",
        "folded": [{"norm": "1", "into": "0", "behind": True}],
        "left": ["3"],
    }
    assert str(result).splitlines()[3:] == ["1          0, before it", "3          –"]


def test_bad_input():
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Module, got int"):
        fold_batchnorm(3, torch.ones(1))
    with pytest.raises(InputError, match="Linear cannot run on the example: RuntimeError"):
        fold_batchnorm(nn.Linear(3, 3), torch.ones(1, 4))
    with pytest.raises(InputError, match="'weight' has no shape yet"):
        fold_batchnorm(nn.LazyLinear(3), torch.ones(1, 4))

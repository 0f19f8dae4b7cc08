"""Which networks are read as a chain, and which are refused because more happens in them."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from shrinkage.core.errors import InputError
from shrinkage.discrete import CoNNTrA
from shrinkage.discrete.chain import chain
from shrinkage.dropfilter import convert


def test_an_activation_may_be_used_twice():
    act = nn.ReLU()
    net = nn.Sequential(nn.Linear(6, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 2))
    assert [stage.after for stage in chain(net).stages] == [(act,), (act,), ()]
    x = torch.randn(50, 6)
    y = (x[:, 0] > 0).long()
    method = CoNNTrA(net, variant="exhaustive")
    result = method.fit(x, y, validation=(x, y))
    assert result.sweeps[-1].loss == pytest.approx(nn.functional.cross_entropy(net(x), y).item(), rel=1e-5)
    assert result.sweeps[-1].accuracy == pytest.approx(100 * (net(x).argmax(1) == y).float().mean().item())
    assert torch.allclose(method.packed()(x), net(x), atol=1e-4)


def test_weights_that_are_used_twice_are_refused():
    one, other, third = (nn.Linear(3, 3) for _ in range(3))
    other.weight = one.weight
    third.bias = one.bias
    for net, words in (
        (nn.Sequential(one, other), "the weight of '1' is shared"),
        (nn.Sequential(one, nn.ReLU(), one), "the weight of '2' is shared"),
        (nn.Sequential(one, third), "the bias of '1' is shared"),
    ):
        with pytest.raises(InputError, match=words):
            CoNNTrA(net)


class Residual(nn.Linear):
    def forward(self, x):
        return x + super().forward(x)


class Double(nn.Identity):
    def forward(self, x):
        return 2 * x


class Renamed(nn.Linear):
    """Nothing of its own."""


def patched():
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: x
    return layer


def watched(module):
    module.register_forward_hook(lambda module, args, output: 2 * output)
    return module


def dropping():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
    convert(net, 0.5)
    return net


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Residual(4, 4), r"'1' \(Residual\).*forward of its own"),
        (lambda: Double(), r"'1' \(Double\).*forward of its own"),
        (patched, r"'1' \(Linear\).*forward of its own"),
        (lambda: prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5), "'1'.*weight_orig.*prune.remove"),
        (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "'1'.*parametrizations.*remove_parametrizations"),
        (lambda: watched(nn.Linear(4, 4)), r"'1' \(Linear\) has forward hooks"),
        (lambda: watched(nn.ReLU()), r"'1' \(ReLU\) has forward hooks"),
        (lambda: watched(nn.Sequential(nn.ReLU())), r"'1' \(Sequential\) has forward hooks"),
        (dropping, r"'1.0' \(Conv2d\) has forward hooks.*dropfilter.revert"),
    ],
)
def test_what_would_be_passed_by_is_refused_by_name(make, words):
    with pytest.raises(InputError, match=words):
        chain(nn.Sequential(nn.Linear(4, 4), make()))


def test_a_subclass_that_changes_nothing_is_fine():
    net = nn.Sequential(Renamed(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert [stage.name for stage in chain(net).stages] == ["0", "2"]

"""What cannot be is refused by name."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel

from noisy import INPUTS, method, mlp
from shrinkage.core.errors import InputError, StateError, TargetError
from shrinkage.noiseout.method import NoiseOut
from shrinkage.noiseout.noise import Binomial, Constant, Gaussian


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(16, 2)

    def forward(self, x, z):
        return self.c(torch.cat([self.a(x).tanh(), self.b(z).tanh()], 1))


def test_batches_of_a_model_with_two_inputs():
    model = Pair()
    one, two = INPUTS[:2]
    pruning = NoiseOut(model, (one[:2], two[:2]), noise=None)
    wanted = pruning.correlation([{"x": one, "z": two}])
    for given in ((one, two), [one, two, torch.zeros(32)], ((one, two), torch.zeros(32))):
        assert pruning.correlation([given]) == wanted
    with pytest.raises(InputError, match="2 inputs, and a batch 1"):
        pruning.prune([one], 3)


def test_batches_of_a_loader_are_pairs():
    data = torch.utils.data.TensorDataset(torch.cat(INPUTS), torch.zeros(128))
    model = mlp()
    found = method(model, noise=None).correlation(torch.utils.data.DataLoader(data, 50))
    assert found == pytest.approx(method(model, noise=None).correlation([torch.cat(INPUTS)]))


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_too_few_examples_are_refused(rows):
    model = mlp()
    with pytest.raises(InputError, match=rf"layer '2', which reads the 32 neurons of '0', saw {rows} rows .* need 3"):
        method(model, noise=None).prune([INPUTS[0][:rows]], 6)
    assert model[0].out_features == 32


def test_numbers_of_other_kinds():
    model = mlp()
    method(model, noise=None).prune(INPUTS, np.int64(3))
    method(model, noise=None).prune(INPUTS, {"0": np.int32(2)})
    method(model, noise=None).prune(INPUTS, parameters=np.int64(500))
    assert sum(parameter.numel() for parameter in model.parameters()) <= 500


class Convolutional(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_head_that_cannot_be_widened_is_named():
    model, x = Convolutional(), torch.randn(1, 1, 8, 8)
    with pytest.raises(InputError, match="head '2' is Conv2d, which cannot be widened"):
        NoiseOut(model, x)
    assert NoiseOut(model, x, noise=None).neurons == {"0": 4}
    with pytest.raises(InputError, match="head='1' is no layer"):
        NoiseOut(mlp(), INPUTS[0], head="1")


def test_a_layer_keeps_one_neuron():
    model = mlp()
    pruning = method(model, noise=None)
    with pytest.raises(InputError, match=r"neurons\['2'\] .* of the layer's 16, of which it keeps one: from 0 to 15"):
        pruning.prune(INPUTS, {"2": 16})
    with pytest.raises(InputError, match="from 0 to 46, got 47"):
        pruning.prune(INPUTS, 47)
    with pytest.raises(TargetError, match=r"23 parameters are left .* 20 cannot be reached"):
        pruning.prune(INPUTS, parameters=20)
    pruning.prune(INPUTS, 46)
    assert (model[0].out_features, model[2].out_features) == (1, 1)
    with pytest.raises(InputError, match="from 0 to 0"):
        pruning.prune(INPUTS, 1)


def test_unsupported_layers_are_named():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attend(x, x, x, need_weights=False)[0]

    with pytest.raises(InputError, match=r"Attention has no layer that can lose neurons \(attend"):
        NoiseOut(Attention(), torch.randn(1, 3, 8), noise=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": 0}, "outputs is a whole number"),
        ({"strength": 0.0}, "strength must be greater than 0"),
        ({"strength": "big"}, "strength must be greater than 0"),
        ({"noise": "gaussian"}, r"noise is an object .*Gaussian\(\), or None, got 'gaussian'"),
        ({"noise": Gaussian}, r"noise is an object .* got <class"),
        ({"by": "luck"}, "by must be one of correlation, error"),
        ({"exclude": "5.*"}, "exclude='5.*' matches no layer .* 0, 2"),
        ({"exclude": ["0", "2"]}, "Sequential has no layer that can lose neurons"),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        method(mlp(), **options)


def test_noise_that_cannot_be():
    for make in (
        lambda: Gaussian(std=-1),
        lambda: Binomial(p=2),
        lambda: Binomial(0),
        lambda: Binomial(1.5),
        lambda: Constant(float("nan")),
    ):
        with pytest.raises(InputError, match="noise needs"):
            make()


def test_calls_that_cannot_be():
    model = mlp()
    pruning = method(model)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="one target"):
        pruning.prune(INPUTS)
    with pytest.raises(InputError, match="looks at data"):
        pruning.prune([], 3)
    with pytest.raises(StateError, match="'0' has activations that are NaN"):
        pruning.prune([torch.full((2, 12), torch.nan)], 3)
    with pytest.raises(StateError, match=r"outside torch\.inference_mode"), torch.inference_mode():
        pruning.prune(INPUTS, 3)
    with pytest.raises(InputError, match=r"no layer '7' .* 0, 2"):
        pruning.prune(INPUTS, {"7": 1})
    with pytest.raises(InputError, match="one budget"):
        pruning.run(print, INPUTS, neurons=3, tolerance=0.1)
    with pytest.raises(InputError, match="not a generator"):
        pruning.run(print, iter(INPUTS), neurons=3)
    with pytest.raises(InputError, match="needs score="):
        pruning.run(print, INPUTS, tolerance=0.1)
    with pytest.raises(StateError, match="score returned nan"):
        pruning.run(print, INPUTS, lambda net: float("nan"), tolerance=0.1)
    with pytest.raises(InputError, match="head '4' is in none of the optimisers"):
        pruning.attach(SGD(model[:2].parameters(), lr=0.1))
    pruning.attach(optimizer)
    with pytest.raises(StateError, match="attached already"):
        pruning.attach(optimizer)
    with pytest.raises(InputError, match="not the state of NoiseOut"):
        pruning.load_state_dict({})
    for wrapped in (
        nn.DataParallel(model),
        torch.compile(nn.DataParallel(model), backend="eager"),
        AveragedModel(nn.DataParallel(model)),
    ):
        with pytest.raises(InputError, match=r"DataParallel spreads .* wrap the smaller model"):
            NoiseOut(wrapped, INPUTS[0])


@pytest.mark.parametrize(
    "batches", [INPUTS[0], (INPUTS[0], torch.zeros(len(INPUTS[0]), dtype=torch.long))], ids=["x", "xy"]
)
def test_one_batch_in_the_place_of_many(batches):
    with pytest.raises(InputError, match="a list or a loader"):
        method(mlp(), noise=None).prune(batches, 3)

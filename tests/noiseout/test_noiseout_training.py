"""In the user's loop: optimisers follow what is removed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adafactor, Adam, AdamW, RMSprop

from noisy import INPUTS, batch, method, mlp, step
from shrinkage.core.errors import InputError
from shrinkage.noiseout.method import NoiseOut
from shrinkage.noiseout.noise import Gaussian


def with_dead_neurons():
    """Some neurons never fire: without them every other weight has the same gradients."""
    torch.manual_seed(0)
    model = mlp(torch.float64)
    with torch.no_grad():
        for layer, dead in ((model[0], [3, 4, 20]), (model[2], [0, 15])):
            layer.bias[dead] = -100
    return model


def train(model, optimizer, numbers):
    for number in numbers:
        x, y = batch(number)
        optimizer.zero_grad()
        functional.cross_entropy(model(x.double()), y).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "build",
    [
        lambda groups: SGD(groups, momentum=0.9, nesterov=True),
        lambda groups: Adam(groups, amsgrad=True),
        lambda groups: AdamW(groups, weight_decay=0.1),
        lambda groups: RMSprop(groups, momentum=0.5, centered=True),
    ],
    ids=["SGD", "Adam", "AdamW", "RMSprop"],
)
def test_training_goes_on_as_if_nothing_had_been_removed(build):
    models = with_dead_neurons(), with_dead_neurons()
    optimizers = [
        build([{"params": m[:2].parameters(), "lr": 0.005}, {"params": m[2:].parameters(), "lr": 0.002}])
        for m in models
    ]
    pruning = NoiseOut(models[1], INPUTS[0][:2].double(), noise=None).attach(optimizers[1])
    train(models[0], optimizers[0], range(12))
    train(models[1], optimizers[1], range(6))
    result = pruning.prune([x.double() for x in INPUTS], 5)
    assert {name: each.after for name, each in result.layers.items()} == {"0": 29, "2": 14}
    train(models[1], optimizers[1], range(6, 12))
    first = [i for i in range(32) if i not in (3, 4, 20)]
    second = range(1, 15)
    whole = models[0].state_dict()
    wanted = {
        "0.weight": whole["0.weight"][first],
        "0.bias": whole["0.bias"][first],
        "2.weight": whole["2.weight"][list(second)][:, first],
        "2.bias": whole["2.bias"][list(second)],
        "4.weight": whole["4.weight"][:, list(second)],
        "4.bias": whole["4.bias"],
    }
    for name, value in models[1].state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-9, atol=1e-12)
    assert [group["lr"] for group in optimizers[1].param_groups] == [0.005, 0.002]


@pytest.mark.parametrize("noise", [None, Gaussian()])
def test_a_loss_that_is_still_at_hand_does_no_harm(noise):
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruning = method(model, noise=noise).attach(optimizer)
    loss = step(model, optimizer, 0)  # its graph remembers the parameters' sizes
    pruning.prune(INPUTS, 10)
    step(model, optimizer, 1)
    assert bool(torch.isfinite(loss))


def test_gradients_and_factored_moments_are_cut_too():
    model = mlp()
    optimizer = Adafactor(model.parameters(), lr=0.01)
    pruning = method(model, noise=None).attach(optimizer)
    step(model, optimizer, 0)
    before = model[4].weight.grad.clone()
    (fold,) = pruning.prune(INPUTS, {"2": 1}).folds
    left = [i for i in range(16) if i != fold.unit]
    assert torch.equal(model[4].weight.grad, before[:, left])
    for parameter in model.parameters():
        for value in optimizer.state[parameter].values():
            assert all(mine in (1, size) for mine, size in zip(value.shape, parameter.shape, strict=False))
    step(model, optimizer, 1)


def test_a_memory_that_cannot_be_cut_is_refused_before_anything_changes():
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    pruning = method(model, noise=None).attach(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(INPUTS[0]), batch(0)[1])
        loss.backward()
        return loss

    optimizer.step(closure)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"LBFGS keeps .* train with SGD"):
        pruning.prune(INPUTS, 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_channels_last_stays():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    x = torch.randn(20, 3, 8, 8).to(memory_format=torch.channels_last)
    optimizer = Adam(model.parameters())
    pruning = NoiseOut(model, x[:2]).attach(optimizer)
    model(x).sum().backward()
    optimizer.step()
    pruning.prune([x], {"0": 3, "2": 3})
    for conv in (model[0], model[2]):
        held = conv.weight, conv.weight.grad, optimizer.state[conv.weight]["exp_avg"]
        assert all(each.is_contiguous(memory_format=torch.channels_last) for each in held)
    assert not model[2].weight.is_contiguous()

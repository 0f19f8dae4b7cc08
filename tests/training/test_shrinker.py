"""NoiseOut as the command line trains it: the share is reached, and an interrupted training ends in the same bits."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from nets import batch
from shrinkage.core.errors import InputError, StateError
from shrinkage.training.shrinker import Shrinker

STEPS = 40
SEEN = [batch(number)[0] for number in range(3)]


def begin():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    return model, Shrinker(model, 0.7, STEPS, SEEN)


def go_on(model, optimizer, numbers):
    for number in numbers:
        x, y = batch(number)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def test_the_share_is_reached_step_by_step():
    model, shrinker = begin()
    optimizer = sgd(model)
    shrinker.attach(optimizer)
    seen = []
    for number in range(STEPS):
        go_on(model, optimizer, [number])
        seen.append(shrinker.zeros)
        assert shrinker.zeros >= shrinker.wanted * shrinker.units - 1
    assert seen[9] == 0 < seen[10]
    assert seen == sorted(seen)
    assert shrinker.phase == "holding"
    result = shrinker.finalize()
    assert result.removed >= 0.7
    assert result.parameters.after == sum(parameter.numel() for parameter in model.parameters())
    assert len(optimizer.param_groups[0]["params"]) == 6


def test_a_training_that_ends_early_is_told():
    model, shrinker = begin()
    optimizer = sgd(model)
    shrinker.attach(optimizer)
    go_on(model, optimizer, range(15))
    assert shrinker.phase == "shrinking"
    with pytest.raises(StateError, match="only 15 steps were taken"):
        shrinker.finalize()


def test_a_share_that_cannot_be_is_told_before_the_training():
    model, _ = begin()
    whole = sum(parameter.numel() for parameter in model.parameters())
    fewest = (12 + 1) + (1 + 1) + 4 * (1 + 1)  # one neuron a layer
    with pytest.raises(InputError, match=rf"{fewest} are left where every layer has one neuron"):
        Shrinker(model, 1 - (fewest - 1) / whole, STEPS, SEEN)
    assert Shrinker(model, 1 - (fewest + 0.5) / whole, STEPS, SEEN).units == whole


def test_steps_are_counted_once_where_one_optimiser_extends_another():
    class Extended(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    models, left = [], []
    for kind in (torch.optim.SGD, Extended):
        model, shrinker = begin()
        optimizer = kind(model.parameters(), lr=0.05)
        shrinker.attach(optimizer)
        go_on(model, optimizer, range(17))
        models.append(model)
        left.append(shrinker.state_dict()["step"])
    assert left == [17, 17]
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


@pytest.mark.parametrize("pause", [5, 17, 35])
def test_an_interrupted_training_ends_in_the_same_bits(pause):
    model, shrinker = begin()
    optimizer = sgd(model)
    shrinker.attach(optimizer)
    go_on(model, optimizer, range(pause))
    states = copy.deepcopy((shrinker.state_dict(), model.state_dict(), optimizer.state_dict()))
    go_on(model, optimizer, range(pause, STEPS))
    again, resumed = begin()
    resumed.load_state_dict(states[0])
    again.load_state_dict(states[1])
    other = sgd(again)
    resumed.attach(other)
    other.load_state_dict(states[2])
    go_on(again, other, range(pause, STEPS))
    for mine, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert resumed.finalize().to_dict() == shrinker.finalize().to_dict()

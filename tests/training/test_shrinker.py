"""NoiseOut as the command line trains it: the share is reached, and an interrupted training ends in the same bits."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from nets import batch
from shrinkage.core.errors import StateError
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

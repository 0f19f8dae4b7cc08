"""Runs to a number or a tolerance, the way back, and states."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from noisy import INPUTS, method, mlp, step
from shrinkage.core.errors import InputError, StateError, TargetError
from shrinkage.noiseout.method import NoiseOut


def test_a_run_to_an_exact_number_trains_after_each_removal():
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruning = method(model).attach(optimizer)
    seen = []

    def recover(net):
        seen.append(sum(pruning.neurons.values()))
        step(net, optimizer, len(seen))

    result = pruning.run(recover, INPUTS, lambda net: -float(seen[-1]), neurons=30, rounds=4)
    assert seen[-1] == 18 == result.total.after
    assert seen == sorted(seen, reverse=True)
    assert [each.units for each in result.rounds] == seen
    assert result.parameters.after == sum(parameter.numel() for parameter in model.parameters())
    text = str(pruning.finish())
    assert "18" in text


def test_a_run_to_a_number_of_parameters():
    model = mlp()
    method(model, noise=None).run(lambda net: None, INPUTS, parameters=300, rounds=3)
    assert 270 < sum(parameter.numel() for parameter in model.parameters()) <= 300


def test_a_tolerance_is_kept_and_what_costs_too_much_is_taken_back():
    model = mlp()
    optimizer = Adam(model.parameters(), lr=0.01)
    pruning = method(model).attach(optimizer)
    step(model, optimizer, 0)
    number = iter(range(1, 1000))

    def score(net):
        return 0.0 if net[0].out_features + net[2].out_features >= 31 else -2.0

    result = pruning.run(lambda net: step(net, optimizer, next(number)), INPUTS, score, tolerance=1.0, share=0.2)
    assert result.total.after == model[0].out_features + model[2].out_features
    refused = [each for each in result.rounds if not each.kept]
    assert len(refused) == 3 or refused[-1].units == 30
    assert all(each.units < 31 for each in refused)
    assert 31 <= result.total.after <= 35
    assert result.to_dict()["rounds"][0]["kept"] is True
    step(model, optimizer, 0)
    for parameter in model.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


def test_a_tolerance_ends_when_no_more_can_go():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.Tanh(), nn.Conv2d(8, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    x = torch.randn(20, 4, 6, 6)
    pruning = NoiseOut(model, x[:1], noise=None)
    result = pruning.run(lambda net: None, [x], lambda net: 1.0, tolerance=0.5)
    assert [each.kept for each in result.rounds] == [True] * len(result.rounds)
    assert result.total.after == 3 == pruning.run(lambda net: None, [x], lambda net: 1.0, tolerance=0.5).total.after
    model = mlp()
    assert method(model, noise=None).run(lambda net: None, INPUTS, lambda net: 1.0, tolerance=0.5).total.after == 2


def test_a_baseline_is_spent_once():
    def neurons(net):
        return float(net[0].out_features + net[2].out_features)

    left = {}
    for baseline in (48.0, None):
        model = mlp()
        pruning = method(model, noise=None)
        for _ in range(2):
            pruning.run(lambda net: None, INPUTS, neurons, tolerance=6.0, baseline=baseline)
        left[baseline] = neurons(model)
    assert left[48.0] >= 42 > left[None]


def test_there_is_no_way_back_past_the_attachment():
    model = mlp()
    optimizer = Adam(model.parameters(), lr=0.01)
    pruning = method(model)
    before = pruning.mark()
    pruning.attach(optimizer)
    within = pruning.mark()
    step(model, optimizer, 0)
    pruning.prune(INPUTS, 3)
    with pytest.raises(StateError, match=r"before attach\(\) or finish\(\)"):
        before()
    pruning.finish()
    with pytest.raises(StateError, match=r"before attach\(\) or finish\(\)"):
        within()
    assert sum(pruning.neurons.values()) == 45
    optimizer.state_dict()


def test_the_way_back_is_exact():
    model = mlp()
    optimizer = Adam(model.parameters(), lr=0.01)
    pruning = method(model).attach(optimizer)
    for number in range(3):
        step(model, optimizer, number)
    finals = []
    back = pruning.mark()
    for _ in range(2):
        back()
        pruning.prune(INPUTS, 20)
        for number in range(3):
            step(model, optimizer, number)
        finals.append(copy.deepcopy(model.state_dict()))
        assert set(pruning.correlation(INPUTS)) == {"0", "2"}  # has looked at the smaller model
    back()
    assert model[0].out_features + model[2].out_features == 48 == sum(pruning.neurons.values())
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


def test_a_resumed_run_is_the_same_to_the_bit():
    def begin():
        torch.manual_seed(0)
        model = mlp()
        return model, method(model)

    model, pruning = begin()
    optimizer = Adam(model.parameters(), lr=0.01)
    pruning.attach(optimizer)
    step(model, optimizer, 0)
    pruning.prune(INPUTS, 12)
    step(model, optimizer, 1)
    buffer = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), pruning.state_dict()), buffer)

    def rest(model, optimizer, pruning):
        step(model, optimizer, 2)
        pruning.prune(INPUTS, 7)
        step(model, optimizer, 3)
        return pruning.finish()

    first = rest(model, optimizer, pruning)
    again, resumed = begin()
    buffer.seek(0)
    states = torch.load(buffer, weights_only=True)
    resumed.load_state_dict(states[2])
    again.load_state_dict(states[0])
    other = Adam(again.parameters(), lr=0.01)
    resumed.attach(other)
    other.load_state_dict(states[1])
    assert rest(again, other, resumed).to_dict() == first.to_dict()
    for mine, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_state_loaded_before_attach_is_given_on():
    model = mlp()
    first = method(model).attach(SGD(model.parameters(), lr=0.1))
    model(INPUTS[0])
    state = first.state_dict()
    second = method(mlp())
    second.load_state_dict(state)
    again = second.state_dict()
    assert all(torch.equal(again["noise"][key], value) for key, value in state["noise"].items())


def test_a_state_of_other_layers_is_refused():
    first = method(mlp(), noise=None, exclude="0")
    first.prune(INPUTS, 3)
    model = mlp()
    with pytest.raises(InputError, match=r"state is of layers 2, and here 0, 2 can .* exclude="):
        method(model, noise=None).load_state_dict(first.state_dict())
    assert model[2].out_features == 16


def test_what_cannot_be_reached_is_said_before_the_first_training():
    grouped = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.Tanh(), nn.Conv2d(8, 3, 1)
    )  # one would look like one group
    images = torch.randn(50, 4, 6, 6)
    for model, batches, budget in ((mlp(), INPUTS, {"parameters": 20}), (grouped, [images], {"neurons": 2})):
        trained = []
        pruning = NoiseOut(model, batches[0][:2], noise=None)
        before = pruning.neurons
        with pytest.raises(TargetError, match=r"cannot be reached|can go"):
            pruning.run(trained.append, batches, **budget)
        assert not trained
        assert pruning.neurons == before


def test_a_round_that_diverges_is_taken_back():
    model = mlp()
    pruning = method(model, noise=None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = iter([0.9, *[float("nan")] * 3])
    result = pruning.run(
        lambda net: net[0].weight.data.mul_(torch.nan), INPUTS, lambda net: next(scores), tolerance=0.1
    )
    assert [each.kept for each in result.rounds] == [False] * 3
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_round_that_fails_is_taken_back(error):
    def train(net):
        raise error

    model = mlp()
    pruning = method(model, noise=None)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error):
        pruning.run(train, INPUTS, lambda net: 1.0, tolerance=0.1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert sum(pruning.neurons.values()) == 48


def test_a_failed_attach_keeps_the_loaded_state():
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    pruning = method(model, outputs=7).attach(optimizer)
    step(model, optimizer, 0)
    state = pruning.state_dict()
    twin = mlp()
    other = method(twin, outputs=7)
    other.load_state_dict(state)
    with pytest.raises(InputError):
        other.attach(SGD([nn.Parameter(torch.ones(1))], lr=0.1))
    other.attach(SGD(twin.parameters(), lr=0.1))
    assert torch.equal(other.state_dict()["noise"]["weight"], state["noise"]["weight"])

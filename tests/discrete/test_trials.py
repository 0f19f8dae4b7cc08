"""A trial against the loss of the whole network, and a cache that follows against a fresh one."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from discrete_nets import cnn, examples, kept, mlp, total, trainer
from shrinkage.core.errors import InputError, StateError
from shrinkage.discrete.cache import Cache
from shrinkage.discrete.losses import cross_entropy


def others(weight, table):
    return [value for value in table if value != weight.value]


def tried(cache, weight, targets):
    deltas = torch.tensor([value - weight.value for value in targets], dtype=torch.float64)
    return cache.trial(weight.site.stage, weight.channel, weight.place, deltas)


@pytest.mark.parametrize("build", [mlp, cnn])
@pytest.mark.parametrize("values", [(-1, 0, 1), (-1, 1), (-2, -0.5, 0, 3)], ids=str)
def test_a_trial_is_the_change_of_the_loss_and_the_cache_follows(build, values):
    net = build()
    x, y = examples(net)
    method = trainer(net, values, temperature=0.7)
    cache, sites = method.cache(x, y), method.sites()
    assert cache.total == pytest.approx(total(net, x, y, 0.7), abs=1e-10)
    changes = 0
    for number in range(len(sites)):
        weight, table = sites.coordinate(number)
        present, targets = weight.value, others(weight, table)
        assert len(targets) == len(values) - 1
        trial = tried(cache, weight, targets)
        falls = [0.0] * len(targets) if trial is None else trial.falls
        for target, fall in zip(targets, falls, strict=True):
            weight.set(target)
            assert fall == pytest.approx(total(net, x, y, 0.7) - cache.total, abs=1e-9)
            weight.set(present)
        changes += any(falls)
        if trial is not None and number % 3 == 0:
            cache.accept(trial, number % len(targets))
            weight.set(targets[number % len(targets)])
            fresh = method.cache(x, y)
            assert cache.total == pytest.approx(fresh.total, abs=1e-9)
            for ours, theirs in zip(kept(cache), kept(fresh), strict=True):
                assert torch.allclose(ours, theirs, atol=1e-9)
    assert changes > len(sites) / 2


def test_weights_changed_by_others_are_seen_after_a_refresh():
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 3)).double()
    x, y = examples(net)
    method = trainer(net)
    cache, sites = method.cache(x, y), method.sites()
    for _ in range(2):
        for number in range(len(sites)):
            weight, table = sites.coordinate(number)
            tried(cache, weight, others(weight, table)[:1])
        method.begin(torch.Generator().manual_seed(1))
        cache.refresh()
    for number in range(len(sites)):
        weight, table = sites.coordinate(number)
        targets = others(weight, table)[:1]
        ours, theirs = (tried(which, weight, targets) for which in (cache, method.cache(x, y)))
        assert (ours and ours.falls) == (theirs and theirs.falls)


def test_an_input_that_is_always_zero_needs_no_trial():
    net = mlp()
    x, y = examples(net)
    x[:, 2] = 0
    method = trainer(net)
    weight, table = method.sites().coordinate(2)  # of the first output and the third input
    assert tried(method.cache(x, y), weight, others(weight, table)) is None


@pytest.mark.parametrize("build", [mlp, cnn])
def test_gradients_are_those_of_the_network(build):
    net = build().eval()
    x, y = examples(net)
    method = trainer(net)
    parameters = method.sites().parameters()
    parameters[0].requires_grad_(False)
    found = method.cache(x, y).gradients(parameters, block=5)
    assert not parameters[0].requires_grad
    parameters[0].requires_grad_(True)
    functional.cross_entropy(net(x), y, reduction="sum").backward()
    for ours, parameter in zip(found, parameters, strict=True):
        assert torch.allclose(ours, parameter.grad, atol=1e-10)


def test_the_best_temperature_is_where_the_loss_is_flat():
    net = mlp()
    x, _ = examples(net, 500)
    method = trainer(net)
    with torch.no_grad():
        y = torch.multinomial((net(x) / 0.4).softmax(1), 1)[:, 0]
    cache = method.cache(x, y)
    best = cache.best_temperature()
    assert 0.25 < best < 0.6
    assert total(net, x, y, best) < min(total(net, x, y, best * step) for step in (0.5, 0.99, 1.01, 2))
    assert total(net, x, y, best) < cache.total


def test_separable_examples_have_a_best_temperature():
    """One more example, with the target of another, says how sure the others can make it."""
    net = nn.Sequential(nn.Linear(5, 3)).double()
    x = torch.randn(200, 5).double()
    method = trainer(net, range(-8, 9))
    with torch.no_grad():
        outputs = net(x)
        y = outputs.argmax(1)
    shuffled = y[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    cache = method.cache(x, y)
    for _ in range(5):
        cache.temperature = cache.best_temperature()
        cache.refresh()

    def smoothed(heat):
        losses = [functional.cross_entropy(outputs / heat, target, reduction="sum") for target in (y, shuffled)]
        return (losses[0] + losses[1] / 200).item()

    best = cache.temperature
    assert smoothed(best) < min(smoothed(best * step) for step in (0.5, 0.98, 1.02, 2))
    assert total(net, x, y, best / 8) < cache.total  # which alone would know no bound


def test_cross_entropy_is_pytorchs_even_where_exp_overflows():
    outputs, y = 40 * torch.randn(100, 7), torch.randint(7, (100,))
    for scale in (0.01, 1, 10):
        wanted = functional.cross_entropy(scale * outputs, y, reduction="none")
        assert torch.allclose(cross_entropy(scale * outputs, y), wanted, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_said():
    net = mlp()
    x, y = examples(net)
    method = trainer(net)
    with pytest.raises(InputError, match="there are 12 examples and 11 targets"):
        method.cache(x, y[:-1])
    with pytest.raises(InputError, match=r"cannot run on examples of shape \(12, 4\)"):
        method.cache(x[:, :4], y)
    with pytest.raises(InputError, match="a number for each of 12 examples"):
        Cache(method.chain, x, y, functional.cross_entropy)
    with pytest.raises(StateError, match="the loss is nan"):
        method.cache(x * torch.nan, y)

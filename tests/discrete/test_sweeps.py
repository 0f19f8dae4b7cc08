"""Sweeps against brute force: every sweep ends where a slow one does, and no loss ever rises."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from discrete_nets import cnn, examples, kept, mlp, total, trainer
from shrinkage import models
from shrinkage.data import load
from shrinkage.discrete import CoNNTrA
from shrinkage.discrete.sweeps import Memory, exhaustive, ranked, together


def naive_exhaustive(net, sites, x, y, generator):
    """The same with the whole network for every value of every weight."""
    free = sites.free()
    for place in torch.randperm(len(free), generator=generator).tolist():
        weight, table = sites.coordinate(int(free[place]))
        value, present = weight.value, total(net, x, y)
        losses = {}
        for other in table:
            if other != value:
                weight.set(other)
                losses[other] = total(net, x, y)
        best = min(losses, key=losses.__getitem__)
        weight.set(best if losses[best] < present - 1e-12 else value)


def naive_ranked(net, sites, cache, x, y, rounds):
    """The same with the whole network for every step."""
    tried = set()
    for left in range(rounds, 0, -1):
        steps = zip(*sites.steps(cache.gradients(sites.parameters())), strict=True)
        left_over = [(-fall, int(number), target) for number, fall, target in steps if int(number) not in tried]
        for _, number, target in sorted(left_over)[: -(-len(left_over) // left)]:
            weight, _ = sites.coordinate(number)
            value, present = weight.value, total(net, x, y)
            weight.set(target)
            if not total(net, x, y) < present - 1e-12:
                weight.set(value)
            tried.add(number)


def state(net):
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@pytest.mark.parametrize("build", [mlp, cnn])
@pytest.mark.parametrize("values", [(-1, 0, 1), (-1, 1), (0, 1, 3, 4)], ids=str)
def test_an_exhaustive_sweep_is_the_naive_one(build, values):
    torch.manual_seed(0)
    net = build()
    torch.manual_seed(0)
    slow = build()
    x, y = examples(net)
    ours, theirs = trainer(net, values), trainer(slow, values)
    assert torch.equal(state(net), state(slow))
    moved = exhaustive(ours.cache(x, y), ours.sites(), torch.Generator().manual_seed(1)).moved
    naive_exhaustive(slow, theirs.sites(), x, y, torch.Generator().manual_seed(1))
    assert moved
    assert torch.equal(state(net), state(slow))


def test_without_a_move_no_single_change_helps():
    net = mlp()
    x, y = examples(net)
    method = trainer(net)
    sites = method.sites()
    while exhaustive(method.cache(x, y), sites, torch.Generator().manual_seed(0)).moved:
        pass
    least = total(net, x, y)
    for number in range(len(sites)):
        weight, table = sites.coordinate(number)
        value = weight.value
        for other in table:
            weight.set(other)
            assert total(net, x, y) >= least - 1e-9
        weight.set(value)


def test_one_weight_is_at_its_optimum_after_a_sweep_of_it_alone():
    net = mlp()
    x, y = examples(net)
    method = trainer(net, (-1, 0, 0.5, 1))
    for name, parameter in net.named_parameters():
        if parameter.ndim < 2:
            continue
        for place in itertools.product(*map(range, parameter.shape)):
            frozen = {n: torch.ones(p.shape, dtype=torch.bool) for n, p in net.named_parameters()}
            frozen[name][place] = False
            sites = method.sites(frozen=frozen)
            assert len(sites.free()) == 1
            before = state(net)
            exhaustive(method.cache(x, y), sites, torch.Generator().manual_seed(0))
            assert int((state(net) != before).sum()) <= 1
            weight, table = sites.coordinate(int(sites.free()[0]))
            chosen, losses = weight.value, []
            for value in table:
                weight.set(value)
                losses.append(total(net, x, y))
            weight.set(chosen)
            assert total(net, x, y) == pytest.approx(min(losses), abs=1e-9)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 2**20), st.sampled_from(["gradient", "exhaustive", "together"]), st.booleans())
def test_the_loss_never_rises_and_weights_stay_in_the_set(seed, variant, wide):
    torch.manual_seed(seed)
    net = mlp()
    x, y = examples(net, 30, seed)
    values = (-3, -1, 0, 1, 3) if wide else (-1, 0, 1)
    method = trainer(net, values, variant=variant, temperature=None)
    generator = torch.Generator().manual_seed(seed)
    loss = total(net, x, y)
    for _ in range(3):
        sweep = method.sweep(x, y, generator)
        assert sweep.before == pytest.approx(loss / 30)
        loss = total(net, x, y)
        assert sweep.loss == pytest.approx(loss / 30)
        assert sweep.loss <= sweep.before
        for site in method.sites().sites:
            allowed = torch.tensor(values).double() * site.scale
            assert torch.isin(site.parameter, allowed).all()


def test_the_gradients_steps_are_the_neighbours_against_it():
    net = mlp()
    x, y = examples(net, 30)
    method = trainer(net, (-2, 0, 1))
    sites, cache = method.sites(), method.cache(x, y)
    gradients = torch.cat([gradient.flatten() for gradient in cache.gradients(sites.parameters())]).tolist()
    numbers, falls, targets = sites.steps([g.clone() for g in cache.gradients(sites.parameters())])
    wanted = {}
    for number, slope in enumerate(gradients):
        weight, table = sites.coordinate(number)
        place = min(range(3), key=lambda i: abs(table[i] - weight.value))
        neighbour = place - (slope > 0) + (slope < 0)
        if slope and 0 <= neighbour < 3:
            wanted[number] = table[neighbour], slope * (weight.value - table[neighbour])
    assert {int(n): (t, pytest.approx(f)) for n, f, t in zip(numbers, falls, targets, strict=True)} == wanted


@pytest.mark.parametrize("build", [mlp, cnn])
def test_a_ranked_sweep_tries_each_weight_at_most_once_and_helps(build):
    net = build()
    x, y = examples(net, 40)
    method = trainer(net)
    before = total(net, x, y)
    count = ranked(method.cache(x, y), method.sites(), rounds=5)
    assert 0 < count.moved <= count.trials <= len(method.sites())
    assert count.gradients <= 5
    assert total(net, x, y) < before


@pytest.mark.parametrize("build", [mlp, cnn])
@pytest.mark.parametrize("values", [(-1, 0, 1), (0, 1, 3, 4)], ids=str)
@pytest.mark.parametrize("rounds", [1, 4])
def test_a_ranked_sweep_is_the_naive_one(build, values, rounds):
    torch.manual_seed(1)
    net = build()
    torch.manual_seed(1)
    slow = build()
    x, y = examples(net)
    ours, theirs = trainer(net, values), trainer(slow, values)
    count = ranked(ours.cache(x, y), ours.sites(), rounds)
    naive_ranked(slow, theirs.sites(), theirs.cache(x, y), x, y, rounds)
    assert 0 < count.moved < count.trials
    assert torch.equal(state(net), state(slow))


@pytest.mark.parametrize("variant", ["gradient", "exhaustive", "together"])
@pytest.mark.parametrize("values", [(1, 2), (100, 101), (0, 1), (-1000, -1, 0, 1, 1000)], ids=str)
@pytest.mark.parametrize(("scale", "temperature"), [(None, 1.0), ("layer", None)])
def test_no_rounding_makes_the_loss_rise(variant, values, scale, temperature):
    """In float32, with activations so large that their rounding errors are larger than what a trial gains."""
    for seed in (3, 5):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
        x, y = torch.randn(60, 6), torch.randint(3, (60,))
        method = trainer(net, values, variant=variant, scale=scale, temperature=temperature)
        generator = torch.Generator().manual_seed(seed)
        loss = method.cache(x, y).total / 60
        for _ in range(4):
            sweep = method.sweep(x, y, generator)
            assert sweep.before == loss
            loss = method.cache(x, y).total / 60
            assert sweep.loss == loss
            assert loss <= sweep.before


def walled(outputs, y):
    """A square error, and no finite loss beyond a wall."""
    return (outputs[:, 0] - y) ** 2 + torch.where(outputs[:, 0].abs() > 4, torch.inf, 0.0)


def test_together_goes_back_from_a_loss_that_is_not_finite():
    x = torch.randn(100, 20)
    refused = 0
    for seed in range(8):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 1))
        method = CoNNTrA(net, variant="together", loss=walled, temperature=1.0, seed=seed)
        before = walled(net(x), x[:, 0]).mean()
        if before.isfinite():
            method.fit(x, x[:, 0], 3)
            assert walled(net(x), x[:, 0]).mean() < before
        else:
            refused += 1
    assert refused < 8


def test_a_value_without_a_loss_is_none_to_take():
    def loss(outputs, y):
        return torch.where(outputs[:, 0] < 0, torch.nan, (outputs[:, 0] - 3) ** 2)

    for values in ((-1, 1, 3), (1, 3)):
        net = nn.Sequential(nn.Linear(1, 1, bias=False))
        method = CoNNTrA(net, values=values, scale=None, temperature=1.0, loss=loss, variant="exhaustive")
        with torch.no_grad():
            net[0].weight.fill_(1)
        method.fit(torch.ones(4, 1), torch.zeros(4))
        assert net[0].weight.item() == 3


def test_together_leaves_the_cache_as_a_fresh_one():
    net = mlp()
    x, y = examples(net, 40)
    method = trainer(net)
    cache = method.cache(x, y)
    assert together(cache, method.sites(), torch.Generator().manual_seed(0)).moved
    fresh = method.cache(x, y)
    assert cache.total == fresh.total
    for ours, theirs in zip(kept(cache), kept(fresh), strict=True):
        assert torch.equal(ours, theirs)


def test_together_tries_fewer_and_fewer_before_it_gives_up(monkeypatch):
    net = mlp()
    x, y = examples(net, 40)
    method = trainer(net)
    cache, sites = method.cache(x, y), method.sites()
    before, sizes, write = state(net), [], sites.write
    monkeypatch.setattr(cache, "evaluate", lambda: torch.inf)
    monkeypatch.setattr(sites, "write", lambda numbers, values: sizes.append(len(numbers)) or write(numbers, values))
    assert together(cache, sites, torch.Generator().manual_seed(0)).moved == 0
    assert sizes[::2] == [16, 12, 9, 6, 4]  # and back each time
    assert torch.equal(state(net), before)


def test_the_most_promising_steps_are_tried_first(monkeypatch):
    net = mlp()
    x, y = examples(net, 40)
    method = trainer(net)
    cache, sites = method.cache(x, y), method.sites()
    numbers, falls, _ = sites.steps(cache.gradients(sites.parameters()))
    seen, own = [], sites.coordinate
    monkeypatch.setattr(sites, "coordinate", lambda number: seen.append(number) or own(number))
    ranked(cache, sites, rounds=1)
    expected = dict(zip(numbers.tolist(), falls.tolist(), strict=True))
    assert sorted(seen) == sorted(expected)
    assert [expected[number] for number in seen] == sorted(falls, reverse=True)


def test_frozen_weights_stay():
    net = mlp()
    x, y = examples(net, 40)
    method = trainer(net)
    frozen = {"0.weight": torch.rand(4, 5) < 0.5, "2.weight": torch.ones(3, 4, dtype=torch.bool)}
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    sites = method.sites(frozen=frozen)
    generator = torch.Generator().manual_seed(0)
    assert set(sites.steps(method.cache(x, y).gradients(sites.parameters()))[0]) <= set(sites.free())
    for sweep in (lambda: ranked(method.cache(x, y), sites), lambda: exhaustive(method.cache(x, y), sites, generator)):
        assert sweep().moved
    assert together(method.cache(x, y), sites, generator).together
    for name, mask in frozen.items():
        assert torch.equal(net.get_parameter(name)[mask], before[name][mask])
    assert not torch.equal(net[0].weight, before["0.weight"])


def test_a_memory_is_a_running_mean_of_finite_gradients():
    memory, first, second = Memory(), torch.tensor([1.0, 2.0]), torch.tensor([3.0, float("nan")])
    assert torch.equal(memory.learn([first])[0], first)
    torch.testing.assert_close(memory.learn([second])[0], torch.tensor([1.2, 1.8]))
    assert torch.equal(first, torch.tensor([1.0, 2.0]))
    assert memory.gradients == 2
    memory.forget()
    assert torch.equal(memory.learn([second])[0], torch.tensor([3.0, 0.0]))


def test_a_memory_that_points_uphill_is_forgotten():
    net = mlp()
    x, y = examples(net, 40)
    method = trainer(net)
    cache, sites, memory = method.cache(x, y), method.sites(), Memory()
    before = cache.total
    memory.learn([-1e6 * gradient for gradient in cache.gradients(sites.parameters())])
    assert together(cache, sites, torch.Generator().manual_seed(0), memory).moved
    assert cache.total < before


def test_sweeps_of_parts_of_the_examples_do_better_with_a_memory(monkeypatch):
    data = load("digits", None)
    x, y = data.prepare(data.train.x), data.train.y

    def error() -> float:
        torch.manual_seed(0)
        method = CoNNTrA(models.build("mlp", data), variant="together", seed=0)
        seen = (x, y)
        return 100 - method.fit(x, y, 6, batch=700, validation=seen).sweeps[-1].accuracy

    with_it = error()
    monkeypatch.setattr("shrinkage.discrete.conntra.Memory", lambda: Memory(0.0))
    assert with_it < 0.7 * error()

"""Sweeps against brute force: every sweep ends where a slow one does, and no loss ever rises."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from discrete_nets import cnn, examples, mlp, total, trainer
from shrinkage.discrete.sweeps import exhaustive, ranked, together


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

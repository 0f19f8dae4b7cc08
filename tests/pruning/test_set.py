"""SET against a slow loop, and what its exchanges look like from outside."""

import copy

import pytest
import torch
from torch import optim
from torch.nn import functional

from nets import CNN, MLP, batch, fit, images
from shrinkage import InputError
from shrinkage.core.masked import Exchange
from shrinkage.pruning.set import SET, RandomGrowth


def begin(model=MLP, steps=60, sparsity=0.8, **options):
    torch.manual_seed(0)
    model = model()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    return model, optimizer, SET(model, sparsity, steps, **options).attach(optimizer)


def weights_of(model):
    return [parameter for parameter in model.parameters() if parameter.ndim > 1]


def slow(steps, interval, masks, seed=0, zeta=0.3, end=0.8):
    """The method as anybody would write it, from a given first pattern: masks multiplied in, everything sorted."""
    torch.manual_seed(0)
    model = MLP()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    weights = weights_of(model)
    chances = Exchange(RandomGrowth(zeta), 0, seed)
    with torch.no_grad():
        for weight, mask in zip(weights, masks, strict=True):
            weight.mul_(mask)
    for step in range(1, steps + 1):
        x, y = batch(step - 1)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        if step > 1 and step % interval == 0 and step < end * steps:
            for i, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
                chance = chances.chance(step, i)
                lots = (1 - torch.rand(weight.shape, generator=chance)).flatten().tolist()
                flat, kept = weight.detach().flatten().tolist(), mask.flatten().tolist()
                going = sorted((abs(flat[j]), j) for j in range(len(flat)) if kept[j])[: int(zeta * sum(kept))]
                grown = sorted((lots[j], j) for j in range(len(flat)) if not kept[j])[::-1][: len(going)]
                with torch.no_grad():
                    gone = torch.zeros_like(mask).view(-1)
                    gone[[j for _, j in going]] = 1
                    size = ((weight.square() * gone.view_as(weight)).sum() / len(going)).sqrt()
                    drawn = 2 * torch.rand(weight.shape, generator=chance).flatten() - 1
                    for _, j in going:
                        mask.view(-1)[j] = 0
                    for _, j in grown:
                        mask.view(-1)[j] = 1
                        weight.view(-1)[j] = size * (drawn[j] + (-0.5 if drawn[j] < 0 else 0.5))
                    weight.mul_(mask)
                    if weight in optimizer.state:
                        optimizer.state[weight]["momentum_buffer"].mul_(mask)
        for weight, mask in zip(weights, masks, strict=True):
            weight.grad.mul_(mask)
        optimizer.step()
    return model


@pytest.mark.parametrize("interval", [1, 6])
def test_it_is_the_slow_loop_to_the_last_bit(interval):
    model, optimizer, evolution = begin(interval=interval)
    wanted = slow(60, interval, [(weight != 0).float() for weight in weights_of(model)])
    fit(model, optimizer, range(60))
    evolution.finalize()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), wanted.parameters(), strict=True))


def test_every_layer_exchanges_its_share_at_other_places():
    """In a convolutional network; the count never moves, and what was dropped does not come back at once."""
    model, optimizer, evolution = begin(CNN, steps=400, zeta=0.2, interval=5)
    zeros = evolution.measure()
    for step in range(1, 300):
        before = [weight.detach().clone() for weight in weights_of(model)]
        fit(model, optimizer, range(step - 1, step), images)
        assert evolution.measure() == zeros
        for old, weight in zip(before, weights_of(model), strict=True):
            gone = (old != 0) & (weight == 0)
            grown = (old == 0) & (weight != 0)
            exchanged = int(0.2 * (old != 0).sum()) if step % 5 == 0 and (old == 0).any() else 0
            assert gone.sum() == grown.sum() == min(exchanged, int((old == 0).sum()))
            if exchanged and gone.any():
                assert old[gone].abs().max() <= old[(old != 0) & ~gone].abs().min()


def test_new_weights_are_as_large_as_those_that_went():
    torch.manual_seed(0)
    model = torch.nn.Linear(100, 100, bias=False)
    optimizer = optim.SGD(model.parameters(), lr=0.0)  # nothing but the exchange moves a weight
    SET(model, 0.5, 1000, interval=2).attach(optimizer)
    before = model.weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(1, 100)).sum().backward()
        optimizer.step()
    gone, new = before[(before != 0) & (model.weight == 0)], model.weight.detach()[(before == 0) & (model.weight != 0)]
    typical = gone.square().mean().sqrt()
    assert len(gone) == len(new) == 1500
    assert 0.5 * typical <= new.abs().min() < 0.55 * typical
    assert 1.45 * typical < new.abs().max() <= 1.5 * typical
    assert (new > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_new_weights_are_not_zero_where_those_that_went_were():
    """A layer half of which begins at zero: 2000 zeros are active, and 1400 of them go."""
    torch.manual_seed(0)
    model = torch.nn.Linear(100, 100, bias=False)
    torch.nn.init.zeros_(model.weight[:, :50])
    optimizer = optim.SGD(model.parameters(), lr=0.0)
    SET(model, 0.3, 1000, interval=2, zeta=0.2).attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(1, 100)).sum().backward()
        optimizer.step()
    assert (model.weight != 0).sum() == 5000 + 1400


def test_the_seed_decides_and_the_global_random_state_does_not():
    def trained(seed, between):
        model, optimizer, _ = begin(seed=seed, interval=4)
        fit(model, optimizer, range(20), after=lambda: torch.rand(between))
        return model.state_dict()

    def same(one, other):
        return all(torch.equal(one[name], other[name]) for name in one)

    assert same(trained(3, 0), trained(3, 5))
    assert not same(trained(3, 0), trained(4, 0))
    before = torch.get_rng_state()
    model, optimizer, _ = begin()
    torch.set_rng_state(before)
    fit(model, optimizer, range(10))
    assert torch.equal(before, torch.get_rng_state())


def test_exchanges_end_before_the_pattern_is_fixed():
    model, optimizer, evolution = begin(interval=5, end=0.5)
    patterns = []
    fit(
        model,
        optimizer,
        range(60),
        after=lambda: patterns.append([(weight != 0).clone() for weight in weights_of(model)]),
    )
    moved = [
        step + 1
        for step in range(1, 60)
        if any(not torch.equal(one, two) for one, two in zip(patterns[step - 1], patterns[step], strict=True))
    ]
    assert moved == [5, 10, 15, 20, 25]
    assert evolution.finalize().zeros == 768


def test_a_global_count_leaves_layers_their_own():
    model, optimizer, evolution = begin(distribution="global", interval=2, layer_sparsity={"4.weight": 0.5})
    counts = evolution.measure()
    assert counts["4.weight"] == (32, 64)
    fit(model, optimizer, range(60))
    assert evolution.measure() == counts
    assert evolution.finalize().zeros == 32 + round(0.8 * 896)


def test_a_copy_of_the_model_is_sparse_and_free():
    model, optimizer, _ = begin()
    fit(model, optimizer, range(10))
    twin = copy.deepcopy(model)
    fit(twin, optim.SGD(twin.parameters(), lr=0.1), range(2))
    assert (twin[0].weight != 0).sum() > (model[0].weight != 0).sum()


@pytest.mark.parametrize("zeta", [0, 1.0, -0.1, float("nan")])
def test_a_share_that_cannot_be_exchanged_is_refused(zeta):
    with pytest.raises(InputError, match=f"zeta is the share .* between 0 and 1, got {zeta}"):
        SET(MLP(), 0.9, 100, zeta=zeta)

"""RigL against a slow loop, and its growth against the gradients of a plain backward pass."""

import copy
import math

import pytest
import torch
from torch import nn, optim
from torch.nn import functional

from nets import CNN, MLP, batch, fit, images
from shrinkage import InputError, Row, TargetError
from shrinkage.pruning.rigl import RigL


def begin(model=MLP, steps=60, sparsity=0.8, optimizer=None, **options):
    torch.manual_seed(0)
    model = model()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9) if optimizer is None else optimizer(model)
    return model, optimizer, RigL(model, sparsity, steps, **options).attach(optimizer)


def adam(model):
    return optim.AdamW(model.parameters(), lr=0.01)


def weights_of(model):
    return [parameter for parameter in model.parameters() if parameter.ndim > 1]


def slow(steps, interval, masks, alpha=0.3, end=0.75):
    """The method as anybody would write it, from a given first pattern: masks multiplied in, everything sorted."""
    torch.manual_seed(0)
    model = MLP()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    weights, last = weights_of(model), math.ceil(end * steps)
    with torch.no_grad():
        for weight, mask in zip(weights, masks, strict=True):
            weight.mul_(mask)
    for step in range(1, steps + 1):
        x, y = batch(step - 1)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        if step > 1 and step % interval == 0 and step < last:
            share = alpha / 2 * (1 + math.cos(math.pi * step / last))
            for weight, mask in zip(weights, masks, strict=True):
                flat, slope = weight.detach().flatten().tolist(), weight.grad.flatten().tolist()
                active = [j for j, kept in enumerate(mask.flatten().tolist()) if kept]
                others = [j for j, kept in enumerate(mask.flatten().tolist()) if not kept and slope[j] != 0]
                count = min(int(share * len(active) + 1e-9), len(others))
                for j in sorted(active, key=lambda j: abs(flat[j]))[:count]:
                    mask.view(-1)[j] = 0
                for j in sorted(others, key=lambda j: abs(slope[j]))[len(others) - count :]:
                    mask.view(-1)[j] = 1
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight.mul_(mask)
                weight.grad.mul_(mask)
                if weight in optimizer.state:
                    optimizer.state[weight]["momentum_buffer"].mul_(mask)
        optimizer.step()
    return model


@pytest.mark.parametrize("interval", [1, 6])
def test_it_is_the_slow_loop_to_the_last_bit(interval):
    model, optimizer, rigl = begin(
        interval=interval,
        optimizer=lambda model: optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3),
    )
    wanted = slow(60, interval, [(weight != 0).float() for weight in weights_of(model)])
    fit(model, optimizer, range(60))
    rigl.finalize()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), wanted.parameters(), strict=True))


@pytest.mark.parametrize("kind", [adam, None], ids=["AdamW", "SGD"])
def test_what_grows_has_the_largest_gradients_of_all_that_was_not_there(kind):
    """Seen from outside, in a convolutional network: a copy of it, run backward, tells the gradients."""
    model, optimizer, rigl = begin(CNN, 80, 0.8, kind, interval=4)
    zeros, grown = rigl.measure(), 0
    for step in range(1, 60):
        twin = copy.deepcopy(model)
        twin.zero_grad()
        x, y = images(step - 1)
        functional.cross_entropy(twin(x), y).backward()
        fit(model, optimizer, range(step - 1, step), images)
        assert rigl.measure() == zeros
        share = 0.15 * (1 + math.cos(math.pi * step / 60)) if step % 4 == 0 else 0.0
        for old, weight in zip(weights_of(twin), weights_of(model), strict=True):
            new, gone = (old == 0) & (weight != 0), (old != 0) & (weight == 0)
            absent = int((old == 0).sum())
            assert new.sum() == gone.sum() == min(int(share * (old != 0).sum() + 1e-9), absent)
            if new.any() and new.sum() != absent:
                slope = old.grad.abs()
                assert slope[new].min() >= slope[(old == 0) & ~new].max()
                assert old[gone].abs().max() <= old[(old != 0) & ~gone].abs().min()
                grown += int(new.sum())
    assert grown > 100


def test_a_new_weight_starts_at_zero_without_memory_and_moves_by_its_gradient():
    """What SGD with momentum makes of it: −lr·g, nothing else."""
    model, optimizer, _ = begin(interval=5)
    fit(model, optimizer, range(4))
    old = model[0].weight.detach().clone()
    fit(model, optimizer, range(4, 5))
    new = (old == 0) & (model[0].weight != 0)
    assert new.any()
    gradient = model[0].weight.grad[new]
    torch.testing.assert_close(model[0].weight.detach()[new], -0.1 * gradient, rtol=0, atol=0)
    assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"][new], gradient)


def test_the_exchanged_share_falls_along_a_cosine():
    model, optimizer, _ = begin(lambda: nn.Linear(12, 40, bias=False), 100, 0.5, distribution="uniform", interval=10)
    shares = []
    for step in range(1, 80):
        before = model.weight != 0
        fit(model, optimizer, range(step - 1, step))
        if step % 10 == 0:
            shares.append(int((before & (model.weight == 0)).sum()))
    assert shares == [int(0.15 * (1 + math.cos(math.pi * t / 75)) * 240 + 1e-9) for t in range(10, 75, 10)]


def test_dead_inputs_do_not_grow():
    """As the border of an image: no gradient, so growing there would waste the count; active ones are let go."""
    model, optimizer, rigl = begin(interval=1, steps=200, sparsity=0.9)
    dead = torch.zeros(12, dtype=torch.bool)
    dead[4:] = True

    def data(step):
        x, y = batch(step)
        return x.masked_fill(dead, 0), y

    at_first = (model[0].weight != 0)[:, dead].clone()
    fit(model, optimizer, range(200), data)
    now = (model[0].weight != 0)[:, dead]
    assert not now[~at_first].any()
    assert now.sum() < at_first.sum()
    assert rigl.finalize().zeros == 864


def test_where_nothing_has_a_gradient_nothing_is_exchanged():
    model, optimizer, _ = begin(interval=1)
    before = [weight != 0 for weight in weights_of(model)]
    for step in range(20):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        if step % 2:
            (model(batch(step)[0]).sum() * 0).backward()
        optimizer.step()
    assert all(torch.equal(weight != 0, mask) for weight, mask in zip(weights_of(model), before, strict=True))


@pytest.mark.parametrize("kind", [adam, None], ids=["AdamW", "SGD"])
def test_a_layer_that_begins_at_zero_ends_exact(kind):
    class Headless(MLP):
        def __init__(self):
            super().__init__()
            nn.init.zeros_(self[4].weight)

    model, optimizer, rigl = begin(Headless, optimizer=kind, interval=3)
    assert rigl.zeros > 768
    fit(model, optimizer, range(60))
    assert rigl.finalize().zeros == 768


def test_weights_that_stay_zero_by_themselves_are_an_error_that_says_so():
    class Cut(MLP):
        """Its head begins at zero and never gets a gradient."""

        def __init__(self):
            super().__init__()
            nn.init.zeros_(self[4].weight)

        def forward(self, x):
            hidden = self[2](self[1](self[0](x)))
            return hidden[:, :4] + 0 * self[4](hidden)

    model, optimizer, rigl = begin(Cut, interval=3)
    fit(model, optimizer, range(60))
    with pytest.raises(TargetError, match="that were kept have become exactly zero by themselves"):
        rigl.finalize()


def test_what_has_just_grown_and_not_moved_yet_stays_when_the_pattern_is_fixed():
    """The learning rate is 0 from the last exchange until then; it is the mask that decides, not the sizes."""
    model, optimizer, rigl = begin(interval=20, end=0.5, optimizer=lambda model: optim.SGD(model.parameters(), lr=0.1))
    fit(model, optimizer, range(19))
    twin = copy.deepcopy(model)
    twin.zero_grad()
    x, y = batch(19)
    functional.cross_entropy(twin(x), y).backward()
    optimizer.param_groups[0]["lr"] = 0.0
    fit(model, optimizer, range(19, 30))
    assert rigl.phase == "holding"
    assert rigl.zeros > 768
    for name, mask in rigl.masks().items():
        old = twin.get_parameter(name)
        new = mask & (old == 0)
        assert new.sum() == int(0.15 * (1 + math.cos(math.pi * 20 / 30)) * (old != 0).sum() + 1e-9)
        if new.any():
            assert old.grad.abs()[new].min() >= old.grad.abs()[~mask & (old == 0)].max()
    optimizer.param_groups[0]["lr"] = 0.1
    fit(model, optimizer, range(30, 60))
    assert rigl.finalize().zeros == 768


def test_rows_grow_by_the_norm_of_their_gradients():
    model, optimizer, rigl = begin(steps=100, sparsity=0.5, granularity=Row(), interval=4, alpha=0.6)
    fit(model, optimizer, range(3))
    twin = copy.deepcopy(model)
    twin.zero_grad()
    x, y = batch(3)
    functional.cross_entropy(twin(x), y).backward()
    fit(model, optimizer, range(3, 4))
    for old, weight in zip(weights_of(twin), weights_of(model), strict=True):
        new = (old == 0).all(1) & (weight != 0).any(1)
        left = (old == 0).all(1) & ~new
        if new.any() and left.any():
            slope = old.grad.norm(dim=1)
            assert slope[new].min() >= slope[left].max()
    assert rigl.zeros == 26


@pytest.mark.parametrize("alpha", [0, 1.0, -0.1, float("nan")])
def test_a_share_that_cannot_be_exchanged_is_refused(alpha):
    with pytest.raises(InputError, match=f"alpha is the share .* between 0 and 1, got {alpha}"):
        RigL(MLP(), 0.9, 100, alpha=alpha)

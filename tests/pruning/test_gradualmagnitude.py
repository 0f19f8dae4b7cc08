"""Gradual magnitude pruning against a slow loop, and its scores against their formulas."""

import io
import math

import pytest
import torch
from torch import nn, optim
from torch.nn import functional

from nets import CNN, MLP, batch, fit, images
from shrinkage import NM, Block, InputError, Row
from shrinkage.pruning.gradualmagnitude import GradualMagnitude


def begin(model=MLP, optimizer=None, steps=60, sparsity=0.9, **options):
    torch.manual_seed(0)
    model = model()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9) if optimizer is None else optimizer(model)
    return model, optimizer, GradualMagnitude(model, sparsity, steps, **options).attach(optimizer)


def adam(model):
    return optim.AdamW(model.parameters(), lr=0.01)


def weights_of(model):
    return [parameter for parameter in model.parameters() if parameter.ndim > 1]


def slow(steps, interval, score, sparsity=0.9, start=0.1, end=0.8):
    """The method as anybody would write it: masks multiplied in, everything sorted."""
    torch.manual_seed(0)
    model = MLP()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    weights = weights_of(model)
    masks = [torch.ones_like(weight) for weight in weights]
    total = sum(weight.numel() for weight in weights)
    first, last = int(start * steps), math.ceil(end * steps)
    for step in range(1, steps + 1):
        x, y = batch(step - 1)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        for weight, mask in zip(weights, masks, strict=True):
            weight.grad.mul_(mask)
        optimizer.step()
        if first < step <= last and (step % interval == 0 or step == last):
            way = 1 - (1 - (step - first) / (last - first)) ** 3
            active = []
            for i, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
                flat, kept = score(weight, optimizer).flatten().tolist(), mask.flatten().tolist()
                active += [(flat[j], i, j) for j in range(len(flat)) if kept[j]]
            surplus = len(active) - (total - int(way * round(sparsity * total) + 1e-9))
            for _, i, j in sorted(active)[:surplus]:
                masks[i].view(-1)[j] = 0
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight.mul_(mask)
                optimizer.state[weight]["momentum_buffer"].mul_(mask)
    return model


@pytest.mark.parametrize("interval", [1, 7])
def test_it_is_the_slow_loop_to_the_last_bit(interval):
    wanted = slow(60, interval, lambda weight, optimizer: weight.detach().abs())
    model, optimizer, pruning = begin(
        optimizer=lambda model: optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3),
        interval=interval,
        floor=0.0,
    )
    fit(model, optimizer, range(60))
    pruning.finalize()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), wanted.parameters(), strict=True))


def test_zeros_follow_the_cubic_ramp_exactly_and_never_come_back():
    model, optimizer, pruning = begin(steps=100, interval=5)
    counts, gone = [], [torch.zeros_like(weight, dtype=torch.bool) for weight in weights_of(model)]

    def look():
        counts.append(pruning.zeros)
        for weight, zero in zip(weights_of(model), gone, strict=True):
            assert (weight[zero] == 0).all()
            zero |= weight.detach() == 0

    fit(model, optimizer, range(100), after=look)
    for step, count in enumerate(counts, 1):
        at = min(step - step % 5, 80)
        way = 1 - (1 - max(at - 10, 0) / 70) ** 3
        assert count == int(way * 864 + 1e-9), step


def test_a_weight_that_becomes_zero_by_itself_does_not_let_another_come_back():
    """With nothing but SGD, where all zeros look alike: the first weights are emptied when the last are pruned."""
    torch.manual_seed(0)
    model = nn.Linear(20, 20, bias=False)
    with torch.no_grad():
        model.weight[10:] *= 1e-3
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    GradualMagnitude(model, 0.9, 100, ramp="linear").attach(optimizer)

    def step():
        optimizer.zero_grad()
        model(torch.ones(1, 20)).square().sum().backward()
        optimizer.step()

    for _ in range(40):
        step()
    pruned = model.weight == 0
    assert pruned[10:].sum() > 100
    with torch.no_grad():
        model.weight[:5] = 0
    for _ in range(60):
        step()
        assert not model.weight[pruned].any()


def test_wanted_is_what_is_zero_when_every_step_prunes():
    model, optimizer, pruning = begin(steps=60)
    pairs = []
    fit(
        model,
        optimizer,
        range(60),
        after=lambda: pairs.append((pruning.zeros, math.floor(pruning.wanted * 960 + 1e-9))),
    )
    assert all(zeros == wanted for zeros, wanted in pairs)


@pytest.mark.parametrize(
    ("granularity", "sparsity", "zeros"), [(Row(), 0.5, 26), (Block(4, 4), 0.8, 48), (NM(2, 4), None, 480)], ids=str
)
def test_units_of_every_kind(granularity, sparsity, zeros):
    model, optimizer, pruning = begin(optimizer=adam, granularity=granularity, sparsity=sparsity, score="moment")
    counts = []
    fit(model, optimizer, range(60), after=lambda: counts.append(pruning.zeros))
    assert counts == sorted(counts)
    assert 0 < counts[20] < zeros
    assert pruning.finalize().zeros == counts[50] == zeros
    if isinstance(granularity, NM):
        assert all(((weight != 0).reshape(-1, 4).sum(1) == 2).all() for weight in weights_of(model))


def test_the_papers_way_is_the_same_sparsity_in_every_layer():
    model, optimizer, pruning = begin(CNN, adam, distribution="uniform", sparsity=0.75)
    fit(model, optimizer, range(60), images)
    for layer in pruning.finalize().layers:
        assert layer.zeros == pytest.approx(0.75 * layer.units, abs=1)


# ---- the score with second moments --------------------------------------------------------------


def two_adams(model):
    """Their second moments are far from each other's, unless each is corrected for its own bias."""
    return [
        optim.AdamW(model[0].parameters(), lr=0.01, betas=(0.9, 0.9999)),
        optim.Adam([*model[2].parameters(), *model[4].parameters()], lr=0.01, betas=(0.9, 0.9)),
    ]


def train_all(model, optimizers, steps):
    for step in steps:
        x, y = batch(step)
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("build", [lambda model: [adam(model)], two_adams], ids=["one", "two"])
def test_moments_decide_under_adam(build):
    """The first pruning, by hand: |w| v̂^¼ over all layers, with v̂ what each Adam itself divides by."""
    torch.manual_seed(0)
    plain = MLP()  # until then both trainings are the same
    optimizers = build(plain)
    train_all(plain, optimizers, range(8))
    scores = []
    for optimizer in optimizers:
        beta = optimizer.param_groups[0]["betas"][1]
        for weight in weights_of(plain):
            if weight in optimizer.state:
                v = optimizer.state[weight]["exp_avg_sq"] / (1 - beta**8)
                scores.append((weight.detach().abs() * v.sqrt().sqrt()).flatten())
    score, size = torch.cat(scores), torch.cat([weight.detach().abs().flatten() for weight in weights_of(plain)])

    torch.manual_seed(0)
    model = MLP()
    optimizers = build(model)
    pruning = GradualMagnitude(model, 0.9, 60, score="moment", interval=8, floor=0.0).attach(*optimizers)
    train_all(model, optimizers, range(8))
    zero = torch.cat([(weight == 0).flatten() for weight in weights_of(model)])
    assert zero.sum() == pruning.zeros == int((1 - (1 - 2 / 42) ** 3) * 864)
    assert score[zero].max() <= score[~zero].min()
    assert size[zero].max() > size[~zero].min()


def test_a_rows_moment_is_the_mean_of_its_weights():
    model, optimizer, _ = begin(optimizer=adam, score="moment", granularity=Row(), sparsity=0.5, interval=12, floor=0)
    fit(model, optimizer, range(12))
    torch.manual_seed(0)
    plain = MLP()
    other = adam(plain)
    fit(plain, other, range(12))
    v = [(other.state[weight]["exp_avg_sq"] / (1 - 0.999**12)).mean(1) for weight in weights_of(plain)]
    rows = [weight.detach().norm(dim=1) * moment**0.25 for weight, moment in zip(weights_of(plain), v, strict=True)]
    score, zero = torch.cat(rows), torch.cat([(weight == 0).all(1) for weight in weights_of(model)])
    assert zero.sum() > 5
    assert score[zero].max() <= score[~zero].min()


@pytest.mark.parametrize("kind", [optim.SGD, optim.RMSprop])
def test_moments_need_an_optimiser_that_keeps_them(kind):
    model = MLP()
    pruning = GradualMagnitude(model, 0.9, 60, score="moment")
    with pytest.raises(InputError, match=f"needs Adam's second moments, but '0.weight' is updated by {kind.__name__}"):
        pruning.attach(kind(model.parameters(), lr=0.1))
    fit(model, optim.SGD(model.parameters(), lr=0.1), range(2))  # nothing was left behind
    assert not any((weight == 0).any() for weight in weights_of(model))
    pruning.attach(adam(model))


def test_an_optimiser_that_looks_like_adam_is_found_out_at_the_first_pruning():
    model, optimizer, _ = begin(optimizer=lambda model: optim.Adamax(model.parameters()), score="moment")
    with pytest.raises(
        InputError, match=r"but '0\.weight' is updated by Adamax; use Adam or AdamW, or score='magnitude'"
    ):
        fit(model, optimizer, range(60))


def test_a_weight_without_gradients_has_no_moments_and_goes_first():
    class Idle(MLP):
        def __init__(self):
            super().__init__()
            self.idle = nn.Linear(10, 10)

        def forward(self, x):
            for layer in list(self)[:5]:
                x = layer(x)
            return x

    model, optimizer, pruning = begin(Idle, adam, score="moment", sparsity=0.5)
    fit(model, optimizer, range(60))
    assert dict(pruning.finalize().to_dict()["layers"])["idle.weight"]["zeros"] == 97  # all but the floor


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "size"}, "score must be one of magnitude, moment, got 'size'"),
        ({"sparsity": None}, "GradualMagnitude needs a target: sparsity="),
        ({"sparsity": 1.0}, "got 1.0"),
        ({"steps": None}, "GradualMagnitude needs steps="),
        ({"steps": "40"}, "got '40'"),
        ({"interval": 0}, "interval must be a positive whole number of optimiser steps, got 0"),
        ({"interval": True}, "got True"),
        ({"intervall": 2}, "no argument 'intervall'; the nearest is 'interval'"),
        ({"ramp": "cube"}, "got 'cube'"),
    ],
    ids=str,
)
def test_arguments(options, message):
    with pytest.raises(InputError, match=message):
        GradualMagnitude(MLP(), **{"sparsity": 0.9, "steps": 40, **options})


@pytest.mark.parametrize("score", ["magnitude", "moment"])
def test_a_run_resumed_between_two_prunings_ends_in_the_same_bits(score):
    model, optimizer, pruning = begin(optimizer=adam, score=score, interval=9)
    fit(model, optimizer, range(31))
    saved = torch.load(_file([model.state_dict(), optimizer.state_dict(), pruning.state_dict()]), weights_only=True)
    fit(model, optimizer, range(31, 60))
    again, optimizer, other = begin(optimizer=adam, score=score, interval=9)
    again.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    other.load_state_dict(saved[2])
    fit(again, optimizer, range(31, 60))
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))
    assert other.finalize().zeros == pruning.finalize().zeros == 864


def _file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file

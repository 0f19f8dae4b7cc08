"""HALO under optimisers of the Adam family: a proximal step from latent weights, straight through."""

import copy
import math

import pytest
import torch
from torch import nn, optim
from torch.nn import functional

import shrinkage
from nets import MLP, RAMP, batch, fit, start
from shrinkage.core.latent import LatentSolver
from shrinkage.core.options import STEERED
from shrinkage.core.proximal import SteeredProximal
from shrinkage.core.schedules import Ramp
from shrinkage.penalties.halo import ADAM, HALO

STEPS = 60


def prox(theta, moments, xi, reference):
    """The formula: λ⁻⁶ over the fourth root of v, in units of its mean square root; what is left of each weight."""
    metric = (moments.sqrt() / moments.sqrt().mean() + 1e-3).sqrt()
    slope = (theta.abs() / reference).clamp(min=ADAM.smallest**3).pow(-2) / metric
    return torch.where(theta.abs() > xi * slope, theta - xi * slope * theta.sign(), 0), theta.abs() / slope


def test_the_network_uses_the_proximal_step_of_weights_that_adam_moves():
    torch.manual_seed(0)
    layer = nn.Linear(30, 20, bias=False).double()
    twin = nn.Parameter(layer.weight.detach().clone())
    settings = {"lr": 0.01, "weight_decay": 0.1}
    optimizer, other = optim.AdamW(layer.parameters(), **settings), optim.AdamW([twin], **settings)
    method = HALO(layer, 0.9, STEPS, floor=0.0).attach(optimizer)
    ramp, reference = (
        Ramp("cubic", STEERED["start"], STEERED["end"], STEPS),
        float(twin.detach().square().mean().sqrt()),
    )
    for step in range(1, ramp.last_step):
        gradient = torch.randn(20, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        layer.weight.grad, twin.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        other.step()
        gone = math.floor(ramp(step) * 540 + 1e-9)
        moments = other.state[twin]["exp_avg_sq"]
        _, ratios = prox(twin.detach(), moments, 0.0, reference)
        xi = float(ratios.flatten().sort().values[gone - 1]) if gone else 0.0
        wanted, _ = prox(twin.detach(), moments, xi, reference)
        torch.testing.assert_close(layer.weight.detach(), wanted, rtol=1e-9, atol=1e-12)
        assert method.zeros == gone
        assert method.strength == pytest.approx(xi)
    assert 500 < gone < 540


def test_what_was_dropped_comes_back_when_the_loss_asks_for_it():
    torch.manual_seed(0)
    layer = nn.Linear(10, 10, bias=False)
    optimizer = optim.AdamW(layer.parameters(), lr=0.05, weight_decay=0.0)
    HALO(layer, 0.5, 200).attach(optimizer)

    def push(toward, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (layer.weight - toward).square().sum().backward()
            optimizer.step()

    first = torch.zeros(10, 10)
    first[:5] = 1
    push(first, 100)
    assert int((layer.weight[5:] == 0).sum()) >= 45
    push(1 - first, 59)
    assert int((layer.weight[5:] == 0).sum()) <= 5
    assert int((layer.weight[:5] == 0).sum()) >= 45


def long(steps=400, optimizer=optim.AdamW, **options):
    """Long enough for steps on which zeros are not counted."""
    torch.manual_seed(0)
    model = MLP()
    built = optimizer(model.parameters(), lr=1e-3)
    return model, built, HALO(model, 0.8, steps, **RAMP, **options).attach(built)


def test_between_counts_the_limit_stays_and_zeros_stay_near_the_ramp():
    model, optimizer, method = long()
    counts = []
    for step in range(1, 200):
        fit(model, optimizer, [step])
        wanted = math.floor(method._ramp(step) * 0.8 * method.units + 1e-9)
        if step % 4 == 0:
            assert method.zeros == wanted
        counts.append(abs(method.zeros - wanted) / method.units)
    assert 0 < max(counts) < 0.05


@pytest.mark.parametrize("cut", [37, 40, 41, 43])
def test_a_resumed_run_is_bit_identical_between_counts_too(cut):
    whole, optimizer, _ = long()
    fit(whole, optimizer, range(60))
    model, optimizer, method = long()
    fit(model, optimizer, range(cut))
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), method.state_dict()))
    fit(model, optimizer, range(cut, 60))  # what goes on must not touch what was saved
    again, optimizer, method = long()
    again.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    method.load_state_dict(state[2])
    fit(again, optimizer, range(cut, 60))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_the_family_of_the_optimiser_decides():
    for optimizer in (optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax):
        assert isinstance(long(optimizer=optimizer)[2]._solver, LatentSolver)
    for optimizer in (optim.SGD, optim.RMSprop, optim.Adagrad):
        assert isinstance(long(optimizer=optimizer)[2]._solver, SteeredProximal)


def test_one_adam_beside_sgd_decides_for_all():
    torch.manual_seed(0)
    model = MLP()
    half = list(model.parameters())
    pair = optim.AdamW(half[:2], lr=1e-3), optim.SGD(half[2:], lr=0.1)
    method = HALO(model, 0.8, 40, **RAMP).attach(*pair)
    assert isinstance(method._solver, LatentSolver)
    for step in range(40):
        x, y = batch(step)
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        for optimizer in pair:
            optimizer.step()
    assert method.finalize().sparsity == pytest.approx(0.8, abs=1 / method.units)


@pytest.mark.parametrize(("one", "other"), [(optim.AdamW, optim.SGD), (optim.SGD, optim.AdamW)])
def test_a_state_does_not_go_on_under_the_other_kind(one, other):
    model, optimizer, method = long(optimizer=one)
    fit(model, optimizer, range(50))
    state = method.state_dict()
    _, _, method = long(optimizer=other)
    with pytest.raises(shrinkage.InputError, match="another kind of optimiser"):
        method.load_state_dict(state)


def test_once_the_pattern_is_fixed_it_goes_on_under_any_optimiser():
    model, optimizer, method = start(optimizer=optim.AdamW, lr=0.01)
    fit(model, optimizer, range(45))
    state = method.state_dict()
    _, _, again = start(optimizer=optim.SGD, lr=0.01)
    again.load_state_dict(state)
    assert all(torch.equal(mask, again.masks()[name]) for name, mask in method.masks().items())


def test_lam_is_the_cube_root_of_the_latent_size_and_outlives_the_pattern():
    model, optimizer, method = start(optimizer=optim.AdamW, lr=0.01)
    before = {name: model.get_parameter(name).detach().abs() for name in method.measure()}
    reference = torch.cat([size.flatten() for size in before.values()]).square().mean().sqrt()
    for name, lam in method.lam().items():
        torch.testing.assert_close(lam, (before[name] / reference).pow(1 / 3).clamp(min=ADAM.smallest))
    fit(model, optimizer, range(45))
    late = method.lam()
    assert late.keys() == before.keys()
    _, _, again = start(optimizer=optim.AdamW, lr=0.01)
    again.load_state_dict(method.state_dict())
    assert all(torch.equal(lam, again.lam()[name]) for name, lam in late.items())


def test_the_penalty_has_the_threshold_as_its_slope():
    model, optimizer, method = start(optimizer=optim.AdamW, lr=0.01)
    fit(model, optimizer, range(20))
    model.zero_grad()
    method.penalty().backward()
    theta = method._solver._latents[0]
    slope = method.strength * method._solver.form.slope(0, theta.abs())
    weight = model.get_parameter(method._slots[0].name)
    left = weight.detach() != 0
    torch.testing.assert_close(weight.grad[left], (slope * weight.detach().sign())[left])
    torch.testing.assert_close((theta - slope * theta.sign())[left], weight.detach()[left], rtol=1e-4, atol=1e-6)


def test_zeros_alone_cannot_be_scaled():
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    with pytest.raises(shrinkage.DivergedError, match="every selected weight is zero"):
        HALO(layer, 0.5, 40).attach(optim.AdamW(layer.parameters()))

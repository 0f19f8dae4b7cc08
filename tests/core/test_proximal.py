"""The steered proximal step: what it takes from whom, and what stays zero."""

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

import shrinkage
from shrinkage.core.options import STEERED
from shrinkage.core.schedules import Ramp
from shrinkage.penalties.halo import HALO, HALOPull
from shrinkage.reproduce.ablations import ABLATIONS

STEPS = 60


def still(optimizer, **options):
    """Weights that only the method moves: their gradients are there, but the learning rate is zero."""
    torch.manual_seed(0)
    layer = nn.Linear(30, 20, bias=False)
    optimizer = optimizer([layer.weight], lr=0.0, weight_decay=0.0)
    return layer, optimizer, HALO(layer, 0.9, STEPS, **options).attach(optimizer)


def move(layer, optimizer):
    layer.weight.grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1))
    optimizer.step()


def test_survivors_lose_the_threshold_times_the_papers_slope():
    layer, optimizer, method = still(SGD)
    weight, ramp = layer.weight.detach().double().clone(), Ramp("cubic", STEERED["start"], STEERED["end"], STEPS)
    reference, memory, kept = float(weight.square().mean().sqrt()), weight.abs(), torch.ones(30 * 20).view(20, 30) > 0
    for step in range(1, ramp.last_step):  # an interval of one step
        move(layer, optimizer)
        memory = (memory + weight.abs()) / 2
        slope = (memory / reference).clamp(min=0.05**3).pow(1 / 3).pow(-2)  # λ^−2
        ratios = weight.abs() / slope
        gone = math.floor(ramp(step) * 540 + 1e-9)
        xi = float(ratios.flatten().sort().values[gone - 1]) if gone else 0.0
        kept &= ratios > xi
        weight = weight.sign() * (weight.abs() - xi * slope) * kept
        torch.testing.assert_close(layer.weight.detach().double(), weight, rtol=1e-3, atol=1e-6)
        assert method.zeros == gone
    assert 300 < gone < 540  # most of the way was compared


def test_under_adam_survivors_keep_their_size():
    layer, optimizer, method = still(AdamW)
    before = layer.weight.detach().clone()
    for _ in range(STEPS):
        move(layer, optimizer)
        left = layer.weight.detach()
        assert torch.equal(left, torch.where(left == 0, 0, before))
    assert method.finalize().zeros == 540


@pytest.mark.parametrize("kind", [SGD, AdamW])
@pytest.mark.parametrize("granularity", [shrinkage.Weight(), shrinkage.Row(), shrinkage.NM(2, 4)], ids=repr)
def test_zeros_are_what_the_ramp_asks_for_at_every_step_and_stay(kind, granularity):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = kind(net.parameters(), lr=0.05 if kind is SGD else 1e-2, **({"momentum": 0.9} if kind is SGD else {}))
    share = None if isinstance(granularity, shrinkage.NM) else 0.75
    method = HALO(net, share, STEPS, granularity=granularity, floor=0.0).attach(optimizer)
    ramp, gone = Ramp("cubic", STEERED["start"], STEERED["end"], STEPS), {}
    wanted = round((share or 0.5) * method.units)
    x = torch.randn(64, 20)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
        assert method.zeros == math.floor(ramp(step) * wanted + 1e-9)
        for name in method.measure():
            zero = net.get_parameter(name).detach() == 0
            assert bool(zero[gone.get(name, torch.zeros_like(zero))].all()), "a zero has come back"
            gone[name] = zero
    assert method.finalize().zeros == wanted


def test_the_optimiser_forgets_what_is_held():
    torch.manual_seed(0)
    layer = nn.Linear(30, 20)
    optimizer = SGD(layer.parameters(), lr=0.1, momentum=0.9)
    HALO(layer, 0.9, STEPS).attach(optimizer)
    for _ in range(STEPS // 2):
        optimizer.zero_grad()
        layer(torch.randn(8, 30)).square().mean().backward()
        optimizer.step()
    pruned = layer.weight == 0
    assert 0 < int(pruned.sum()) < 540
    assert not bool(optimizer.state[layer.weight]["momentum_buffer"][pruned].any())


def test_masks_of_single_weights_take_no_room_of_their_own():
    layer, optimizer, method = still(SGD)
    for _ in range(STEPS // 2):
        move(layer, optimizer)
    solver = method._solver
    assert solver._held[0].mask.data_ptr() == solver._ratios[0].data_ptr()


def test_the_parts_of_halo_can_be_changed_one_by_one():
    found = {}
    for name, (_, make) in {"halo": ("", HALO), **ABLATIONS}.items():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
        optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
        method = make(net, 0.9, 400).attach(optimizer)
        x = torch.randn(128, 20)
        for _ in range(400):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), (x[:, :3].sum(1) > 0).long()).backward()
            optimizer.step()
        assert method.finalize().zeros == round(0.9 * method.units)
        found[name] = net[0].weight.detach().clone()
    for name, weight in found.items():
        assert name == "halo" or not torch.equal(weight, found["halo"]), f"{name} changes nothing"


def test_the_default_is_the_papers_slope():
    assert HALOPull().power == HALOPull().bias == 1

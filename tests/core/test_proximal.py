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


@pytest.mark.parametrize("granularity", [shrinkage.Weight(), shrinkage.Row(), shrinkage.NM(2, 4)], ids=repr)
def test_zeros_are_what_the_ramp_asks_for_at_every_step_and_stay(granularity):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = SGD(net.parameters(), lr=0.05, momentum=0.9)
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


def random_steps(optimizer, parameters, steps):
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        yield


@pytest.mark.parametrize("method", [shrinkage.HALO, shrinkage.Lasso, shrinkage.Bridge, shrinkage.MCP])
def test_of_weights_that_tie_only_as_many_go_as_are_wanted(method):
    torch.manual_seed(0)
    rows = torch.randn(10, 40)
    layer = nn.Linear(40, 20, bias=False)
    layer.weight.data.copy_(rows.repeat(2, 1))  # every weight twice, and an odd number is to go
    optimizer = SGD(layer.parameters(), lr=0.0)
    attached = method(layer, 401 / 800, 20, end=1.0).attach(optimizer)
    for _ in random_steps(optimizer, [layer.weight], 20):
        pass
    assert attached.finalize().zeros == 401


def test_half_precision_weights_end_with_exactly_the_zeros_asked_for():
    torch.manual_seed(0)
    layer = nn.Linear(100, 100, bias=False).bfloat16()  # most sizes occur many times
    optimizer = SGD(layer.parameters(), lr=0.01)
    lasso = shrinkage.Lasso(layer, 0.9, 5, start=0.0, end=1.0).attach(optimizer)
    for _ in range(5):
        layer.weight.grad = torch.randn(100, 100).bfloat16()
        optimizer.step()
    assert lasso.finalize().zeros == 9000


def test_a_ramp_that_ends_early_goes_on_holding_and_lowers_nobody_any_more():
    torch.manual_seed(0)
    layer = nn.Linear(60, 60, bias=False)
    optimizer = SGD(layer.parameters(), lr=1e-3)
    halo = HALO(layer, 0.9, 200, start=0.0, end=1.0, ramp=lambda x: min(1.0, 2 * x)).attach(optimizer)
    dead = torch.zeros(60, 60, dtype=torch.bool)
    norms = []
    for _ in random_steps(optimizer, [layer.weight], 199):
        assert not layer.weight[dead].any()
        dead |= layer.weight == 0
        norms.append(float(layer.weight.detach().norm()))
    assert halo.phase == "shrinking"
    assert int(dead.sum()) == 3240
    assert norms[198] > 0.9 * norms[110]  # random gradients, and no penalty any more


def test_a_run_resumed_after_an_early_end_of_the_ramp_is_the_same():
    def run(cut):
        torch.manual_seed(0)
        layer = nn.Linear(20, 20, bias=False)

        def make():
            optimizer = SGD(layer.parameters(), lr=1e-3, momentum=0.9)
            return optimizer, HALO(layer, 0.9, 60, start=0.0, end=1.0, ramp=lambda x: min(1.0, 2 * x))

        optimizer, halo = make()
        halo.attach(optimizer)
        for step, _ in enumerate(random_steps(optimizer, [layer.weight], 60)):
            if step + 1 == cut:
                saved = optimizer.state_dict(), halo.state_dict()
                optimizer, halo = make()
                optimizer.load_state_dict(saved[0])
                halo.load_state_dict(saved[1])
                halo.attach(optimizer)
                for left in range(step + 1, 60):
                    generator = torch.Generator().manual_seed(3)
                    for _ in range(left + 1):
                        gradient = torch.randn(20, 20, generator=generator)
                    layer.weight.grad = gradient
                    optimizer.step()
                break
        halo.finalize()
        return layer.weight.detach()

    assert all(torch.equal(run(None), run(cut)) for cut in (10, 30, 31, 45))


def test_under_adam_layers_with_other_decays_compete_as_equals():
    torch.manual_seed(0)
    one, other = nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False)
    net = nn.ModuleList([one, other])
    groups = [{"params": one.parameters()}, {"params": other.parameters(), "betas": (0.9, 0.9999)}]
    optimizer = AdamW(groups, lr=0.0, weight_decay=0.0)
    lasso = shrinkage.Lasso(net, 0.9, 100).attach(optimizer)
    for _ in random_steps(optimizer, [one.weight, other.weight], 100):
        pass
    kept = [layer.units - layer.zeros for layer in lasso.finalize().layers]
    assert min(kept) > 700  # of 2,000; their gradients are of one kind

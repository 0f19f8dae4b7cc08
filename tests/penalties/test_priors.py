"""The priors against closed forms, autograd and brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkage.penalties import BridgePrior, HALOPrior, LassoPrior, MCPPrior, SWSPrior

PRIORS = {
    "HALO": HALOPrior(0.3, 0.2),
    "HALO, K below": HALOPrior(0.3, 0.2, budget=2.0),
    "HALO, K above": HALOPrior(0.3, 0.2, budget=50.0),
    "HALO, squared": HALOPrior(0.3, 0.2, budget=3.0, squared=True),
    "HALO, layerwise": HALOPrior(0.3, 0.2, layerwise=True),
    "HALO, all": HALOPrior(0.3, 0.2, budget=3.0, squared=True, layerwise=True),
    "Lasso": LassoPrior(0.3),
    "SWS": SWSPrior(0.3, 0.2),
    "MCP": MCPPrior(0.8, 1.5),
    "Bridge": BridgePrior(0.3),
    "Bridge ½": BridgePrior(0.3, power=0.5),
}


def example(prior, requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5,)]
    sizes = [torch.rand(s, generator=generator, dtype=torch.float64) * 2 + 0.05 for s in shapes]
    scales = [
        (torch.rand(s, generator=generator, dtype=torch.float64) + 0.5)
        * torch.where(torch.rand(s, generator=generator) < 0.3, -1.0, 1.0)
        for s in prior.scale_shapes(shapes)
    ]
    for tensor in [*sizes, *scales]:
        tensor.requires_grad_(requires_grad)
    return sizes, scales


@pytest.mark.parametrize("name", PRIORS)
def test_written_gradients_are_those_of_the_value(name):
    prior = PRIORS[name]
    sizes, scales = example(prior, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *t: prior.value(t[:2], t[2:]), (*sizes, *scales))
    wanted = torch.autograd.grad(prior.value(sizes, scales), [*sizes, *scales])
    with torch.no_grad():
        plain = [s.detach() for s in scales]
        found = [prior.grad_size(i, size, plain).expand(size.shape) for i, size in enumerate(sizes)]
        found += prior.grad_scales(sizes, plain)
    assert len(found) == len(wanted)
    for mine, autograds in zip(found, wanted, strict=True):
        assert mine.shape == autograds.shape
        torch.testing.assert_close(mine, autograds, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", PRIORS)
def test_gradients_leave_their_arguments_alone(name):
    prior = PRIORS[name]
    sizes, scales = example(prior)
    before = [t.clone() for t in [*sizes, *scales]]
    prior.grad_size(0, sizes[0], scales)
    prior.grad_scales(sizes, scales)
    prior.prox(0, sizes[0], scales, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, [*sizes, *scales], strict=True))


# With λ = 0.8 for a unit, 1.25 for a layer; what does not depend on the size is left out.
FORMULAS = {
    HALOPrior(0.3, 0.2, budget=3.0): ([0.8], lambda x: 0.3 * x / 0.8**2),
    HALOPrior(0.3, 0.2, layerwise=True): ([0.8, 1.25], lambda x: 0.3 * x / 0.8**2 + 0.3 * x / 1.25**2),
    LassoPrior(0.3): ([], lambda x: 0.3 * x),
    SWSPrior(0.3, 0.2): ([0.8], lambda x: 0.3 * x / 0.8**2),
    MCPPrior(0.8, 1.5): ([], lambda x: torch.where(x <= 1.2, 0.8 * x - x**2 / 3, 0.48)),
    BridgePrior(0.3): ([], lambda x: 0.3 * x ** (1 / 3)),
    BridgePrior(0.3, power=0.5): ([], lambda x: 0.3 * x**0.5),
}


@pytest.mark.parametrize("step", [0.0, 0.05, 0.7, 1.4, 1.5, 2.5])
@pytest.mark.parametrize("prior", FORMULAS, ids=repr)
def test_the_proximal_step_is_the_minimum(prior, step):
    """½(x − s)² + step·p(x) is nowhere on a fine grid lower than at the answer."""
    scales, penalty = FORMULAS[prior]
    sizes = torch.linspace(0, 3, 61, dtype=torch.float64)
    grid = torch.linspace(0, 3, 30001, dtype=torch.float64)
    found = prior.prox(0, sizes, [torch.tensor(value, dtype=torch.float64) for value in scales], step)
    assert (found >= 0).all()
    lowest = torch.stack([((grid - size).square() / 2 + step * penalty(grid)).min() for size in sizes])
    reached = (found - sizes).square() / 2 + step * penalty(found)
    assert (reached <= lowest + 1e-12).all(), (sizes, found, reached - lowest)


@pytest.mark.parametrize("name", ["Bridge", "Bridge ½"])
def test_bridge_steps_of_many_magnitudes(name):
    """In single precision as well: a stationary point above the jump, exactly zero below."""
    prior = PRIORS[name]
    for step in (1e-6, 1e-3, 1.0, 1e3):
        size = torch.logspace(-8, 4, 200)
        x = prior.prox(0, size, [], step)
        c, p = step * prior.xi, prior.power
        moved = x > 0
        assert moved.any()
        assert not moved.all()
        residual = x[moved] + c * p * x[moved].pow(p - 1) - size[moved]
        assert (residual.abs() <= 1e-5 * size[moved]).all()
        assert (x <= size).all()


def test_a_step_length_per_unit():
    size = torch.tensor([1.0, 1.0, 1.0])
    step = torch.tensor([0.0, 1.0, 5.0])
    assert LassoPrior(0.5).prox(0, size, [], step).tolist() == [1.0, 0.5, 0.0]
    for prior in (MCPPrior(0.5, 2.0), BridgePrior(0.5)):
        each = [prior.prox(0, size[i], [], float(step[i])).item() for i in range(3)]
        assert prior.prox(0, size, [], step).tolist() == pytest.approx(each)


POSITIVE = st.floats(1e-4, 10)


@settings(deadline=None)
@given(POSITIVE, POSITIVE, st.lists(st.floats(0.01, 5), min_size=1, max_size=5))
def test_halo_profiled_over_its_scales_is_the_bridge(xi, psi, sizes):
    size = torch.tensor(sizes, dtype=torch.float64)
    best = (2 * xi * size / psi).pow(1 / 3)
    halo = HALOPrior(xi, psi)
    profile = 3 * 2 ** (-2 / 3) * xi ** (1 / 3) * psi ** (2 / 3)
    value = halo.value([size], [best])
    torch.testing.assert_close(value, profile * size.pow(1 / 3).sum())
    torch.testing.assert_close(value, BridgePrior(profile).value([size], []))
    torch.testing.assert_close(halo.grad_scales([size], [best])[0], torch.zeros_like(size), atol=1e-9 * psi, rtol=0)
    for factor in (0.9, 1.1):
        assert halo.value([size], [best * factor]) > value


@settings(deadline=None)
@given(POSITIVE, POSITIVE, st.floats(0.01, 5))
def test_decay_on_the_scales_instead_of_psi_gives_the_square_root(xi, decay, size):
    size = torch.tensor([size], dtype=torch.float64)
    best = (2 * xi * size / decay).pow(1 / 4)
    total = HALOPrior(xi, 0.0).value([size], [best]) + decay / 2 * best.square().sum()
    profile = math.sqrt(2 * xi * decay)
    torch.testing.assert_close(total, BridgePrior(profile, power=0.5).value([size], []))
    for factor in (0.9, 1.1):
        other = HALOPrior(xi, 0.0).value([size], [best * factor]) + decay / 2 * (best * factor).square().sum()
        assert other > total


@settings(deadline=None)
@given(POSITIVE, POSITIVE, st.lists(st.floats(0.01, 5), min_size=1, max_size=5))
def test_sws_profiled_over_its_scale(xi, psi, sizes):
    size = torch.tensor(sizes, dtype=torch.float64)
    best = (xi * size.sum() / psi).pow(1 / 4)
    sws = SWSPrior(xi, psi)
    torch.testing.assert_close(sws.value([size], [best]), 2 * (xi * psi * size.sum()).sqrt())
    assert sws.value([size], [best * 1.1]) > sws.value([size], [best])


def test_mcp_by_hand():
    prior = MCPPrior(xi=2.0, psi=0.5)  # flat from 1 on, at ½
    size = torch.tensor([0.0, 0.5, 1.0, 3.0])
    assert [prior.value([s], []).item() for s in size] == [0.0, 0.75, 1.0, 1.0]
    assert prior.grad_size(0, size, []).tolist() == [2.0, 1.0, 0.0, 0.0]


def test_halo_brackets_by_hand():
    sizes, scales = [torch.tensor([1.0, 2.0])], [torch.tensor([1.0, -2.0])]
    assert HALOPrior(1.0, 0.0).value(sizes, scales) == 1.5
    assert HALOPrior(0.0, 2.0, budget=1.0).value(sizes, scales) == 4
    assert HALOPrior(0.0, 2.0, budget=5.0).value(sizes, scales) == 4
    assert HALOPrior(0.0, 2.0, budget=5.0, squared=True).value(sizes, scales) == 8
    layered = HALOPrior(1.0, 2.0, layerwise=True).value(sizes, [*scales, torch.tensor(2.0)])
    assert layered == 1.5 + 2 * 3 + 3 / 4 + 2 * 2

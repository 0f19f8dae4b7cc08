"""What steered methods pull: positive slopes, up to one common factor, that fall with the size."""

import pytest
import torch

from shrinkage.penalties.bridge import BridgePull
from shrinkage.penalties.halo import HALOPull
from shrinkage.penalties.lasso import UniformPull
from shrinkage.penalties.mcp import MCPPull

PULLS = {"HALO": HALOPull(), "HALO, paper": HALOPull(power=1.0), "Lasso": UniformPull(),
         "MCP": MCPPull(), "Bridge": BridgePull()}  # fmt: skip


@pytest.mark.parametrize("name", PULLS)
def test_slopes_are_finite_positive_and_spare_the_large(name):
    memory = torch.logspace(-12, 3, 50)
    memory[0] = 0
    before = memory.clone()
    slope = PULLS[name].pull(memory, 0.1)
    assert torch.equal(memory, before)
    assert torch.isfinite(slope).all()
    assert (slope > 0).all()
    assert (slope.diff() <= 0).all()


@pytest.mark.parametrize("name", PULLS)
def test_only_the_size_relative_to_the_reference_counts(name):
    sizes = torch.rand(20) + 0.01
    torch.testing.assert_close(PULLS[name].pull(sizes, 0.5), PULLS[name].pull(10 * sizes, 5.0))


def test_the_bridges_slope_is_that_of_its_penalty():
    sizes = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(BridgePull(0.5).pull(sizes, 1.0), sizes.pow(-0.5))


def test_halos_slope_at_power_1_is_the_papers():
    sizes = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    pull = HALOPull(power=1.0)
    torch.testing.assert_close(pull.pull(sizes, 0.7), pull.scale(sizes, 0.7).pow(-2))


@pytest.mark.parametrize("power", [1.0, 1.5, 3.0])
def test_halo_scales_and_slopes_agree(power):
    pull = HALOPull(power=power)
    sizes = torch.tensor([0.0, 1e-9, 0.01, 1.0, 30.0], dtype=torch.float64)
    torch.testing.assert_close(pull.pull(sizes, 0.7), pull.scale(sizes, 0.7).pow(-2 * power))


def test_halo_remembers_a_running_mean():
    pull = HALOPull(decay=0.75)
    memory = torch.tensor([1.0])
    pull.remember(memory, torch.tensor([5.0]))
    assert memory.item() == 2

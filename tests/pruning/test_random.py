"""Random pruning is random, and the same for the same seed."""

import pytest
import torch
from torch import nn

from nets import MLP
from shrinkage import NM, InputError
from shrinkage.core.distribution import spread
from shrinkage.core.plan import Plan
from shrinkage.pruning import Random


def mask(sparsity=0.5, shape=(100, 100), model_seed=0, **options):
    torch.manual_seed(model_seed)
    net = nn.Linear(*shape)
    Random(sparsity, **options).prune(net)
    return net.weight.detach() != 0


def test_a_seed_gives_one_pattern_whatever_the_weights_and_the_global_state():
    assert torch.equal(mask(seed=7), mask(seed=7, model_seed=1))
    agreement = (mask(seed=7) == mask(seed=8)).float().mean().item()
    assert abs(agreement - 0.5) < 0.03


def test_a_million_scores_are_all_different():
    """Else the smaller of two with the same score would go: a bias towards magnitude pruning."""
    net = nn.Linear(1000, 1000)
    (scores,) = Random(0.5).scores(net, Plan(net, None, {}), (), None)
    assert scores.unique().numel() == 1_000_000


def test_neither_size_nor_place_matters():
    """Among 10,000 weights a share differs from the expected by less than 4 standard deviations, 0.02 for a half."""
    torch.manual_seed(0)
    net = nn.Linear(100, 100)
    large = net.weight.detach().abs() > net.weight.detach().abs().median()
    Random(0.5, seed=3).prune(net)
    kept = net.weight.detach() != 0
    for part in (kept[large], kept[~large], kept[:50], kept[:, :50]):
        assert abs(part.float().mean().item() - 0.5) < 4 * 0.5 / 5000**0.5


def test_layers_lose_what_their_size_lets_expect():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 50))
    for layer in Random(0.8).prune(net).layers:
        assert abs(layer.zeros / layer.units - 0.8) < 0.03


def test_erk_fixes_the_shares_and_chance_the_places():
    torch.manual_seed(0)
    model = MLP()
    shares = spread("erk", {"0.weight": (32, 12), "2.weight": (16, 32), "4.weight": (4, 16)}, 0.7)
    result = Random(0.7, distribution="erk").prune(model)
    assert {layer.name: layer.zeros / layer.units for layer in result.layers} == pytest.approx(shares)


def test_every_place_of_an_n_of_m_group_is_as_likely():
    kept = mask(None, granularity=NM(1, 4)).view(-1, 4)
    assert (kept.sum(1) == 1).all()
    assert ((kept.float().mean(0) - 0.25).abs() < 0.04).all()


@pytest.mark.parametrize("seed", [1.5, None, True, "7"])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(InputError, match=f"seed must be a whole number, got {seed!r}"):
        Random(0.5, seed=seed)

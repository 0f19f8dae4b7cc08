"""Magnitude pruning against sorting by hand."""

import pytest
import torch
from torch import nn

from nets import CNN, MLP, Transformer, fit
from shrinkage import Block, Row, keep_zeros
from shrinkage.pruning import Magnitude, Random


def matrices(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.ndim > 1 and "norm" not in name}


@pytest.mark.parametrize("net", [MLP, CNN])
@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_the_smallest_of_all_weights_go(net, sparsity):
    torch.manual_seed(0)
    model = net()
    before = matrices(model)
    sizes = torch.cat([w.abs().flatten() for w in before.values()])
    limit = sizes.sort().values[round(sparsity * len(sizes)) - 1]
    Magnitude(sparsity, floor=0).prune(model)
    for name, weight in before.items():
        assert torch.equal(model.get_parameter(name), torch.where(weight.abs() > limit, weight, 0.0))


def test_uniform_cuts_in_every_layer_by_itself():
    torch.manual_seed(0)
    model = MLP()
    before = matrices(model)
    Magnitude(0.75, distribution="uniform").prune(model)
    for name, weight in before.items():
        limit = weight.abs().flatten().sort().values[round(0.75 * weight.numel()) - 1]
        assert torch.equal(model.get_parameter(name) == 0, weight.abs() <= limit)


def test_rows_and_blocks_go_by_their_norms():
    torch.manual_seed(0)
    model = nn.Conv2d(6, 10, 3)
    norms = model.weight.detach().flatten(1).norm(dim=1)
    Magnitude(0.4, granularity=Row()).prune(model)
    assert torch.equal(model.weight.flatten(1).norm(dim=1) == 0, norms <= norms.sort().values[3])
    model = nn.Linear(8, 8)
    norms = model.weight.detach().view(2, 4, 4, 2).square().sum((1, 3))
    Magnitude(0.5, granularity=Block(4, 2)).prune(model)
    left = model.weight.view(2, 4, 4, 2).square().sum((1, 3))
    assert torch.equal(left == 0, norms <= norms.flatten().sort().values[3])


def test_equal_weights_go_in_their_order():
    net = nn.Linear(6, 1)
    nn.init.constant_(net.weight, -1.0)
    Magnitude(0.5).prune(net)
    assert net.weight.tolist() == [[0, 0, 0, -1, -1, -1]]


def test_a_transformers_projections_are_pruned_and_its_embedding_is_not():
    torch.manual_seed(0)
    model = Transformer()
    result = Magnitude(0.8).prune(model)
    assert {layer.name for layer in result.layers} >= {"attention.in_proj_weight", "up.weight"}
    assert model.embed.weight.all()


def test_what_a_training_found_survives_it_better_than_chance():
    """The reason to look at sizes at all: right after the cut, and after some steps with the zeros kept."""
    losses = {}
    for method in (Magnitude, Random):
        torch.manual_seed(0)
        model = MLP()
        fit(model, torch.optim.Adam(model.parameters(), lr=0.01), range(150))
        method(0.7).prune(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        keep_zeros(model).attach(optimizer)
        losses[method] = fit(model, optimizer, range(150, 180))
    assert losses[Magnitude] < losses[Random]

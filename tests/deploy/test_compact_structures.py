"""Compaction follows every structure, and a fresh model takes the compacted weights."""

import copy

import pytest
import torch
from torch import nn

from compactable import STRUCTURES, Counted, Encoder, ResNeXt, assert_same, drawn, thinned, units, without_rows, zero
from shrinkage.core.errors import InputError
from shrinkage.deploy.compact import RULES, compact
from shrinkage.deploy.dataflow import Flow
from shrinkage.deploy.dead import Choice
from shrinkage.deploy.surgery import reshape_like
from shrinkage.deploy.tracing import trace

# At most this share of the parameters is left where half of the rows went; what stays has a reason.
LEFT = {
    "concatenation": 0.3,
    "depthwise": 0.5,
    "groups": 0.75,
    "transposed": 0.4,
    "attention": 0.8,  # LayerNorm's features and the inside of heads
    "gate": 0.7,
    "recurrent": 0.95,  # the LSTM
    "computed": 0.5,
    "counted": 0.5,
    "mirrored": 0.4,
    "twice": 1.0,  # a bias that two places share can take nothing in
}


def reloaded(make, result):
    """A fresh model with the compacted weights."""
    fresh = reshape_like(make().double(), result.model.state_dict())
    assert result.shapes == {name: tuple(value.shape) for name, value in fresh.state_dict().items()}
    fresh.load_state_dict(result.model.state_dict())
    return fresh.eval()


@pytest.mark.parametrize("kill", [thinned, without_rows])
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_function_stays_and_a_fresh_model_takes_the_weights(name, kill):
    make, shape = STRUCTURES[name]
    torch.manual_seed(0)
    model = kill(drawn(make()), 0.85 if kill is thinned else 0.5).double()
    x = torch.randn(shape).double()
    result = compact(model, x)
    assert_same(result, model, x)
    assert result.left == () or name == "counted"
    if kill is without_rows:
        assert result.total.after.parameters <= LEFT[name] * result.total.before.parameters
    torch.testing.assert_close(reloaded(make, result)(x), result.model.eval()(x))


@pytest.mark.parametrize("name", ["counted", "transposed", "concatenation"])
def test_what_stays_stays_when_more_has_to_stay(name):
    make, shape = STRUCTURES[name]
    model = without_rows(drawn(make()), 0.7).eval()
    choice = Choice(Flow(trace(model, (torch.randn(shape),), {}), RULES))
    families = choice.families()
    least = choice.kept(())
    assert families
    for family in families:  # the largest of these constants would stay in place of another one
        more = choice.kept(family.sets)
        assert bool(more[sorted(family.sets)].all())
        assert bool((more | ~least).all())


def test_what_the_code_counts_by_fixed_numbers_stays_and_the_rest_goes():
    model = without_rows(drawn(Counted()), 0.5).double()
    x = torch.randn(2, 3, 8, 8).double()
    result = compact(model, x)
    left = units(result)
    assert (left["conv"], left["free"], left["part"]) == (8, 20, 20)  # a view, a slice, a permutation
    assert left["wide"] < 20
    assert result.left == ("conv.weight", "conv.bias", "wide.weight")  # a slice and a permutation show beforehand


def test_a_dead_head_goes_where_the_code_counts_heads_itself():
    model = Encoder().double()
    zero(model.value.weight, slice(4, 8))  # the second of four heads
    zero(model.value.bias, slice(4, 8))
    x = torch.randn(2, 6, 5).double()
    result = compact(model, x)
    assert [units(result)[name] for name in ("query", "key", "value", "out")] == [12, 12, 12, 16]
    assert_same(result, model, x)
    assert_same(result, model, torch.randn(3, 9, 5).double())  # at another length


@pytest.mark.parametrize("groups", [2, 4, 16])
def test_groups_that_went_and_channels_that_went_in_each_are_told_apart_by_shapes(groups):
    for seed in range(3):
        model = without_rows(ResNeXt(groups), 0.6, seed).double()
        x = torch.randn(1, 3, 6, 6).double()
        result = compact(model, x)
        fresh = reloaded(lambda: ResNeXt(groups), result)
        assert fresh.grouped.groups == result.model.grouped.groups
        torch.testing.assert_close(fresh(x), result.model.eval()(x))


def test_a_shared_layer_is_cut_once():
    layer = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), layer, nn.Tanh(), layer, nn.Linear(6, 2)).double()
    for linear in (model[0], layer):
        zero(linear.weight, slice(0, 2))
        zero(linear.bias, slice(0, 2))
    x = torch.randn(3, 4).double()
    result = compact(model, x)
    assert result.model[2] is result.model[4]
    assert result.model[2].weight.shape == (4, 4)
    assert_same(result, model, x)


def test_a_shared_weight_is_cut_once():
    table, head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
    head.weight = table.weight
    model = nn.Sequential(table, nn.Linear(6, 6), nn.Tanh(), head).double()
    zero(table.weight, slice(None), slice(0, 2))
    zero(model[1].weight, slice(0, 2))
    zero(model[1].bias, slice(0, 2))
    tokens = torch.tensor([1, 8])
    result = compact(model, tokens)
    assert result.model[0].weight is result.model[3].weight
    assert result.model[0].weight.shape == (9, 4)
    assert_same(result, model, tokens)


def test_reshape_like_refuses_what_no_cut_gives_and_changes_nothing_then():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    before = copy.deepcopy(net)
    with pytest.raises(
        InputError, match=r"'2.weight' has the shape \(2, 3\) in this model and cannot be shrunk to \(2, 4\)"
    ):
        reshape_like(net, {"0.weight": (1, 4), "2.weight": (2, 4)})
    with pytest.raises(
        InputError, match=r"'0.bias' has the shape \(3,\) in this model and cannot be shrunk to \(3, 1\)"
    ):
        reshape_like(net, {"0.weight": (1, 4), "0.bias": (3, 1)})
    assert net[0].weight.shape == before[0].weight.shape
    assert reshape_like(net, before.state_dict()) is net
    reshape_like(net, {"1.running_mean": (2,), "1.running_var": (2,), "1.weight": (2,), "1.bias": (2,), "x": (9,)})
    assert net[1].num_features == 2

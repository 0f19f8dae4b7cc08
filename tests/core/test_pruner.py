"""What all pruners share: from scores of any kind to zeros, and what they refuse."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from nets import CNN, MLP, batch
from shrinkage import NM, InputError, Row, StateError
from shrinkage.core.pruner import Pruner, ranking
from shrinkage.pruning import SNIP, GraSP, Magnitude, Random, SynFlow


class Given(Pruner):
    """Scores as they are given."""

    def __init__(self, sparsity, *given, **options):
        super().__init__(sparsity, **options)
        self.given = given

    def scores(self, model, plan, batches, loss):
        return list(self.given)


VALUES = st.lists(
    st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False, width=32), min_size=1, max_size=40
)


@settings(deadline=None, max_examples=200)
@given(VALUES, st.integers(0, 40), st.sampled_from([torch.float32, torch.float64]))
def test_ranking_keeps_the_order_of_any_scores_and_equals_equal(values, cut, dtype):
    flat = torch.tensor(values, dtype=dtype)
    parts = [flat[:cut], flat[cut:]]
    keys = torch.cat([key.double() for key in ranking(parts, [torch.ones_like(part) for part in parts])])
    assert (keys > 0).all()
    assert torch.isfinite(keys).all()
    if flat.min() >= 0:
        flat = flat.clamp(min=torch.finfo(dtype).tiny)  # where 0 goes, to be more than a dead unit's 0
    assert torch.equal(keys[:, None] < keys, flat[:, None] < flat)


def test_negative_scores_next_to_huge_ones_keep_their_differences():
    """Subtracting the lowest would make the last two equal."""
    scores = torch.tensor([-1e30, 1e-8, 2e-8])
    (keys,) = ranking([scores], [torch.ones(3)])
    assert keys[0] < keys[1] < keys[2]


def test_units_that_are_zero_go_before_all_others():
    (keys,) = ranking([torch.tensor([0.0, 5.0, 0.0])], [torch.tensor([1.0, 0.0, 0.0])])
    assert keys.tolist()[1:] == [0, 0]
    assert keys[0] > 0


@pytest.mark.parametrize("sign", [1, -1])
def test_the_lowest_scores_go_whatever_their_sign(sign):
    net = nn.Linear(4, 2)
    scores = sign * torch.tensor([[3.0, 1.0, 4.0, 1.5], [9.0, 2.0, 6.0, 5.0]])
    Given(0.5, scores).prune(net)
    assert torch.equal(net.weight == 0, scores <= scores.flatten().sort().values[3])


def test_a_dead_unit_does_not_upset_an_n_of_m_pattern():
    """All scores are equal, so the dead weight must take one of the two places of its group."""
    net = nn.Linear(8, 1)
    with torch.no_grad():
        net.weight[0, 3] = 0
        net.weight[0, 6:] = 0
    result = Given(None, torch.zeros(1, 8), granularity=NM(2, 4)).prune(net)
    assert result.zeros == 4
    assert (net.weight != 0).view(2, 4).sum(1).tolist() == [2, 2]


def test_an_n_of_m_pattern_needs_no_sparsity():
    net = nn.Linear(8, 4)
    assert Magnitude(granularity=NM(1, 4)).prune(net).sparsity == 0.75


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", [Magnitude, Random])
def test_every_floating_type_and_memory_layout(method, dtype):
    torch.manual_seed(0)
    model = CNN().to(dtype).to(memory_format=torch.channels_last)
    strides = [p.stride() for p in model.parameters()]
    result = method(0.8).prune(model)
    assert result.zeros == round(0.8 * result.units)
    assert strides == [p.stride() for p in model.parameters()]
    assert not any(((p == 0) & p.signbit()).any() for p in model.parameters() if p.ndim > 1)


def test_wrappers_are_looked_through():
    torch.manual_seed(0)
    plain = MLP()
    wrapped, averaged = torch.compile(copy.deepcopy(plain), backend="eager"), AveragedModel(plain)
    zeros = Magnitude(0.7).prune(plain).zeros
    for model in (wrapped, averaged):
        assert Magnitude(0.7).prune(model).zeros == zeros
        found = [p for p in model.parameters() if p.ndim > 1]
        assert all(torch.equal(a, b) for a, b in zip(found, [p for p in plain.parameters() if p.ndim > 1], strict=True))


def test_frozen_weights_are_left_alone():
    model = MLP()
    model[0].weight.requires_grad_(False)
    assert [layer.name for layer in Magnitude(0.5).prune(model).layers] == ["2.weight", "4.weight"]
    assert model[0].weight.all()


@pytest.mark.parametrize("method", [SNIP, GraSP])
def test_a_shuffling_loader_costs_the_user_no_random_numbers(method):
    loader = DataLoader(TensorDataset(*batch(0)), batch_size=8, shuffle=True)
    model, state = MLP(), torch.get_rng_state()
    method(0.5).prune(model, loader)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_broken_scores_are_refused_by_name_and_nothing_is_changed(value):
    net = nn.Linear(3, 1)
    before = net.weight.detach().clone()
    with pytest.raises(StateError, match="Given found scores of 'weight' that are NaN or infinite; look at its data"):
        Given(0.5, torch.tensor([[1.0, value, 2.0]])).prune(net)
    assert torch.equal(net.weight, before)


def test_scores_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"gave shape \(4, 2\) for 'weight', whose units are \(4,\)"):
        Given(0.5, torch.ones(4, 2), granularity=Row()).prune(nn.Linear(2, 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Magnitude(), "Magnitude needs a target: sparsity=0.95 for 95 % zeros"),
        (lambda: Magnitude(95), "between 0 and 1 .* got 95"),
        (lambda: SNIP(0.5, ramp="cubic"), "SNIP prunes at one moment and has no ramp: leave 'ramp' out"),
        (lambda: SNIP(0.5, exlude="0.*"), "SNIP has no argument 'exlude'; the nearest is 'exclude'"),
        (lambda: SynFlow(0.5, round=3), "the nearest is 'rounds'"),
        (lambda: Magnitude(0.3, granularity=NM(2, 4)), "2:4 fixes the sparsity at 0.5"),
        (lambda: Magnitude(0.5, distribution="layer").prune(MLP()), "one of global, uniform, erk, got 'layer'"),
        (lambda: Magnitude(0.5).prune(3), "must be a torch.nn.Module, got int"),
    ],
)
def test_arguments_that_cannot_be_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()

"""SNIP's scores are derivatives by gates: found here by closing the gates a little."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from nets import CNN, MLP, Transformer, batch, images, sequences
from shrinkage import NM, Block, InputError, Row, StateError, Weight
from shrinkage.core.options import Options
from shrinkage.core.plan import Plan
from shrinkage.pruning import SNIP


def scores_of(model, batches, loss=functional.cross_entropy, **options):
    plan = Plan(model, None, Options(**options))
    return plan, SNIP(0.5, **options).scores(model, plan, batches, loss)


def losses_with_a_gate(model, plan, index, unit, batches, closing=1e-6):
    """The loss with one gate at 1 − closing and at 1 + closing, in the model's mode."""
    found = []
    for gate in (1 - closing, 1 + closing):
        twin = copy.deepcopy(model)
        weights = plan.weights(twin)
        name = plan.selected[index].name
        gates = [torch.ones(shape, dtype=torch.float64) for shape in plan.shapes.values()]
        gates[index].view(-1)[unit] = gate
        weights[name].detach().mul_(plan.spread(gates, weights)[name])
        found.append(sum(functional.cross_entropy(twin(x), y).item() for x, y in batches) / len(batches))
    return found


@pytest.mark.parametrize("cut", [Weight(), Row(), Block(3, 4)], ids=repr)
@pytest.mark.parametrize(("net", "data"), [(MLP, batch), (CNN, images)])
def test_scores_are_the_slopes_of_gates(net, data, cut):
    torch.manual_seed(0)
    model = net().double()
    batches = [(data(i)[0].double(), data(i)[1]) for i in range(2)]
    plan, scores = scores_of(model, batches, granularity=cut)
    for index, score in enumerate(scores):
        for unit in range(0, score.numel(), max(1, score.numel() // 4)):
            low, high = losses_with_a_gate(model, plan, index, unit, batches)
            assert score.view(-1)[unit].item() == pytest.approx(abs(high - low) / 2e-6, rel=1e-4, abs=1e-8)


def test_the_least_sensitive_connections_of_all_layers_go():
    torch.manual_seed(0)
    model = MLP()
    x, y = batch(0)
    twin = copy.deepcopy(model)
    functional.cross_entropy(twin(x), y).backward()
    products = {name: (p * p.grad).detach().abs() for name, p in twin.named_parameters() if p.ndim > 1}
    every = torch.cat([product.flatten() for product in products.values()])
    limit = every.sort().values[round(0.9 * len(every)) - 1]
    SNIP(0.9, floor=0).prune(model, [(x, y)])
    for name, product in products.items():
        assert torch.equal(model.get_parameter(name) != 0, product > limit)


def test_inputs_that_are_never_on_lose_their_weights_first():
    """Half of the features are always 0, as the borders of digits are."""
    torch.manual_seed(0)
    model = MLP()
    x, y = batch(0)
    x[:, ::2] = 0
    twin = copy.deepcopy(model)
    SNIP(0.4).prune(model, [(x, y)])
    assert not model[0].weight[:, ::2].any()
    assert (model[0].weight[:, 1::2] != 0).float().mean() > 0.6
    torch.testing.assert_close(model.eval()(x), twin(x), rtol=0, atol=0.1)  # the weakest of the others matter little


def test_batches_count_the_same():
    torch.manual_seed(0)
    model = MLP().double()
    (x, y), (u, v) = batch(0), batch(1)
    _, apart = scores_of(model, [(x.double(), y), (u.double(), v)])
    _, together = scores_of(model, [(torch.cat([x, u]).double(), torch.cat([y, v]))])
    for one, other in zip(apart, together, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("net", "data"), [(CNN, images), (Transformer, sequences)])
def test_convolutions_attention_and_norms(net, data):
    torch.manual_seed(0)
    model = net()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    result = SNIP(0.8, distribution="erk").prune(model, [data(0)])
    assert result.zeros == round(0.8 * result.units)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert torch.isfinite(model(data(1)[0])).all()


def test_patterns_keep_the_more_sensitive_of_a_group():
    torch.manual_seed(0)
    model = MLP()
    _, scores = scores_of(model, [batch(0)])
    SNIP(granularity=NM(2, 4)).prune(model, [batch(0)])
    kept = (model[0].weight != 0).view(-1, 4)
    groups = scores[0].view(-1, 4)
    assert (groups.masked_fill(~kept, torch.inf).amin(1) >= groups.masked_fill(kept, 0).amax(1)).all()


def test_a_layer_that_the_loss_does_not_reach_goes_down_to_its_floor():
    torch.manual_seed(0)
    model = MLP()
    model.side = nn.Linear(10, 10)
    model.forward = lambda x: nn.Sequential(*[model[i] for i in range(5)])(x)
    result = SNIP(0.5).prune(model, [batch(0)])
    assert {layer.name: layer.units - layer.zeros for layer in result.layers}["side.weight"] == 3  # 0.05 · 0.5 · 100


def test_no_data_and_broken_data_are_refused():
    with pytest.raises(InputError, match=r"SNIP looks at data: pass pairs \(x, y\)"):
        SNIP(0.5).prune(MLP())
    x, y = batch(0)
    with pytest.raises(StateError, match=r"SNIP found scores of '0.weight' that are NaN or infinite; look at its data"):
        SNIP(0.5).prune(MLP(), [(x * torch.nan, y)])

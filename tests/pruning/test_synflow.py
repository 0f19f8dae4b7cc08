"""SynFlow against matrix products by hand, and the laws of the paper: conservation, no layer emptied before it must."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from nets import CNN, MLP, Transformer, batch, images, sequences
from shrinkage import NM, InputError, Row, StateError
from shrinkage.core.options import Options
from shrinkage.core.plan import Plan
from shrinkage.pruning import SNIP, Magnitude, SynFlow
from shrinkage.pruning.synflow import _flows, _positive


def perceptron(*widths, bias=False, seed=0):
    torch.manual_seed(seed)
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def data(features):
    return [(torch.empty(1, features).fill_(torch.nan), None)]  # whatever x holds, it is not looked at


def flows_by_hand(matrices):
    """|w_ij| times all that arrives at j and all that leaves from i."""
    arrives = [torch.ones(matrices[0].shape[1], dtype=torch.float64)]
    for matrix in matrices:
        arrives.append(matrix.abs() @ arrives[-1])
    leaves = torch.ones(matrices[-1].shape[0], dtype=torch.float64)
    flows = []
    for matrix, arriving in zip(reversed(matrices), reversed(arrives[:-1]), strict=True):
        flows.insert(0, leaves[:, None] * matrix.abs() * arriving)
        leaves = matrix.abs().T @ leaves
    return flows


def synflow_by_hand(matrices, sparsity, rounds):
    """The round in which each weight goes, by sorting all flows, and equal ones by size, in every round."""
    sizes = torch.cat([matrix.abs().flatten() for matrix in matrices])
    matrices = [matrix.clone() for matrix in matrices]
    gone = [torch.zeros_like(matrix) for matrix in matrices]
    total = sum(matrix.numel() for matrix in matrices)
    zeros = round(sparsity * total)
    density = 1 - zeros / total
    for k in range(1, rounds + 1):
        wanted = int(zeros * (1 - density ** (k / rounds)) / (1 - density) + 1e-9)
        flows = torch.cat([flow.flatten() for flow in flows_by_hand(matrices)])
        went = torch.cat([g.flatten() for g in gone]) > 0
        flows[went] = -1
        for place in np.lexsort((sizes, flows))[:wanted].tolist():
            for matrix, g in zip(matrices, gone, strict=True):
                if place < matrix.numel():
                    if not g.view(-1)[place]:
                        g.view(-1)[place] = k
                        matrix.view(-1)[place] = 0
                    break
                place -= matrix.numel()
    return gone


@pytest.mark.parametrize(("rounds", "sparsity"), [(1, 0.5), (7, 0.9), (100, 0.97)])
def test_every_round_is_what_sorting_by_hand_gives(rounds, sparsity):
    model = perceptron(10, 16, 12, 5)
    matrices = [p.detach().double() for p in model.parameters()]
    gone = synflow_by_hand(matrices, sparsity, rounds)
    plan = Plan(model, sparsity, Options(floor=0))
    scores = SynFlow(sparsity, rounds, floor=0).scores(model, plan, data(10), None)
    for score, g in zip(scores, gone, strict=True):
        assert torch.equal(score, torch.where(g > 0, g, rounds + 1))  # what went earlier ranks below what went later
    SynFlow(sparsity, rounds, floor=0).prune(model, data(10))
    assert all(torch.equal(p == 0, g > 0) for p, g in zip(model.parameters(), gone, strict=True))


def test_what_lies_on_no_path_any_more_does_not_take_the_place_of_what_has_gone():
    """Both have no flow. Of this seed's network more weights lose their last path at once than the next round takes."""
    model = perceptron(6, 8, 8, 8, 4, seed=29)
    plan = Plan(model, 0.95, Options())
    scores = SynFlow(0.95).scores(model, plan, data(6), None)
    assert sum(int((score <= 100).sum()) for score in scores) == plan.dial.zeros


def test_flow_is_conserved_from_layer_to_layer():
    """What the paper's theorems say: the sum over every layer is R; what enters a neuron leaves it."""
    model = perceptron(10, 16, 12, 5)
    ones = torch.ones(1, 10, dtype=torch.float64)
    twin = _positive(model)
    flows = _flows(twin, Plan(model, None, Options()), ones)
    for flow in flows:
        assert flow.sum().item() == pytest.approx(twin(ones).sum().item())
    for entering, leaving in pairwise(flows):
        torch.testing.assert_close(entering.sum(1), leaving.sum(0))


def test_biases_are_a_source_of_flow():
    model = perceptron(6, 8, 4, bias=True)
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    plan = Plan(model, None, Options(include=names))
    flows = dict(zip(plan.shapes, _flows(_positive(model), plan, torch.ones(1, 6, dtype=torch.float64)), strict=True))
    torch.testing.assert_close(flows["0.weight"].sum(1) + flows["0.bias"], flows["2.weight"].sum(0))


def emptied(model):
    return [name for name, p in model.named_parameters() if p.ndim > 1 and not p.any()]


def test_no_layer_is_emptied_however_little_is_left():
    """Without a floor, 99.5 % of a deep network of narrow and wide layers; one round, or size, would empty some."""
    widths = (20, 100, 100, 8, 100, 10)
    left = {}
    for method in (SynFlow(0.995, floor=0), SynFlow(0.995, 1, floor=0), Magnitude(0.995, floor=0)):
        model = perceptron(*widths)
        method.prune(model, data(20))
        left[method] = emptied(model)
    assert [bool(names) for names in left.values()] == [False, True, True]


def test_snip_empties_a_layer_where_synflow_does_not():
    torch.manual_seed(0)
    x, y = torch.randn(64, 20), torch.randint(10, (64,))
    model, twin = perceptron(20, 200, 200, 200, 10), perceptron(20, 200, 200, 200, 10)
    SNIP(0.9995, floor=0).prune(model, [(x, y)])
    SynFlow(0.9995, floor=0).prune(twin, [(x, y)])
    assert emptied(model)
    assert not emptied(twin)
    assert twin(x).any()


def test_neither_the_values_of_x_nor_the_labels_nor_the_loss_matter():
    torch.manual_seed(0)
    model, twin = MLP(), MLP()
    twin.load_state_dict(model.state_dict())
    SynFlow(0.9, 9).prune(model, iter([batch(0)]), None)
    SynFlow(0.9, 9).prune(twin, data(12))
    assert torch.equal(model[0].weight, twin[0].weight)


def test_signs_do_not_matter():
    torch.manual_seed(0)
    model, twin = MLP(), MLP()
    with torch.no_grad():
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            q.copy_(p.abs())
    SynFlow(0.9, 9).prune(model, data(12))
    SynFlow(0.9, 9).prune(twin, data(12))
    assert torch.equal(model[0].weight.abs(), twin[0].weight)


def test_a_network_too_deep_for_single_precision():
    """60 layers of a factor of 5 each make 1e42; and the same with all weights a thousand times smaller."""
    model = perceptron(*[100] * 61)
    assert torch.stack([p.detach().abs().sum(1).mean() for p in model.parameters()]).prod() == torch.inf
    twin = perceptron(*[100] * 61)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(2.0**-10)
    for net in (model, twin):
        SynFlow(0.9, 3).prune(net, data(100))
    assert torch.equal(model[30].weight == 0, twin[30].weight == 0)


def test_a_trained_batch_norm_lets_the_signal_through():
    """Running means and shifts far from zero: evaluated as they are they would turn off what follows."""
    torch.manual_seed(0)
    model = CNN()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(5.0)
            module.bias.data.fill_(-0.5)
            module.weight.data.neg_()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    result = SynFlow(0.9, 9).prune(model, [images(0)])
    assert result.zeros == round(0.9 * result.units)
    assert not emptied(model)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert model.training


def test_a_fresh_batch_norm_does_nothing():
    torch.manual_seed(0)
    plain = perceptron(12, 20, 4)
    normed = nn.Sequential(plain[0], nn.BatchNorm1d(20, eps=0.0), *plain[1:])
    ones = torch.ones(1, 12, dtype=torch.float64)
    one = _flows(_positive(plain), Plan(plain, None, Options()), ones)
    other = _flows(_positive(normed), Plan(normed, None, Options()), ones)
    for flow, same in zip(one, other, strict=True):
        torch.testing.assert_close(flow, same)


def test_rows_patterns_and_layers_of_their_own():
    model = perceptron(12, 24, 8, 4)
    result = SynFlow(0.5, 20, granularity=Row()).prune(model, data(12))
    assert sum(int((p == 0).all(1).sum()) for p in model.parameters()) == result.zeros == 18
    model = perceptron(12, 24, 8, 4)
    SynFlow(rounds=20, granularity=NM(1, 4)).prune(model, data(12))
    assert all(((p != 0).view(-1, 4).sum(1) == 1).all() for p in model.parameters())
    model = perceptron(12, 24, 8, 4)
    result = SynFlow(0.9, 20, layer_sparsity={"0.*": 0.5, "4.*": 0.0}).prune(model, data(12))
    assert [layer.zeros for layer in result.layers] == [144, round(0.9 * 192), 0]


def test_an_already_sparse_model_goes_on_from_its_zeros():
    model = perceptron(12, 24, 8, 4)
    Magnitude(0.6).prune(model)
    before = [(p == 0).clone() for p in model.parameters()]
    result = SynFlow(0.9, 20).prune(model, data(12))
    assert result.zeros == round(0.9 * result.units)
    assert all((p[mask] == 0).all() for p, mask in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"SynFlow looks at data: pass pairs \(x, y\)"),
        ([sequences(0)], "in place of x, a tensor of floats, got torch.int64"),
        ([({"x": batch(0)[0]}, None)], "in place of x, a tensor of floats, got dict"),
        ([(torch.tensor(1.0), None)], "a tensor of floats, got torch.float32"),
    ],
)
def test_batches_that_give_no_shape_are_refused(batches, message):
    with pytest.raises(InputError, match=message):
        SynFlow(0.5).prune(MLP(), batches)


@pytest.mark.parametrize("rounds", [0, -3, 2.5, True, "9"])
def test_rounds_that_are_none_are_refused(rounds):
    with pytest.raises(InputError, match=f"a whole number of at least 1, got {rounds!r}"):
        SynFlow(0.5, rounds)


def test_a_signal_that_does_not_arrive_is_an_error_that_names_the_layer():
    torch.manual_seed(0)
    for norm in (nn.LayerNorm(8), nn.GroupNorm(2, 8)):
        normed = nn.Sequential(nn.Linear(12, 8), norm, nn.Linear(8, 4))
        with pytest.raises(StateError, match=r"through '[02].weight' and finds .* LayerNorm .* exclude="):
            SynFlow(0.5).prune(normed, data(12))
    fresh_head = perceptron(12, 8, 4)
    nn.init.zeros_(fresh_head[2].weight)
    with pytest.raises(
        StateError, match=r"'0.weight' and finds 0, 0 at the lowest: .* weights in or behind it are zero"
    ):
        SynFlow(0.5).prune(fresh_head, data(12))


def test_a_model_with_other_outputs_is_refused():
    with pytest.raises(InputError, match="must return one tensor, got tuple"):
        SynFlow(0.5).prune(nn.LSTM(3, 4), [(torch.zeros(1, 5, 3), None)])


def test_a_transformer_is_refused_by_what_it_is_fed():
    with pytest.raises(InputError, match=r"got torch\.int64"):
        SynFlow(0.5).prune(Transformer(), [sequences(0)])

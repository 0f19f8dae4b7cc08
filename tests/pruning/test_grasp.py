"""GraSP keeps the gradient flow: found here by removing units one by one and measuring it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from nets import CNN, MLP, Transformer, batch, images, sequences
from shrinkage import NM, Block, InputError, Row, Weight
from shrinkage.core.options import Options
from shrinkage.core.plan import Plan
from shrinkage.pruning import GraSP


class Quadratic(nn.Module):
    """½ wᵀAw − bᵀw, whose Hessian is A everywhere."""

    def __init__(self, n, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        root = torch.randn(n, n, dtype=torch.float64)
        self.matrix = root @ root.T / n
        self.w = nn.Parameter(0.01 * torch.randn(n, dtype=torch.float64))

    def forward(self, b):
        return 0.5 * self.w @ self.matrix @ self.w - b @ self.w


def value_itself(output, y):
    return output


def flow(model, batches, loss, names):
    """‖gradient‖² of the mean loss by the named tensors."""
    total = sum(loss(model(x), y) for x, y in batches) / len(batches)
    gradients = torch.autograd.grad(total, [model.get_parameter(name) for name in names])
    return sum(gradient.square().sum().item() for gradient in gradients)


@pytest.mark.parametrize("seed", range(5))
def test_on_a_quadratic_what_goes_leaves_most_gradient_flow(seed):
    """The weights are small, so that the first order decides, which is all that GraSP looks at."""
    model = Quadratic(12, seed)
    b = torch.randn(12, dtype=torch.float64)
    after = []
    for j in range(12):
        twin = copy.deepcopy(model)
        twin.w.detach()[j] = 0
        after.append(flow(twin, [(b, None)], value_itself, ["w"]))
    before = flow(model, [(b, None)], value_itself, ["w"])
    assert min(after) < before < max(after)  # some removals help the flow, some harm it
    best = torch.tensor(after).argsort(descending=True)[:6]
    GraSP(0.5, include="w").prune(model, [(b, None)], value_itself)
    assert set(best.tolist()) == set((model.w == 0).nonzero().flatten().tolist())


def test_scores_of_a_quadratic_in_closed_form():
    model = Quadratic(9)
    b = torch.randn(9, dtype=torch.float64)
    (scores,) = GraSP(0.5).scores(model, Plan(model, None, Options(include="w")), [(b, None)], value_itself)
    w = model.w.detach()
    torch.testing.assert_close(scores, w * (model.matrix @ (model.matrix @ w - b)))


@pytest.mark.parametrize("cut", [Weight(), Row(), Block(3, 4)], ids=repr)
@pytest.mark.parametrize(("net", "data"), [(MLP, batch), (CNN, images)])
def test_scores_are_the_slopes_of_the_flow_as_a_gate_opens(net, data, cut):
    """∂‖g‖²/∂c = 2 Σ w·(Hg), by closing a unit's gate a little, over two batches."""
    torch.manual_seed(0)
    model = net().double()
    batches = [(data(i)[0].double(), data(i)[1]) for i in range(2)]
    plan = Plan(model, None, Options(granularity=cut))
    scores = GraSP(0.5).scores(model, plan, batches, functional.cross_entropy)
    assert any((score < 0).any() for score in scores)
    for index, score in enumerate(scores):
        name = plan.selected[index].name
        for unit in range(0, score.numel(), max(1, score.numel() // 3)):
            flows = []
            for gate in (1 - 1e-5, 1 + 1e-5):
                twin = copy.deepcopy(model)
                gates = [torch.ones(shape, dtype=torch.float64) for shape in plan.shapes.values()]
                gates[index].view(-1)[unit] = gate
                weights = plan.weights(twin)
                weights[name].detach().mul_(plan.spread(gates, weights)[name])
                flows.append(flow(twin, batches, functional.cross_entropy, list(plan.shapes)))
            slope = (flows[1] - flows[0]) / 2e-5
            # The gate's own gradient is by c·w: what is measured is ‖∂L/∂(c·w)‖², as in the paper.
            assert score.view(-1)[unit].item() == pytest.approx(slope / 2, rel=1e-3, abs=1e-6)


def test_the_lowest_go_negative_ones_first():
    torch.manual_seed(0)
    model = MLP()
    plan = Plan(model, None, Options())
    scores = GraSP(0.5).scores(model, plan, [batch(0)], functional.cross_entropy)
    every = torch.cat([score.flatten() for score in scores])
    limit = every.sort().values[round(0.3 * len(every)) - 1]
    GraSP(0.3, floor=0).prune(model, [batch(0)])
    for name, score in zip(plan.shapes, scores, strict=True):
        assert torch.equal(model.get_parameter(name) == 0, score <= limit)


def test_it_leaves_more_gradient_flow_than_the_opposite_choice():
    flows = []
    for sign in (1, -1):

        class Chosen(GraSP):
            def scores(self, *args, sign=sign):
                return [sign * score for score in super().scores(*args)]

        torch.manual_seed(0)
        model = MLP()
        Chosen(0.2).prune(model, [batch(0)])
        flows.append(flow(model, [batch(0)], functional.cross_entropy, ["0.weight", "2.weight", "4.weight"]))
    assert flows[0] > flows[1]


def test_batches_that_come_only_once_are_looked_at_twice():
    torch.manual_seed(0)
    model, twin = MLP(), MLP()
    twin.load_state_dict(model.state_dict())
    GraSP(0.5).prune(model, (batch(i) for i in range(3)))
    GraSP(0.5).prune(twin, [batch(i) for i in range(3)])
    assert torch.equal(model[0].weight, twin[0].weight)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("net", "data"), [(CNN, images), (Transformer, sequences)])
def test_convolutions_and_attention_are_differentiated_twice(net, data, training):
    torch.manual_seed(0)
    model = net().train(training)
    result = GraSP(0.8, distribution="erk").prune(model, [data(0)])
    assert result.zeros == round(0.8 * result.units)


def test_dropout_drops_the_same_in_both_passes():
    """So H and g belong to one function: here one without the weights behind the dropped units."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 50), nn.ReLU(), nn.Dropout(0.5), nn.Linear(50, 4))
    plan = Plan(model, None, Options())
    scores = GraSP(0.5).scores(model, plan, [(batch(0)[0][:1], batch(0)[1][:1])], functional.cross_entropy)
    with torch.random.fork_rng():
        dropped = nn.functional.dropout(torch.ones(1, 50), 0.5)[0] == 0
    assert not scores[1][:, dropped].any()
    assert scores[1][:, ~dropped].any()


def test_patterns_and_missing_data():
    torch.manual_seed(0)
    model = MLP()
    GraSP(granularity=NM(2, 4)).prune(model, [batch(0)])
    assert ((model[0].weight != 0).view(-1, 4).sum(1) == 2).all()
    with pytest.raises(InputError, match="GraSP looks at data"):
        GraSP(0.5).prune(model)


def test_a_loss_that_bends_nowhere_has_scores_of_zero():
    layer = nn.Linear(3, 2)
    GraSP(0.5).prune(layer, [(torch.ones(1, 3), None)], lambda output, y: output.sum())
    assert int((layer.weight == 0).sum()) == 3

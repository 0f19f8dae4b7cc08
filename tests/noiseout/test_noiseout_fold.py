"""Where units are exact multiples of others, they go and the function stays; in every structure that is followed."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

import compactable
from compactable import drawn
from shrinkage.core.errors import TargetError
from shrinkage.deploy.surgery import reshape_like
from shrinkage.noiseout.correlation import Relation
from shrinkage.noiseout.foldable import Foldable
from shrinkage.noiseout.method import NoiseOut


def copies(layers, sources, factor=1.0, dim=0):
    """Unit ``i`` of layers that write the same units becomes ``factor`` times unit ``sources[i]``."""
    with torch.no_grad():
        for layer in layers:
            for gone, source in sources.items():
                for tensor in layer.parameters():
                    tensor[gone] = factor * tensor[source]


def same(model, before, *shape, size=64):
    x = torch.randn(size, *shape).double()
    with torch.no_grad():
        was, now = before.eval()(x), copy.deepcopy(model).eval()(x)
    torch.testing.assert_close(now, was, rtol=1e-9, atol=1e-9 * float(was.abs().max()))


def shrunk(model, shape, neurons, **options):
    """Prune, and see that the function is the same on data that it was not pruned with."""
    model.double()
    before = copy.deepcopy(model)
    result = NoiseOut(model, torch.randn(1, *shape).double(), noise=None, **options).prune(
        [torch.randn(40, *shape).double() for _ in range(3)], neurons
    )
    same(model, before, *shape)
    assert [fold.correlation for fold in result.folds] == pytest.approx([1] * len(result.folds))
    return result


@pytest.mark.parametrize("by", ["correlation", "error"])
def test_negated_neurons_of_a_linear_net_go(by):
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3))
    copies([model[0]], {0: 4, 2: 5, 3: 5}, -1.0)
    copies([model[2]], {6: 1})
    result = shrunk(model, (5,), 4, by=by)
    assert {name: each.after for name, each in result.layers.items()} == {"0": 6, "2": 6}
    assert {(fold.layer, frozenset((fold.unit, fold.partner))) for fold in result.folds} >= {
        ("0", frozenset((0, 4))),
        ("2", frozenset((6, 1))),
    }
    assert (model[0].out_features, model[2].in_features, model[2].out_features) == (6, 6, 6)


def test_an_affine_copy_needs_the_constant():
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[1] = -2 * model[0].weight[2]
        model[0].bias[1] = 2.5
    shrunk(model, (5,), 1)


def test_of_a_chain_of_copies_one_is_left():
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    copies([model[0]], dict.fromkeys(range(7), 7), 0.5)
    result = shrunk(model, (5,), {"0": 7})
    assert result.layers["0"].after == 1


def test_constants_go_into_the_bias_and_into_a_running_mean():
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.Softplus(),
        nn.Conv2d(6, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.Flatten(),
        nn.Linear(20, 3),
    )
    drawn(model)
    with torch.no_grad():
        model[0].weight[:3] = 0
        model[3].weight[4] = 0
    result = shrunk(model, (2, 6, 6), 4)
    assert {name: each.after for name, each in result.layers.items()} == {"0": 3, "2": 4}


def test_channels_go_through_norms_pooling_and_flatten():
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 4)
    )
    copies([model[0], model[1]], {1: 3, 2: 3})
    for gone in (1, 2):
        model[1].running_mean[gone] = model[1].running_mean[3]
    result = shrunk(model, (1, 8, 8), 2)
    assert result.layers["0"].after == 4
    assert model[1].num_features == 4
    assert model[5].weight.shape == (4, 36)


def test_beside_padding_multiples_go_and_shifted_copies_stay():
    def net():
        model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.Identity(), nn.Conv2d(5, 4, 3, padding=1)).double()
        with torch.no_grad():
            model[0].weight[1] = model[0].weight[3]
            model[0].bias[1] = model[0].bias[3] + 1
            model[0].weight[2] = -2 * model[0].weight[3]
            model[0].bias[2] = -2 * model[0].bias[3]
        return model

    result = shrunk(net(), (1, 7, 7), 1)
    assert {result.folds[0].unit, result.folds[0].partner} == {2, 3}
    again = NoiseOut(net(), torch.randn(1, 1, 7, 7).double(), noise=None)
    folds = again.prune([torch.randn(50, 1, 7, 7).double()], 2).folds
    assert folds[1].correlation < 0.99  # a constant would be another one at the border


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.branch = nn.Linear(4, 6), nn.Linear(6, 6)
        self.norm, self.more, self.head = nn.BatchNorm1d(6), nn.Linear(6, 8), nn.Linear(14, 2)

    def forward(self, x):
        x = self.stem(x).tanh()
        x = x + self.norm(self.branch(x))
        return self.head(torch.cat([x, self.more(x).tanh()], 1))


def test_channels_of_a_residual_go_together():
    model = drawn(Residual())
    copies([model.stem, model.branch, model.norm], {2: 5})
    for buffer in (model.norm.running_mean, model.norm.running_var):
        buffer[2] = buffer[5]
    copies([model.more], {7: 0}, -1.0)
    result = shrunk(model, (4,), 2)
    assert {name: each.after for name, each in result.layers.items()} == {"stem + branch": 5, "more": 7}
    assert model.norm.num_features == 5


def test_a_depthwise_convolution_goes_along():
    model = nn.Sequential(
        nn.Conv2d(1, 5, 1), nn.ReLU(), nn.Conv2d(5, 10, 3, padding=1, groups=5), nn.ReLU(), nn.Conv2d(10, 2, 1)
    )
    with torch.no_grad():
        copies([model[0]], {1: 3}, 2.0)
        copies([model[2]], {2: 6, 3: 7})
        model[2].bias[2:4] *= 2
    result = shrunk(model, (1, 6, 6), 1)
    assert result.layers["0 + 2"].after == 4
    assert (model[2].groups, model[2].in_channels, model[2].out_channels) == (4, 4, 8)


def test_groups_of_a_convolution_lose_alike():
    model = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Tanh(), nn.Conv2d(8, 12, 3, groups=2), nn.Tanh(), nn.Conv2d(12, 3, 1))
    copies([model[0]], {0: 2, 4: 6}, -1.0)  # in both groups the first is the negated third
    copies([model[2]], {1: 5, 7: 11})
    result = shrunk(model, (2, 6, 6), 2)
    assert {name: each.after for name, each in result.layers.items()} == {"0": 3, "2": 5}
    assert (model[2].groups, tuple(model[2].weight.shape)) == (2, (10, 3, 3, 3))
    assert result.parameters.after == sum(parameter.numel() for parameter in model.parameters())


def test_what_is_left_can_be_told_from_shapes():
    def net():
        return nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Tanh(), nn.Conv2d(8, 3, 1))

    model, x = net(), torch.randn(20, 4, 6, 6)
    method = NoiseOut(model, x[:1], noise=None)
    with pytest.raises(TargetError, match="only 1 of 2"):  # 4 outputs of 2 inputs each would look like one group
        method.prune([x], 2)
    assert model[0].out_channels == 8
    method.prune([x], 1)
    with pytest.raises(TargetError, match="only 0 of 1"):  # in another call as little
        method.prune([x], 1)
    fresh = reshape_like(net(), {name: value.shape for name, value in model.state_dict().items()})
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(x), model(x))


BRANCHING = [
    (compactable.DenseNet, (3, 8, 8)),
    (compactable.MobileNet, (3, 8, 8)),
    (compactable.ResNeXt, (3, 8, 8)),
    (compactable.UNet, (3, 8, 8)),
    (compactable.Gated, (4,)),
]
"""Networks in which units of several layers belong together, and their inputs."""


@pytest.mark.parametrize(
    ("build", "shape"), [*BRANCHING, (compactable.Encoder, (3, 5)), (compactable.Recurrent, (3, 4))]
)
def test_every_structure_loses_units_and_runs_on(build, shape):
    model = drawn(build())
    x = torch.randn(16, *shape)
    expected = model.eval()(x).detach()
    method = NoiseOut(model, x[:2], noise=None, by="error")
    before = method.parameters
    result = method.prune([x], max(sum(method.neurons.values()) // 8, 1))
    found = model(x).detach()
    assert found.shape == expected.shape
    assert bool(torch.isfinite(found).all())
    assert result.parameters.after == sum(parameter.numel() for parameter in model.parameters()) < before
    error = float((found - expected).square().mean() / expected.var())
    assert error < 0.6  # an eighth of the neurons, the best chosen, of a random net


def test_the_first_pair_is_the_most_correlated_of_all():
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 15), nn.ReLU(), nn.Linear(15, 3))
    x = torch.randn(400, 6)
    with torch.no_grad():
        hidden = [model[:2](x), model[:4](x)]
    best = []
    for h in hidden:
        rho = np.abs(np.corrcoef(h.numpy(), rowvar=False)) - np.eye(h.shape[1])
        best.append(rho.max())
    index = int(np.argmax(best))
    loud = hidden[index].var(0) * model[2 * index + 2].weight.detach().square().sum(0)
    (fold,) = NoiseOut(model, x[:1], noise=None, by="correlation").prune(list(x.split(64)), 1).folds
    assert fold.layer == "02"[index]
    assert fold.correlation == pytest.approx(max(best), abs=1e-5)
    assert loud[fold.unit] < loud[fold.partner]


class Both(nn.Module):
    """Two layers read the same neurons, one of them behind a ReLU; it may have no bias."""

    def __init__(self, bias, scale, hidden=8):
        super().__init__()
        self.hidden, self.one, self.two = nn.Linear(6, hidden), nn.Linear(hidden, 3), nn.Linear(hidden, 3, bias=bias)
        with torch.no_grad():
            self.two.weight *= scale
        self.double()

    def forward(self, x):
        h = self.hidden(x)
        return torch.cat([self.one(h), self.two(h.relu())], 1)


@pytest.mark.parametrize("scale", [0.03, 1.0, 30.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_by_error_the_first_fold_changes_the_readers_least(bias, scale, seed):
    torch.manual_seed(seed)
    model, x = Both(bias, scale), torch.randn(300, 6).double()
    h = model.hidden(x).detach()
    readers = [(h, model.one.weight.detach(), True), (h.relu(), model.two.weight.detach(), bias)]

    def error(a, b):
        total = 0.0
        for read, weight, constant in readers:
            design = torch.stack([read[:, b], torch.ones(300).double()], 1)[:, : 1 + constant]
            left = read[:, a] - design @ torch.linalg.lstsq(design, read[:, a]).solution
            total += float(left.square().mean() * weight[:, a].square().sum())
        return total

    wanted = min((error(a, b), a, b) for a in range(8) for b in range(8) if a != b)
    before = model(x).detach()
    (fold,) = NoiseOut(model, x[:1], noise=None, by="error").prune([x], 1).folds
    assert (fold.unit, fold.partner) == wanted[1:]
    assert float((model(x).detach() - before).square().sum(1).mean()) == pytest.approx(wanted[0])


@pytest.mark.parametrize("by", ["correlation", "error"])
def test_many_at_once_go_as_one_by_one(by):
    """Each call measures anew how much of a neuron is heard, with all that it has taken over."""
    first, x = Both(False, 1.0, 14), torch.randn(500, 6).double()
    second = copy.deepcopy(first)
    NoiseOut(first, x[:1], noise=None, by=by).prune([x], 11)
    again = NoiseOut(second, x[:1], noise=None, by=by)
    for _ in range(11):
        again.prune([x], 1)
    torch.testing.assert_close(first(x), second(x))


def test_a_neuron_that_speaks_for_many_stays():
    model = nn.Sequential(nn.Linear(4, 32, bias=False), nn.Linear(32, 1)).double()
    with torch.no_grad():
        model[0].weight[:30] = model[0].weight[0].clone()  # thirty say one thing, one another, one a third
        model[1].weight[:, :30] = 1
        model[1].weight[:, 30:] = 2
    x = torch.randn(2000, 4).double()
    before = model(x).detach()
    result = NoiseOut(model, x[:1], noise=None).prune([x], 30)
    assert result.layers["0"].after == 2
    assert float((model(x).detach() - before).square().mean() / before.var()) < 0.05


@pytest.mark.parametrize("by", ["correlation", "error"])
def test_a_loud_constant_stays_where_no_constant_can_be_added(by):
    model = nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3], model[2].weight[:, 3] = 0, 5, 50
    x = torch.randn(400, 5).double()
    before = model(x).detach()
    dropped = []
    for unit in range(8):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[2].weight[:, unit] = 0
        dropped.append(float((other(x).detach() - before).square().mean()))
    (fold,) = NoiseOut(model, x[:1], noise=None, by=by).prune([x], 1).folds
    assert fold.unit != 3
    assert float((model(x).detach() - before).square().mean()) < min(dropped)


def test_those_that_are_dead_find_another_partner_once(monkeypatch):
    """They are all equal: if they shared one that is dead too, all would look again when it goes."""
    model = nn.Sequential(nn.Linear(8, 400), nn.ReLU(), nn.Linear(400, 3))
    with torch.no_grad():
        model[0].bias[:200] = -1000
    sought = []
    explained = Relation.explained
    monkeypatch.setattr(
        Relation, "explained", lambda self, units, *rest: sought.append(len(units)) or explained(self, units, *rest)
    )
    folds = NoiseOut(model, torch.randn(1, 8), noise=None).prune([torch.randn(500, 8)], 200).folds
    assert {fold.unit for fold in folds} == set(range(200))
    assert sum(sought) < 3 * 400


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_that_repeats_the_input_lets_constants_in(mode):
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Identity(), nn.Conv2d(6, 4, 3, padding=1, padding_mode=mode))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[3], model[0].bias[3] + 1
    shrunk(model, (2, 7, 7), 1)


@pytest.mark.parametrize(("build", "shape"), BRANCHING)
def test_parameters_are_counted_before_anything_is_cut(build, shape, monkeypatch):
    said = []
    left = Foldable.parameters_left

    def counting(self, model):
        count = left(self, model)
        return lambda kept: said.append(count(kept)) or said[-1]

    monkeypatch.setattr(Foldable, "parameters_left", counting)
    model = drawn(build())
    method = NoiseOut(model, torch.randn(2, *shape), noise=None)
    fewest = method.fewest
    for share in (0.8, 0.6):
        wanted = max(int(share * method.parameters), fewest)
        method.prune([torch.randn(16, *shape)], parameters=wanted)
        assert said[-1] == sum(parameter.numel() for parameter in model.parameters()) <= wanted
    method.prune([torch.randn(16, *shape)], parameters=fewest)
    assert method.parameters == fewest


class Fixed(nn.Module):
    """Its own code counts on 4 · 9 features."""

    def __init__(self):
        super().__init__()
        self.conv, self.hidden, self.head = nn.Conv2d(1, 4, 3), nn.Linear(36, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(functional.relu(self.hidden(functional.relu(self.conv(x)).view(-1, 36))))


class Aside(nn.Module):
    """Layers that are read in other ways than by calling them with what they multiply."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.how = how
        self.double()

    def forward(self, x):
        h = self.a(x).tanh()
        if self.how == "function":
            h = functional.linear(h, self.b.weight, self.b.bias)
        elif self.how == "keyword":
            h = self.b(input=h)
        else:
            h = self.b(h)
        return self.d(self.c(h.tanh()).tanh())


class Rectified(nn.Linear):
    def forward(self, x):
        return functional.linear(x.relu(), self.weight, self.bias)


def test_what_a_hook_does_not_see_is_not_folded():
    x = torch.randn(100, 5).double()
    model = Aside("function")
    method = NoiseOut(model, x[:1], noise=None)
    assert method.neurons == {"b": 8, "c": 6}
    assert method.result().left == ("a",)
    model = Aside("call")
    model.b = Rectified(8, 8).double()
    method = NoiseOut(model, x[:3], noise=None)
    assert method.neurons == {"b": 8, "c": 6}
    assert method.result().left == ("a",)


def test_a_layer_that_is_called_by_keyword_is_seen():
    models = [Aside("call"), Aside("keyword")]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(100, 5).double()
    folds = [NoiseOut(model, x[:1], noise=None).prune([x], 9).folds for model in models]
    assert folds[0] == folds[1]
    torch.testing.assert_close(models[0](x), models[1](x))


@pytest.mark.parametrize(
    ("model", "shape", "left"),
    [
        (nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 2)), (5,), "0"),
        (nn.Sequential(nn.Conv2d(1, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 4, 3), nn.Conv2d(4, 2, 1)), (1, 8, 8), "0"),
        (nn.Sequential(nn.Conv2d(1, 6, 3), nn.ZeroPad2d(1), nn.Conv2d(6, 4, 3), nn.Conv2d(4, 2, 1)), (1, 8, 8), "0"),
        (nn.Sequential(weight_norm(nn.Linear(4, 6)), nn.Linear(6, 3), nn.Linear(3, 2), nn.Softmax(1)), (4,), "0"),
        (compactable.Encoder().double(), (3, 5), None),
    ],
)  # fmt: skip
def test_what_stays_is_named_by_its_path(model, shape, left):
    found = NoiseOut(model.double(), torch.randn(2, *shape).double(), noise=None).result().left
    paths = {name for name, _ in model.named_modules()}
    assert all(part in paths for name in found for part in name.split(" + "))
    if left is not None:
        assert found == (left,)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(16, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.d(self.c(torch.cat([self.a(x).tanh(), self.b(x).tanh()], 1)).tanh())


@pytest.mark.parametrize("pattern", ["a", "b", "a + b", "a*"])
def test_one_name_of_a_group_leaves_all_of_it_out(pattern):
    assert set(NoiseOut(Branches(), torch.randn(2, 5), noise=None).neurons) == {"a + b", "c"}
    assert set(NoiseOut(Branches(), torch.randn(2, 5), noise=None, exclude=pattern).neurons) == {"c"}


def test_layers_whose_size_the_code_relies_on_stay():
    model = Fixed()
    method = NoiseOut(model, torch.randn(2, 1, 5, 5))
    assert method.neurons == {"hidden": 8}
    result = method.prune([torch.randn(8, 1, 5, 5)], 3)
    assert "conv" in str(result)
    assert model(torch.randn(3, 1, 5, 5)).shape == (3, 2)

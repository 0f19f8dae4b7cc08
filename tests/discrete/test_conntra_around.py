"""What happens around a training: weights from an earlier moment, half precision, autocast, losses of any kind."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from shrinkage.core.errors import InputError, StateError
from shrinkage.discrete import CoNNTrA
from shrinkage.discrete.values import ValueSet, value_set


def mlp(seed=1, wide=16):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, wide), nn.ReLU(), nn.Linear(wide, 3))


def problem(count=400):
    torch.manual_seed(0)
    x = torch.randn(count, 20)
    return x, (x[:, 0] > x[:, 1]).long() + (x[:, 2] > 0.5).long()


@pytest.mark.parametrize("values", [(-1, 0, 1), tuple(range(-7, 8))], ids=["ternary", "15 values"])
def test_weights_of_an_earlier_moment_are_packed_with_their_own_scale(values):
    x, y = problem()
    net = mlp()
    method = CoNNTrA(net, values)
    method.fit(x, y, 2)
    best = copy.deepcopy(net.state_dict())
    method.fit(x, y, 3, batch=100)
    assert any(not torch.equal(best[name], now) for name, now in net.state_dict().items())
    net.load_state_dict(best)
    assert torch.allclose(method.packed()(x), net(x), atol=1e-5)
    before = functional.cross_entropy(net(x), y).item()
    assert method.fit(x, y).sweeps[-1].before == pytest.approx(before, rel=1e-5)


def test_weights_that_are_not_in_the_set_are_refused():
    x, y = problem()
    net = mlp()
    method = CoNNTrA(net)
    net.load_state_dict(mlp(seed=2).state_dict())
    for go in (method.packed, lambda: method.fit(x, y)):
        with pytest.raises(StateError, match=r"'0' are no longer from the set.*round"):
            go()
    method = CoNNTrA(net, scale=None)
    with torch.no_grad():
        net[2].weight *= 2  # in a set times a scale, but not in the set
    with pytest.raises(StateError, match="'2' are no longer"):
        method.packed()


@pytest.mark.parametrize("values", [(-1, 0, 1), (-1, 1), (0.5, 2, 3), tuple(range(-7, 8))], ids=str)
def test_weights_in_the_set_are_rounded_to_themselves(values):
    x, y = problem()
    net = mlp()
    CoNNTrA(net, values).fit(x, y)
    twin = copy.deepcopy(net)
    method = CoNNTrA(twin, values, start="round")
    for mine, theirs in zip(twin.parameters(), net.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-6)
    assert torch.allclose(method.packed()(x), net(x), atol=1e-5)


def test_biases_say_the_scale_where_all_weights_are_zero():
    net = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.copy_(torch.tensor([0.2, -0.2, 0]))
    CoNNTrA(net, start="round")
    assert net[0].bias.tolist() == pytest.approx([0.2, -0.2, 0])


def test_a_scale_of_weights():
    sure = ValueSet((-2.0, 1.0, 5.0))
    weights = [sure.draw(torch.empty(40), 0.37, torch.Generator().manual_seed(0)), torch.tensor([5 * 0.37])]
    assert sure.scale_of(weights) == pytest.approx(0.37)
    assert value_set((1, 2)).scale_of([torch.full((3,), 4.0)], 2.0) == 2  # the first one that fits
    for other in (torch.tensor([0.1, 0.2, 0.5]), torch.tensor([float("nan")]), torch.randn(9)):
        assert value_set((-1, 0, 1)).scale_of([other]) is None


@pytest.mark.parametrize("variant", ["gradient", "exhaustive"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_learns(variant, dtype):
    x, y = problem()
    net = mlp().to(dtype)
    result = CoNNTrA(net, variant=variant).fit(x, y, 4)
    assert result.sweeps[-1].loss < 0.6 * result.sweeps[0].before
    assert (net(x.to(dtype)).argmax(1) == y).float().mean() > 0.8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(dtype):
    x, y = problem()
    plain, other = mlp(), mlp()
    wanted = CoNNTrA(plain).fit(x, y, 2, validation=(x, y))
    with torch.autocast("cpu", dtype=dtype):
        found = CoNNTrA(other).fit(x, y, 2, validation=(x, y))
    assert found.sweeps[-1].accuracy == wanted.sweeps[-1].accuracy
    assert all(map(torch.equal, other.parameters(), plain.parameters()))


def test_inference_mode():
    x, y = problem()
    method = CoNNTrA(mlp())
    with torch.inference_mode():
        with pytest.raises(StateError, match="inference_mode"):
            method.fit(x, y)
        seen = x.clone()
    assert method.fit(seen, y).sweeps[0].moved


def test_a_loss_may_work_in_place():
    def pure(outputs, y):
        return functional.cross_entropy(outputs / 2, y, reduction="none")

    def in_place(outputs, y):
        return functional.cross_entropy(outputs.div_(2), y, reduction="none")

    x, y = problem()
    losses = [
        CoNNTrA(mlp(), loss=loss, temperature=1.0, variant="exhaustive").fit(x, y).sweeps[-1].loss
        for loss in (pure, in_place)
    ]
    assert losses[0] == losses[1]


def test_accuracy_is_of_classes():
    def loss(outputs, y):
        return functional.binary_cross_entropy_with_logits(outputs, y, reduction="none")[:, 0]

    x, y = problem()
    wanted = (y > 0).float()[:, None]
    net = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 1))
    method = CoNNTrA(net, loss=loss)
    with pytest.raises(InputError, match=r"shape \(N,\).*\(400, 1\)"):
        method.fit(x, wanted, validation=(x, wanted))
    assert method.fit(x, wanted).sweeps[-1].moved


def test_what_is_frozen_is_refused():
    net = mlp()
    net[0].weight.requires_grad_(False)
    with pytest.raises(InputError, match="'weight' of '0' is frozen"):
        CoNNTrA(net)
    net[0].weight.requires_grad_(True)
    net[2].bias.requires_grad_(False)
    with pytest.raises(InputError, match="'bias' of '2' is frozen"):
        CoNNTrA(net)
    CoNNTrA(net, biases=False)


def test_many_values_are_tried_in_parts(monkeypatch):
    x, y = problem(60)
    nets = mlp(wide=4), mlp(wide=4)
    for net, rows in zip(nets, (1 << 18, 200), strict=True):
        monkeypatch.setattr("shrinkage.discrete.sweeps._ROWS", rows)
        result = CoNNTrA(net, range(-5, 6), variant="exhaustive").fit(x, y)
        assert result.sweeps[0].moved
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))


def test_an_example_by_itself_is_not_a_batch():
    with pytest.raises(InputError, match=r"\(5,\); CoNNTrA needs \(examples, features\)"):
        CoNNTrA(nn.Linear(5, 3)).fit(torch.randn(5), torch.tensor([1, 2, 0, 1, 1]))


def test_a_training_returns_a_number_or_nothing():
    x, y = problem()
    net = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def train(model, run):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run.attach(optimizer)
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        return {"loss": 1.0}

    with pytest.raises(InputError, match="train returned dict"):
        CoNNTrA(data=(x, y)).run(net, train, steps=1)

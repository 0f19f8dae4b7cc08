import json

import pytest
import torch
from torch import nn

from discrete_nets import cnn, examples, mlp
from shrinkage.core.errors import InputError, StateError
from shrinkage.discrete import CoNNTrA, unpacked
from shrinkage.discrete.trainer import fitting_scale
from shrinkage.discrete.values import ValueSet, value_set
from shrinkage.testing import toy


def problem():
    net = nn.Sequential(nn.Linear(toy.FEATURES, 24), nn.ReLU(), nn.Linear(24, toy.CLASSES))
    batches = [toy.batch(step) for step in range(16)]
    return net, torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@pytest.mark.parametrize("variant", ["gradient", "exhaustive"])
@pytest.mark.parametrize("scale", ["layer", None])
def test_it_learns(variant, scale):
    net, x, y = problem()
    result = CoNNTrA(net, variant=variant, scale=scale).fit(x, y, sweeps=4, validation=(x, y))
    hits = 100 * (net(x).argmax(1) == y).float().mean().item()
    assert hits == pytest.approx(result.sweeps[-1].accuracy)
    assert hits > 90
    assert len(result.sweeps) == 4
    for layer in (net[0], net[2]):
        assert len(layer.weight.unique()) <= 3
    if scale is None:
        assert set(net[0].weight.unique().tolist()) <= {-1, 0, 1}
        assert result.temperature != 1
    else:
        assert result.temperature == 1  # it is in the last layer's scale


def test_the_result_says_what_it_is():
    net, x, y = problem()
    result = CoNNTrA(net, variant="exhaustive", temperature=2.0).fit(x, y)
    weights = 12 * 24 + 24 * 4
    assert result.units == weights
    assert result.zeros == sum(int((layer.weight == 0).sum()) for layer in (net[0], net[2]))
    (sweep,) = result.sweeps
    assert sweep.naive == 2 * (weights + 28)
    assert (sweep.variant, sweep.examples, result.bits, result.temperature) == ("exhaustive", 512, 2, 2.0)
    exported = json.loads(json.dumps(result.to_dict()))
    assert exported["values"] == [-1, 0, 1]
    assert exported["sweeps"][0]["variant"] == "exhaustive"
    assert "384 weights from {-1, 0, 1}: 2 bits each" in str(result)


def test_mini_batches_and_going_on():
    def run(*sweeps):
        torch.manual_seed(0)
        net, x, y = problem()
        method = CoNNTrA(net, variant="together", seed=5)
        for count in sweeps:
            result = method.fit(x, y, count, batch=100)
        return net.state_dict(), result.to_dict()

    (one, first), (other, second) = run(4), run(1, 3)
    assert first == second
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert {sweep["examples"] for sweep in first["sweeps"]} == {100}
    assert all(sweep["loss"] <= sweep["before"] for sweep in first["sweeps"])
    following = zip(first["sweeps"], first["sweeps"][1:], strict=False)
    assert all(one["loss"] != pytest.approx(other["before"]) for one, other in following)  # other examples


def test_it_ends_at_an_optimum():
    net, x, y = problem()
    told = []
    result = CoNNTrA(net, variant="exhaustive").fit(x[:40], y[:40], sweeps=50, tell=told.append)
    assert len(result.sweeps) < 50
    assert result.sweeps[-1].moved == 0
    assert told == list(result.sweeps)


def test_rounding_a_trained_network():
    net, x, y = problem()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    toy.train(net, optimizer, range(150))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    method = CoNNTrA(net, values=(-2, -1, 0, 1, 2), start="round")
    scale = net[0].weight.abs().max() / 2
    wanted = before["0.weight"] / scale
    assert ((net[0].weight / scale - wanted).abs() <= 0.5 + 1e-5).logical_or(wanted.abs() > 2).all()
    assert method.fit(x, y).sweeps[0].before < 0.5  # it begins where the training has led


def test_the_scale_that_fits_is_the_best_one_nearby():
    weight = torch.randn(2000)
    for values in (value_set((-1, 0, 1)), value_set((-1, 1)), value_set((-3, -1, 1, 3))):
        best = fitting_scale(weight, values)

        def error(scale, values=values):
            return (values.decode(values.codes(weight, scale), scale, weight) - weight).square().mean()

        assert all(error(best) <= error(best * step) + 1e-7 for step in (0.8, 0.95, 1.05, 1.25))
    # A ternary quantiser of a normal distribution has its levels at ±1.224.
    assert fitting_scale(torch.randn(200_000), value_set((-1, 0, 1))) == pytest.approx(1.224, rel=0.01)
    assert fitting_scale(torch.zeros(5), value_set((-1, 0, 1))) is None


def test_packed_and_back():
    net, x, y = problem()
    method = CoNNTrA(net)
    method.fit(x, y)
    small = method.packed()
    assert torch.allclose(small(x), net(x), atol=1e-4)
    for name, tensor in unpacked(small).state_dict().items():
        assert torch.allclose(tensor, net.state_dict()[name])


def test_a_driver_leaves_free_numbers_to_the_loop():
    net = cnn(torch.float32)
    x, y = examples(net, 60)
    norm = net[0][1]
    gain = norm.weight.detach().clone()

    def train(model, run):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run.attach(optimizer)
        before = net[2].weight.detach().clone()
        for _ in range(run.steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            assert torch.equal(net[2].weight, before)  # put back after every step
        return run.index

    method = CoNNTrA(rounds=3, data=(x, y))
    result = method.run(net, train, steps=5)
    assert not torch.equal(norm.weight, gain)
    assert result.rounds == (0.0, 1.0, 2.0)
    assert len(result.sweeps) == 3
    assert len(net[2].weight.unique()) <= 3
    assert torch.allclose(method.packed().eval()(x), net.eval()(x), atol=1e-4)


def fit(x=None, y=None, **options):
    """One sweep of a small network over four examples."""
    x = torch.zeros(4, 5).double() if x is None else x
    return CoNNTrA(mlp()).fit(x, torch.tensor([0, 1, 2, 0]) if y is None else y, **options)


def test_labels_may_be_of_any_whole_numbers():
    kinds = (torch.int64, torch.int32, torch.uint8)
    losses = {fit(y=torch.tensor([0, 1, 2, 0], dtype=kind)).sweeps[-1].loss for kind in kinds}
    assert len(losses) == 1


def norm_loop(net, x, y):
    def train(model, run):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run.attach(optimizer)
        for _ in range(run.steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    return train


def test_what_run_has_pruned_stays_pruned_in_fit():
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(200, 6)
    y = ((x[:, 0] > x[:, 1]) ^ (torch.rand(200) < 0.25)).long()
    method = CoNNTrA(sparsity=0.5, rounds=2, data=(x, y))
    assert method.run(net, norm_loop(net, x, y), 5).sparsity == 0.5
    pruned, before = net[0].weight == 0, net[0].weight.detach().clone()
    for variant in ("gradient", "exhaustive"):
        result = method.fit(x, 1 - y, variant=variant)
        assert result.sparsity == 0.5
        assert torch.equal(net[0].weight == 0, pruned)
    assert not torch.equal(net[0].weight, before)


def test_with_a_sparsity_biases_may_be_zero_though_weights_may_not():
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(60, 6)
    seen = []

    def train(model, run):
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        norm_loop(net, x, (x[:, 0] > 0).long())(model, run)

    CoNNTrA(sparsity=0.5, rounds=2, data=(x, (x[:, 0] > 0).long())).run(net, train, 1)
    weight, bias, _, other = seen[0]
    assert (weight != 0).all()
    assert (bias == 0).all()
    assert (other == 0).all()
    moved = torch.cat([layer.bias for layer in (net[0], net[2])])
    assert len(moved.abs().unique()) > 1  # zero and not
    assert (moved == 0).any()


def test_the_temperature_of_separable_batches_has_bounds():
    x, held_out = torch.randn(300, 6), torch.randn(2000, 6)
    for batch, variant in ((30, "gradient"), (None, "exhaustive")):
        net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
        method = CoNNTrA(net, variant=variant)
        method.fit(x, (x[:, 0] > x[:, 1]).long(), sweeps=8, batch=batch)
        loss = nn.functional.cross_entropy(net(held_out), (held_out[:, 0] > held_out[:, 1]).long())
        assert loss < 0.5
        assert net(held_out).abs().max() < 60


class Odd(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CoNNTrA(mlp(), values=(1,)), ["2 to 256 numbers", "(1,)"]),
        (lambda: CoNNTrA(mlp(), values=()), ["2 to 256 numbers", "()"]),
        (lambda: CoNNTrA(mlp(), values=(1, 1, 0)), ["differ", "(1, 1, 0)"]),
        (lambda: CoNNTrA(mlp(), values=(0, float("nan"))), ["finite", "nan"]),
        (lambda: CoNNTrA(mlp(), values=("a", 1)), ["sequence of numbers"]),
        (lambda: CoNNTrA(mlp(), values=range(257)), ["2 to 256"]),
        (lambda: CoNNTrA(mlp(), variant="greedy"), ["gradient, exhaustive", "greedy"]),
        (lambda: CoNNTrA(mlp(), scale="row"), ["'layer'", "row"]),
        (lambda: CoNNTrA(mlp(), start="ones"), ["random, round", "ones"]),
        (lambda: CoNNTrA(mlp(), temperature=0), ["greater than 0", "got 0"]),
        (lambda: CoNNTrA(mlp(), temperature="1"), ["greater than 0", "got '1'"]),
        (lambda: CoNNTrA(mlp(), values=(-1e-200, 1e-200)), ["between 1e-30 and 1e+30", "1e-200"]),
        (lambda: CoNNTrA(mlp(), values=(-1e200, 1e200)), ["between 1e-30 and 1e+30", "1e+200"]),
        (lambda: CoNNTrA(mlp(torch.bfloat16), values=range(256)), ["256 values", "bfloat16", "'0'", "model.float()"]),
        (lambda: CoNNTrA(cnn().to(memory_format=torch.channels_last)), ["'weight' of '2'", "contiguous_format"]),
        (lambda: CoNNTrA(mlp(), seed=-1), ["seed", "-1"]),
        (lambda: CoNNTrA(sparsity=0.5, rounds=1), ["rounds", "at least 2"]),
        (lambda: CoNNTrA(values=(-1, 1), sparsity=0.5), ["needs zero", "(-1, 1)"]),
        (lambda: CoNNTrA(nn.Sequential(nn.Linear(2, 2), Odd())), ["'1' (Odd)"]),
        (lambda: CoNNTrA(nn.Sequential(nn.Sequential(nn.LSTM(2, 2)))), ["'0.0' (LSTM)"]),
        (lambda: CoNNTrA(nn.Sequential(nn.Conv2d(2, 2, 1, groups=2))), ["'0'", "groups=2"]),
        (lambda: CoNNTrA(nn.Sequential(nn.Conv2d(2, 2, 3, padding="same"))), ["padding='same'"]),
        (lambda: CoNNTrA(nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False))), ["running statistics"]),
        (lambda: CoNNTrA(nn.Sequential(nn.ReLU())), ["no Linear or Conv2d"]),
        (lambda: CoNNTrA(nn.Sequential(nn.LazyLinear(2))), ["no shape yet"]),
        (lambda: CoNNTrA("net"), ["torch.nn.Module", "str"]),
        (lambda: CoNNTrA(mlp()).fit(*examples(mlp()), sweeps=0), ["sweeps", "got 0"]),
        (lambda: CoNNTrA(mlp()).fit(*examples(mlp()), batch=13), ["12 examples", "13"]),
        (lambda: CoNNTrA().run(toy.net(), print, 5), ["data=(x, y)"]),
        (lambda: CoNNTrA(data=(1, 2)).run(toy.net(), print, 5), ["inputs", "got int"]),
        (lambda: fit(y=torch.tensor([0, 1, 2, 3])), ["from 0 to 3", "loss cannot take", "(4, 3)"]),
        (lambda: fit(y=torch.tensor([0, 1, 2, -1])), ["from -1 to 2"]),
        (lambda: fit(y=torch.zeros(4, 1).long()), ["targets of shape (4, 1)"]),
        (lambda: fit(x=torch.zeros(4, 5).numpy()), ["inputs must be a torch.Tensor", "got ndarray"]),
        (lambda: fit(y=[0, 1, 2, 0]), ["targets must be a torch.Tensor", "got list"]),
        (lambda: fit(y=torch.tensor(1)), ["targets", "got a tensor of shape ()"]),
        (lambda: fit(y=torch.zeros(3).long(), batch=4), ["4 examples and 3 targets"]),
        (lambda: fit(validation=(torch.zeros(2, 5), [0, 1])), ["targets must be", "got list"]),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, words):
    with pytest.raises(InputError) as error:
        make()
    assert all(word in str(error.value) for word in words), str(error.value)


def test_without_a_model_there_is_nothing_to_fit():
    with pytest.raises(StateError, match="no model yet"):
        CoNNTrA().fit(torch.zeros(1, 2), torch.zeros(1).long())


def test_codes_are_the_inverse_of_decoding_in_every_type():
    values = value_set(range(-128, 128))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        for scale in (0.37, 0.0113, 1.0):
            codes = torch.arange(256, dtype=torch.uint8)
            weight = values.decode(codes, scale, torch.zeros((), dtype=dtype))
            assert torch.equal(values.codes(weight, scale), codes)


def test_codes_and_values():
    values = value_set((3, -1, 0))
    assert values == ValueSet((-1.0, 0.0, 3.0))
    weight = torch.tensor([[-0.5, 0.0, 1.5]])
    codes = values.codes(weight, 0.5)
    assert codes.tolist() == [[0, 1, 2]]
    assert torch.equal(values.decode(codes, 0.5, weight), weight)
    assert values.nearest_zero() == 0
    assert value_set((-1, 1)).nearest_zero() == -1
    drawn = values.draw(torch.zeros(3000), 0.1, torch.Generator().manual_seed(0))
    counts = drawn.unique(return_counts=True)[1]
    assert counts.tolist() == [pytest.approx(1000, abs=120)] * 3

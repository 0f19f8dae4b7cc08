"""In the user's loop: optimisers follow, noise outputs leave no trace, budgets are met."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adafactor, Adam, AdamW, RMSprop
from torch.optim.swa_utils import AveragedModel

from nets import batch
from shrinkage.core.errors import InputError, StateError, TargetError
from shrinkage.noiseout.method import NoiseOut
from shrinkage.noiseout.noise import Binomial, Constant, Gaussian

INPUTS = [batch(step)[0] for step in range(4)]


def mlp(dtype=torch.float32):
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).to(dtype)


def step(model, optimizer, number):
    x, y = batch(number)
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


def method(model, **options):
    return NoiseOut(model, INPUTS[0][:2], **{"outputs": 5} | options)


# ---------------------------------------------------------------------------------------- optimisers


def with_dead_neurons():
    """Some neurons never fire: without them every other weight has the same gradients."""
    torch.manual_seed(0)
    model = mlp(torch.float64)
    with torch.no_grad():
        for layer, dead in ((model[0], [3, 4, 20]), (model[2], [0, 15])):
            layer.bias[dead] = -100
    return model


def train(model, optimizer, numbers):
    for number in numbers:
        x, y = batch(number)
        optimizer.zero_grad()
        functional.cross_entropy(model(x.double()), y).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "build",
    [
        lambda groups: SGD(groups, momentum=0.9, nesterov=True),
        lambda groups: Adam(groups, amsgrad=True),
        lambda groups: AdamW(groups, weight_decay=0.1),
        lambda groups: RMSprop(groups, momentum=0.5, centered=True),
    ],
    ids=["SGD", "Adam", "AdamW", "RMSprop"],
)
def test_training_goes_on_as_if_nothing_had_been_removed(build):
    models = with_dead_neurons(), with_dead_neurons()
    optimizers = [
        build([{"params": m[:2].parameters(), "lr": 0.005}, {"params": m[2:].parameters(), "lr": 0.002}])
        for m in models
    ]
    pruning = NoiseOut(models[1], INPUTS[0][:2].double(), noise=None).attach(optimizers[1])
    train(models[0], optimizers[0], range(12))
    train(models[1], optimizers[1], range(6))
    result = pruning.prune([x.double() for x in INPUTS], 5)
    assert {name: each.after for name, each in result.layers.items()} == {"0": 29, "2": 14}
    train(models[1], optimizers[1], range(6, 12))
    first = [i for i in range(32) if i not in (3, 4, 20)]
    second = range(1, 15)
    whole = models[0].state_dict()
    wanted = {
        "0.weight": whole["0.weight"][first],
        "0.bias": whole["0.bias"][first],
        "2.weight": whole["2.weight"][list(second)][:, first],
        "2.bias": whole["2.bias"][list(second)],
        "4.weight": whole["4.weight"][:, list(second)],
        "4.bias": whole["4.bias"],
    }
    for name, value in models[1].state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-9, atol=1e-12)
    assert [group["lr"] for group in optimizers[1].param_groups] == [0.005, 0.002]


@pytest.mark.parametrize("noise", [None, Gaussian()])
def test_a_loss_that_is_still_at_hand_does_no_harm(noise):
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruning = method(model, noise=noise).attach(optimizer)
    loss = step(model, optimizer, 0)  # its graph remembers the parameters' sizes
    pruning.prune(INPUTS, 10)
    step(model, optimizer, 1)
    assert bool(torch.isfinite(loss))


def test_gradients_and_factored_moments_are_cut_too():
    model = mlp()
    optimizer = Adafactor(model.parameters(), lr=0.01)
    pruning = method(model, noise=None).attach(optimizer)
    step(model, optimizer, 0)
    before = model[4].weight.grad.clone()
    (fold,) = pruning.prune(INPUTS, {"2": 1}).folds
    left = [i for i in range(16) if i != fold.unit]
    assert torch.equal(model[4].weight.grad, before[:, left])
    for parameter in model.parameters():
        for value in optimizer.state[parameter].values():
            assert all(mine in (1, size) for mine, size in zip(value.shape, parameter.shape, strict=False))
    step(model, optimizer, 1)


def test_a_memory_that_cannot_be_cut_is_refused_before_anything_changes():
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    pruning = method(model, noise=None).attach(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(INPUTS[0]), batch(0)[1])
        loss.backward()
        return loss

    optimizer.step(closure)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"LBFGS keeps .* train with SGD"):
        pruning.prune(INPUTS, 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("noise", [Gaussian(0.5, 2.0), Binomial(3, 0.2), Constant(-1.0)])
def test_gradients_are_those_of_the_network_with_wider_outputs(noise):
    model = mlp()
    twin = copy.deepcopy(model)
    optimizer = SGD(model.parameters(), lr=0.1)
    pruning = method(model, noise=noise, strength=0.7).attach(optimizer)
    state = pruning.state_dict()["noise"]
    x, y = batch(0)
    outputs = model(x)
    functional.cross_entropy(outputs, y).backward()
    hidden = twin[:4](x)
    wide = nn.Linear(16, 5)
    wide.load_state_dict({"weight": state["weight"], "bias": state["bias"]})
    generator = torch.Generator()
    generator.set_state(state["generator"])
    penalty = 0.7 * (wide(hidden) - noise.draw((32, 5), generator)).square().mean()
    (functional.cross_entropy(twin[4](hidden), y) + penalty).backward()
    assert torch.equal(outputs, twin(x))  # neither outputs nor loss know of it
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    added = optimizer.param_groups[0]["params"][-2:]
    torch.testing.assert_close(added[0].grad, wide.weight.grad)
    torch.testing.assert_close(added[1].grad, wide.bias.grad)
    assert pruning.noise_loss == pytest.approx(float(penalty.detach()))


def test_draws_are_what_they_say():
    generator = torch.Generator().manual_seed(0)
    found = Gaussian(1.0, 2.0).draw((20000,), generator)
    assert (float(found.mean()), float(found.std())) == pytest.approx((1.0, 2.0), abs=0.05)
    found = Binomial(4, 0.25).draw((20000,), generator)
    assert (float(found.mean()), float(found.var())) == pytest.approx((1.0, 0.75), abs=0.05)
    assert set(found.tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert Constant(3.0).draw((2, 2), generator).tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_nothing_of_the_noise_is_left():
    model = mlp()
    names, state = list(model.state_dict()), torch.get_rng_state()
    optimizer = Adam([{"params": model[:2].parameters()}, {"params": model[2:].parameters(), "lr": 0.01}])
    pruning = method(model).attach(optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 6]
    for number in range(3):
        step(model, optimizer, number)
        assert list(model.state_dict()) == names
    pruning.prune(INPUTS, 9)
    step(model, optimizer, 4)
    assert torch.equal(torch.get_rng_state(), state)
    pruning.finish()
    assert list(model.state_dict()) == names
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 4]
    assert set(optimizer.state) == set(model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    step(model, optimizer, 5)


def test_copies_and_pickles_of_the_model_train_without_noise():
    model, plain = mlp(), mlp()
    plain.load_state_dict(model.state_dict())
    x, y = batch(0)
    functional.cross_entropy(plain(x), y).backward()
    pruning = method(model).attach(SGD(model.parameters(), lr=0.1))
    before = pruning.state_dict()["noise"]["generator"]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        functional.cross_entropy(twin(x), y).backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(twin.parameters(), plain.parameters(), strict=True))
    assert torch.equal(before, pruning.state_dict()["noise"]["generator"])


@pytest.mark.parametrize("attached", [True, False])
def test_copies_and_pickles_of_the_method_are_attached_to_nothing(attached):
    model = mlp()
    pruning = method(model)
    if attached:
        pruning.attach(SGD(model.parameters(), lr=0.1))
        model(INPUTS[0]).sum().backward()
    for net, twin in (copy.deepcopy((model, pruning)), pickle.loads(pickle.dumps((model, pruning)))):
        state = twin.state_dict()["noise"]
        twin.attach(SGD(net.parameters(), lr=0.1))
        twin.prune(INPUTS, 5)
        assert (net[0].out_features + net[2].out_features, model[0].out_features) == (43, 32)
        if attached:
            assert all(torch.equal(state[key], value) for key, value in pruning.state_dict()["noise"].items())


def noise_gradient(optimizer):
    return optimizer.param_groups[0]["params"][-2].grad


def test_two_losses_of_one_forward_pass_get_the_noise_once():
    found = []
    for split in (False, True):
        torch.manual_seed(0)
        model = mlp()
        optimizer = SGD(model.parameters(), lr=0.1)
        method(model).attach(optimizer)
        one, two = (model(INPUTS[0])[:, i].sum() for i in (0, 1))
        torch.manual_seed(0)
        outputs = model(INPUTS[0])
        one, two = outputs[:, 0].sum(), outputs[:, 1].sum()
        if split:
            one.backward(retain_graph=True)
            two.backward()
        else:
            (one + two).backward()
        found.append([noise_gradient(optimizer), *(each.grad for each in model.parameters())])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)


def test_a_gradient_penalty_does_not_see_the_noise():
    model, plain = mlp(), mlp()
    plain.load_state_dict(model.state_dict())
    x = INPUTS[0].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(plain(x).sum(), x, create_graph=True)
    optimizer = SGD(model.parameters(), lr=0.1)
    method(model).attach(optimizer)
    loss = model(x).sum()
    (found,) = torch.autograd.grad(loss, x, create_graph=True)
    assert torch.equal(found, wanted)
    assert noise_gradient(optimizer) is None
    (loss + found.square().sum()).backward()
    assert bool(noise_gradient(optimizer).any())  # the step's own gradient has it


def test_torch_func_takes_the_users_gradient():
    model = mlp()
    parameters = dict(model.named_parameters())

    def loss(given):
        return torch.func.functional_call(model, given, (INPUTS[0],)).square().sum()

    wanted = torch.func.grad(loss)(parameters)
    method(model).attach(SGD(model.parameters(), lr=0.1))
    found = torch.func.grad(loss)(parameters)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_what_was_compiled_before_hears_of_the_noise_and_of_its_end():
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    compiled(INPUTS[0]).sum().backward()
    optimizer = SGD(model.parameters(), lr=0.0)
    pruning = method(compiled).attach(optimizer)
    step(compiled, optimizer, 0)
    assert bool(noise_gradient(optimizer).any())
    pruning.prune(INPUTS, 5)
    pruning.finish()
    found = []
    for each in (compiled, model):
        optimizer.zero_grad()
        each(INPUTS[0]).sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_a_model_compiled_in_place_is_measured():
    model = mlp()
    wanted = method(copy.deepcopy(model), noise=None).correlation(INPUTS)
    model.compile(backend="eager")
    with torch.no_grad():
        model.eval()(INPUTS[0])
    assert method(model, noise=None).correlation(INPUTS) == wanted


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(input=self.hidden(x).relu())


def test_a_head_that_is_called_by_keyword_learns_noise():
    model = Keyword()
    plain = nn.Sequential(model.hidden, nn.ReLU(), model.head)
    found = []
    for each in (model, plain):
        each.zero_grad()
        optimizer = SGD(each.parameters(), lr=0.1)
        pruning = method(each).attach(optimizer)
        each(INPUTS[0]).sum().backward()
        found.append([noise_gradient(optimizer).clone(), model.hidden.weight.grad.clone()])
        pruning.finish()
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_a_training_without_noise_is_told_at_its_first_step():
    model = mlp().eval()
    optimizer = SGD(model.parameters(), lr=0.1)
    pruning = method(model).attach(optimizer)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(StateError, match=r"no training batch has passed the head '4' .* model.train\(\)"):
        step(model, optimizer, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    step(model.train(), optimizer, 0)
    pruning.finish()
    step(model.eval(), optimizer, 1)


def test_another_time_draws_other_noise_and_so_does_a_resumed_run():
    model = mlp()
    pruning = method(model)
    losses = []
    for index in range(3):
        if index == 2:
            state, pruning = pruning.state_dict(), method(model)
            pruning.load_state_dict(state)
        pruning.attach(SGD(model.parameters(), lr=0.1))
        model(INPUTS[0])
        losses.append(pruning.noise_loss)
        pruning.finish()
    assert len(set(losses)) == 3


def test_evaluation_draws_no_noise():
    model = mlp()
    pruning = method(model).attach(SGD(model.parameters(), lr=0.1))
    before = pruning.state_dict()["noise"]["generator"]
    model.eval()(INPUTS[0])
    with torch.no_grad():
        model.train()(INPUTS[0])
    assert torch.equal(before, pruning.state_dict()["noise"]["generator"])


def test_the_scale_of_a_scaled_loss_is_followed():
    class Scaler:
        def get_scale(self):
            return 1024.0

    model, twin = mlp(torch.float64), mlp(torch.float64)
    twin.load_state_dict(model.state_dict())
    x, y = batch(0)
    for each, scaler, factor in ((model, Scaler(), 1024.0), (twin, None, 1.0)):
        NoiseOut(each, x[:2].double()).attach(SGD(each.parameters(), lr=0.1), scaler=scaler)
        (factor * functional.cross_entropy(each(x.double()), y)).backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad / 1024, theirs.grad)


def test_noise_outputs_follow_the_folds():
    """With |ρ| = 1 they say the same as before."""
    torch.manual_seed(0)
    model = mlp(torch.float64)
    with torch.no_grad():
        for tensor in (model[2].weight, model[2].bias):
            tensor[3] = 2 * tensor[5]
            tensor[9] = 0.5 * tensor[5]
        model[2].weight[1], model[2].bias[1] = 0, 1
    optimizer = SGD(model.parameters(), lr=0.0, momentum=0.9)
    pruning = NoiseOut(model, INPUTS[0][:2].double(), noise=Constant(1.0), outputs=6).attach(optimizer)
    x, y = batch(9)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
        losses.append(pruning.noise_loss)
        if len(losses) == 1:
            pruning.prune([each.double() for each in INPUTS], {"2": 3})
    assert model[4].in_features == 13
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    weight = optimizer.param_groups[0]["params"][-2]
    assert optimizer.state[weight]["momentum_buffer"].shape == weight.shape == (6, 13)


@pytest.mark.parametrize("noise", [Gaussian(), Binomial(), Constant()])
def test_noise_makes_sigmoid_neurons_correlate(noise):
    found = {}
    for each in (None, noise):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 32), nn.Sigmoid(), nn.Linear(32, 16), nn.Sigmoid(), nn.Linear(16, 4))
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        pruning = method(model, noise=each, outputs=50, strength=10.0).attach(optimizer)
        for number in range(80):
            step(model, optimizer, number)
        found[each] = pruning.correlation(INPUTS)["2"]
    assert found[noise] > found[None] + 0.1


# ------------------------------------------------------------------------------------------- budgets


def test_a_run_to_an_exact_number_trains_after_each_removal():
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruning = method(model).attach(optimizer)
    seen = []

    def recover(net):
        seen.append(sum(pruning.neurons.values()))
        step(net, optimizer, len(seen))

    result = pruning.run(recover, INPUTS, lambda net: -float(seen[-1]), neurons=30, rounds=4)
    assert seen[-1] == 18 == result.total.after
    assert seen == sorted(seen, reverse=True)
    assert [each.units for each in result.rounds] == seen
    assert result.parameters.after == sum(parameter.numel() for parameter in model.parameters())
    text = str(pruning.finish())
    assert "18" in text


def test_a_run_to_a_number_of_parameters():
    model = mlp()
    method(model, noise=None).run(lambda net: None, INPUTS, parameters=300, rounds=3)
    assert 270 < sum(parameter.numel() for parameter in model.parameters()) <= 300


def test_a_tolerance_is_kept_and_what_costs_too_much_is_taken_back():
    model = mlp()
    optimizer = Adam(model.parameters(), lr=0.01)
    pruning = method(model).attach(optimizer)
    step(model, optimizer, 0)
    number = iter(range(1, 1000))

    def score(net):
        return 0.0 if net[0].out_features + net[2].out_features >= 31 else -2.0

    result = pruning.run(lambda net: step(net, optimizer, next(number)), INPUTS, score, tolerance=1.0, share=0.2)
    assert result.total.after == model[0].out_features + model[2].out_features
    refused = [each for each in result.rounds if not each.kept]
    assert len(refused) == 3 or refused[-1].units == 30
    assert all(each.units < 31 for each in refused)
    assert 31 <= result.total.after <= 35
    assert result.to_dict()["rounds"][0]["kept"] is True
    step(model, optimizer, 0)
    for parameter in model.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


def test_a_tolerance_ends_when_no_more_can_go():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.Tanh(), nn.Conv2d(8, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    x = torch.randn(20, 4, 6, 6)
    pruning = NoiseOut(model, x[:1], noise=None)
    result = pruning.run(lambda net: None, [x], lambda net: 1.0, tolerance=0.5)
    assert [each.kept for each in result.rounds] == [True] * len(result.rounds)
    assert result.total.after == 3 == pruning.run(lambda net: None, [x], lambda net: 1.0, tolerance=0.5).total.after
    model = mlp()
    assert method(model, noise=None).run(lambda net: None, INPUTS, lambda net: 1.0, tolerance=0.5).total.after == 2


def test_a_baseline_is_spent_once():
    def neurons(net):
        return float(net[0].out_features + net[2].out_features)

    left = {}
    for baseline in (48.0, None):
        model = mlp()
        pruning = method(model, noise=None)
        for _ in range(2):
            pruning.run(lambda net: None, INPUTS, neurons, tolerance=6.0, baseline=baseline)
        left[baseline] = neurons(model)
    assert left[48.0] >= 42 > left[None]


def test_there_is_no_way_back_past_the_attachment():
    model = mlp()
    optimizer = Adam(model.parameters(), lr=0.01)
    pruning = method(model)
    before = pruning.mark()
    pruning.attach(optimizer)
    within = pruning.mark()
    step(model, optimizer, 0)
    pruning.prune(INPUTS, 3)
    with pytest.raises(StateError, match=r"before attach\(\) or finish\(\)"):
        before()
    pruning.finish()
    with pytest.raises(StateError, match=r"before attach\(\) or finish\(\)"):
        within()
    assert sum(pruning.neurons.values()) == 45
    optimizer.state_dict()


def test_the_way_back_is_exact():
    model = mlp()
    optimizer = Adam(model.parameters(), lr=0.01)
    pruning = method(model).attach(optimizer)
    for number in range(3):
        step(model, optimizer, number)
    finals = []
    back = pruning.mark()
    for _ in range(2):
        back()
        pruning.prune(INPUTS, 20)
        for number in range(3):
            step(model, optimizer, number)
        finals.append(copy.deepcopy(model.state_dict()))
        assert set(pruning.correlation(INPUTS)) == {"0", "2"}  # has looked at the smaller model
    back()
    assert model[0].out_features + model[2].out_features == 48 == sum(pruning.neurons.values())
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


def test_a_resumed_run_is_the_same_to_the_bit():
    def begin():
        torch.manual_seed(0)
        model = mlp()
        return model, method(model)

    model, pruning = begin()
    optimizer = Adam(model.parameters(), lr=0.01)
    pruning.attach(optimizer)
    step(model, optimizer, 0)
    pruning.prune(INPUTS, 12)
    step(model, optimizer, 1)
    buffer = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), pruning.state_dict()), buffer)

    def rest(model, optimizer, pruning):
        step(model, optimizer, 2)
        pruning.prune(INPUTS, 7)
        step(model, optimizer, 3)
        return pruning.finish()

    first = rest(model, optimizer, pruning)
    again, resumed = begin()
    buffer.seek(0)
    states = torch.load(buffer, weights_only=True)
    resumed.load_state_dict(states[2])
    again.load_state_dict(states[0])
    other = Adam(again.parameters(), lr=0.01)
    resumed.attach(other)
    other.load_state_dict(states[1])
    assert rest(again, other, resumed).to_dict() == first.to_dict()
    for mine, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_state_loaded_before_attach_is_given_on():
    model = mlp()
    first = method(model).attach(SGD(model.parameters(), lr=0.1))
    model(INPUTS[0])
    state = first.state_dict()
    second = method(mlp())
    second.load_state_dict(state)
    again = second.state_dict()
    assert all(torch.equal(again["noise"][key], value) for key, value in state["noise"].items())


def test_a_state_of_other_layers_is_refused():
    first = method(mlp(), noise=None, exclude="0")
    first.prune(INPUTS, 3)
    model = mlp()
    with pytest.raises(InputError, match=r"state is of layers 2, and here 0, 2 can .* exclude="):
        method(model, noise=None).load_state_dict(first.state_dict())
    assert model[2].out_features == 16


# ----------------------------------------------------------------------------------------- bad input


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(16, 2)

    def forward(self, x, z):
        return self.c(torch.cat([self.a(x).tanh(), self.b(z).tanh()], 1))


def test_batches_of_a_model_with_two_inputs():
    model = Pair()
    one, two = INPUTS[:2]
    pruning = NoiseOut(model, (one[:2], two[:2]), noise=None)
    wanted = pruning.correlation([{"x": one, "z": two}])
    for given in ((one, two), [one, two, torch.zeros(32)], ((one, two), torch.zeros(32))):
        assert pruning.correlation([given]) == wanted
    with pytest.raises(InputError, match="2 inputs, and a batch 1"):
        pruning.prune([one], 3)


def test_batches_of_a_loader_are_pairs():
    data = torch.utils.data.TensorDataset(torch.cat(INPUTS), torch.zeros(128))
    model = mlp()
    found = method(model, noise=None).correlation(torch.utils.data.DataLoader(data, 50))
    assert found == pytest.approx(method(model, noise=None).correlation([torch.cat(INPUTS)]))


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_too_few_examples_are_refused(rows):
    model = mlp()
    with pytest.raises(InputError, match=rf"layer '2', which reads the 32 neurons of '0', saw {rows} rows .* need 3"):
        method(model, noise=None).prune([INPUTS[0][:rows]], 6)
    assert model[0].out_features == 32


def test_numbers_of_other_kinds():
    model = mlp()
    method(model, noise=None).prune(INPUTS, np.int64(3))
    method(model, noise=None).prune(INPUTS, {"0": np.int32(2)})
    method(model, noise=None).prune(INPUTS, parameters=np.int64(500))
    assert sum(parameter.numel() for parameter in model.parameters()) <= 500


class Convolutional(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_head_that_cannot_be_widened_is_named():
    model, x = Convolutional(), torch.randn(1, 1, 8, 8)
    with pytest.raises(InputError, match="head '2' is Conv2d, which cannot be widened"):
        NoiseOut(model, x)
    assert NoiseOut(model, x, noise=None).neurons == {"0": 4}
    with pytest.raises(InputError, match="head='1' is no layer"):
        NoiseOut(mlp(), INPUTS[0], head="1")


def test_a_layer_keeps_one_neuron():
    model = mlp()
    pruning = method(model, noise=None)
    with pytest.raises(InputError, match=r"neurons\['2'\] .* of the layer's 16, of which it keeps one: from 0 to 15"):
        pruning.prune(INPUTS, {"2": 16})
    with pytest.raises(InputError, match="from 0 to 46, got 47"):
        pruning.prune(INPUTS, 47)
    with pytest.raises(TargetError, match=r"23 parameters are left .* 20 cannot be reached"):
        pruning.prune(INPUTS, parameters=20)
    pruning.prune(INPUTS, 46)
    assert (model[0].out_features, model[2].out_features) == (1, 1)
    with pytest.raises(InputError, match="from 0 to 0"):
        pruning.prune(INPUTS, 1)


def test_unsupported_layers_are_named():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attend(x, x, x, need_weights=False)[0]

    with pytest.raises(InputError, match=r"Attention has no layer that can lose neurons \(attend"):
        NoiseOut(Attention(), torch.randn(1, 3, 8), noise=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": 0}, "outputs is a whole number"),
        ({"strength": 0.0}, "strength must be greater than 0"),
        ({"strength": "big"}, "strength must be greater than 0"),
        ({"noise": "gaussian"}, r"noise is an object .*Gaussian\(\), or None, got 'gaussian'"),
        ({"noise": Gaussian}, r"noise is an object .* got <class"),
        ({"by": "luck"}, "by must be one of correlation, error"),
        ({"exclude": "5.*"}, "exclude='5.*' matches no layer .* 0, 2"),
        ({"exclude": ["0", "2"]}, "Sequential has no layer that can lose neurons"),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        method(mlp(), **options)


def test_noise_that_cannot_be():
    for make in (
        lambda: Gaussian(std=-1),
        lambda: Binomial(p=2),
        lambda: Binomial(0),
        lambda: Binomial(1.5),
        lambda: Constant(float("nan")),
    ):
        with pytest.raises(InputError, match="noise needs"):
            make()


def test_calls_that_cannot_be():
    model = mlp()
    pruning = method(model)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="one target"):
        pruning.prune(INPUTS)
    with pytest.raises(InputError, match="looks at data"):
        pruning.prune([], 3)
    with pytest.raises(StateError, match="'0' has activations that are NaN"):
        pruning.prune([torch.full((2, 12), torch.nan)], 3)
    with pytest.raises(StateError, match=r"outside torch\.inference_mode"), torch.inference_mode():
        pruning.prune(INPUTS, 3)
    with pytest.raises(InputError, match=r"no layer '7' .* 0, 2"):
        pruning.prune(INPUTS, {"7": 1})
    with pytest.raises(InputError, match="one budget"):
        pruning.run(print, INPUTS, neurons=3, tolerance=0.1)
    with pytest.raises(InputError, match="not a generator"):
        pruning.run(print, iter(INPUTS), neurons=3)
    with pytest.raises(InputError, match="needs score="):
        pruning.run(print, INPUTS, tolerance=0.1)
    with pytest.raises(StateError, match="score returned nan"):
        pruning.run(print, INPUTS, lambda net: float("nan"), tolerance=0.1)
    with pytest.raises(InputError, match="head '4' is in none of the optimisers"):
        pruning.attach(SGD(model[:2].parameters(), lr=0.1))
    pruning.attach(optimizer)
    with pytest.raises(StateError, match="attached already"):
        pruning.attach(optimizer)
    with pytest.raises(InputError, match="not the state of NoiseOut"):
        pruning.load_state_dict({})
    for wrapped in (
        nn.DataParallel(model),
        torch.compile(nn.DataParallel(model), backend="eager"),
        AveragedModel(nn.DataParallel(model)),
    ):
        with pytest.raises(InputError, match=r"DataParallel spreads .* wrap the smaller model"):
            NoiseOut(wrapped, INPUTS[0])

"""Noise outputs: gradients are as derived, and nothing of them is left in the model, its copies, or the loss."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam

from noisy import INPUTS, batch, method, mlp, step
from shrinkage.core.errors import StateError
from shrinkage.noiseout.method import NoiseOut
from shrinkage.noiseout.noise import Binomial, Constant, Gaussian


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

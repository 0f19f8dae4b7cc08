"""Derivatives of a loss by units: they are what backward gives, and the model does not notice."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from nets import CNN, batch, images
from shrinkage import NM, Block, InputError, Row, Weight
from shrinkage.core.options import Options
from shrinkage.core.plan import Plan
from shrinkage.core.sensitivity import mean_over_batches, random_state_kept, undisturbed, unit_sums


def gradients(model, batches, loss=functional.cross_entropy):
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return mean_over_batches("SNIP", model, batches, loss, lambda value: torch.autograd.grad(value, weights))


def dropping():
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 4))


def test_the_mean_is_what_backward_accumulates():
    torch.manual_seed(0)
    model = CNN()
    twin = copy.deepcopy(model)
    batches = [images(0), images(1), images(2)]
    for x, y in batches:
        (functional.cross_entropy(twin(x), y) / 3).backward()
    for found, parameter in zip(gradients(model, batches), twin.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-6)


def test_nothing_of_the_model_moves():
    torch.manual_seed(0)
    model = dropping()
    functional.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    before, grads = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    first = gradients(model, [batch(1)])
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), grads, strict=True))
    again = gradients(model, [batch(1)])  # dropout drops the same
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_the_model_runs_in_the_mode_it_is_in():
    torch.manual_seed(0)
    model = dropping()
    training = gradients(model, [batch(0)])
    evaluating = gradients(model.eval(), [batch(0)])
    assert not torch.equal(training[0], evaluating[0])
    assert not model.training


def test_batch_statistics_are_those_of_the_batch_but_are_not_remembered():
    norm = nn.BatchNorm1d(3, affine=False)
    with undisturbed(norm) as run:
        assert run(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])).abs().amax() == pytest.approx(1, abs=1e-3)
    assert norm.num_batches_tracked == 0


def test_under_no_grad_and_in_half_precision():
    torch.manual_seed(0)
    model = nn.Linear(12, 4).bfloat16()
    with torch.no_grad():
        found = gradients(model, [(batch(0)[0].bfloat16(), batch(0)[1])])
    assert found[0].dtype == torch.float32
    assert found[0].any()


def test_recurrent_layers_keep_their_flat_weights():
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, batch_first=True)
    x = torch.randn(2, 5, 3)
    found = gradients(model, [(x, None)], lambda output, _: output[0].square().mean())
    model(x)[0].square().mean().backward()
    for one, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)


def test_a_shuffling_loader_draws_no_random_numbers_from_the_user():
    loader = DataLoader(TensorDataset(*batch(0)), batch_size=8, shuffle=True)
    model = nn.Linear(12, 4)
    state = torch.get_rng_state()
    with random_state_kept(model):
        assert gradients(model, loader)[0].any()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"SNIP looks at data: pass pairs \(x, y\), such as prune\(model, \[\(x, y\)\]\)"),
        (batch(0), r"pairs \(x, y\), got Tensor: pass a list of them, such as \[\(x, y\)\]"),
        ([(1, 2, 3)], "got tuple"),
    ],
)
def test_batches_that_are_none_are_refused_with_what_would_do(batches, message):
    with pytest.raises(InputError, match=message):
        gradients(nn.Linear(12, 4), batches)


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda output, y: functional.cross_entropy(output, y, reduction="none"), r"got shape \(32,\)"),
        (lambda output, y: output.sum().item(), "got float"),
        (lambda output, y: output.sum().detach(), r"a differentiable scalar of loss\(model\(x\), y\), got shape \(\)"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss, got):
    with pytest.raises(InputError, match=got):
        gradients(nn.Linear(12, 4), [batch(0)], loss)


@pytest.mark.parametrize("cut", [Weight(), Row(), Block(3, 5), NM(2, 4)], ids=repr)
@pytest.mark.parametrize(
    "layer", [nn.Linear(8, 6), nn.Conv2d(8, 6, 3), nn.ConvTranspose2d(6, 8, 2), nn.Conv1d(4, 2, 1)], ids=str
)
def test_unit_sums_by_brute_force(cut, layer):
    """Signs count: every unit's sum is found by spreading a mark over that unit alone."""
    if isinstance(cut, NM) and isinstance(layer, nn.ConvTranspose2d):
        layer = nn.ConvTranspose2d(8, 6, 2)
    plan = Plan(layer, None, Options(granularity=cut))
    tensor = torch.randn(layer.weight.shape, dtype=torch.float64)
    (sums,) = unit_sums(plan, [tensor])
    assert sums.shape == plan.shapes["weight"]
    assert (sums < 0).any()
    for place in range(0, sums.numel(), max(1, sums.numel() // 10)):
        mark = torch.zeros(sums.numel(), dtype=torch.float64)
        mark[place] = 1
        (mask,) = plan.spread([mark.view(sums.shape)], {"weight": layer.weight}).values()
        assert sums.flatten()[place].item() == pytest.approx(tensor[mask == 1].sum().item())

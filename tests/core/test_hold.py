"""Zeros stay +0.0 whatever steps over them, and everything else trains as if they were not there."""

import copy
import warnings
from functools import partial

import pytest
import torch
from torch import nn, optim
from torch.nn import functional

import shrinkage
from nets import CNN, MLP, RAMP, batch, fit, images, pruned_signs, start
from shrinkage import HALO, InputError, StateError, keep_zeros


class Drifting(optim.Optimizer):
    """A user's own: pushes every weight, whatever its gradient, and has no learning rate."""

    def __init__(self, params):
        super().__init__(params, {"drift": 1e-3})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(0.05 * parameter.grad + group["drift"])


class Noisy(optim.SGD):
    """A subclass of a known one that does more."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            parameter.add_(1e-3)


OPTIMIZERS = {
    "SGD": partial(optim.SGD, lr=0.1),
    "momentum": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2, dampening=0.1),
    "nesterov": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "huge decay": partial(optim.SGD, lr=0.5, weight_decay=3.0),
    "SGD foreach": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2, foreach=True),
    "SGD fused": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2, fused=True),
    "maximize": partial(optim.SGD, lr=1e-3, momentum=0.9, maximize=True),
    "Adam": partial(optim.Adam, lr=0.01, weight_decay=1e-2),
    "AdamW": partial(optim.AdamW, lr=0.01, amsgrad=True),
    "AdamW foreach": partial(optim.AdamW, lr=0.01, foreach=True),
    "AdamW fused": partial(optim.AdamW, lr=0.01, fused=True, weight_decay=0.1),
    "NAdam": partial(optim.NAdam, lr=0.01, weight_decay=1e-2),
    "RAdam": partial(optim.RAdam, lr=0.01),
    "Adamax": partial(optim.Adamax, lr=0.01),
    "RMSprop": partial(optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
    "Adagrad": partial(optim.Adagrad, lr=0.1, initial_accumulator_value=0.1),
    "Adadelta": partial(optim.Adadelta, lr=1.0),
    "ASGD": partial(optim.ASGD, lr=0.1),
    "Rprop": partial(optim.Rprop, lr=0.01),
    "tensor rate": lambda p: optim.AdamW(p, lr=torch.tensor(0.01), capturable=False),
    "own": Drifting,
    "own subclass": Noisy,
}


def begin(optimizer, model=MLP, steps=40, **options):
    torch.manual_seed(0)
    model = model()
    optimizer = optimizer(model.parameters())
    return model, optimizer, HALO(model, 0.9, steps, **RAMP, **options).attach(optimizer)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_zeros_hold_at_every_step(kind):
    model, optimizer, halo = begin(OPTIMIZERS[kind])
    fit(model, optimizer, range(30))
    assert halo.phase == "holding"
    before = model[0].weight.detach().clone()
    signs = []
    fit(model, optimizer, range(30, 45), after=lambda: signs.append(pruned_signs(model, halo)))
    assert set(signs) == {(0, 0)}
    assert halo.finalize().zeros == round(0.9 * halo.units)
    assert not torch.equal(before, model[0].weight)


def test_muon_and_lbfgs_which_mix_coordinates():
    class Bare(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(12, 32, bias=False), nn.ReLU(), nn.Linear(32, 4, bias=False))

    for build in (partial(optim.Muon, lr=0.01), partial(optim.LBFGS, lr=0.1, max_iter=3)):
        model, optimizer, halo = begin(build, Bare)
        signs = []

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            x, y = batch(0)
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        for step in range(45):
            optimizer.step(closure)
            if step >= 30:
                signs.append(pruned_signs(model, halo))
        assert set(signs) == {(0, 0)}
        assert halo.finalize().zeros == round(0.9 * halo.units)


def test_accumulation_and_clipping():
    model, optimizer, halo = begin(OPTIMIZERS["momentum"])
    for step in range(45):
        optimizer.zero_grad()
        for micro in range(3):
            x, y = batch(3 * step + micro)
            (functional.cross_entropy(model(x), y) / 3).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    assert halo.step == 45
    assert pruned_signs(model, halo) == (0, 0)
    assert halo.finalize().zeros == round(0.9 * halo.units)


def test_bf16_autocast():
    model, optimizer, halo = begin(OPTIMIZERS["AdamW"], CNN)
    for step in range(45):
        x, y = images(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert pruned_signs(model, halo) == (0, 0)
    assert halo.finalize().zeros == round(0.9 * halo.units)


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler(fused):
    """Overflows come and go, also on pruned weights; a skipped step does not count."""
    model, optimizer, halo = begin(partial(optim.AdamW, lr=0.01, fused=fused))
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=5)
    overflows = {5, 29, 30, 31, 37}
    for step in range(50):
        x, y = batch(step)
        optimizer.zero_grad()
        scaler.scale(functional.cross_entropy(model(x), y)).backward()
        if step in overflows:
            model[0].weight.grad.fill_(torch.inf)
        scaler.step(optimizer)
        scaler.update()
        if halo.phase == "holding":
            assert pruned_signs(model, halo) == (0, 0)
    assert halo.step == 45
    assert halo.finalize().zeros == round(0.9 * halo.units)


def test_nan_gradients_of_pruned_weights_do_no_harm():
    """Only the holder keeps a NaN of a pruned place from the weight: multiplying by a mask would not."""
    model, optimizer, halo = begin(OPTIMIZERS["AdamW"])
    fit(model, optimizer, range(30))
    pruned = ~halo.masks()["0.weight"]
    x, y = batch(31)
    functional.cross_entropy(model(x), y).backward()
    model[0].weight.grad[pruned] = torch.nan
    optimizer.step()
    assert pruned_signs(model, halo) == (0, 0)
    assert torch.isfinite(model[0].weight).all()


@pytest.mark.parametrize("kind", ["momentum", "AdamW", "own subclass"])
def test_an_old_optimizer_state_does_not_revive_weights(kind):
    """A state of before the fix holds momentum for weights that are pruned since."""
    model, optimizer, halo = begin(OPTIMIZERS[kind])
    fit(model, optimizer, range(20))
    old = copy.deepcopy(optimizer.state_dict())
    fit(model, optimizer, range(20, 35))
    optimizer.load_state_dict(old)
    signs = []
    fit(model, optimizer, range(35, 45), after=lambda: signs.append(pruned_signs(model, halo)))
    assert set(signs) == {(0, 0)}


def test_optimizer_state_of_pruned_weights_is_zero_after_finalize():
    model, optimizer, halo = begin(OPTIMIZERS["AdamW"])
    fit(model, optimizer, range(40))
    halo.finalize()
    for name, mask in halo.masks().items():
        for value in optimizer.state[model.get_parameter(name)].values():
            if value.shape == mask.shape:
                assert not value[~mask].any()
                assert value[mask].any()


def test_survivors_train_as_with_a_plain_mask():
    """Holding is what multiplying gradients and weights by the mask would give."""
    model, optimizer, halo = begin(OPTIMIZERS["momentum"])
    fit(model, optimizer, range(30))
    plain = copy.deepcopy(model)
    masked = OPTIMIZERS["momentum"](plain.parameters())
    masked.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    masks = halo.masks()

    def clean():
        with torch.no_grad():
            for name, mask in masks.items():
                plain.get_parameter(name).mul_(mask)

    for step in range(30, 45):
        x, y = batch(step)
        masked.zero_grad()
        functional.cross_entropy(plain(x), y).backward()
        for name, mask in masks.items():
            plain.get_parameter(name).grad.mul_(mask)
        masked.step()
        clean()
    fit(model, optimizer, range(30, 45))
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_zero_grad_and_missing_gradients():
    model, optimizer, halo = begin(OPTIMIZERS["AdamW"])
    fit(model, optimizer, range(35))
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert pruned_signs(model, halo) == (0, 0)


# ---- keep_zeros ---------------------------------------------------------------------------------


def sparse():
    torch.manual_seed(0)
    model = MLP()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(torch.rand_like(layer.weight) < 0.3)  # leaves −0.0 as well
    return model


def total_zeros(model):
    return sum(int((p == 0).sum()) for p in model.parameters())


@pytest.mark.parametrize("kind", ["momentum", "AdamW", "own"])
def test_keep_zeros_through_later_training(kind):
    model = sparse()
    before = total_zeros(model)
    optimizer = OPTIMIZERS[kind](model.parameters())
    kept = keep_zeros(model).attach(optimizer)
    fit(model, optimizer, range(10))
    assert total_zeros(model) == before
    assert pruned_signs(model, kept) == (0, 0)
    assert set(kept.masks()) == {"0.weight", "2.weight"}  # the head is dense
    with pytest.raises(StateError, match="kept already"):
        kept.attach(optimizer)
    kept.detach()
    kept.detach()
    fit(model, optimizer, range(10))
    assert total_zeros(model) < before


def test_keep_zeros_needs_zeros_and_an_optimiser_of_theirs():
    with pytest.raises(InputError, match="no selected weight is zero"):
        keep_zeros(MLP())
    with pytest.raises(InputError, match="no selected weight is zero"):
        keep_zeros(sparse(), exclude=["0.*", "2.*"])
    with pytest.raises(InputError, match="none of these optimisers holds a sparse weight"):
        keep_zeros(sparse()).attach(optim.SGD(MLP().parameters(), lr=0.1))
    with pytest.raises(InputError, match="takes torch optimisers, got list"):
        keep_zeros(sparse()).attach([])


def test_keep_zeros_of_a_finished_run_in_a_new_process():
    model, optimizer, halo = start()
    fit(model, optimizer, range(40))
    zeros = halo.finalize().zeros
    again = MLP()
    again.load_state_dict(model.state_dict())
    optimizer = OPTIMIZERS["AdamW"](again.parameters())
    keep_zeros(again).attach(optimizer)
    fit(again, optimizer, range(10))
    assert sum(int((again.get_parameter(name) == 0).sum()) for name in halo.masks()) == zeros


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, optimizer, halo = start(shrinkage.Lasso, optimizer=optim.Adam, lr=0.01)
        fit(model, optimizer, range(50))
        halo.finalize()


@pytest.mark.parametrize("optimizer", [optim.Adam, optim.RMSprop, optim.Adagrad])
def test_zeros_stay_where_the_optimiser_would_divide_zero_by_zero(optimizer):
    torch.manual_seed(0)
    layer = nn.Linear(20, 10, bias=False)
    stepper = optimizer(layer.parameters(), lr=1e-3, eps=0.0)
    method = shrinkage.GradualMagnitude(layer, 0.9, 40).attach(stepper)
    for _ in range(45):
        layer.weight.grad = torch.randn(10, 20)
        stepper.step()
    assert method.finalize().zeros == 180
    assert bool(layer.weight.isfinite().all())

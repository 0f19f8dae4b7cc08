"""What cannot work is said where it is asked for: with the value seen, and what would help."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam

from nets import CNN, MLP, RAMP, Transformer, batch, fit, images, start
from shrinkage import HALO, MCP, NM, Block, Bridge, InputError, Lasso, Row, StateError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0}, "share of zeros, between 0 and 1.*got 0$"),
        ({"sparsity": 1}, "got 1$"),
        ({"sparsity": -0.1}, "got -0.1$"),
        ({"sparsity": 95}, r"0\.95 for 95 %\), got 95$"),
        ({"sparsity": math.nan}, "got nan$"),
        ({"sparsity": True}, "got True$"),
        ({"sparsity": "0.9"}, "got '0.9'$"),
        ({"steps": 0}, "positive whole number of optimiser steps, got 0"),
        ({"steps": -3}, "got -3"),
        ({"steps": 40.0}, "got 40.0"),
        ({"steps": "40"}, "got '40'"),
        ({"steps": None}, "needs steps="),
        ({"steps": 10, "start": 0.91, "end": 0.99}, None),
        ({"steps": 3, "start": 0.99, "end": 0.999}, None),
        ({"start": 0.9, "end": 0.7}, "start=0.9, end=0.7"),
        ({"ramp": "quadratic"}, "cubic, linear, one-shot or a callable, got 'quadratic'"),
        ({"floor": 2.0}, r"floor must lie in \[0, 1\], got 2.0"),
        ({"sparsity": 0.999}, "floor=0.05 keeps 3 units in 3 tensors, more than the 1 that sparsity 0.999 leaves"),
        ({"layer_sparsity": {"conv.*": 0.5}}, r"pattern 'conv\.\*' matches no selected weight; the nearest"),
        ({"layer_sparsity": {"0.*": 1.0}}, r"layer_sparsity\['0\.\*'\]"),
        ({"include": "encoder.*"}, r"'encoder\.\*' matches no parameter; the nearest name is"),
        ({"exclude": nn.Conv2d}, "the type Conv2d matches no parameter"),
        ({"granularity": NM(2, 4)}, r"2:4 fixes the sparsity at 0.5; leave sparsity out, or ask for that \(got 0.9\)"),
        ({"granularity": NM(3, 5), "sparsity": None}, "'0.weight' has 12 input channels.*groups of 5.*exclude="),
        ({"granularity": Block(2, 2), "biases": True}, r"'0.bias' of shape \(32,\) is a vector"),
        ({"sparsty": 0.9}, "no argument 'sparsty'; the nearest is 'sparsity'"),
        ({"Granularity": Row()}, "the nearest is 'granularity'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", [HALO, Lasso, MCP, Bridge])
def test_arguments(method, options, message):
    arguments = {"sparsity": 0.9, "steps": 40} | options
    if message is None:
        method(MLP(), **arguments)  # narrow, and possible
        return
    with pytest.raises(InputError, match=message):
        method(MLP(), **arguments)


def test_layer_shares_need_a_target():
    with pytest.raises(InputError, match="layer_sparsity refines sparsity=, which was not given"):
        HALO(MLP(), xi=1e-3, psi=1e-3, layer_sparsity={"0.*": 0.5})


@pytest.mark.parametrize("method", [HALO, Lasso, MCP, Bridge])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_diverge_are_named_with_the_step(method, bad):
    """At the next proximal step, not at the end of the training."""
    model, optimizer, _ = start(method)
    fit(model, optimizer, range(7))
    optimizer.zero_grad()
    model[2].weight.grad = torch.full_like(model[2].weight, bad)
    message = r"'2\.weight' holds NaN or infinite weights at step 8: .*lower the learning rate"
    with pytest.raises(StateError, match=message):
        optimizer.step()


def test_weights_that_diverge_are_named_by_finalize_and_by_attach():
    model, optimizer, halo = start(xi=1e-4, psi=1e-4, sparsity=None, steps=None)
    fit(model, optimizer, range(3))
    with torch.no_grad():
        model[4].weight[0, 0] = math.nan
    with pytest.raises(StateError, match=r"'4\.weight' holds NaN or infinite weights at step 3"):
        halo.finalize()
    with pytest.raises(StateError, match=r"'4\.weight' holds NaN or infinite weights at step 0"):
        HALO(model, 0.9, 40).attach(optimizer)


def test_a_network_of_zeros_cannot_be_steered():
    model = MLP()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(StateError, match="every selected weight is zero"):
        HALO(model, 0.9, 40).attach(SGD(model.parameters(), lr=0.1))


def test_survivors_that_are_zero_by_themselves_are_an_error_that_says_so():
    """A dead layer, most of the network: fewer units can live than the target keeps."""

    class Dead(MLP):
        def __init__(self):
            super().__init__()
            nn.init.zeros_(self[0].weight)
            nn.init.zeros_(self[2].weight)
            nn.init.constant_(self[2].bias, -1.0)  # no signal and no gradient pass

    model, optimizer, halo = start(model=Dead, sparsity=0.5)
    fit(model, optimizer, range(40))
    with pytest.raises(StateError, match=r"units are zero where 480 were asked for.*by themselves"):
        halo.finalize()


@pytest.mark.parametrize("steps", [3, 35])
def test_a_loss_that_is_nan_is_reported_by_the_step_of_its_closure(steps):
    model, optimizer, _ = start()
    fit(model, optimizer, range(steps))
    before = [p.detach().clone() for p in model.parameters()]

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(batch(0)[0]) * math.nan, batch(0)[1])
        loss.backward()
        return loss

    with pytest.raises(StateError, match=f"the loss is nan at step {steps}"):
        optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_something_else_writes_to_pruned_weights():
    model, optimizer, halo = start()
    fit(model, optimizer, range(40))
    halo.finalize()
    with torch.no_grad():
        model[0].weight.add_(1)
    optimizer.step()
    assert halo.zeros < round(0.9 * halo.units)  # seen by whoever looks
    assert halo.finalize().zeros == round(0.9 * halo.units)  # and mended


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: HALO(CNN(), 0.9, 40), r"another model: 'stem\.weight' has units of shape none there"),
        (lambda: HALO(MLP(), 0.9, 40, exclude="4.*"), r"another model: '4\.weight' has .*none here"),
        (lambda: HALO(MLP(), 0.9, 40, granularity=Row()), r"another model: '0\.weight' .*\[32, 12\] there and \[32\]"),
        (lambda: HALO(MLP(), 0.8, 40, **RAMP), "taken with zeros=.*build the method with the same arguments"),
        (lambda: HALO(MLP(), 0.9, 50, **RAMP), "taken with steps=40, but here steps=50"),
        (lambda: HALO(MLP(), 0.9, 40, start=0.05, end=0.5), "taken with end=0.75, but here end=0.5"),
        (lambda: HALO(MLP(), 0.9, 40, ramp="linear", **RAMP), "taken with ramp=cubic, but here ramp=linear"),
        (lambda: HALO(MLP(), 0.9, 40, xi=1e-3, **RAMP), "taken with solver=.*but here solver="),
        (lambda: HALO(MLP(), xi=1e-3), "taken with "),
        (lambda: Lasso(MLP(), 0.9, 40), "this is the state of HALO, not of Lasso"),
    ],
)
def test_states_of_something_else(other, message):
    model, optimizer, halo = start()
    fit(model, optimizer, range(3))
    other = other()
    with pytest.raises(InputError, match=message):
        other.load_state_dict(halo.state_dict())
    assert other.step == 0


def test_states_of_another_kind():
    halo = HALO(MLP(), 0.9, 40)
    foreign = [MLP().state_dict(), SGD(MLP().parameters(), lr=0.1).state_dict()]
    for wrong in ({}, *foreign, halo.state_dict() | {"format": 99}):
        with pytest.raises(InputError, match="not the state of a sparsifier of this version"):
            halo.load_state_dict(wrong)


def test_wrong_moments():
    model = MLP()
    halo = HALO(model, 0.9, 40)
    for call in (halo.finalize, halo.penalty):
        with pytest.raises(StateError, match=r"attached to an optimiser first: HALO\.attach\(\)"):
            call()
    halo.attach(SGD(model.parameters(), lr=0.1))
    with pytest.raises(StateError, match=r"HALO is attached already; call detach\(\) first"):
        halo.attach(SGD(model.parameters(), lr=0.1))
    with pytest.raises(StateError, match=r"not fixed its pattern yet \(step 0, shrinking\)"):
        halo.masks()
    with pytest.raises(StateError, match="not fixed its pattern yet"):
        halo.apply_to(model)


def test_a_language_models_tied_head_is_an_embedding():
    model = Transformer()
    model.head = nn.Linear(16, 10, bias=False)
    model.head.weight = model.embed.weight
    halo = HALO(model, 0.9, 40).attach(Adam(model.parameters()))
    assert "head.weight" not in halo.measure()
    fit(model, halo._clock, range(40), lambda step: (torch.randint(10, (8, 6)), torch.randint(10, (8,))))
    halo.finalize()
    assert (model.embed.weight != 0).all()


def test_all_weights_frozen():
    with pytest.raises(InputError, match="nothing to select in CNN: no trainable weight"):
        HALO(CNN().requires_grad_(False), 0.9, 40)
    model = CNN()
    model.stem.requires_grad_(False)
    before = model.stem.weight.detach().clone()
    optimizer = SGD(model.parameters(), lr=0.1)
    halo = HALO(model, 0.9, 40).attach(optimizer)
    fit(model, optimizer, range(40), images)
    halo.finalize()
    assert torch.equal(model.stem.weight, before)


@pytest.mark.parametrize("own", [{"budget": 5.0}, {"squared": True}, {"layerwise": True}, {"lam_lr": 7.0}])
def test_arguments_of_fixed_strengths_are_refused_beside_a_target(own):
    (name,) = own
    with pytest.raises(InputError, match=rf"{name}=.* belongs to fixed strengths"):
        HALO(MLP(), 0.9, 40, **own)


@pytest.mark.parametrize("option", [{"ramp": "linear"}, {"start": 0.5}, {"floor": 0.3}, {"distribution": "erk"}])
def test_options_of_a_target_are_refused_without_one(option):
    (name,) = option
    with pytest.raises(InputError, match=f"{name}= refines a target"):
        HALO(MLP(), xi=1e-4, **option)

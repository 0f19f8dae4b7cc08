"""The paper's preset: its two optimisers, and the quirks of its schedules."""

import pytest
import torch
from torch import nn

import shrinkage
from nets import CNN, MLP, fit, images
from shrinkage import InputError


def rates(run):
    return run.optimizer.param_groups[0]["lr"], run.halo.lam_optimizer.param_groups[0]["lr"]


def step_on(run, steps):
    run.optimizer.step()
    for _ in range(steps):
        run.scheduler.step()


def test_cifar_drops_the_rates_at_80_and_120_epochs_with_the_quirk():
    run = shrinkage.faithful(CNN(), "cifar", steps_per_epoch=2)
    seen = {}
    run.optimizer.step()
    for step in range(320):
        seen.setdefault(rates(run), step // 2)
        run.optimizer.step()
        run.scheduler.step()
    torch.testing.assert_close(
        torch.tensor([[*rate, epoch] for rate, epoch in seen.items()]),
        torch.tensor([[0.1, 0.1, 0], [0.01, 0.001, 80], [0.0001, 0.00001, 120]]),
    )


def test_mnist_drops_the_weights_rate_every_25000_steps_and_leaves_lam():
    run = shrinkage.faithful(MLP(), "mnist", steps_per_epoch=600)
    step_on(run, 24_999)
    assert rates(run) == (0.1, 0.1)
    run.scheduler.step()
    assert rates(run) == (pytest.approx(0.001), 0.1)


def test_settings_of_the_paper():
    run = shrinkage.faithful(CNN(), "cifar", steps_per_epoch=10)
    assert list(run.halo.measure()) == ["stem.weight", "inner.weight", "down.weight"]
    for optimizer in (run.optimizer, run.halo.lam_optimizer):
        group = optimizer.param_groups[0]
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 1e-4)
    assert run.halo.strength == 1e-8
    assert all((lam == 1).all() for lam in run.halo.lam().values())
    mnist = shrinkage.faithful(MLP(), "mnist", steps_per_epoch=10)
    assert list(mnist.halo.measure()) == [f"{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]
    assert mnist.halo.lam_optimizer.param_groups[0]["weight_decay"] == 0


def test_training_then_the_cut_is_exact():
    run = shrinkage.faithful(CNN(), "cifar", steps_per_epoch=10, sparsity=0.95)
    fit(run.halo._model, run.optimizer, range(30), images, run.scheduler.step)
    assert run.halo.zeros == 0
    result = run.halo.finalize()
    assert result.zeros == round(0.95 * result.units)


def test_the_schedule_resumes():
    run = shrinkage.faithful(MLP(), "mnist", steps_per_epoch=10)
    step_on(run, 25_000)
    again = shrinkage.faithful(MLP(), "mnist", steps_per_epoch=10)
    again.optimizer.load_state_dict(run.optimizer.state_dict())
    again.halo.load_state_dict(run.halo.state_dict())
    again.scheduler.load_state_dict(run.scheduler.state_dict())
    assert rates(again) == rates(run)
    step_on(again, 1)
    assert rates(again) == (pytest.approx(0.001), 0.1)


def test_what_it_refuses():
    with pytest.raises(InputError, match="cifar, mnist, got 'imagenet'"):
        shrinkage.faithful(MLP(), "imagenet", steps_per_epoch=10)
    with pytest.raises(InputError, match="steps_per_epoch must be at least 1, got 0"):
        shrinkage.faithful(MLP(), "mnist", steps_per_epoch=0)
    with pytest.raises(InputError, match="works on Conv2d layers, and MLP has none"):
        shrinkage.faithful(MLP(), "cifar", steps_per_epoch=10)
    with pytest.raises(InputError, match="matches no parameter"):
        shrinkage.faithful(nn.Linear(2, 2), "mnist", steps_per_epoch=10, include="nowhere.*")

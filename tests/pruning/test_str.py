"""STR: thresholds that are trained, and a factor that makes the count exact."""

import pytest
import torch
from torch.autograd import gradcheck

from latent_reference import OPTIMIZERS, Passing, Reference, assert_same, slot_of, train
from nets import MLP, fit, start
from shrinkage import NM, InputError, Row, Weight
from shrinkage.core.latent import Choice
from shrinkage.pruning.thresholds import STR, SoftThreshold


class SlowSTR(Reference):
    def __init__(self, *args):
        super().__init__(*args)
        self.s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        self.c, self.pi = torch.zeros((), dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        self.moves_s = torch.optim.SGD([self.s], lr=0.1, momentum=0.9, weight_decay=0.01)

    def factors(self, sizes):
        g = self.s.sigmoid()
        c = self.c * torch.exp(-(self.pi * (g.log() - g.log().detach())).sum())  # how c follows to keep the count
        return [
            torch.where(kept, (1 - c * g[i] / size).clamp(min=0), 0)
            for i, (size, kept) in enumerate(zip(sizes, self.kept, strict=True))
        ]

    def relevel(self):
        self.moves_s.step()
        self.moves_s.zero_grad()
        ratios = [size / g for size, g in zip(self.sizes(), self.s.sigmoid(), strict=True)]
        limit = self.keep_highest(ratios)
        if limit is not None:
            near = torch.stack([((ratio - limit).abs() < 0.1 * limit).sum() for ratio in ratios]).double()
            self.c, self.pi = limit, near / near.sum()


@pytest.mark.parametrize("rows", [False, True], ids=["weights", "rows"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_is_autograd_through_the_thresholds(kind, rows):
    def method(model):
        cut = Row() if rows else Weight()
        return STR(model, 0.7, 25, floor=0.0, threshold_lr=0.1, threshold_weight_decay=0.01, granularity=cut)

    for steps in (12, 19, 20):
        slow = SlowSTR(OPTIMIZERS[kind], 25, 0.7, rows)
        found, fast = train(method, OPTIMIZERS[kind], steps)
        assert_same(found, slow.train(steps))
        logits = torch.stack(fast._solver.form.logits).detach()
        torch.testing.assert_close(logits, slow.s.detach(), rtol=1e-9, atol=1e-12)
        assert logits.unique().numel() == 3
    assert fast.phase == "holding"


@pytest.mark.parametrize("cut", [Weight(), Row()], ids=repr)
def test_gradient_of_the_threshold_operator(cut):
    theta = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    slot, form = slot_of(theta.detach().clone(), cut), SoftThreshold(0.1, 0.9, 0.0)
    form.start([slot])
    limit = float(slot.sizes().median()) * 2.2  # σ(0) = ½ of it is subtracted
    choice = Choice(slot.sizes() > limit / 2, None, limit)
    assert gradcheck(lambda t: Passing.apply(t, slot, form, choice, True), (theta,))


def test_what_is_left_is_soft_thresholded():
    model, optimizer, method = start(STR, threshold_lr=0.0, floor=0.0)
    fit(model, optimizer, range(20))
    latents = method.state_dict()["solver"]["latents"]
    sizes = torch.cat([latent.abs().flatten() for latent in latents])
    alpha = sizes.sort().values[method.zeros - 1]
    assert method.strength == pytest.approx(alpha.item())
    for name, latent in zip(method.measure(), latents, strict=True):
        wanted = latent.sign() * (latent.abs() - alpha).clamp(min=0)
        torch.testing.assert_close(model.get_parameter(name).detach(), wanted, rtol=1e-5, atol=1e-7)


def test_survivors_train_on_from_their_shrunk_values():
    model, optimizer, method = start(STR)
    fit(model, optimizer, range(30))
    assert method.phase == "holding"
    before = {name: model.get_parameter(name).detach().clone() for name in method.masks()}
    optimizer.param_groups[0]["lr"] = 0.0
    fit(model, optimizer, range(30, 31))
    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in before.items())
    assert method.state_dict()["solver"]["latents"] == []


def test_thresholds_do_not_all_fall_together():
    """Every layer would like a lower threshold; only how they compare is learned."""
    _, _, method = trained = start(STR, threshold_lr=1.0, steps=200)
    fit(*trained[:2], range(140))
    logits = torch.stack(method._solver.form.logits).detach()
    assert logits.max() > 0 > logits.min()


def test_a_layer_whose_weights_matter_gets_a_lower_threshold():
    """Every weight of the first tensor is pushed up, in the second nothing happens."""
    model = torch.nn.Sequential(torch.nn.Linear(20, 20, bias=False), torch.nn.Linear(20, 20, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    method = STR(model, 0.5, 100, threshold_lr=1.0).attach(optimizer)
    for _ in range(70):
        model[0].weight.grad, model[1].weight.grad = -model[0].weight.detach().sign(), torch.zeros(20, 20)
        optimizer.step()
    first, second = (float(logit.detach()) for logit in method._solver.form.logits)
    assert first < -0.1 < 0.1 < second
    zeros, _ = zip(*method.measure().values(), strict=True)
    assert zeros[0] < zeros[1]


def test_units_that_the_pattern_keeps_are_not_shrunk():
    """Two of four stay whatever their size; to shrink them would empty groups that are small all over."""
    model, optimizer, method = start(STR, granularity=NM(2, 4), sparsity=None)
    fit(model, optimizer, range(25))
    for name, latent in zip(method.measure(), method.state_dict()["solver"]["latents"], strict=True):
        weight, safe = model.get_parameter(name).detach(), ~NM(2, 4).removable(latent.abs(), 0)
        assert torch.equal(weight[safe], latent[safe])
        assert (weight[~safe].abs() < latent[~safe].abs()).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold_lr": -1.0}, "threshold_lr must be finite and at least 0, got -1.0"),
        ({"threshold_momentum": float("nan")}, "threshold_momentum.*got nan"),
        ({"threshold_weight_decay": float("inf")}, "threshold_weight_decay.*got inf"),
        ({"sparsity": None}, "STR needs a target: sparsity="),
        ({"steps": None}, "STR needs steps="),
        ({"sparsty": 0.9}, "STR has no argument 'sparsty'; the nearest is 'sparsity'"),
    ],
    ids=str,
)
def test_arguments_that_cannot_work(options, message):
    with pytest.raises(InputError, match=message):
        STR(MLP(), **{"sparsity": 0.9, "steps": 40} | options)

"""SoftTopK: the soft mask adds up, its gradient is autograd's, and it hardens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from latent_reference import OPTIMIZERS, Passing, Reference, assert_same, slot_of, train
from nets import MLP, fit, start
from shrinkage import NM, InputError, Row, Weight
from shrinkage.core.latent import Choice
from shrinkage.pruning.softtopk import Level, SoftMask, SoftTopK, balance


def middle(sizes, keep, temperature):
    """τ by plain bisection."""
    low, high = -1e3, 1e3
    for _ in range(200):
        at = (low + high) / 2
        low, high = (at, high) if ((sizes - at) / temperature).sigmoid().sum() > keep else (low, at)
    return (low + high) / 2


class SlowSoftTopK(Reference):
    temperature = 1.0

    def factors(self, sizes):
        """The soft mask, τ in the graph."""
        if not self.gone:
            return [torch.ones_like(size) for size in sizes]
        flat, keep = torch.cat([size.flatten() for size in sizes]), sum(size.numel() for size in sizes) - self.gone
        at = middle(flat.detach(), keep, self.temperature)
        soft = ((flat - at) / self.temperature).sigmoid()
        # One Newton step in the graph: no other value, but the derivative of τ.
        at = at + (soft.sum() - keep) / (soft * (1 - soft)).sum().detach() * self.temperature
        parts = ((flat - at) / self.temperature).sigmoid().split([size.numel() for size in sizes])
        return [part.view(size.shape) for part, size in zip(parts, sizes, strict=True)]

    def weights(self):
        """The cut is passed over: ∂w/∂θ is that of θ·m, whatever is kept."""
        soft = super().weights().items()
        hard = [kept[:, None] if self.rows else kept for kept in self.kept]
        return {name: w + (w * kept - w).detach() for (name, w), kept in zip(soft, hard, strict=True)}

    def relevel(self):
        sizes = self.sizes()
        self.keep_highest(sizes)
        mean_square = torch.cat([size.flatten() for size in sizes]).square().mean()
        sharpness = 2.0 + (8.0 - 2.0) * min(self.step / (0.8 * self.steps), 1.0)
        self.temperature = mean_square.sqrt() / sharpness


@pytest.mark.parametrize("rows", [False, True], ids=["weights", "rows"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_is_autograd_through_the_soft_mask(kind, rows):
    def method(model):
        cut = Row() if rows else Weight()
        return SoftTopK(model, 0.7, 25, floor=0.0, sharpness=(2.0, 8.0), granularity=cut)

    for steps in (12, 20):
        slow = SlowSoftTopK(OPTIMIZERS[kind], 25, 0.7, rows)
        found, fast = train(method, OPTIMIZERS[kind], steps)
        assert_same(found, slow.train(steps))
    assert fast.phase == "holding"


class Balanced(SoftMask):
    """Its τ follows whatever sizes it is shown, as it does over a step."""

    keep = 7

    def mask(self, index, size, choice):
        self._levels[0] = Level((0,), balance(size.detach(), self.keep, 0.3), 0.3)
        return super().mask(index, size, choice)


@pytest.mark.parametrize("cut", [Weight(), Row()], ids=repr)
def test_gradient_of_the_soft_mask_with_its_threshold_moving_along(cut):
    theta = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)
    slot, form = slot_of(theta.detach().clone(), cut), Balanced((1.0, 1.0))
    form.start([slot])
    choice = Choice(torch.ones(slot.unit_shape, dtype=torch.bool), None, -1.0)
    assert gradcheck(lambda t: Passing.apply(t, slot, form, choice, False), (theta,))


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 300), st.floats(0.01, 0.99), st.floats(1e-3, 10), st.integers(0, 99), st.floats(-1, 5))
def test_the_mask_adds_up_to_what_is_kept(count, share, temperature, seed, guess):
    sizes = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).abs()
    keep = min(max(round(share * count), 1), count - 1)
    at = balance(sizes, keep, temperature, guess)
    assert ((sizes - at) / temperature).sigmoid().sum().item() == pytest.approx(keep, abs=1e-9 * count)


def test_the_mask_hardens_over_the_training():
    """The weights that stay lose a part of their latent values at first, and next to nothing in the end."""
    model, optimizer, method = start(SoftTopK, steps=400, sharpness=(1.0, 100.0), floor=0.0)
    means = {}

    def look():
        if latents := method.state_dict()["solver"]["latents"]:
            weights = [model.get_parameter(name).detach() for name in method.measure()]
            left = torch.cat([(w / t)[w != 0] for w, t in zip(weights, latents, strict=True)])
            means[method.step] = left.mean().item()

    fit(model, optimizer, range(300), after=look)
    assert means[10] == 1.0  # nothing is masked yet
    assert means[40] < 0.97
    assert min(means[step] for step in range(290, 300)) > 0.99


def test_a_dropped_weight_hears_from_the_loss_and_comes_back():
    model = torch.nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 0.9, -0.8, 0.1]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    method = SoftTopK(model, 0.5, 100, start=0.0, ramp=lambda x: 1.0).attach(optimizer)
    patterns = []
    for _ in range(40):
        model.weight.grad = torch.tensor([[0.0, 0.0, 1.0, 0.0]])  # wanted further from zero
        optimizer.step()
        patterns.append((model.weight != 0)[0].tolist())
    assert patterns[0] == [True, True, False, False]
    assert patterns[-1] == [True, False, True, False]
    assert method.phase == "shrinking"


def test_units_that_the_pattern_keeps_are_not_masked():
    model, optimizer, method = start(SoftTopK, granularity=NM(2, 4), sparsity=None)
    fit(model, optimizer, range(25))
    for name, latent in zip(method.measure(), method.state_dict()["solver"]["latents"], strict=True):
        safe = ~NM(2, 4).removable(latent.abs(), 0)
        assert torch.equal(model.get_parameter(name).detach()[safe], latent[safe])
    fit(model, optimizer, range(25, 40))
    assert method.finalize().sparsity == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharpness": (0.0, 10.0)}, r"sharpness must be two finite numbers above 0, got \(0.0, 10.0\)"),
        ({"sharpness": (1.0, float("nan"))}, "got .*nan"),
        ({"sparsity": None}, "SoftTopK needs a target"),
        ({"steps": None}, "SoftTopK needs steps="),
        ({"end": 1.5}, "end=1.5"),
        ({"sharp": 1.0}, "no argument 'sharp'; the nearest is 'sharpness'"),
    ],
    ids=str,
)
def test_arguments_that_cannot_work(options, message):
    with pytest.raises(InputError, match=message):
        SoftTopK(MLP(), **{"sparsity": 0.9, "steps": 40} | options)

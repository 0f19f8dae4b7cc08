"""Movement pruning: scores add up what the loss wants of every weight, masked or not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from latent_reference import OPTIMIZERS, Reference, assert_same, train
from nets import MLP, fit, start
from shrinkage import InputError, Row, Weight
from shrinkage.core.latent import Choice
from shrinkage.core.slots import Slot
from shrinkage.pruning.movement import Masked, Movement, keys


class SlowMovement(Reference):
    def __init__(self, *args):
        super().__init__(*args)
        self.scores = [torch.zeros_like(size, requires_grad=True) for size in self.sizes()]
        self.moves_scores = torch.optim.SGD(self.scores, lr=1.0)

    def factors(self, sizes):
        """The mask in the forward pass, the score itself in the backward pass."""
        return [kept + (score - score.detach()) for kept, score in zip(self.kept, self.scores, strict=True)]

    def relevel(self):
        self.moves_scores.step()
        self.moves_scores.zero_grad()
        self.keep_highest(self.scores)


@pytest.mark.parametrize("rows", [False, True], ids=["weights", "rows"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_is_autograd_with_straight_through_scores(kind, rows):
    def method(model):
        return Movement(model, 0.7, 25, floor=0.0, granularity=Row() if rows else Weight())

    for steps in (12, 19):
        slow = SlowMovement(OPTIMIZERS[kind], 25, 0.7, rows)
        found, fast = train(method, OPTIMIZERS[kind], steps)
        assert_same(found, slow.train(steps))
        for score, wanted in zip(fast._solver.form.scores, slow.scores, strict=True):
            torch.testing.assert_close(score, wanted.detach(), rtol=1e-9, atol=1e-12)
    found, fast = train(method, OPTIMIZERS[kind], 20)
    assert_same(found, SlowMovement(OPTIMIZERS[kind], 25, 0.7, rows).train(20))
    assert fast.phase == "holding"


FLOATS = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=2, max_size=50)


@settings(deadline=None, max_examples=200)
@given(FLOATS, st.sampled_from([torch.float32, torch.float64]))
def test_keys_order_like_the_scores(values, dtype):
    scores = torch.tensor(values, dtype=dtype)
    found = keys(scores)
    assert (found >= 0).all()
    assert torch.isfinite(found).all()
    order = scores.argsort(stable=True)
    assert (found[order].diff() >= 0).all()
    apart = scores[order].diff() > 1e-6 * scores.abs().max() + torch.finfo(dtype).tiny  # more than a last bit
    assert (found[order].diff()[apart] > 0).all()
    assert torch.equal(keys(scores), keys(scores + 0.0))


def test_keys_of_zeros_and_of_scores_that_are_not_numbers():
    assert keys(torch.tensor(0.0)) == keys(torch.tensor(-0.0))
    assert (keys(torch.tensor([-1e-38, 0.0, 1e-38])).diff() > 0).all()
    assert not torch.isfinite(keys(torch.tensor([torch.nan, torch.inf]))).any()


def tiny(weights, gradients, steps=10, **options):
    """One row of weights under a constant gradient; returns the masks by step."""
    model = nn.Linear(len(weights), 1, bias=False)
    model.weight.data = torch.tensor([weights])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    method = Movement(model, 0.5, steps, **options).attach(optimizer)
    masks = []
    for step in range(steps):
        wanted = gradients(step) if callable(gradients) else gradients
        model.weight.grad = torch.tensor([wanted])
        optimizer.step()
        masks.append((model.weight != 0)[0].tolist())
    return masks, method


def test_small_weights_that_grow_stay_and_large_ones_that_shrink_go():
    masks, method = tiny([0.1, -0.1, 5.0, -5.0], [-1.0, 1.0, 1.0, -1.0])
    assert masks[-1] == [True, True, False, False]
    assert method.finalize().zeros == 2
    assert method._solver.form.scores == []  # their memory is free again


def test_a_masked_weight_collects_its_score_and_comes_back():
    def gradients(step):
        return [-1.0, -1.0, 1.0, 1.0] if step < 5 else [1.0, 1.0, -1.0, -1.0]

    masks, _ = tiny([1.0, 1.0, 1.0, 1.0], gradients, steps=30, start=0.0, ramp=lambda x: 1.0)
    assert masks[4] == [True, True, False, False]
    assert masks[20] == [False, False, True, True]


def test_a_masked_weight_itself_stands_still():
    model, optimizer, method = start(Movement)
    fit(model, optimizer, range(25))
    gone = {name: model.get_parameter(name).detach() == 0 for name in method.measure()}
    before = method.state_dict()["solver"]["latents"]
    fit(model, optimizer, range(25, 26))
    after = method.state_dict()["solver"]["latents"]
    for one, other, masked in zip(before, after, gone.values(), strict=True):
        assert torch.equal(one[masked], other[masked])
        assert not torch.equal(one[~masked], other[~masked])


def test_without_any_movement_the_smaller_weights_go():
    masks, _ = tiny([0.3, 0.1, -0.4, 0.2], [0.0, 0.0, 0.0, 0.0], floor=0.0)
    assert masks[-1] == [True, False, True, False]


def test_all_tensors_are_ranked_in_one_order_whatever_the_sign_of_their_scores():
    """Between a tensor whose scores are all negative and one whose are all positive, the former goes."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    for layer in model:
        nn.init.constant_(layer.weight, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    method = Movement(model, 0.5, 10, floor=0.0).attach(optimizer)
    for _ in range(10):
        model[0].weight.grad, model[1].weight.grad = torch.full((4, 4), 1e-6), torch.full((4, 4), -1e-6)
        optimizer.step()
    assert method.measure() == {"0.weight": (16, 16), "1.weight": (0, 16)}


def test_scores_are_free_of_the_scale_of_a_grad_scaler():
    parameter = nn.Parameter(torch.ones(2))
    slot = Slot("w", parameter, 0, Weight(), torch.optim.SGD([parameter], lr=0.1), 0)
    form = Masked()
    form.start([slot])
    choice = Choice(torch.tensor([True, False]), None, -1.0)
    ((gate, turn),) = form.gradients([0], [slot.sizes()], [choice], [torch.tensor([1.0, -8.0])], torch.tensor(4.0))
    assert form.scores[0].tolist() == [-0.25, 2.0]
    assert (gate.tolist(), turn) == ([1.0, 0.0], None)


def test_arguments_that_cannot_work():
    for options, message in (
        ({"sparsity": None}, "Movement needs a target"),
        ({"steps": None}, "Movement needs steps="),
        ({"sparsity": 2}, "got 2"),
        ({"lr": 0.1}, "no argument 'lr'"),
    ):
        with pytest.raises(InputError, match=message):
            Movement(MLP(), **{"sparsity": 0.9, "steps": 40} | options)

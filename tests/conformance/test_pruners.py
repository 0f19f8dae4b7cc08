"""Every pruner through every check: one row enrols a method."""

from functools import partial

import pytest
import torch

from shrinkage import Row
from shrinkage.core.pruner import Pruner
from shrinkage.pruning import SNIP, GraSP, Magnitude, Random, SynFlow
from shrinkage.testing import check_pruner, pruner_checks

PRUNERS = {
    "Magnitude": Magnitude,
    "Magnitude, uniform": partial(Magnitude, distribution="uniform"),
    "Magnitude, ERK": partial(Magnitude, distribution="erk"),
    "Magnitude, rows": partial(Magnitude, granularity=Row()),
    "Random": Random,
    "Random, ERK": partial(Random, seed=3, distribution="erk"),
    "SNIP": SNIP,
    "SNIP, uniform": partial(SNIP, distribution="uniform"),
    "GraSP": GraSP,
    "GraSP, ERK": partial(GraSP, distribution="erk"),
    "SynFlow": partial(SynFlow, rounds=10),
    "SynFlow, uniform": partial(SynFlow, rounds=5, distribution="uniform"),
    "SynFlow, ERK": partial(SynFlow, rounds=5, distribution="erk"),
}


@pytest.mark.parametrize("check", pruner_checks(), ids=lambda check: check.__name__)
@pytest.mark.parametrize("method", PRUNERS)
def test_promise_is_kept(method, check):
    check(PRUNERS[method])


class Signed(Pruner):
    """Scores below zero, in half precision: what a pruner of one's own may come up with."""

    def scores(self, model, plan, batches, loss):
        return [-size.half() for size in plan.sizes(dict(plan.weights(model)))]


def test_a_pruner_of_ones_own_overrides_one_function():
    check_pruner(Signed)


class Sloppy(Magnitude):
    """Leaves one weight too many."""

    def prune(self, *args, **kwargs):
        result = super().prune(*args, **kwargs)
        weight = args[0].get_parameter(result.layers[0].name).detach().view(-1)
        weight[(weight == 0).nonzero()[0]] = 1e-9
        return result


class Noisy(Random):
    """Draws from the global random state, and so never twice the same."""

    def scores(self, model, plan, batches, loss):
        return [torch.rand(shape) + torch.rand(()).item() for shape in plan.shapes.values()]

    def prune(self, *args, **kwargs):
        torch.rand(1)
        return super().prune(*args, **kwargs)


class Training(Magnitude):
    """Runs the model as it comes, and BatchNorm learns from that."""

    def scores(self, model, plan, batches, loss):
        for x, _ in batches:
            model(x)
        return super().scores(model, plan, (), loss)


class Accumulating(Magnitude):
    """Takes its gradients by ``backward``."""

    def scores(self, model, plan, batches, loss):
        (first, *_) = plan.weights(model).values()
        first.sum().backward()
        return super().scores(model, plan, (), loss)


class Shrinking(Magnitude):
    """Touches the survivors."""

    def prune(self, model, *args, **kwargs):
        result = super().prune(model, *args, **kwargs)
        for parameter in model.parameters():
            parameter.detach().mul_(0.5)
        return result


class Negative(Magnitude):
    """Multiplies a mask in, which leaves −0.0."""

    def prune(self, model, *args, **kwargs):
        result = super().prune(model, *args, **kwargs)
        weight = model.get_parameter(result.layers[0].name).detach()
        weight.masked_fill_(weight == 0, -0.0)
        return result


class Generous(Magnitude):
    """Under a budget, gives some of it back."""

    def prune(self, model, *args, **kwargs):
        result = super().prune(model, *args, **kwargs)
        if "macs" in self._options:
            model.get_parameter(result.layers[0].name).detach().fill_(1.0)
        return result


class Elementwise(Magnitude):
    """Knows single weights only."""

    def __init__(self, sparsity=None, **options):
        super().__init__(sparsity, **options)
        self._given = options

    @property
    def _options(self):
        return self._given

    @_options.setter
    def _options(self, value):
        pass


@pytest.mark.parametrize(
    ("method", "broken"),
    [
        (Sloppy, "check_exact_target"),
        (Noisy, "check_leaves_the_rest_alone: the global random state"),
        (Training, "check_survivors_stay: 1.running_mean"),
        (Accumulating, "check_leaves_the_rest_alone: a parameter's .grad"),
        (Shrinking, "check_survivors_stay: 0.weight was changed"),
        (Negative, "check_exact_target: 0.weight holds −0.0"),
        (Elementwise, "check_granularities"),
        (Generous, "check_budget"),
    ],
)
def test_a_broken_method_is_caught_by_name(method, broken):
    with pytest.raises(AssertionError, match=broken):
        check_pruner(method)


def test_checks_leave_the_random_state_alone():
    before = torch.get_rng_state()
    check_pruner(Random)
    assert torch.equal(before, torch.get_rng_state())

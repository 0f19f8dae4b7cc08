"""Every driver through every check: one row enrols a method."""

import pytest

from shrinkage.discrete import CoNNTrA
from shrinkage.pruning.lottery import LotteryTicket
from shrinkage.testing import toy
from shrinkage.testing.drivers import check_driver, driver_checks


def discrete(sparsity, **options):
    """Biases and norms are trained by the loop, weights by sweeps over one batch of the same problem."""
    return CoNNTrA(sparsity=sparsity, biases=False, data=toy.batch(1000), **options)


DRIVERS = {
    "LotteryTicket": LotteryTicket,
    "LotteryTicket, from the start": lambda sparsity: LotteryTicket(sparsity, 2, rewind_to=0.0),
    "LotteryTicket, learning rate": lambda sparsity: LotteryTicket(sparsity, 3, rewind="learning-rate"),
    "CoNNTrA": discrete,
    "CoNNTrA, exhaustive": lambda sparsity: discrete(sparsity, variant="exhaustive", rounds=3, scale=None),
}


@pytest.mark.parametrize("check", driver_checks(), ids=lambda check: check.__name__)
@pytest.mark.parametrize("method", DRIVERS)
def test_promise_is_kept(method, check):
    check(DRIVERS[method])


class Leaky(LotteryTicket):
    """Forgets which units it has pruned when it is saved."""

    def state_dict(self):
        state = super().state_dict()
        return {**state, "kept": {name: bits | 255 for name, bits in state["kept"].items()}}


class Shy(LotteryTicket):
    """Revives a weight at the end."""

    def run(self, model, train, steps):
        result = super().run(model, train, steps)
        model[0].weight.data[model[0].weight == 0] = 1e-9
        return result


@pytest.mark.parametrize(("method", "broken"), [(Leaky, "check_resume_is_bit_identical"), (Shy, "check_exact_target")])
def test_a_broken_driver_is_caught_by_name(method, broken):
    with pytest.raises(AssertionError, match=broken):
        check_driver(method)

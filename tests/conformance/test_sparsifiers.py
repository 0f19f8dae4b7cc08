"""Every sparsifier through every check: one row enrols a method."""

import pytest

import shrinkage
from shrinkage.testing import check_sparsifier, sparsifier_checks
from shrinkage.testing.toy import batch

SPARSIFIERS = {
    "HALO": shrinkage.HALO,
    "Lasso": shrinkage.Lasso,
    "SWS": shrinkage.SWS,
    "MCP": shrinkage.MCP,
    "Bridge": shrinkage.Bridge,
    "GradualMagnitude": shrinkage.GradualMagnitude,
    "GradualMagnitude, ERK": lambda *args: shrinkage.GradualMagnitude(*args, distribution="erk"),
    "SET": shrinkage.SET,
    "RigL": shrinkage.RigL,
    "STR": shrinkage.STR,
    "SoftTopK": shrinkage.SoftTopK,
    "Movement": shrinkage.Movement,
    "HALO, gradient": lambda *args: shrinkage.HALO(*args, xi=1e-4, psi=1e-4),
    "HALO, layerwise": lambda *args: shrinkage.HALO(*args, xi=1e-4, psi=1e-4, layerwise=True, budget=9.0),
    "HALO, proximal": lambda *args: shrinkage.HALO(*args, xi=1e-4, psi=1e-4, solver="proximal"),
    "Lasso, gradient": lambda *args: shrinkage.Lasso(*args, xi=1e-4),
    "SWS, gradient": lambda *args: shrinkage.SWS(*args, xi=1e-4, psi=1e-2, lam_lr=1e-3),
    "MCP, proximal": lambda *args: shrinkage.MCP(*args, xi=1e-3, psi=10.0, solver="proximal"),
    "Bridge, gradient": lambda *args: shrinkage.Bridge(*args, xi=1e-4),
}


@pytest.mark.parametrize("check", sparsifier_checks(), ids=lambda check: check.__name__)
@pytest.mark.parametrize("method", SPARSIFIERS)
def test_promise_is_kept(method, check):
    check(SPARSIFIERS[method])


def budgeted(method, **options):
    """The method with a budget in place of a sparsity, in which a unit of every tensor has room."""
    given = {"example": batch(0)[0][:1], **options}
    return lambda model, sparsity, steps: method(model, macs=1 - 0.6 * sparsity, steps=steps, **given)


BUDGETED = {
    "HALO": budgeted(shrinkage.HALO),
    "HALO, rows": budgeted(shrinkage.HALO, granularity=shrinkage.Row()),
    "GradualMagnitude, blocks": budgeted(shrinkage.GradualMagnitude, granularity=shrinkage.Block(3, 5)),
    "RigL, rows": budgeted(shrinkage.RigL, granularity=shrinkage.Row()),
    "SoftTopK, blocks": budgeted(shrinkage.SoftTopK, granularity=shrinkage.Block(3, 5)),
}
IN_ZEROS = {"check_exact_target", "check_life", "check_refuses_bad_targets"}  # these count units


@pytest.mark.parametrize(
    "check",
    [check for check in sparsifier_checks() if check.__name__ not in IN_ZEROS],
    ids=lambda check: check.__name__,
)
@pytest.mark.parametrize("method", BUDGETED)
def test_promise_is_kept_with_a_budget(method, check):
    check(BUDGETED[method])


class Forgetful(shrinkage.Lasso):
    """Loses count of its steps when it is saved."""

    def state_dict(self):
        return {**super().state_dict(), "step": 0}


class Shy(shrinkage.Lasso):
    """Zeroes one weight too few."""

    def finalize(self):
        result = super().finalize()
        self._slots[0].parameter.data.view(-1)[~next(iter(self.masks().values())).view(-1)] = 1e-9
        return result


@pytest.mark.parametrize(("method", "broken"), [(Forgetful, "check_resume"), (Shy, "check_exact_target")])
def test_a_broken_method_is_caught_by_name(method, broken):
    with pytest.raises(AssertionError, match=broken):
        check_sparsifier(method)


def test_checks_leave_the_random_state_alone():
    import torch

    before = torch.get_rng_state()
    sparsifier_checks()[0](shrinkage.HALO)
    assert torch.equal(before, torch.get_rng_state())

"""Conformance checks: what every method of a kind must do, for those who write one.

A check is a plain function that takes a *factory* and raises ``AssertionError`` with the reason. One table
row enrols a method in all of them::

    import pytest
    from shrinkage.testing import sparsifier_checks

    @pytest.mark.parametrize("check", sparsifier_checks(), ids=lambda check: check.__name__)
    def test_mine(check):
        check(lambda model, sparsity, steps: MySparsifier(model, sparsity, steps))
"""

from shrinkage.testing.drivers import DriverFactory, check_driver, driver_checks
from shrinkage.testing.pruners import PrunerFactory, check_pruner, pruner_checks
from shrinkage.testing.sparsifiers import SparsifierFactory, check_sparsifier, sparsifier_checks

__all__ = [
    "DriverFactory",
    "PrunerFactory",
    "SparsifierFactory",
    "check_driver",
    "check_pruner",
    "check_sparsifier",
    "driver_checks",
    "pruner_checks",
    "sparsifier_checks",
]

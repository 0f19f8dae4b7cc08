"""Outcomes made by hand."""

from dataclasses import replace

from shrinkage.reproduce.entrants import recipe
from shrinkage.reproduce.trial import Outcome, Trial
from shrinkage.training.summary import versions

TRIAL = Trial("digits", "halo", 0.9, 0, 0.1, 5e-4, "flat-cosine", 2, False)


def outcome(accuracy=97.0, failure=None, **settings):
    trial = replace(TRIAL, **settings)
    zeros = round(trial.sparsity * 1000)
    return Outcome(
        trial,
        accuracy,
        failure,
        zeros,
        1000,
        0.1,
        1.5,
        "cpu",
        None,
        versions(),
        recipe(trial),
        {"fc.weight": (zeros, 1000)},
    )

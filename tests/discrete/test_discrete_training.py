"""Training by the settings of a run, with a sweep for an epoch."""

import pytest

from shrinkage.core.selection import select
from shrinkage.data import load
from shrinkage.training.config import resolve
from shrinkage.training.discrete import fit_discrete


@pytest.mark.parametrize("held_out", [0, 100])
def test_a_run_on_digits(held_out, tmp_path):
    config = resolve({"data": "digits", "model": "discrete_nets:narrow", "epochs": 2, "seed": 3, "val": held_out})
    data = load("digits", validation=held_out)
    published = []
    model, outcome = fit_discrete(
        config, "conntra", data, tmp_path, publish=lambda rows: published.append(len(rows)), tell=print, progress=False
    )
    assert published == [1, 2]
    assert outcome.accuracy > 60
    assert (outcome.val_accuracy is None) == (held_out == 0)
    assert [row["epoch"] for row in outcome.rows] == [1, 2]
    assert outcome.rows[-1]["val_accuracy" if held_out else "accuracy"] > 60
    for chosen in select(model):
        assert len(model.get_parameter(chosen.name).unique()) <= 3
    zeros = sum(layer.zeros for layer in outcome.figures.layers)
    assert zeros == sum(int((model.get_parameter(chosen.name) == 0).sum()) for chosen in select(model))

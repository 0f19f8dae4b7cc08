import itertools
import math

import pytest
import torch

from shrinkage.training.recipes import OPTIMIZERS, SCHEDULES


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("flat-cosine", {0: 1, 0.5: 1, 0.75: 1, 0.875: 0.5, 1: 0}),
        ("cosine", {0: 1, 0.5: 0.5, 1: 0}),
        ("step", {0: 1, 0.49: 1, 0.5: 0.1, 0.74: 0.1, 0.75: 0.01, 1: 0.01}),
        ("constant", {0: 1, 1: 1}),
    ],
)
def test_schedules(name: str, expected: dict[float, float]) -> None:
    for u, factor in expected.items():
        assert SCHEDULES[name](u) == pytest.approx(factor, abs=1e-12)


def test_flat_cosine_falls_without_a_jump() -> None:
    values = [SCHEDULES["flat-cosine"](i / 1000) for i in range(1001)]
    steps = [a - b for a, b in itertools.pairwise(values)]
    assert min(steps) >= 0
    assert max(steps) < 0.5 * math.pi / 250 + 1e-9


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_take_their_settings(name: str) -> None:
    optimizer = OPTIMIZERS[name]([torch.nn.Parameter(torch.ones(2))], 0.25, 0.125)
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.25, 0.125)
    assert optimizer.defaults.get("momentum", 0.9) == 0.9

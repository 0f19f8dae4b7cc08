"""One target spread over tensors: exact counts, and densities that follow the shapes."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from shrinkage import InputError
from shrinkage.core.distribution import DISTRIBUTIONS, spread
from shrinkage.pruning import Magnitude

SHAPES = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6)


def named(shapes):
    return {f"layer{i}": shape for i, shape in enumerate(shapes)}


def kept_of(shapes, shares):
    """Whole numbers of units that stay; the shares must be whole numbers of units."""
    kept = {}
    for name, shape in shapes.items():
        units = math.prod(shape)
        zeros = round(shares[name] * units)
        assert shares[name] == pytest.approx(zeros / units, abs=1e-12)
        kept[name] = units - zeros
    return kept


@settings(deadline=None, max_examples=300)
@given(SHAPES, st.floats(0.001, 0.999), st.sampled_from(["uniform", "erk"]))
def test_the_count_is_exact_and_no_tensor_is_emptied(shapes, sparsity, distribution):
    shapes = named(shapes)
    total = sum(map(math.prod, shapes.values()))
    assume(total - round(sparsity * total) >= len(shapes))
    shares = spread(distribution, shapes, sparsity)
    assert list(shares) == list(shapes)
    assert all(0 <= share < 1 for share in shares.values())
    kept = kept_of(shapes, shares)
    assert total - sum(kept.values()) == round(sparsity * total)
    assert min(kept.values()) >= 1


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(20, 99), st.integers(20, 99)), min_size=1, max_size=5), st.floats(0.3, 0.95))
def test_uniform_shares_are_the_same_to_one_unit(shapes, sparsity):
    shapes = named(shapes)
    total = sum(map(math.prod, shapes.values()))
    density = 1 - round(sparsity * total) / total
    for name, kept in kept_of(shapes, spread("uniform", shapes, sparsity)).items():
        assert abs(kept - density * math.prod(shapes[name])) < 1


def erk_densities(shapes, keep):
    """By the definition: layers that would exceed 1 are dense, one after the other, the rest shares what is left."""
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    dense = []
    while True:
        free = [name for name in shapes if name not in dense]
        left = keep - sum(math.prod(shapes[name]) for name in dense)
        factor = left / sum(raw[name] * math.prod(shapes[name]) for name in free) if free else 0
        worst = max(free, key=lambda name: raw[name], default=None)
        if worst is None or factor * raw[worst] <= 1:
            return {name: 1.0 if name in dense else factor * raw[name] for name in shapes}
        dense.append(worst)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(5, 99), st.integers(5, 99)), min_size=1, max_size=6), st.floats(0.05, 0.97))
def test_erk_densities_follow_the_shapes_and_saturate_at_dense(shapes, sparsity):
    shapes = named(shapes)
    total = sum(map(math.prod, shapes.values()))
    keep = total - round(sparsity * total)
    wanted = erk_densities(shapes, keep)
    assume(all(wanted[name] * math.prod(shape) >= 1 for name, shape in shapes.items()))
    for name, kept in kept_of(shapes, spread("erk", shapes, sparsity)).items():
        assert abs(kept - wanted[name] * math.prod(shapes[name])) < 1 + 1e-6


def test_erk_is_proportional_to_sum_over_product_when_nothing_saturates():
    shapes = {"fat": (400, 500), "square": (300, 300), "conv": (64, 64, 3, 3)}
    shares = spread("erk", shapes, 0.95)
    ratios = {name: (1 - shares[name]) / (sum(shape) / math.prod(shape)) for name, shape in shapes.items()}
    assert max(ratios.values()) / min(ratios.values()) == pytest.approx(1, abs=2e-3)  # whole units


def test_a_narrow_layer_stays_dense_and_the_others_make_up_for_it():
    shares = spread("erk", {"wide": (1000, 1000), "narrow": (10, 100)}, 0.9)
    assert shares["narrow"] == 0.0
    assert shares["wide"] == round(0.9 * 1_001_000) / 1_000_000


def test_global_fixes_nothing():
    assert spread("global", {"a": (3, 3)}, 0.5) == {}
    assert DISTRIBUTIONS[0] == "global"


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_fewer_units_than_tensors_is_an_error_that_says_so(distribution):
    with pytest.raises(
        InputError, match=r"one unit in each of 3 tensors, more than the 2 that sparsity 0.8 of 9 units"
    ):
        spread(distribution, {"a": (3,), "b": (3,), "c": (3,)}, 0.8)
    spread(distribution, {}, 0.5)  # every tensor has a share of its own


def test_an_unknown_distribution_is_refused_with_those_there_are():
    with pytest.raises(InputError, match="one of global, uniform, erk, got 'ERK'"):
        spread("ERK", {"a": (3, 3)}, 0.5)


def test_a_model_gets_the_shares_and_layers_of_their_own_stay_out_of_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 50), nn.ReLU(), nn.Linear(50, 10))
    result = Magnitude(0.9, distribution="erk", layer_sparsity={"4.weight": 0.5}).prune(net)
    zeros = {layer.name: layer.zeros for layer in result.layers}
    assert zeros.pop("4.weight") == 250
    shares = spread("erk", {"0.weight": (200, 100), "2.weight": (50, 200)}, 0.9)
    assert zeros == {"0.weight": round(shares["0.weight"] * 20_000), "2.weight": round(shares["2.weight"] * 10_000)}
    assert sum(zeros.values()) == 27_000

"""Order statistics of values with costs, against a full sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkage.core.costed import cost_of, limit_costing, smallest_costing
from shrinkage.core.radix import radix_select
from shrinkage.core.threshold import kth_smallest, smallest

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
VALUES = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 2.0, 2.5, 1e-7, float("inf")]), st.floats(0, 1e4, width=16))


@st.composite
def goods(draw, dtype, values=VALUES):
    """Values in several tensors, with one cost for a tensor or one for each value, and how much is needed."""
    parts, costs = [], []
    for part in draw(st.lists(st.lists(values, max_size=9), min_size=1, max_size=4).filter(any_in)):
        parts.append(torch.tensor(part, dtype=dtype))
        each = st.lists(st.integers(1, 9), min_size=len(part), max_size=len(part)).map(torch.tensor)
        costs.append(draw(st.one_of(st.integers(1, 9), each.map(lambda cost: cost.long()))))
    return parts, costs, draw(st.integers(1, total(parts, costs)))


def any_in(parts):
    return any(parts)


def total(parts, costs):
    return sum(cost_of(torch.ones_like(part, dtype=torch.bool), c) for part, c in zip(parts, costs, strict=True))


def reference(parts, costs, need, seconds=None):
    """Take one after the other, by (value, second key, part, index), until it is enough."""
    rows = sorted(
        (float(value), 0.0 if seconds is None else float(seconds[p][i]), p, i)
        for p, part in enumerate(parts)
        for i, value in enumerate(part.tolist())
    )
    marks = [torch.zeros(len(part), dtype=torch.bool) for part in parts]
    for value, _, p, i in rows:
        marks[p][i] = True
        need -= costs[p] if isinstance(costs[p], int) else int(costs[p][i])
        if need <= 0:
            return marks, value
    raise AssertionError("all of it is too little")


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_fewest_of_the_smallest_that_cost_enough(dtype, data):
    parts, costs, need = data.draw(goods(dtype))
    wanted, limit = reference(parts, costs, need)
    assert limit_costing(parts, costs, need) == limit
    for mark, expected in zip(smallest_costing(parts, costs, need), wanted, strict=True):
        assert torch.equal(mark, expected)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_second_keys_decide_between_equal_values(data):
    parts, costs, need = data.draw(goods(torch.float32, st.sampled_from([0.0, 1.0])))
    keys = st.sampled_from([0.0, 0.5, 3.0])
    seconds = [torch.tensor(data.draw(st.lists(keys, min_size=len(p), max_size=len(p)))) for p in parts]
    wanted, _ = reference(parts, costs, need, seconds)
    for mark, expected in zip(smallest_costing(parts, costs, need, seconds), wanted, strict=True):
        assert torch.equal(mark, expected)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_costs_of_one_are_counts(data):
    parts, _, _ = data.draw(goods(torch.float32))
    k = data.draw(st.integers(1, sum(map(len, parts))))
    ones = [1] * len(parts)
    assert limit_costing(parts, ones, k) == kth_smallest(torch.cat(parts), k)
    for mark, expected in zip(smallest_costing(parts, ones, k), smallest(parts, k), strict=True):
        assert torch.equal(mark, expected)


def test_nothing_is_needed():
    assert smallest_costing([torch.ones(2), torch.empty(0)], [3, 1], 0)[0].tolist() == [False, False]


SIZES = (60_000, 40_000, 3, 0)  # more than is sorted at once


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "kind", ["spread", "ties", "mostly zero", "constant", "sorted", "in step", "infinite", "tiny", "dear"]
)
def test_large_tensors_are_selected_from_exactly(dtype, kind):
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(sum(SIZES), generator=generator, dtype=torch.float64).to(dtype)
    costs = [4, torch.randint(1, 1000, (SIZES[1],), generator=generator), 10**6, 1]
    match kind:
        case "ties":
            values = (values * 7).floor()
        case "mostly zero":
            values = torch.where(values < 0.7, 0, values)
        case "constant":
            values = torch.full_like(values, 0.25)
        case "sorted":
            values = values.sort().values
        case "in step":
            values[::11] *= 1e-3
        case "infinite":
            values[values > 0.6] = torch.inf
        case "tiny":
            values = (values * 1e-38).to(dtype)
        case "dear":  # sums beyond what is exact in double precision
            costs = [2**45 + 1, 2**46 + 1, 1, 1]
    parts = list(torch.split(values, SIZES))
    kept, whole = values.clone(), total(parts, costs)
    for need in (1, 2, 77_777, whole // 3, whole - 40_001, whole - 1, whole):
        value, below = radix_select(parts, need, costs)
        assert int(below) < need <= int(below) + sum(cost_of(p == value, c) for p, c in zip(parts, costs, strict=True))
        for near in (None, value, value * 1.01, value * 3):
            assert limit_costing(parts, costs, need, near) == value
    assert torch.equal(values, kept)

"""The order statistics against a full sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkage.core.radix import radix_select
from shrinkage.core.threshold import count_above, kth_smallest, smallest

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Few distinct values, so that ties are the rule; zeros of both signs, the smallest number, infinity.
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 2.0, 2.5, 1e-7, float("inf")]),
    st.floats(0, 1e4, width=16),
)
PARTS = st.lists(st.lists(VALUES, max_size=9), min_size=1, max_size=4).filter(lambda parts: any(parts))


def tensors(parts, dtype):
    return [torch.tensor(part, dtype=dtype) for part in parts]


def reference(parts, k, seconds=None):
    """Sort by (value, second key, part, index) and mark the first k."""
    rows = [
        (float(value), 0.0 if seconds is None else float(seconds[p][i]), p, i)
        for p, part in enumerate(parts)
        for i, value in enumerate(part.tolist())
    ]
    marks = [torch.zeros(len(part), dtype=torch.bool) for part in parts]
    for _, _, p, i in sorted(rows)[:k]:
        marks[p][i] = True
    return marks


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=60)
@given(data=st.data(), parts=PARTS)
def test_smallest_agrees_with_a_sort(dtype, data, parts):
    parts = tensors(parts, dtype)
    k = data.draw(st.integers(0, sum(map(len, parts))))
    for mark, wanted in zip(smallest(parts, k), reference(parts, k), strict=True):
        assert torch.equal(mark, wanted)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), parts=PARTS)
def test_second_keys_decide_between_equal_values(data, parts):
    parts = tensors(parts, torch.float32)
    keys = st.sampled_from([0.0, 0.5, 3.0])
    seconds = [torch.tensor(data.draw(st.lists(keys, min_size=len(p), max_size=len(p)))) for p in parts]
    k = data.draw(st.integers(0, sum(map(len, parts))))
    for mark, wanted in zip(smallest(parts, k, seconds), reference(parts, k, seconds), strict=True):
        assert torch.equal(mark, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=60)
@given(data=st.data(), values=st.lists(VALUES, min_size=1, max_size=40))
def test_kth_smallest_agrees_with_a_sort(dtype, data, values):
    values = torch.tensor(values, dtype=dtype)
    k = data.draw(st.integers(1, len(values)))
    wanted = values.sort().values[k - 1]
    kept = values.clone()
    assert kth_smallest(values, k) == wanted
    assert torch.equal(values, kept)
    value, below = radix_select([values], k)
    assert value == wanted
    assert value.dtype == dtype
    assert below == (values < wanted).sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_values_over_several_parts(dtype):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, generator=generator).abs().to(dtype) for n in (3000, 1, 0, 777)]
    joined = torch.cat(parts)
    for k in (1, 2, 1889, 3777, 3778):
        wanted = joined.sort().values[k - 1]
        value, below = radix_select(parts, k)
        assert value == wanted
        assert below == (joined < wanted).sum()
        marks = smallest(parts, k)
        assert sum(int(mark.sum()) for mark in marks) == k
        assert torch.cat([p[m] for p, m in zip(parts, marks, strict=True)]).max() == wanted


def test_bits_decide_where_only_the_last_digit_differs():
    low = torch.tensor(1.0)
    values = torch.stack([torch.nextafter(low, low + 1), low, torch.nextafter(low, low - 1)])
    assert [m.tolist() for m in smallest([values], 2)] == [[False, True, True]]
    assert radix_select([values.double()], 3)[0] == values[0]


def test_subnormal_numbers_are_not_zeros():
    values = torch.tensor([1e-45, 0.0, 1e-40])
    assert smallest([values], 1)[0].tolist() == [False, True, False]
    assert kth_smallest(values, 2) == 1e-45


def test_non_contiguous_values():
    grid = torch.arange(12.0).reshape(3, 4)
    assert kth_smallest(grid.clone().T, 5) == 4
    strided = grid.clone().view(-1)
    assert kth_smallest(strided[::3], 2) == 3
    assert torch.equal(strided, grid.view(-1))
    assert [m.shape for m in smallest([grid.T], 3)] == [(4, 3)]
    assert smallest([grid.T], 3)[0].T.reshape(-1).tolist() == [True] * 3 + [False] * 9


LARGE = 100_000  # more than is partitioned at once


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["spread", "ties", "mostly zero", "constant", "sorted", "in step", "infinite"])
def test_large_tensors_are_selected_from_exactly(dtype, kind):
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(LARGE, generator=generator, dtype=torch.float64).to(dtype)
    match kind:
        case "ties":
            values = (values * 7).floor()
        case "mostly zero":
            values = torch.where(values < 0.7, 0, values)
        case "constant":
            values = torch.full_like(values, 0.25)
        case "sorted":
            values = values.sort().values
        case "in step":  # every value that an odd stride of 11 meets is small: the sample misleads
            values[::11] *= 1e-3
        case "infinite":
            values[values > 0.6] = torch.inf
    kept, ordered = values.clone(), values.sort().values
    for k in (1, 2, 777, LARGE // 2, LARGE - 40_001, LARGE - 1, LARGE):
        assert kth_smallest(values, k) == ordered[k - 1]
    assert torch.equal(values, kept)


def test_counting_above_a_limit():
    values = torch.arange(50_000.0)
    assert count_above(values, torch.tensor(40_000.5)) == 9_999
    assert count_above(values.bfloat16(), torch.tensor(-1.0)) == 50_000


def test_one_element_and_empty():
    assert kth_smallest(torch.tensor(2.0), 1) == 2
    assert smallest([torch.tensor(2.0)], 1)[0].item() is True
    assert smallest([torch.empty(0), torch.tensor([1.0])], 1)[0].shape == (0,)
    assert [m.tolist() for m in smallest([torch.empty(0)], 0)] == [[]]


@pytest.mark.parametrize("k", [-1, 4])
def test_impossible_ranks_are_refused(k):
    with pytest.raises(IndexError, match=f"k must lie in 0..3, got {k}"):
        smallest([torch.ones(3)], k)
    with pytest.raises(IndexError, match=f"k must lie in 1..3, got {k}"):
        kth_smallest(torch.ones(3), k)


def test_values_that_require_gradients():
    weight = torch.tensor([2.0, 1.0], requires_grad=True)
    assert kth_smallest(weight, 1) == 1
    assert not kth_smallest(weight, 1).requires_grad
    assert smallest([weight], 1)[0].tolist() == [False, True]

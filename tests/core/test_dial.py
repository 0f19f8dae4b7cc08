"""Counts, floors and thresholds of the dial, without any training."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkage import NM, InputError, TargetError, Weight
from shrinkage.core.dial import Dial


def dial(units=(60, 40), sparsity=0.9, layers=None, floor=0.05, granularity=None, names=("a.w", "b.w", "c.w")):
    cut = Weight() if granularity is None else granularity
    return Dial(names[: len(units)], units, [0] * len(units), cut, sparsity, layers or {}, floor)


def scores_of(units, seed, distinct=7):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, distinct, (n,), generator=generator).float() for n in units]


UNITS = st.lists(st.integers(1, 50), min_size=1, max_size=3)


@settings(deadline=None, max_examples=150)
@given(UNITS, st.floats(0.01, 0.99), st.floats(0, 1), st.integers(0, 99))
def test_patterns_are_exact_and_respect_the_floor(units, sparsity, floor, seed):
    """Whatever the ties: the count, the floor, and no kept unit smaller than a removed one beyond the floor."""
    try:
        target = dial(units, sparsity, floor=floor)
    except InputError:
        return
    scores = scores_of(units, seed)
    kept = target.pattern(scores, scores_of(units, seed + 1))
    zeros = round(sparsity * sum(units))
    assert sum(int((~k).sum()) for k in kept) == zeros == target.zeros
    (pool,) = target.pools
    for keep, safe, score in zip(kept, pool.kept, scores, strict=True):
        assert keep.sum() >= safe
        if keep.any() and not keep.all():
            assert score[keep].min() >= score[~keep].max()
    removed = torch.cat([s[~k] for s, k in zip(scores, kept, strict=True)])
    for keep, safe, score in zip(kept, pool.kept, scores, strict=True):
        if keep.sum() > safe and len(removed):  # nothing here was kept for the floor's sake alone
            assert score[keep].min() >= 0
            spare = score[keep].sort().values[: int(keep.sum()) - safe]
            assert spare.min() >= min(removed.max(), spare.min())


@settings(deadline=None, max_examples=150)
@given(UNITS, st.floats(0.05, 0.99), st.floats(0, 0.5), st.floats(0, 1), st.integers(0, 99))
def test_limits_zero_the_wanted_share_and_never_the_floor(units, sparsity, floor, share, seed):
    try:
        target = dial(units, sparsity, floor=floor)
    except InputError:
        return
    (pool,) = target.pools
    flat = torch.randperm(sum(units), generator=torch.Generator().manual_seed(seed)).float()
    views = list(torch.split(flat, units))
    limits = target.limits(views, [flat], share)
    gone = [view <= limit for view, limit in zip(views, limits, strict=True)]
    assert sum(int(g.sum()) for g in gone) == int(share * target.zeros + 1e-9)
    assert all((~g).sum() >= safe for g, safe in zip(gone, pool.kept, strict=True))


def test_second_keys_decide_ties():
    target = dial((4,), 0.5, floor=0.0)
    scores, seconds = [torch.zeros(4)], [torch.tensor([1.0, 0.0, 2.0, 0.0])]
    assert target.pattern(scores, seconds)[0].tolist() == [True, False, True, False]


def test_mixed_precision_tensors_share_one_order():
    target = dial((3, 3), 0.5, floor=0.0)
    scores = [torch.tensor([1.0, 5.0, 3.0], dtype=torch.float64), torch.tensor([2.0, 4.0, 6.0])]
    kept = target.pattern(scores, [torch.zeros(3), torch.zeros(3, dtype=torch.float64)])
    assert [k.tolist() for k in kept] == [[False, True, False], [False, True, True]]


def test_a_tensors_own_share_stands_beside_the_global_one():
    target = dial((60, 40, 10), 0.9, {"b.*": 0.5, "c.w": 0.0})
    assert target.zeros == round(0.9 * 60) + 20 + 0
    kept = target.pattern([torch.arange(float(n)) for n in (60, 40, 10)], [torch.zeros(n) for n in (60, 40, 10)])
    assert [int(k.sum()) for k in kept] == [6, 20, 10]


def test_the_floor_protects_the_largest_units_of_a_small_tensor():
    target = dial((90, 10), 0.9, floor=0.5)
    scores = [torch.arange(100.0, 190.0), torch.arange(10.0)]  # without a floor b.w would be emptied
    kept = target.pattern(scores, [torch.zeros(90), torch.zeros(10)])
    assert int(kept[1].sum()) == 1
    assert kept[1][9]
    assert int(dial((90, 10), 0.9, floor=0.0).pattern(scores, [torch.zeros(90), torch.zeros(10)])[1].sum()) == 0


def test_n_of_m_groups_lose_exactly_their_share():
    target = dial((16,), 0.5, granularity=NM(2, 4))
    weight = torch.rand(2, 8)
    kept = target.pattern([weight], [torch.zeros(2, 8)])[0]
    assert (kept.reshape(-1, 4).sum(1) == 2).all()
    flat = weight.clone().view(-1)
    (limit,) = target.limits([flat.view(2, 8)], [flat], 1.0)
    assert torch.equal(flat.view(2, 8) > limit, kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floor": -0.1}, r"floor must lie in \[0, 1\], got -0.1"),
        ({"floor": float("nan")}, "got nan"),
        ({"layers": {"a.*": 1.0}}, r"layer_sparsity\['a.\*'\] must lie in \[0, 1\), got 1.0"),
        ({"layers": {"z.*": 0.5}}, "'z.*' matches no selected weight"),
        ({"units": (3, 2), "sparsity": 0.95}, "sparsity 0.95 of 5 units leaves nothing"),
        ({"units": (5, 5), "sparsity": 0.9}, "floor=0.05 keeps 2 units in 2 tensors, more than the 1.*0 switches"),
        ({"granularity": NM(2, 4), "sparsity": 0.5, "layers": {"a.*": 0.9}}, "at odds with 2:4.*0.5"),
    ],
)
def test_targets_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        dial(**options)


def test_a_missed_count_says_in_which_direction():
    target = dial((60, 40), 0.9)
    target.check(90)
    with pytest.raises(TargetError, match=r"91 of 100 units are zero where 90 were asked for.*by themselves"):
        target.check(91)
    with pytest.raises(TargetError, match="3 pruned weights are no longer zero"):
        target.check(87)

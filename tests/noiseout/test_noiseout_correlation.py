"""Streaming moments against NumPy's, and what one unit explains of another against closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkage.noiseout import correlation
from shrinkage.noiseout.correlation import Moments, Relation, mean_correlation


def summed(x, *cuts):
    moments = Moments(x.shape[1])
    for part in torch.tensor_split(x, sorted(cuts)):
        moments.add(part)
    return moments


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 60),
    st.integers(1, 9),
    st.lists(st.integers(0, 60), max_size=4),
    st.floats(-1e4, 1e4),
    st.integers(0, 1000),
)
def test_moments_are_numpys_however_the_rows_come(rows, units, cuts, offset, seed):
    x = torch.randn(rows, units, generator=torch.Generator().manual_seed(seed)).double() + offset
    moments = summed(x, *cuts)
    wanted = np.cov(x.numpy(), rowvar=False, bias=True).reshape(units, units)
    assert moments.count == rows
    np.testing.assert_allclose(moments.mean, x.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance(), wanted, atol=1e-10)
    np.testing.assert_allclose(moments.about_zero(), (x.T @ x / rows).numpy(), rtol=1e-9)


def test_blocks_of_rows_and_tiles_of_units_change_nothing(monkeypatch):
    x = torch.randn(50, 13)
    wanted = summed(x).covariance()
    monkeypatch.setattr(correlation, "_BLOCK", 40)
    monkeypatch.setattr(correlation, "_TILE", 3)
    torch.testing.assert_close(summed(x, 7).covariance(), wanted)
    assert mean_correlation(summed(x, 7)) == pytest.approx(np_mean(x))


def np_mean(x):
    rho = np.abs(np.corrcoef(x.numpy(), rowvar=False))
    count = len(rho)
    return (rho.sum() - count) / (count * (count - 1))


def test_a_look_at_the_sums_does_not_disturb_them():
    x = torch.randn(60, 13).double()
    moments = summed(x[:30])
    moments.covariance()
    moments.add(x[30:])
    np.testing.assert_allclose(moments.covariance(), np.cov(x.numpy(), rowvar=False, bias=True), atol=1e-12)


def test_a_large_mean_does_not_drown_the_covariance():
    x = 1e6 + torch.randn(1000, 3).double()
    np.testing.assert_allclose(summed(x, 10).covariance(), np.cov(x.numpy(), rowvar=False, bias=True), rtol=1e-8)


def test_explained_is_the_square_of_the_correlation():
    x = torch.randn(200, 5) @ torch.randn(5, 5) + 3
    explained = Relation(summed(x), constant=True).explained(torch.arange(5))
    np.testing.assert_allclose(explained, np.corrcoef(x.numpy(), rowvar=False) ** 2, atol=1e-6)


@pytest.mark.parametrize("constant", [True, False])
def test_fold_is_the_least_squares_fit_and_explains_what_it_says(constant):
    x = (torch.randn(300, 4) @ torch.randn(4, 4)).double() + torch.tensor([0.3, 1.0, -2.0, 0.1]).double()
    relation = Relation(summed(x), constant)
    explained = relation.explained(torch.arange(4))
    for a in range(4):
        for b in range(4):
            design = torch.stack([x[:, b], torch.ones(300).double()], 1)[:, : 1 + constant]
            fit = torch.linalg.lstsq(design, x[:, a]).solution
            factor, offset = relation.fold(a, b)
            assert factor == pytest.approx(float(fit[0]), abs=1e-9)
            assert offset == pytest.approx(float(fit[1]) if constant else 0.0, abs=1e-9)
            error = float((x[:, a] - design @ fit).square().mean())
            size = float(x[:, a].var(correction=0)) if constant else float(x[:, a].square().mean())
            assert float(relation.size[a]) == pytest.approx(size)
            assert float(explained[a, b]) == pytest.approx(1 - error / size, abs=1e-9)
    assert torch.equal(relation.explained(torch.tensor([3, 1]), slice(2, 3)), explained[[3, 1], 2:3])


def test_constants_are_explained_where_a_constant_can_be_added():
    x = torch.stack([torch.full((50,), 0.7), torch.randn(50), torch.zeros(50), torch.full((50,), -1.4)], 1)
    free, bound = Relation(summed(x), constant=True), Relation(summed(x), constant=False)
    assert free.explained(torch.arange(4))[:, 1].tolist() == [1, 1, 1, 1]
    assert free.fold(0, 1) == (0.0, pytest.approx(0.7))
    assert float(free.explained(torch.tensor([1]))[0, 0]) == 0  # a constant explains nothing of what varies
    found = bound.explained(torch.tensor([0, 2]))
    assert float(found[0, 3]) == pytest.approx(1)  # a multiple of another constant
    assert float(found[0, 1]) < 0.2
    assert found[1].tolist() == [1, 1, 1, 1]  # zero is a multiple of anything
    assert bound.fold(0, 3) == (pytest.approx(-0.5), 0.0)
    assert bound.fold(2, 1) == (0.0, 0.0)


def test_mean_correlation_looks_at_what_varies():
    x = torch.randn(100, 1)
    assert mean_correlation(summed(torch.cat([x, -2 * x, torch.ones(100, 1)], 1))) == pytest.approx(1)
    assert math.isnan(mean_correlation(summed(torch.cat([x, torch.ones(100, 1)], 1))))

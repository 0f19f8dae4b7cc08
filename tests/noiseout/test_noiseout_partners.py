"""Units that go one by one, against a search begun anew after each."""

import pytest
import torch

from shrinkage.noiseout.correlation import Moments, Relation
from shrinkage.noiseout.partners import Candidates


def relation(x, constant):
    moments = Moments(x.shape[1])
    moments.add(x)
    return Relation(moments, constant)


def anew(reads, columns, left, by):
    """The best pair among the units that are left, as if there had never been others."""
    relations = [relation(x[:, left], constant) for x, constant in reads]
    found = Candidates(relations, [each[left].clone() for each in columns], by)
    unit = found.best()[1]
    return left[unit], left[found.step(0, unit).partner]


@pytest.mark.parametrize("by", ["correlation", "error"])
@pytest.mark.parametrize("seed", range(10))
def test_what_is_known_of_pairs_is_up_to_date_after_each_step(by, seed):
    chance = torch.Generator().manual_seed(seed)
    count = 14
    x = (torch.randn(300, 5, generator=chance) @ torch.randn(5, count, generator=chance)).double()
    reads = [(x, True), (x.relu() + 0.3, False)]
    columns = [torch.randn(count, size, generator=chance).double() for size in (3, 4)]
    relations = [relation(*each) for each in reads]
    candidates = Candidates(relations, [each.clone() for each in columns], by)
    left = list(range(count))
    while len(left) > 1:
        unit = candidates.best()[1]
        partner = candidates.step(0, unit).partner
        assert (unit, partner) == anew(reads, columns, left, by)
        for one, column in zip(relations, columns, strict=True):
            column[partner] += one.fold(unit, partner)[0] * column[unit]
        candidates.remove(unit)
        left.remove(unit)
    assert candidates.best()[0] == -torch.inf


def test_what_is_spared_goes_when_it_may_again():
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=chance).double()
    candidates = Candidates([relation(x, True)], [torch.ones(4, 1).double()], "error")
    value, unit = candidates.best()
    candidates.spare(unit)
    assert candidates.best()[0] < value
    candidates.reopen()
    assert candidates.best() == (value, unit)

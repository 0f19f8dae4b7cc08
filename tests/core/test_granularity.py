"""Units, their sizes and the way back, against plain loops over matrices."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkage import NM, Block, InputError, Row, Weight
from shrinkage.core.slots import Slot

SHAPES = [((6, 4), 0), ((6, 4), 1), ((5, 3, 2, 2), 0), ((3, 5, 2, 2), 1), ((4, 7, 3), 0), ((1, 1), 0)]
GRANULARITIES = [Weight(), Row(), Block(1, 1), Block(2, 3), Block(4, 4), Block(100, 100)]


def weight_of(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("cut", GRANULARITIES, ids=repr)
@pytest.mark.parametrize(("shape", "out_dim"), SHAPES)
def test_units_partition_the_weight(cut, shape, out_dim):
    """Squared sizes add up, and spreading unit numbers gives every weight exactly one unit of that size."""
    weight = weight_of(shape)
    sizes = cut.sizes(weight, out_dim)
    assert tuple(sizes.shape) == cut.shape(shape, out_dim)
    torch.testing.assert_close(sizes.square().sum(), weight.square().sum())
    numbers = torch.arange(sizes.numel()).reshape(sizes.shape)
    unit_of = cut.spread(numbers, weight, out_dim).expand_as(weight)
    for unit in range(sizes.numel()):
        torch.testing.assert_close(weight[unit_of == unit].norm(), sizes.reshape(-1)[unit])


def test_rows_are_output_channels():
    weight = torch.zeros(2, 3, 2)
    weight[1] = 1
    assert Row().sizes(weight, 0).tolist() == [0, pytest.approx(math.sqrt(6))]
    assert Row().sizes(weight, 1).tolist() == pytest.approx([math.sqrt(2)] * 3)
    assert Row().sizes(torch.tensor([3.0, -4.0]), 0).tolist() == [3, 4]


def test_block_tiles_follow_the_matrix_of_outputs_by_inputs():
    weight = torch.arange(15.0).reshape(3, 5)
    tiles = Block(2, 2).sizes(weight, 0)
    assert tiles.shape == (2, 3)
    assert tiles[0, 0] == torch.tensor([0.0, 1, 5, 6]).norm()
    assert tiles[1, 2] == 14  # the corner tile holds one weight


def test_half_precision_sizes_are_wide():
    assert Row().sizes(torch.full((1, 400), 200.0, dtype=torch.float16), 0) == 4000  # 400·200² overflows fp16


@settings(deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(1, 2), (2, 4), (1, 4), (7, 8)]), st.sampled_from([0, 1]))
def test_n_of_m_removes_the_lowest_of_every_group(seed, pattern, out_dim):
    n, m = pattern
    scores = torch.randint(0, 4, (8, 16, 3), generator=torch.Generator().manual_seed(seed)).float()
    gone = NM(n, m).removable(scores, out_dim)
    along = scores.movedim(1 - out_dim, -1).reshape(-1, m)
    marks = gone.movedim(1 - out_dim, -1).reshape(-1, m)
    assert (marks.sum(1) == m - n).all()
    for group, mark in zip(along, marks, strict=True):
        assert group[mark].max() <= group[~mark].min()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Block(0, 4), "got 0x4"),
        (lambda: NM(4, 4), "got 4:4"),
        (lambda: NM(0, 4), "got 0:4"),
        (lambda: Block(2, 2).check("bias", (5,), 0), r"'bias' of shape \(5,\) is a vector"),
        (lambda: NM(2, 4).check("stem.weight", (8, 3, 3, 3), 0), "'stem.weight' has 3 input channels.*exclude="),
        (lambda: Row().check("temperature", (), 0), "'temperature' is a single number"),
    ],
)
def test_impossible_cuts_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_second_moments_of_tiles_at_the_edge_are_means_over_their_own_weights():
    layer = torch.nn.Linear(5, 5, bias=False)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.0)
    layer.weight.grad = torch.full((5, 5), 2.0)
    optimizer.step()
    slot = Slot("weight", layer.weight, 0, Block(4, 4), optimizer, 0)
    assert slot.weights_a_unit.tolist() == [[16, 4], [4, 1]]
    moments = slot.second_moments()
    torch.testing.assert_close(moments, torch.full((2, 2), 4e-3))

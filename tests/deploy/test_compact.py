"""What is dead goes, what lives stays, and the function is the same: networks small enough to see it by hand."""

import pytest
import torch
from torch import nn

from compactable import assert_same, drawn, units, zero
from shrinkage.deploy.compact import compact
from shrinkage.deploy.surgery import reshape_like


def test_unread_and_constant_neurons_go_and_constants_are_folded():
    model = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2)).double()
    zero(model[0].weight, 1)  # a constant: GELU of its bias
    zero(model[2].weight, slice(None), 3)  # nobody reads it
    result = compact(model, torch.randn(2, 3).double())
    first, last = result.model[0], result.model[2]
    kept = [0, 2, 4]
    assert torch.equal(first.weight, model[0].weight[kept])
    assert torch.equal(first.bias, model[0].bias[kept])
    assert torch.equal(last.weight, model[2].weight[:, kept])
    constant = nn.functional.gelu(model[0].bias[1])
    torch.testing.assert_close(last.bias, model[2].bias + model[2].weight[:, 1] * constant)
    assert_same(result, model, torch.randn(7, 3).double())


def test_dead_units_make_others_dead_in_both_directions():
    model = nn.Sequential(*(part for _ in range(5) for part in (nn.Linear(4, 4), nn.Tanh())), nn.Linear(4, 4)).double()
    for layer in model[2:10:2]:  # unit i reads unit i alone
        with torch.no_grad():
            layer.weight.mul_(torch.eye(4))
    zero(model[8].weight, 0, 0)  # unit 0 is dead before this, and constant behind it
    zero(model[4].weight, 1, 1)
    result = compact(model, torch.randn(1, 4).double())
    assert units(result) == {"0": 2, "2": 2, "4": 2, "6": 2, "8": 2, "10": 4}
    assert_same(result, model, torch.randn(5, 4).double())


@pytest.mark.parametrize("padding", [0, 1])
def test_a_constant_beside_padding_is_not_one_unless_it_is_zero(padding):
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3, padding=padding)).double()
    zero(model[0].weight, slice(0, 5))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([1.0, 3.0, 2.0, -1.0, -1.0, 0.5]))  # behind the ReLU two of them are 0
    x = torch.randn(2, 1, 9, 9).double()
    result = compact(model, x)
    if padding:  # the largest of the constants stays, and takes over for the two others
        assert torch.equal(result.model[0].bias, model[0].bias[[1, 5]])
        weight = model[2].weight
        heir = weight[:, 1] + weight[:, 0] / 3 + weight[:, 2] * 2 / 3
        torch.testing.assert_close(result.model[2].weight, torch.stack([heir, weight[:, 5]], 1))
        assert torch.equal(result.model[2].bias, model[2].bias)
    else:
        assert torch.equal(result.model[0].bias, model[0].bias[5:])
        sums = model[2].weight.sum((2, 3))
        torch.testing.assert_close(result.model[2].bias, model[2].bias + sums[:, :3] @ model[0].bias[:3])
    assert_same(result, model, x)
    assert_same(result, model, torch.randn(1, 1, 5, 12).double())  # another size


def test_the_mean_of_a_batchnorm_takes_constants_where_there_is_no_bias():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.SiLU(), nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
    )
    drawn(model).double()
    zero(model[0].weight, 1)
    x = torch.randn(2, 1, 8, 8).double()
    result = compact(model, x)
    assert units(result) == {"0": 2, "2": 4, "4": 2}
    constant = nn.functional.silu(model[0].bias[1])
    expected = model[3].running_mean - model[2].weight[:, 1].sum((1, 2)) * constant
    torch.testing.assert_close(result.model[3].running_mean, expected)
    assert_same(result, model, x)


def test_channels_of_a_residual_go_together():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.branch = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 2)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.head((x + self.norm(self.branch(x))).relu().mean((2, 3)))

    model = drawn(Net()).double()
    zero(model.head.weight, slice(None), slice(0, 3))  # nobody reads the sum of these …
    zero(model.branch.weight, slice(None), slice(0, 2))  # … and the branch does not read two of them
    x = torch.randn(2, 1, 6, 6).double()
    result = compact(model, x)
    assert units(result) == {"stem": 4, "branch": 4, "head": 2}
    assert result.model.norm.num_features == 4
    assert_same(result, model, x)


def test_features_under_a_layer_norm_stay():
    model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    zero(model[0].weight, slice(0, 4))
    zero(model[2].weight, slice(None), 5)
    zero(model[2].weight, 0)
    result = compact(model, torch.randn(2, 3).double())
    assert units(result) == {"0": 8, "2": 5, "4": 2}
    assert_same(result, model, torch.randn(4, 3).double())


def grouped(groups):
    return nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=groups), nn.ReLU(), nn.Conv2d(12, 3, 1)
    ).double()


def test_groups_stay_alike_where_each_loses_some():
    model = grouped(2)  # 4 channels to 6, twice
    for channel in (0, 1, 5):  # 2 of the first group and 1 of the second
        zero(model[0].weight, channel)
    for channel in (2, 3, 4, 6):  # 3 of the first and 1 of the second
        zero(model[4].weight, slice(None), channel)
    x = torch.randn(1, 2, 7, 7).double()
    result = compact(model, x)
    assert units(result) == {"0": 6, "2": 10, "4": 3}
    assert result.model[2].groups == 2
    assert_same(result, model, x)


def test_as_many_channels_stay_as_tell_them_from_whole_groups():
    model = grouped(2)
    for channel in (0, 1, 2, 6, 7, 8):  # half of each group; six of twelve would look like one group of two
        zero(model[4].weight, slice(None), channel)
    x = torch.randn(1, 2, 7, 7).double()
    result = compact(model, x)
    assert units(result) == {"0": 8, "2": 8, "4": 3}
    fresh = reshape_like(grouped(2), result.shapes)
    fresh.load_state_dict(result.model.state_dict())
    torch.testing.assert_close(fresh(x), model(x))


def test_whole_groups_go():
    model = grouped(4)  # 2 channels to 3, four times
    zero(model[4].weight, slice(None), slice(3, 6))  # nobody reads the second group
    zero(model[2].weight, slice(9, 12))  # the fourth is constant
    x = torch.randn(1, 2, 7, 7).double()
    result = compact(model, x)
    assert units(result) == {"0": 4, "2": 6, "4": 3}
    assert result.model[2].groups == 2
    assert_same(result, model, x)


def test_a_depthwise_convolution_loses_channels_with_what_is_before_and_behind():
    model = nn.Sequential(
        nn.Conv2d(1, 5, 1), nn.ReLU(), nn.Conv2d(5, 10, 3, padding=1, groups=5), nn.ReLU(), nn.Conv2d(10, 2, 1)
    ).double()
    zero(model[4].weight, slice(None), slice(2, 4))  # both that read channel 1
    zero(model[4].weight, slice(None), 5)  # one of those that read channel 2
    zero(model[0].weight, 4)
    zero(model[0].bias, 4)  # zero, also beside padding
    x = torch.randn(1, 1, 6, 6).double()
    result = compact(model, x)
    assert units(result) == {"0": 3, "2": 6, "4": 2}
    assert (result.model[2].groups, result.model[2].in_channels) == (3, 3)
    assert_same(result, model, x)


def test_a_layer_keeps_one_unit_where_all_are_dead():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    zero(model[2].weight)
    result = compact(model, torch.randn(1, 3).double())
    assert units(result) == {"0": 1, "2": 1, "4": 2}
    assert_same(result, model, torch.randn(4, 3).double())
    for parameter in model.parameters():
        zero(parameter)
    result = compact(model, torch.randn(1, 3).double())
    assert units(result) == {"0": 1, "2": 1, "4": 2}
    assert_same(result, model, torch.randn(4, 3).double())


def test_inputs_and_outputs_of_the_model_stay_whole():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            hidden = self.hidden(x).relu()
            return {"features": hidden, "logits": self.head(hidden)}

    model = Net()
    zero(model.hidden.weight, slice(None), slice(0, 3))
    zero(model.hidden.weight, slice(0, 3))
    zero(model.head.weight, 1)
    assert units(compact(model, torch.randn(1, 4))) == {"hidden": 6, "head": 3}


def test_a_part_that_does_not_run_stays_as_it_is():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.head, self.spare = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            hidden = self.hidden(x).relu()
            return (self.head(hidden), self.spare(hidden)) if self.training else self.head(hidden)

    model = Net().eval()
    zero(model.spare.weight)
    assert compact(model, torch.randn(1, 4)).model.spare.weight.shape == (3, 6)


def test_what_is_multiplied_by_a_zero_is_not_read():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.head, self.gate = nn.Linear(3, 6), nn.Linear(6, 2), nn.Parameter(torch.rand(6))

        def forward(self, x):
            return self.head(self.hidden(x).tanh() * self.gate)

    model = Net().double()
    zero(model.gate, slice(0, 2))
    result = compact(model, torch.randn(1, 3).double())  # one example alone tells nothing from a constant
    assert result.left == ()
    assert units(result) == {"hidden": 4, "head": 2}
    assert result.model.gate.shape == (4,)
    assert_same(result, model, torch.randn(4, 3).double())


def test_the_size_of_queries_stays_since_their_scale_depends_on_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(6, 6) for _ in range(4))

        def forward(self, x):
            mixed = nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
            return self.out(mixed)

    model = Net().double()
    for layer in (model.query, model.key, model.value):
        zero(layer.weight, slice(0, 2))
        zero(layer.bias, 0)
    x = torch.randn(2, 5, 6).double()
    result = compact(model, x)
    assert result.left == ()
    assert units(result) == {"query": 6, "key": 6, "value": 4, "out": 6}
    assert_same(result, model, torch.randn(2, 3, 6).double())


@pytest.mark.parametrize("masked", [False, True])
def test_a_mean_over_constants_is_one_unless_a_mask_may_leave_nothing(masked):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.value, self.out = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x, mask):
            return self.out(nn.functional.scaled_dot_product_attention(x, x, self.value(x), mask if masked else None))

    model = Net().double()
    zero(model.value.weight, slice(0, 2))
    zero(model.value.bias, 0)
    result = compact(model, (torch.randn(2, 5, 6).double(), torch.ones(2, 5, 5, dtype=torch.bool)))
    assert units(result) == {"value": 5 if masked else 4, "out": 6}
    nothing = torch.zeros(2, 3, 3, dtype=torch.bool)
    assert_same(result, model, torch.randn(2, 3, 6).double(), nothing)

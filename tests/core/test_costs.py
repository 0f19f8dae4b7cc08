import pytest
import torch
from torch import nn

from shrinkage.core.costs import Cost, cost, has_formula, register_cost


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.gain * x


class BigGain(Gain):
    pass


def test_a_formula_serves_subclasses_and_the_nearest_one_wins():
    assert not has_formula(Gain())
    assert cost(Gain(), (), {}, torch.zeros(2, 3)) is None

    @register_cost(Gain)
    def gain(module, args, kwargs, output):
        return Cost({"gain": output.numel() // 3})

    assert has_formula(BigGain())
    assert cost(BigGain(), (), {}, torch.zeros(2, 3)) == Cost({"gain": 2})

    @register_cost(BigGain)
    def big_gain(module, args, kwargs, output):
        return Cost({"gain": 7}, others=1)

    assert cost(BigGain(), (), {}, torch.zeros(2, 3)) == Cost({"gain": 7}, others=1)
    assert cost(Gain(), (), {}, torch.zeros(2, 3)) == Cost({"gain": 2})


def test_registering_gives_the_formula_back_for_several_types():
    class A(nn.Module): ...

    class B(nn.Module): ...

    def formula(module, args, kwargs, output):
        return Cost()

    assert register_cost(A, B)(formula) is formula
    assert has_formula(A())
    assert has_formula(B())


@pytest.mark.parametrize("module", [nn.Identity(), nn.ReLU(), nn.Sequential(), nn.Module()])
def test_other_modules_have_none(module):
    assert not has_formula(module)

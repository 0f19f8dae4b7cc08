"""What a user asks for is what a user gets: networks × optimisers × shares × ramps × granularities."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from transformers.pytorch_utils import Conv1D

from nets import CNN, MLP, Transformer, batch, fit, images, pruned_signs, sequences, start
from shrinkage import HALO, MCP, NM, SWS, Block, Bridge, Lasso, Row, TargetError, Weight

NETS = {"MLP": (MLP, batch), "CNN": (CNN, images), "Transformer": (Transformer, sequences)}
OPTIMIZERS = {
    "SGD": lambda p, lr: SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
    "Adam": lambda p, lr: Adam(p, lr=3e-3),
    "AdamW": lambda p, lr: AdamW(p, lr=3e-3, weight_decay=0.05, amsgrad=True),
}


def counted(model, method):
    """Zeros counted without the library."""
    return sum(int((dict(model.named_parameters())[name] == 0).sum()) for name in method.measure())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_the_share_asked_for(net, optimizer, sparsity):
    """Exact after finalize(), nearly all there just before the pattern is fixed, all there 20 steps later."""
    model, data = NETS[net]
    model, stepper, halo = start(model=model, optimizer=OPTIMIZERS[optimizer], steps=120, sparsity=sparsity, floor=0.02)
    wanted = round(sparsity * halo.units)
    fit(model, stepper, range(89), data)
    assert halo.phase == "shrinking"
    assert wanted - 0.02 * halo.units <= counted(model, halo) <= wanted + 0.002 * halo.units
    fit(model, stepper, range(89, 120), data)
    assert counted(model, halo) == wanted
    result = halo.finalize()
    assert counted(model, halo) == wanted == result.zeros == halo.zeros
    assert all(layer.zeros < layer.units for layer in result.layers)
    fit(model, stepper, range(120, 140), data)
    assert counted(model, halo) == wanted
    assert pruned_signs(model, halo) == (0, 0)


@pytest.mark.parametrize("method", [HALO, Lasso, SWS, MCP, Bridge])
def test_zeros_follow_the_ramp(method):
    model, optimizer, attached = start(method, steps=100, sparsity=0.9, ramp="linear", start=0.1, end=0.9)
    gaps = []
    fit(model, optimizer, range(90), after=lambda: gaps.append(counted(model, attached) / attached.units))
    asked = [max(0.0, min(1.0, (step - 10) / 80)) * 0.9 for step in range(1, 91)]
    assert max(abs(gap - ask) for gap, ask in zip(gaps, asked, strict=True)) < 0.02


@pytest.mark.parametrize("cut", [Weight(), Row()])
@pytest.mark.parametrize("method", [HALO, Lasso])
def test_zeros_in_training_have_no_sign(method, cut):
    model, optimizer, attached = start(method, steps=40, granularity=cut)
    fit(model, optimizer, range(20))
    assert attached.zeros > 0
    assert not any(((w == 0) & w.signbit()).any() for w in model.parameters())


@pytest.mark.parametrize("ramp", ["cubic", "linear", "one-shot", lambda x: x**0.25])
def test_ramps(ramp):
    model, optimizer, halo = start(ramp=ramp, sparsity=0.9, steps=40)
    seen = []
    fit(model, optimizer, range(40), after=lambda: seen.append(halo.zeros / halo.units))
    middle = seen[15]  # 16 steps of 40, the ramp runs from 2 to 30: half of it
    share = {"cubic": 0.875, "linear": 0.5, "one-shot": 0.0}.get(ramp, 0.5**0.25)
    assert abs(middle - 0.9 * share) < 0.03
    assert halo.finalize().zeros == round(0.9 * halo.units)


@pytest.mark.parametrize("method", [HALO, Lasso, MCP, Bridge])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_the_shortest_trainings(method, steps):
    model, optimizer, attached = start(method, steps=steps, sparsity=0.9)
    fit(model, optimizer, range(steps))
    assert attached.finalize().zeros == counted(model, attached) == round(0.9 * attached.units)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("method", [HALO, Lasso, MCP, Bridge])
def test_a_ramp_that_ends_with_the_training(method, seed):
    """No step follows in which a weight that is kept at zero by a tie could leave it."""
    torch.manual_seed(seed)
    model = MLP()
    optimizer = SGD(model.parameters(), lr=0.1)
    attached = method(model, 0.9, 30, end=1.0).attach(optimizer)
    fit(model, optimizer, range(30))
    assert attached.finalize().zeros == round(0.9 * attached.units)


def test_training_longer_than_planned_is_fine_and_shorter_is_an_error():
    model, optimizer, halo = start(steps=40)
    fit(model, optimizer, range(29))
    with pytest.raises(TargetError, match=r"after 29 of 40 steps, but the pattern is only fixed after step 30.*steps="):
        halo.finalize()
    fit(model, optimizer, range(29, 70))
    assert halo.finalize().zeros == round(0.9 * halo.units)
    assert halo.finalize().zeros == round(0.9 * halo.units)  # again


def test_layer_shares():
    model, optimizer, halo = start(layer_sparsity={"0.*": 0.5, "4.*": 0.0})
    fit(model, optimizer, range(40))
    halo.finalize()
    assert halo.measure() == {"0.weight": (192, 384), "2.weight": (round(0.9 * 512), 512), "4.weight": (0, 64)}


def test_no_layer_collapses_and_the_floor_binds():
    """The head's weights are made so small that without a floor they would all go."""

    class Lopsided(MLP):
        def __init__(self):
            super().__init__()
            with torch.no_grad():
                self[4].weight.mul_(1e-4)

    kept = {}
    for floor in (0.0, 0.05, 0.5):
        model, optimizer, halo = start(Lasso, model=Lopsided, lr=1e-6, sparsity=0.9, floor=floor)
        fit(model, optimizer, range(40))
        assert halo.finalize().zeros == round(0.9 * halo.units)
        zeros, units = halo.measure()["4.weight"]
        kept[floor] = units - zeros
    assert kept == {0.0: 0, 0.05: 1, 0.5: 4}  # of 64; 10 % density


GROUPED = {"rows": Row(), "blocks": Block(3, 5), "large blocks": Block(8, 8)}


@pytest.mark.parametrize("cut", GROUPED)
@pytest.mark.parametrize("net", NETS)
def test_grouped_units(net, cut):
    """The count is exact in units, and a unit is zero as a whole; edge tiles are units of their own."""
    model, data = NETS[net]
    model, optimizer, halo = start(model=model, optimizer=Adam, lr=3e-3, sparsity=0.6, granularity=GROUPED[cut])
    fit(model, optimizer, range(29), data)
    assert abs(halo.zeros - 0.6 * halo.units) <= 1 + 0.02 * halo.units
    fit(model, optimizer, range(29, 60), data)
    assert halo.finalize().zeros == round(0.6 * halo.units)
    for name, mask in halo.masks().items():
        weight = model.get_parameter(name).detach()
        units = GROUPED[cut].sizes(mask.float(), 0)
        whole = GROUPED[cut].sizes(torch.ones_like(weight), 0)
        assert ((units == 0) | (units == whole)).all()
        assert torch.equal(weight != 0, mask.expand_as(weight))


class Channels(nn.Module):
    """Every kind of layer whose input channels fall into fours."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(12, 64)
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.hf = Conv1D(16, 4 * 8 * 8)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.embed(x).relu().view(-1, 4, 4, 4)
        x = self.up(self.conv(x).relu()).relu()
        return self.head(self.hf(x.flatten(1)).relu())


@pytest.mark.parametrize("method", [HALO, Lasso])
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(1, 2)], ids=repr)
def test_n_of_m_holds_in_every_group_of_input_channels(method, pattern):
    model, optimizer, attached = start(method, model=Channels, sparsity=None, granularity=pattern)
    share = 1 - pattern.n / pattern.m
    fit(model, optimizer, range(29))
    assert abs(attached.zeros / attached.units - share) < 0.02  # and not whole groups
    fit(model, optimizer, range(29, 50))
    assert attached.finalize().zeros == share * attached.units
    inputs = {"embed": 1, "conv": 1, "up": 0, "hf": 0, "head": 1}
    for name, dim in inputs.items():
        weight = model.get_submodule(name).weight.detach()
        groups = weight.movedim(dim, -1).reshape(-1, pattern.m)
        assert ((groups != 0).sum(1) == pattern.n).all()


def test_group_learning_rates_of_zero_leave_a_target_that_can_be_met():
    torch.manual_seed(0)
    model = MLP()
    optimizer = SGD([{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}], lr=0.1)
    halo = HALO(model, 0.9, 40, exclude="4.*").attach(optimizer)
    fit(model, optimizer, range(40))
    assert halo.finalize().zeros == round(0.9 * halo.units)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [HALO, Lasso, MCP, Bridge])
def test_other_precisions(method, dtype):
    """Few distinct values: ties everywhere."""
    model, optimizer, attached = start(method, model=lambda: MLP(dtype), lr=0.02)
    fit(model, optimizer, range(40), lambda step: (batch(step)[0].to(dtype), batch(step)[1]))
    assert attached.finalize().zeros == counted(model, attached) == round(0.9 * attached.units)


def test_a_model_of_two_precisions_with_a_layer_out_of_use():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 20), nn.Linear(20, 4).double()
            self.unused = nn.Linear(7, 7).double()

        def forward(self, x):
            return self.b(self.a(x).relu().double())

    model, optimizer, halo = start(model=Mixed, optimizer=Adam, lr=1e-2)
    fit(model, optimizer, range(40))
    assert halo.finalize().zeros == counted(model, halo) == round(0.9 * halo.units)


def test_channels_last_weights():
    model, optimizer, halo = start(model=lambda: CNN().to(memory_format=torch.channels_last))
    fit(model, optimizer, range(60), images)
    assert halo.finalize().zeros == round(0.9 * halo.units)
    assert pruned_signs(model, halo) == (0, 0)


def test_several_optimisers_share_one_target():
    torch.manual_seed(0)
    model = MLP()
    first, second = SGD(model[0].parameters(), lr=0.1), Adam([*model[2].parameters(), *model[4].parameters()], lr=1e-2)
    halo = HALO(model, 0.9, 40).attach(first, second)
    fit(model, first, range(60), after=second.step)
    assert halo.step == 60
    assert halo.finalize().zeros == counted(model, halo) == round(0.9 * halo.units)
    assert pruned_signs(model, halo) == (0, 0)


def test_the_strength_is_that_of_the_pool_though_the_last_layer_is_protected():
    model, optimizer, halo = start(Lasso, layer_sparsity={"4.*": 0.0})
    fit(model, optimizer, range(20))
    assert halo.strength > 0
    assert halo.penalty() > 0


def test_the_choice_spares_what_matters():
    """A third of the inputs is noise: their weights go first."""
    momentum = partial(SGD, momentum=0.9)
    model, optimizer, halo = start(optimizer=momentum, lr=0.05, steps=300, sparsity=0.8)
    fit(model, optimizer, range(300))
    halo.finalize()
    kept = halo.masks()["0.weight"].float().mean(0)
    assert kept[:8].mean() > 2 * kept[8:].mean()

"""What latent weights must not do: show, get lost, or lose count."""

import copy
import io
import math
from functools import partial

import pytest
import torch
from torch import nn, optim
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from nets import CNN, MLP, RAMP, batch, fit, images, start
from shrinkage import NM, Block, InputError, Row, StateError, Weight
from shrinkage.core.latent import LatentSolver, totals
from shrinkage.core.slots import Slot
from shrinkage.pruning.movement import Masked, Movement
from shrinkage.pruning.softtopk import SoftTopK
from shrinkage.pruning.thresholds import STR

METHODS = [STR, SoftTopK, Movement]
every = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def selected(model, method):
    return {name: model.get_parameter(name).detach().clone() for name in method.measure()}


def tail(model):
    """All parameters but those of the first layer: 576 of the 960 weights."""
    return list(model.parameters())[2:]


def fit_with(model, optimizers, steps):
    for step in steps:
        x, y = batch(step)
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()


def asked(method):
    """How many zeros the ramp asks for now."""
    dial, share = method._plan.dial, method._ramp(method.step)
    return sum(math.floor(share * pool.zeros + 1e-9) for pool in dial.pools)


# ---- counts -------------------------------------------------------------------------------------

TARGETS = {
    "weights": {},
    "rows": {"granularity": Row()},
    "blocks": {"granularity": Block(3, 2)},
    "2:4": {"granularity": NM(2, 4), "sparsity": None},
    "uniform": {"distribution": "uniform"},
    "own share": {"layer_sparsity": {"2.*": 0.25}},
    "floor": {"floor": 0.9},
    "early": {"ramp": lambda x: min(2 * x, 1.0)},  # all is wanted long before the pattern is fixed
}


@every
@pytest.mark.parametrize("target", TARGETS)
def test_every_step_ends_with_exactly_the_zeros_that_are_asked_for(method, target):
    model, optimizer, attached = start(method, **TARGETS[target])
    counts = []
    fit(model, optimizer, range(40), after=lambda: counts.append((attached.zeros, asked(attached))))
    assert [zeros for zeros, _ in counts] == [wanted for _, wanted in counts]
    assert counts[0][0] == 0 < counts[15][0] <= counts[-1][0] == attached.finalize().zeros


@every
def test_equal_weights_are_counted_one_by_one(method):
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    for layer in (model[0], model[2]):
        layer.weight.data = layer.weight.data.sign() * 0.5
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    attached = method(model, 0.7, 20).attach(optimizer)
    for _ in range(20):
        model[0].weight.grad, model[2].weight.grad = torch.zeros(8, 8), torch.zeros(8, 8)
        optimizer.step()
        assert attached.zeros == asked(attached)
        assert not any(bool((p.signbit() & (p == 0)).any()) for p in model.parameters())
    assert attached.finalize().zeros == round(0.7 * 128)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(method, dtype):
    torch.manual_seed(0)
    model = MLP(dtype)
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    attached = method(model, 0.9, 40, **RAMP).attach(optimizer)
    for step in range(40):
        x, y = batch(step)
        optimizer.zero_grad()
        functional.cross_entropy(model(x.to(dtype)), y).backward()
        optimizer.step()
        assert attached.zeros == asked(attached)
    assert attached.finalize().zeros == round(0.9 * 960)


@every
def test_convolutions_and_bf16_autocast(method):
    model, optimizer, attached = start(method, model=CNN, optimizer=optim.AdamW, lr=0.01)
    for step in range(40):
        x, y = images(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert attached.finalize().zeros == round(0.9 * attached.units)


@every
def test_it_learns(method):
    """At 80 % zeros the loss is far below that of guessing, log 4."""
    model, optimizer, attached = start(method, optimizer=optim.Adam, lr=0.01, steps=400, sparsity=0.8)
    fit(model, optimizer, range(400))
    attached.finalize()
    x, y = batch(9999)
    assert functional.cross_entropy(model(x), y) < 0.5


# ---- what shows ---------------------------------------------------------------------------------


@every
def test_the_parameter_is_the_effective_weight_and_the_latent_is_dense(method):
    model, optimizer, attached = start(method)
    addresses = [p.data_ptr() for p in model.parameters()]
    fit(model, optimizer, range(25))
    assert [p.data_ptr() for p in model.parameters()] == addresses
    state = attached.state_dict()["solver"]
    assert sum(int((t == 0).sum()) for t in state["latents"]) == 0
    twin = copy.deepcopy(model)
    x, _ = batch(0)
    assert torch.equal(twin(x), model(x))
    assert sum(int((w == 0).sum()) for w in selected(twin, attached).values()) == attached.zeros > 0
    assert attached.penalty() == 0
    assert attached.lam() == {}
    assert attached.lam_optimizer is None


@every
def test_saved_latents_are_a_snapshot(method):
    model, optimizer, attached = start(method)
    fit(model, optimizer, range(20))
    state = attached.state_dict()
    before = io.BytesIO()
    torch.save(state, before)
    fit(model, optimizer, range(20, 22))
    after = io.BytesIO()
    torch.save(state, after)
    assert before.getvalue() == after.getvalue()


@every
def test_a_moving_average_sees_sparse_weights(method):
    model, optimizer, attached = start(method)
    average = AveragedModel(model)
    fit(model, optimizer, range(40), after=lambda: average.update_parameters(model))
    attached.finalize()
    attached.apply_to(average)
    x, _ = batch(0)
    assert torch.isfinite(average(x)).all()


@every
def test_weights_that_somebody_loads_become_the_latent_ones(method):
    model, optimizer, attached = start(method)
    fit(model, optimizer, range(10))
    torch.manual_seed(5)
    other = MLP()
    model.load_state_dict(other.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    fit(model, optimizer, range(10, 11))
    for latent, name in zip(attached.state_dict()["solver"]["latents"], attached.measure(), strict=True):
        assert torch.equal(latent, other.get_parameter(name))
    assert attached.zeros == asked(attached)


@every
def test_weights_that_were_swapped_out_and_in_leave_no_trace(method):
    plain, optimizer, _ = start(method)
    fit(plain, optimizer, range(25))
    model, optimizer, _ = start(method)

    def swap():
        mine = copy.deepcopy(model.state_dict())
        model.load_state_dict(MLP().state_dict())
        model.load_state_dict(mine)

    fit(model, optimizer, range(25), after=swap)
    assert same(plain, model)


# ---- optimisers ---------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_changes_nothing_and_skipped_steps_leave_no_trace(method, fused):
    build = partial(optim.Adam, fused=fused)
    plain, optimizer, _ = start(method, optimizer=build, lr=0.01)
    fit(plain, optimizer, range(30))
    model, optimizer, attached = start(method, optimizer=build, lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=7)
    for step in range(30):
        for overflow in (step % 10 == 5, False):
            x, y = batch(step)
            optimizer.zero_grad()
            scaler.scale(functional.cross_entropy(model(x), y)).backward()
            if overflow:
                model[0].weight.grad.fill_(torch.inf)
                before = selected(model, attached)
            scaler.step(optimizer)
            scaler.update()
            if not overflow:
                break
            assert all(torch.equal(before[name], weight) for name, weight in selected(model, attached).items())
    assert attached.step == 30
    assert same(plain, model)


@every
def test_an_optimiser_touches_its_own_tensors_only(method):
    torch.manual_seed(0)
    model = MLP()
    first, rest = optim.SGD(model[0].parameters(), lr=0.1), optim.SGD(tail(model), lr=0.1)
    attached = method(model, 0.9, 40, **RAMP).attach(first, rest)
    for step in range(40):
        x, y = batch(step)
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        before = [(p.detach().clone(), p.grad.clone()) for p in tail(model)]
        first.step()
        for parameter, (weight, gradient) in zip(tail(model), before, strict=True):
            assert torch.equal(parameter, weight)
            assert torch.equal(parameter.grad, gradient)
        assert attached.step == step
        rest.step()
        assert attached.step == step + 1
        assert attached.zeros == asked(attached)
    assert attached.finalize().zeros == round(0.9 * 960)


def test_movement_with_two_optimisers_is_movement_with_one():
    plain, optimizer, _ = start(Movement)
    fit(plain, optimizer, range(40))
    torch.manual_seed(0)
    model = MLP()
    rest, first = optim.SGD(tail(model), lr=0.1), optim.SGD(model[0].parameters(), lr=0.1)
    attached = Movement(model, 0.9, 40, **RAMP).attach(first, rest)
    assert attached._clock is rest  # 576 of 960 weights
    fit_with(model, (first, rest), range(40))
    assert same(plain, model)


@every
def test_two_optimisers_resume_bit_identically(method):
    """Between the clock's step and the other's, weights have moved under an old choice: it is saved, not made anew."""

    def build(model):
        return optim.SGD(tail(model), lr=0.1), optim.Adam(model[0].parameters(), lr=0.01)

    torch.manual_seed(0)
    model = MLP()
    clock, other = build(model)
    attached = method(model, 0.9, 40, **RAMP).attach(clock, other)
    fit_with(model, (clock, other), range(20))
    saved = copy.deepcopy([model.state_dict(), clock.state_dict(), other.state_dict(), attached.state_dict()])
    fit_with(model, (clock, other), range(20, 40))
    again = MLP()
    clock, other = build(again)
    for thing, state in zip((again, clock, other), saved, strict=False):
        thing.load_state_dict(state)
    resumed = method(again, 0.9, 40, **RAMP)
    resumed.load_state_dict(saved[3])
    resumed.attach(clock, other)
    fit_with(again, (clock, other), range(20, 40))
    assert same(model, again)


@every
def test_going_back_to_an_earlier_state_after_the_pattern_was_fixed(method):
    model, optimizer, attached = start(method)
    fit(model, optimizer, range(20))
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict(), attached.state_dict()])
    fit(model, optimizer, range(20, 40))
    wanted = copy.deepcopy(model)
    for thing, state in zip((model, optimizer, attached), saved, strict=True):
        thing.load_state_dict(state)
    assert (attached.phase, attached.zeros) == ("shrinking", asked(attached))
    fit(model, optimizer, range(20, 40))
    assert same(wanted, model)


@every
def test_a_missing_gradient_leaves_its_tensor_alone(method):
    model, optimizer, attached = start(method)
    fit(model, optimizer, range(5))
    before = attached.state_dict()["solver"]["latents"][0]
    x, y = batch(5)
    optimizer.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    model[0].weight.grad = None
    optimizer.step()
    assert torch.equal(before, attached.state_dict()["solver"]["latents"][0])


@every
def test_decay_acts_on_the_latent_weight(method):
    model, optimizer, attached = start(method, optimizer=partial(optim.SGD, weight_decay=0.5))
    fit(model, optimizer, range(20))
    before = attached.state_dict()["solver"]["latents"]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for one, other in zip(before, attached.state_dict()["solver"]["latents"], strict=True):
        torch.testing.assert_close(other, one * (1 - 0.1 * 0.5))


# ---- what goes wrong ----------------------------------------------------------------------------


class Stumbling(optim.Optimizer):
    """Plain gradient descent that breaks off in the middle of a step, once."""

    stumbles = False

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(parameter.grad, alpha=self.param_groups[0]["lr"])
            if self.stumbles:
                self.stumbles = False
                raise KeyboardInterrupt


@every
def test_a_step_that_was_broken_off_loses_nothing(method):
    plain, optimizer, _ = start(method, optimizer=Stumbling)
    fit(plain, optimizer, range(40))
    model, optimizer, attached = start(method, optimizer=Stumbling)
    fit(model, optimizer, range(20))
    before, latents = selected(model, attached), attached.state_dict()["solver"]["latents"]
    optimizer.stumbles = True
    with pytest.raises(KeyboardInterrupt):
        fit(model, optimizer, range(20, 21))
    state = attached.state_dict()["solver"]["latents"]
    assert all(torch.equal(one, other) for one, other in zip(latents, state, strict=True))
    with pytest.raises(StateError, match=r"a step of Stumbling was not finished.*compute the gradients anew"):
        optimizer.step()
    assert all(torch.equal(before[name], weight) for name, weight in selected(model, attached).items())
    fit(model, optimizer, range(20, 40))
    assert attached.finalize().zeros == round(0.9 * 960)
    if method is not Movement:  # which has seen one gradient twice
        assert same(plain, model)


@every
@pytest.mark.parametrize("anew", [True, False], ids=["attached anew", "loaded"])
def test_a_step_that_was_broken_off_is_mended_by_loading_its_state(method, anew):
    model, optimizer, attached = start(method, optimizer=Stumbling)
    fit(model, optimizer, range(20))
    before = selected(model, attached)
    optimizer.stumbles = True
    with pytest.raises(KeyboardInterrupt):
        fit(model, optimizer, range(20, 21))
    if anew:
        attached.detach()
        attached.attach(optimizer)
    else:
        attached.load_state_dict(attached.state_dict())
    assert all(torch.equal(before[name], weight) for name, weight in selected(model, attached).items())
    fit(model, optimizer, range(20, 40))
    assert attached.finalize().zeros == round(0.9 * 960)


class Twice(optim.Optimizer):
    """Looks at the loss at two points, as sharpness-aware optimisers do."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure):
        for sign in (-1, 1):
            loss = closure()
            for parameter in self.param_groups[0]["params"]:
                parameter.sub_(parameter.grad, alpha=0.1 * sign)
        return loss


@every
def test_optimisers_that_look_twice_are_refused(method):
    model = MLP()
    attached = method(model, 0.9, 40)
    with pytest.raises(InputError, match="LBFGS evaluates the loss several times"):
        attached.attach(optim.LBFGS(model.parameters()))
    optimizer = Twice(model.parameters())
    attached.attach(optimizer)

    def closure():
        optimizer.zero_grad()
        x, y = batch(0)
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    before = selected(model, attached)
    with pytest.raises(StateError, match=r"a step of Twice was not finished.*more than once"):
        optimizer.step(closure)
    assert all(torch.equal(before[name], weight) for name, weight in selected(model, attached).items())


@every
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_training_that_diverges_is_named_at_once(method, bad):
    model, optimizer, _ = start(method)
    fit(model, optimizer, range(10))
    x, y = batch(10)
    optimizer.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    model[2].weight.grad[0, 0] = bad
    with pytest.raises(StateError, match=r"'2\.weight', or their scores, are NaN or infinite at step 11.*lower"):
        optimizer.step()


# ---- the parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [Weight(), Row(), Block(3, 2)], ids=repr)
@pytest.mark.parametrize(("shape", "out_dim"), [((5, 7), 0), ((5, 7), 1), ((4, 3, 2, 2), 0)])
def test_totals_are_sums_over_units(cut, shape, out_dim):
    weight = torch.randn(shape, dtype=torch.float64)
    slot = Slot("w", nn.Parameter(weight), out_dim, cut, optim.SGD([nn.Parameter(weight)], lr=0.1), 0)
    found = totals(slot, weight)
    assert found.shape == slot.unit_shape
    for place in torch.cartesian_prod(*(torch.arange(n) for n in slot.unit_shape)).reshape(-1, len(slot.unit_shape)):
        unit = torch.zeros(slot.unit_shape, dtype=torch.float64)
        unit[tuple(place)] = 1.0
        torch.testing.assert_close(found[tuple(place)], (weight * slot.spread(unit)).sum())


def test_the_solver_does_not_know_the_method():
    """A form of one's own: the mask of Movement, ranked by size."""

    class BySize(Masked):
        def score(self, index, size):
            return size

    model = MLP()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    attached = Movement(model, 0.9, 40, floor=0.0, **RAMP)
    attached._solver = LatentSolver(BySize())
    attached.attach(optimizer)
    fit(model, optimizer, range(25))
    latents = torch.cat([latent.flatten().abs() for latent in attached.state_dict()["solver"]["latents"]])
    zero = torch.cat([(weight == 0).flatten() for weight in selected(model, attached).values()])
    assert latents[zero].max() <= latents[~zero].min()


@every
def test_weights_written_through_data_become_the_latent_ones(method):
    model, optimizer, _ = start(method)
    fit(model, optimizer, range(10))
    with torch.no_grad():
        nn.utils.vector_to_parameters(
            torch.full((sum(p.numel() for p in model.parameters()),), 1e-3), model.parameters()
        )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(parameter.detach().abs().max().item() < 2e-3 for parameter in model.parameters())

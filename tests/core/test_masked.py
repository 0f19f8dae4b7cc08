"""The masked solver by itself and in the engine: what an exchange takes and gives, and how masks survive."""

import copy
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim

from nets import MLP, batch, fit
from shrinkage import NM, Block, InputError, Row, Weight
from shrinkage.core.dial import Dial
from shrinkage.core.masked import Exchange, Magnitude, MaskedSolver
from shrinkage.core.slots import Slot
from shrinkage.pruning.gradualmagnitude import GradualMagnitude
from shrinkage.pruning.rigl import RigL
from shrinkage.pruning.set import SET

METHODS = {"GradualMagnitude": GradualMagnitude, "SET": SET, "RigL": RigL}
GRANULARITIES = {"weight": Weight(), "row": Row(), "block": Block(2, 4), "2:4": NM(2, 4)}


@dataclass(frozen=True)
class Told:
    """Grows what it is told to, from a value that no weight has."""

    shared: float
    told: torch.Tensor

    def share(self, progress):
        return self.shared

    def worth(self, slot, chance):
        return self.told

    def values(self, slot, gone, chance):
        return slot.parameter.new_tensor(7.0)


def masked(weight, active, growth, granularity=None):
    """A solver that holds ``active`` weights of one tensor, right before the step with an exchange."""
    granularity = Weight() if granularity is None else granularity
    parameter = nn.Parameter(weight * active)
    optimizer = optim.SGD([parameter], lr=0.1)
    slot = Slot("w", parameter, 0, granularity, optimizer, 0)
    units = slot.units
    zeros = int((slot.sizes() == 0).sum())
    sparsity = granularity.sparsity if isinstance(granularity, NM) else zeros / units
    dial = Dial(["w"], [units], [0], granularity, sparsity, {}, 0.0)
    solver = MaskedSolver(Magnitude(), 1, Exchange(growth, 10, 0))
    solver.start([slot], dial)
    solver.begin()
    assert torch.equal(parameter != 0, active)
    solver.after_step(1, 1.0)
    return parameter, lambda: solver.before_step(optimizer, None, True, True)


def by_hand(sizes, active, worth, share):
    """Which stay and which grow, one at a time and with ties: the later place is worth more."""
    places = range(len(sizes))
    count = sum(active)
    going = sorted((sizes[j], j) for j in places if active[j])[: int(share * count + 1e-9)]
    able = sorted((worth[j], j) for j in places if not active[j] and worth[j] > 0)[::-1]
    grown = {j for _, j in able[: len(going)]}
    gone = {j for _, j in going[: len(grown)]}
    return {j for j in places if active[j]} - gone, grown


@settings(deadline=None, max_examples=120)
@given(st.integers(2, 40), st.integers(0, 999), st.floats(0, 0.99), st.sampled_from([torch.float32, torch.float64]))
def test_an_exchange_is_what_one_would_do_by_hand(n, seed, share, dtype):
    """Ties among sizes and worths, and too few that are worth anything: then fewer go, the largest of them stay."""
    chance = torch.Generator().manual_seed(seed)
    weight = torch.randint(1, 6, (n,), generator=chance).to(dtype) / 4
    active = torch.rand(n, generator=chance) < 0.6
    active[0], active[-1] = True, False
    worth = torch.randint(0, 4, (n,), generator=chance).to(dtype) * 1e-30
    parameter, exchange = masked(weight, active, Told(share, worth))
    exchange()
    stay, grown = by_hand(weight.tolist(), active.tolist(), worth.tolist(), share)
    wanted = torch.zeros(n, dtype=dtype)
    for j in stay:
        wanted[j] = weight[j]
    for j in grown:
        wanted[j] = 7.0
    assert torch.equal(parameter.detach(), wanted)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 999), st.floats(0.1, 0.9))
def test_an_exchange_keeps_n_of_m(seed, share):
    """Those that do not go stay, and every group grows what it is worth most among the rest."""
    chance = torch.Generator().manual_seed(seed)
    weight = torch.rand(3, 8, generator=chance) + 0.1
    active = ~NM(2, 4).removable(torch.rand(3, 8, generator=chance), 0)
    worth = torch.rand(3, 8, generator=chance) + 0.1
    parameter, exchange = masked(weight, active, Told(share, worth), NM(2, 4))
    exchange()
    count = int(share * 12 + 1e-9)
    going = active & (weight <= (weight * active)[active].sort().values[count - 1]) if count else active & False
    now = parameter.detach() != 0
    for before, after, leaving, value in zip(
        *(tensor.reshape(-1, 4) for tensor in (active, now, going, worth)), strict=True
    ):
        assert after.sum() == 2
        assert after[before & ~leaving].all()
        able = sorted(value[~before].tolist())[::-1]
        assert sorted(value[after & ~before].tolist())[::-1] == able[: int(leaving.sum())]


def test_infinite_and_missing_worths_do_no_harm():
    worth = torch.tensor([0.0, 0.0, torch.nan, torch.inf, 1.0, torch.nan])
    active = torch.tensor([True, True, False, False, False, False])
    parameter, exchange = masked(torch.arange(1.0, 7.0), active, Told(0.5, worth))
    exchange()
    assert parameter.tolist() == [0, 2, 0, 7, 0, 0]


def test_the_first_pattern_is_drawn_evenly_and_by_its_seed():
    def drawn(seed):
        model = nn.Linear(50, 40, bias=False)
        SET(model, 0.8, 100, seed=seed).attach(optim.SGD(model.parameters(), lr=0.1))
        return model.weight.detach() != 0

    patterns = torch.stack([drawn(seed) for seed in range(20)])
    assert (patterns.sum((1, 2)) == 400).all()
    assert torch.equal(drawn(3), patterns[3])
    often = patterns.float().mean(0)
    assert often.mean().item() == pytest.approx(0.2)
    assert often.var().item() == pytest.approx(0.2 * 0.8 / 20, rel=0.15)  # that of independent draws
    assert patterns.float().mean((0, 1)).std() < 0.03  # no column is preferred


def test_every_draw_has_numbers_of_its_own():
    exchange = Exchange(Told(0.1, torch.zeros(())), 10, 0)
    other = Exchange(Told(0.1, torch.zeros(())), 10, 1)
    before = torch.get_rng_state()
    firsts = {
        torch.rand((), generator=exchange.chance(step, tensor)).item() for step in range(9) for tensor in range(9)
    }
    firsts |= {torch.rand((), generator=other.chance(step, 0)).item() for step in range(9)}
    assert len(firsts) == 90
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("method", [SET, RigL])
@pytest.mark.parametrize("cut", GRANULARITIES)
def test_units_are_exact_at_every_step_from_the_start(method, cut):
    torch.manual_seed(0)
    model = MLP()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsity = None if cut == "2:4" else 0.7
    sparse = method(model, sparsity, 60, granularity=GRANULARITIES[cut], interval=2).attach(optimizer)
    counts, patterns = [sparse.measure()], set()
    for step in range(60):
        fit(model, optimizer, range(step, step + 1))
        counts.append(sparse.measure())
        patterns.add(tuple((model[0].weight != 0).flatten().tolist()))
    assert all(count == counts[0] for count in counts)
    assert sum(zeros for zeros, _ in counts[0].values()) == round((sparsity or 0.5) * sparse.units)
    assert len(patterns) > 5
    assert sparse.finalize().zeros == counts[0]["0.weight"][0] + counts[0]["2.weight"][0] + counts[0]["4.weight"][0]
    if cut == "2:4":
        groups = torch.stack(
            [(model[0].weight != 0).reshape(-1, 4).sum(1).min(), (model[0].weight != 0).sum() * 4 / 384]
        )
        assert groups.tolist() == [2, 2]


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_may_stay_dense_beside_n_of_m(method):
    model = MLP()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    options = {"granularity": NM(2, 4), "layer_sparsity": {"2.*": 0}, "interval": 3}
    sparse = METHODS[method](model, None, 60, **options).attach(optimizer)
    dense = []
    fit(model, optimizer, range(60), after=lambda: dense.append(sparse.measure()["2.weight"]))
    assert set(dense) == {(0, 512)}
    assert sparse.finalize().zeros == (384 + 64) // 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "kind", [partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2), partial(optim.AdamW, lr=0.01), optim.Muon]
)
def test_pruned_weights_have_no_value_gradient_or_state(method, kind):
    """Right after a step, whatever its kind; here the interval is 3, so most steps are between two changes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32, bias=False), nn.ReLU(), nn.Linear(32, 4, bias=False))
    optimizer = kind(model.parameters())
    sparse = METHODS[method](model, 0.8, 60, interval=3).attach(optimizer)

    def clean():
        seen.append(sparse.zeros)
        for parameter in model.parameters():
            pruned = parameter == 0
            assert not parameter[pruned].signbit().any()
            assert not parameter.grad[pruned].any()
            for value in optimizer.state[parameter].values():
                if value.shape == parameter.shape and type(optimizer) is not optim.Muon:
                    assert not value[pruned].any()

    seen = []
    fit(model, optimizer, range(60), after=clean)
    assert seen == sorted(seen)
    assert seen[-1] == sparse.finalize().zeros == round(0.8 * sparse.units)


@pytest.mark.parametrize("method", METHODS)
def test_an_old_optimizer_state_does_not_revive_weights(method):
    """Before the pattern is fixed, too, and between two changes of the mask."""
    torch.manual_seed(0)
    model = MLP()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    fit(model, optimizer, range(3))
    old = copy.deepcopy(optimizer.state_dict())
    sparse = METHODS[method](model, 0.9, 300, interval=20).attach(optimizer)
    fit(model, optimizer, range(65))
    zeros = {name: parameter == 0 for name, parameter in model.named_parameters()}
    assert sparse.zeros > 50
    optimizer.load_state_dict(old)
    fit(model, optimizer, range(65, 75))
    assert all((model.get_parameter(name)[zero] == 0).all() for name, zero in zeros.items())
    assert not any(optimizer.state[model[0].weight]["momentum_buffer"][zeros["0.weight"]])


@pytest.mark.parametrize("method", [SET, RigL])
def test_a_sparse_model_begins_with_its_own_pattern(method):
    torch.manual_seed(0)
    model = nn.Linear(40, 30, bias=False)
    with torch.no_grad():
        model.weight.mul_(torch.rand_like(model.weight) < 0.3)
    own = model.weight.detach() != 0
    method(model, 0.5, 100).attach(optim.SGD(model.parameters(), lr=0.1))  # more may stay than are there
    assert torch.equal(model.weight != 0, own)
    sparse = method(model, 0.9, 100).attach(optim.SGD(model.parameters(), lr=0.1))  # not all may stay
    assert sparse.zeros == 1080
    assert not (model.weight != 0)[~own].any()


@pytest.mark.parametrize("method", [SET, RigL])
@pytest.mark.parametrize("order", ["state first", "weights first", "weights last"])
def test_a_state_taken_between_exchanges_continues_in_any_order(method, order):
    """At step 24 right between two of them, at step 27 with one due at the next."""
    for stop in (24, 27):
        continue_from(method, order, stop)


def continue_from(method, order, stop):
    def build():
        torch.manual_seed(0)
        model = MLP()
        optimizer = optim.AdamW(model.parameters(), lr=0.01)
        return model, optimizer, method(model, 0.8, 100, interval=7)

    model, optimizer, sparse = build()
    sparse.attach(optimizer)
    fit(model, optimizer, range(stop))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparse.state_dict()))
    fit(model, optimizer, range(stop, 60))
    again, optimizer, sparse = build()
    if order == "state first":
        sparse.load_state_dict(saved[2])
        sparse.attach(optimizer)
        again.load_state_dict(saved[0])
    elif order == "weights first":
        again.load_state_dict(saved[0])
        sparse.attach(optimizer)
        sparse.load_state_dict(saved[2])
    else:
        sparse.attach(optimizer)
        sparse.load_state_dict(saved[2])
        again.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    fit(again, optimizer, range(stop, 60))
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


def test_the_state_of_a_method_that_was_never_attached_begins_a_training():
    model = MLP()
    state = SET(model, 0.9, 100).state_dict()
    sparse = SET(model, 0.9, 100)
    sparse.load_state_dict(state)
    sparse.attach(optim.SGD(model.parameters(), lr=0.1))
    assert sparse.zeros == round(0.9 * sparse.units)


@pytest.mark.parametrize("method", METHODS)
def test_what_grows_while_detached_is_cleared_again(method):
    torch.manual_seed(0)
    model = MLP()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparse = METHODS[method](model, 0.9, 100, interval=9).attach(optimizer)
    fit(model, optimizer, range(60))
    active = {name: parameter != 0 for name, parameter in model.named_parameters() if name.endswith("weight")}
    sparse.detach()
    before = sparse.zeros
    fit(model, optimizer, range(5))
    assert sparse.zeros < before / 2
    sparse.attach(optimizer)
    fit(model, optimizer, range(60, 61))
    assert all(torch.equal(model.get_parameter(name) != 0, mask) for name, mask in active.items())


@pytest.mark.parametrize("method", [SET, RigL])
def test_every_optimiser_exchanges_its_own_at_its_own_steps(method):
    """The one that holds fewer weights steps every fifth time, and catches up."""
    torch.manual_seed(0)
    model = MLP()
    often = optim.SGD([*model[0].parameters(), *model[2].parameters()], lr=0.1)
    seldom = optim.AdamW(model[4].parameters(), lr=0.01)
    sparse = method(model, 0.7, 300, interval=4, distribution="uniform").attach(often, seldom)
    fast, slow = [], []
    for step in range(60):
        x, y = batch(step)
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        often.step()
        if step % 5 == 4:
            seldom.step()
        fast.append((model[0].weight != 0).clone())
        slow.append((model[4].weight != 0).clone())
        assert {zeros / units for zeros, units in sparse.measure().values()} <= {
            round(0.7 * units) / units for _, units in sparse.measure().values()
        }
    moved = [step + 1 for step in range(1, 60) if not torch.equal(fast[step], fast[step - 1])]
    assert moved == list(range(4, 61, 4))
    moved = [step + 1 for step in range(1, 60) if not torch.equal(slow[step], slow[step - 1])]
    assert moved == list(range(5, 61, 5))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_grad_scaler(method, fused):
    """An exchange that falls on a skipped step comes with the next, and scaled gradients rank like others."""
    torch.manual_seed(0)
    model = MLP()
    optimizer = optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    sparse = METHODS[method](model, 0.9, 45, interval=3).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=5)
    for step in range(50):
        x, y = batch(step)
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
        if step in {2, 5, 11, 30, 31}:
            model[0].weight.grad.fill_(torch.inf)
        scaler.step(optimizer)
        scaler.update()
        if method != "GradualMagnitude":
            assert sparse.zeros == round(0.9 * sparse.units)
    assert sparse.step == 45
    assert sparse.finalize().zeros == round(0.9 * sparse.units)


def test_rigl_exchanges_the_same_under_scaled_gradients():
    """A power of two as the scale rounds nothing: the same bits."""

    def trained(scale):
        torch.manual_seed(0)
        model = MLP()
        optimizer = optim.SGD(model.parameters(), lr=0.1, fused=True)
        RigL(model, 0.8, 100, interval=2).attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        for step in range(30):
            x, y = batch(step)
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
        return model.state_dict()

    one, other = trained(1.0), trained(4096.0)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_line_search_exchanges_once_a_step():
    torch.manual_seed(0)
    model = MLP()
    optimizer = optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    sparse = SET(model, 0.8, 40, interval=2, zeta=0.5).attach(optimizer)
    seen = []

    def closure():
        x, y = batch(0)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        seen[-1].add(tuple((model[0].weight != 0).flatten().tolist()))
        return loss

    for _ in range(20):
        seen.append(set())
        optimizer.step(closure)
        assert sparse.zeros == round(0.8 * sparse.units)
    assert {len(patterns) for patterns in seen} <= {1, 2}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(3, 40), min_size=1, max_size=3), st.floats(0, 1), st.integers(0, 99))
def test_a_share_of_a_pattern_is_exact_and_goes_on_into_the_whole(units, share, seed):
    dial = Dial([f"t{i}" for i in range(len(units))], units, [0] * len(units), Weight(), 0.6, {}, 0.05)
    chance = torch.Generator().manual_seed(seed)
    scores = [torch.randint(0, 5, (n,), generator=chance).float() for n in units]
    seconds = [torch.rand(n, generator=chance) for n in units]
    some, all_ = dial.pattern(scores, seconds, share), dial.pattern(scores, seconds)
    assert sum(int((~kept).sum()) for kept in some) == int(share * dial.zeros + 1e-9)
    assert all(one[other].all() for one, other in zip(some, all_, strict=True))


@pytest.mark.parametrize("method", [SET, RigL])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": None}, "needs a target: sparsity="),
        ({"sparsity": 95}, r"0\.95 for 95 %\), got 95"),
        ({"steps": None}, "needs steps="),
        ({"steps": "40"}, "positive whole number of optimiser steps, got '40'"),
        ({"ramp": "cubic"}, "sparse all along and has no ramp: leave 'ramp' out"),
        ({"start": 0.1}, "leave 'start' out"),
        ({"end": 1.5}, "end=1.5"),
        ({"interval": 0}, "interval must be a positive whole number of optimiser steps, got 0"),
        ({"interval": 2.5}, "got 2.5"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": 0.5}, "got 0.5"),
        ({"sed": 1}, "no argument 'sed'; the nearest is 'seed'"),
    ],
    ids=str,
)
def test_arguments_of_methods_that_are_sparse_all_along(method, options, message):
    with pytest.raises(InputError, match=message):
        method(MLP(), **{"sparsity": 0.9, "steps": 40, **options})


def test_erk_is_the_default_where_it_can_be():
    sparse = SET(MLP(), 0.9, 100)
    sparse.attach(optim.SGD(sparse._model.parameters(), lr=0.1))
    densities = {name: 1 - zeros / units for name, (zeros, units) in sparse.measure().items()}
    raw = {"0.weight": 44 / 384, "2.weight": 48 / 512, "4.weight": 20 / 64}
    for name in raw:  # rounded to whole weights
        assert densities[name] / densities["2.weight"] == pytest.approx(raw[name] / raw["2.weight"], rel=0.05)
    pattern = RigL(MLP(), steps=100, granularity=NM(1, 4))
    pattern.attach(optim.SGD(pattern._model.parameters(), lr=0.1))
    assert pattern.zeros == 720
    assert (pattern.strength, pattern.lam(), pattern.lam_optimizer) == (0.0, {}, None)

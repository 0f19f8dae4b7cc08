"""A budget of multiply–accumulates: what is left is counted as the ledger counts, and never more than was asked for."""

import io
import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim

import shrinkage
from nets import CNN, MLP, RAMP, Transformer, batch, fit, images, pruned_signs, sequences
from shrinkage import NM, Block, InputError, Row, StateError, TargetError, Weight, footprint
from shrinkage.core.bill import Bill, make_bill, usage
from shrinkage.core.budget import EXPONENT, Budget
from shrinkage.core.dial import Dial
from shrinkage.core.latent import Choice, LatentSolver
from shrinkage.core.proximal import SteeredProximal
from shrinkage.core.pruner import Pruner
from shrinkage.core.selection import Selected, select
from shrinkage.core.slots import Slot
from shrinkage.penalties.lasso import UniformPull
from shrinkage.pruning.movement import Masked, keys
from shrinkage.pruning.synflow import _flows, _positive
from shrinkage.pruning.thresholds import SoftThreshold

IMAGE = torch.zeros(1, 1, 8, 8)
METHODS = {
    name: getattr(shrinkage, name)
    for name in (
        "HALO", "Lasso", "SWS", "MCP", "Bridge", "GradualMagnitude", "SET", "RigL", "STR", "SoftTopK", "Movement"
    )
}  # fmt: skip
every = pytest.mark.parametrize("method", METHODS)
PRUNERS = ["Magnitude", "SNIP", "GraSP", "SynFlow", "Random"]


class Plain(nn.Sequential):
    """Nothing but weights that are selected: convolutions whose weights are used 64 and 9 times, and linear layers."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 4),
        )  # fmt: skip


def begin(method, model=Plain, macs=0.3, steps=40, optimizer=optim.SGD, lr=0.05, example=IMAGE, **options):
    torch.manual_seed(0)
    model = model()
    optimizer = optimizer(model.parameters(), lr=lr)
    ramp = {} if method in ("SET", "RigL") else RAMP
    given = ramp | {"macs": macs, "example": example, "steps": steps} | options
    return model, optimizer, METHODS[method](model, **given).attach(optimizer)


# ---- counting -----------------------------------------------------------------------------------


def test_uses_are_those_of_the_ledger():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 4, 3, stride=2), nn.BatchNorm2d(4)
            self.shared = nn.Linear(9, 9)
            self.attention = nn.MultiheadAttention(9, 3, batch_first=True)
            self.idle, self.tied = nn.Linear(5, 5), nn.Linear(9, 9)
            self.tied.weight = self.shared.weight

        def forward(self, x, keys):
            x = self.norm(self.conv(x)).flatten(2)
            x = self.tied(self.shared(self.shared(x)))
            return self.attention(x, keys, keys, need_weights=False)[0] @ x.transpose(1, 2)

    net, example = Net(), (torch.zeros(2, 2, 7, 7), torch.zeros(2, 5, 9))
    used = usage(net, example)
    assert used.total == footprint(net, example).total.macs
    assert (used.weights["conv.weight"], used.weights["shared.weight"]) == (2 * 9, 3 * 2 * 4)
    assert used.weights["attention.in_proj_weight"].flatten().tolist() == [8] * 9 + [10] * 18
    assert "idle.weight" not in used.weights
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("cut", [Weight(), Row(), Block(2, 4), Block(3, 5)], ids=repr)
@pytest.mark.parametrize("out_dim", [0, 1])
def test_a_unit_costs_what_its_weights_cost(cut, out_dim):
    """By hand: mark one unit, spread the mark, and add up the uses under it."""

    class Uneven(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6, 4, 2))

        def forward(self, x):
            return self.weight.sum() * x

    uses = torch.arange(1, 25).view(6, 4, 1)
    shrinkage.register_cost(Uneven)(lambda *call: shrinkage.Cost({"weight": uses}))
    net = Uneven()
    (cost,) = make_bill(net, torch.zeros(1), [Selected("weight", out_dim)], cut).costs
    shape = cut.shape(net.weight.shape, out_dim)
    assert cost.dtype == torch.int64
    for place in range(math.prod(shape)):
        mark = torch.zeros(math.prod(shape))
        mark[place] = 1
        under = cut.spread(mark.view(shape), net.weight.detach(), out_dim).expand_as(net.weight)
        assert cost.flatten()[place] == (under * uses).sum()


def test_equal_costs_are_one_number():
    attention = nn.MultiheadAttention(8, 2)
    x = torch.zeros(5, 1, 8)
    bill = make_bill(attention, {"query": x, "key": x, "value": x}, select(attention), Row())
    assert bill == Bill((40, 40), footprint(attention, {"query": x, "key": x, "value": x}).total.macs)


# ---- the dial -----------------------------------------------------------------------------------


@st.composite
def budgets(draw):
    units = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    chance = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    even = [draw(st.booleans()) for _ in units]
    costs = [
        int(torch.randint(1, 9, (), generator=chance)) if flat else torch.randint(1, 9, (n,), generator=chance)
        for n, flat in zip(units, even, strict=True)
    ]
    scores = [torch.randint(0, 6, (n,), generator=chance).float() for n in units]
    return units, costs, scores, draw(st.floats(0.02, 0.98)), draw(st.integers(0, 30)), draw(st.floats(0, 1))


@settings(deadline=None, max_examples=200)
@given(budgets(), st.floats(0, 1))
def test_patterns_are_the_shortest_that_meet_the_budget(case, share):
    """One by one in the order of scores, tensors and places, and the floor's units never."""
    units, costs, scores, macs, fixed, floor = case
    flat = [torch.as_tensor(c).expand(n) for c, n in zip(costs, units, strict=True)]
    dense = int(torch.cat(flat).sum()) + fixed
    names = {f"t{i}": (n,) for i, n in enumerate(units)}
    try:
        dial = Budget(names, Bill(tuple(costs), dense), macs, {}, "global", floor)
    except InputError:
        return
    kept = dial.pattern(scores, [torch.zeros(n) for n in units], share)
    rows, out_of_reach = [], dial.pools[0].kept
    for i, score in enumerate(scores):
        order = sorted(range(units[i]), key=lambda j, score=score: (float(score[j]), j))
        rows += [(float(score[j]), i, j, int(flat[i][j])) for j in order[: units[i] - out_of_reach[i]]]
    rows.sort()
    need = math.floor(share * (dense - math.floor(macs * dense + 1e-9)) + 1e-9)
    enough = [0, *accumulate(row[3] for row in rows)]
    count = next(k for k, cost in enumerate(enough) if cost >= need)
    zero = sum(row[0] == 0 for row in rows)
    if 0 < need < enough[zero] < need + int(torch.cat(flat).max()):
        count = zero  # what is zero already does not come back
    gone = {(i, j) for _, i, j, _ in rows[:count]}
    assert gone == {(i, j) for i, keep in enumerate(kept) for j in (~keep).nonzero().flatten().tolist()}
    spent = dial.spent([~keep for keep in kept])
    assert spent.kept == dense - enough[count]
    if share == 1:
        assert spent.kept <= spent.budget
        dial.check_spent(spent)


@settings(deadline=None, max_examples=100)
@given(budgets(), st.floats(0, 1))
def test_limits_and_patterns_agree(case, share):
    units, costs, _, macs, fixed, floor = case
    dense = sum(int(torch.as_tensor(c).expand(n).sum()) for c, n in zip(costs, units, strict=True)) + fixed
    try:
        dial = Budget(
            {f"t{i}": (n,) for i, n in enumerate(units)}, Bill(tuple(costs), dense), macs, {}, "global", floor
        )
    except InputError:
        return
    flat = torch.randperm(sum(units), generator=torch.Generator().manual_seed(len(units))).float()
    scores = [part.clone() for part in torch.split(flat, units)]
    kept = dial.pattern(scores, [torch.zeros(n) for n in units], share)
    views = list(torch.split(flat, units))
    limits = dial.limits(views, [flat], share)
    for view, limit, keep in zip(views, limits, kept, strict=True):
        assert torch.equal(view > limit, keep)
    marks = dial.up_to(dial.pools[0], views, limits[0], share, scores)
    assert all(torch.equal(mark, ~keep) for mark, keep in zip(marks, kept, strict=True))


def test_ties_at_a_limit_are_cut_where_the_budget_is_met():
    dial = Budget({"a": (4,), "b": (4,)}, Bill((3, 2), 20), 0.5, {}, "global", 0.0)
    flat = torch.ones(8)
    views = list(torch.split(flat, 4))
    limit = dial.limits(views, [flat], 1.0)[0]
    sizes = [torch.tensor([2.0, 1.0, 2.0, 2.0]), torch.tensor([1.0, 2.0, 1.0, 1.0])]
    marks = dial.up_to(dial.pools[0], views, limit, 1.0, sizes)
    assert [mark.tolist() for mark in marks] == [[True, True, False, False], [True, False, True, True]]  # 3 + 6, 3


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_distributions_share_the_budget_by_density(distribution):
    shapes = {"conv": (8, 4, 3, 3), "wide": (100, 50), "head": (10, 100)}
    costs = (64, 1, 1)
    dense = 64 * 288 + 5000 + 1000 + 77
    dial = Budget(shapes, Bill(costs, dense), 0.3, {}, distribution, 0.0)
    kept = [math.prod(s) * c - pool.zeros for s, c, pool in zip(shapes.values(), costs, dial.pools, strict=True)]
    assert 0 <= math.floor(0.3 * dense) - 77 - sum(kept) < 1
    densities = [k / (math.prod(s) * c) for k, s, c in zip(kept, shapes.values(), costs, strict=True)]
    if distribution == "uniform":
        assert max(densities) - min(densities) < 64 / 5000
    else:
        raw = [sum(s) / math.prod(s) for s in shapes.values()]
        assert densities[0] / densities[1] == pytest.approx(raw[0] / raw[1], rel=0.05)


@settings(deadline=None, max_examples=100)
@given(budgets(), st.sampled_from(["uniform", "erk"]))
def test_distributions_spend_the_budget_whatever_units_cost(case, distribution):
    units, costs, scores, macs, fixed, _ = case
    dense = sum(int(torch.as_tensor(c).expand(n).sum()) for c, n in zip(costs, units, strict=True)) + fixed
    try:
        dial = Budget(
            {f"t{i}": (n,) for i, n in enumerate(units)}, Bill(tuple(costs), dense), macs, {}, distribution, 0.0
        )
    except InputError:
        return
    kept = dial.pattern(scores, [torch.zeros(n) for n in units])
    spent = dial.spent([~keep for keep in kept])
    dial.check_spent(spent)
    assert 0 <= spent.budget - spent.kept < 9 * (len(units) + 1)
    assert all(keep.any() for keep in kept)


def test_a_dial_on_the_way_keeps_a_power_of_the_density():
    dial = Budget({"a": (100,), "b": (50,)}, Bill((4, 10), 1000), 0.2, {}, "global", 0.0)
    assert (dial.zeros, dial.density) == (800, pytest.approx(1 / 9))  # a tenth is not selected
    assert dial.thinned(0.5).density == pytest.approx(1 / 3, abs=0.01)


# ---- methods ------------------------------------------------------------------------------------


CUTS = [Weight(), Row(), Block(3, 5)]


@every
@pytest.mark.parametrize("cut", CUTS, ids=repr)
def test_what_is_left_is_what_was_asked_for_and_what_the_ledger_counts(method, cut):
    model, optimizer, attached = begin(method, granularity=cut)
    fit(model, optimizer, range(40), images)
    result = attached.finalize()
    left, budget = result.macs.kept, result.macs.budget
    ledger = footprint(model, IMAGE).total
    assert (result.macs.dense, budget) == (ledger.macs, math.floor(0.3 * ledger.macs + 1e-9))
    assert ledger.effective_macs <= left == attached.macs.kept <= budget
    dearest = {"Weight": [64, 9, 1, 1], "Row": [576, 486, 72, 20], "Block": [15 * 64, 15 * 9, 15, 15]}
    each = dearest[type(cut).__name__]
    slack = sum(each) if method in ("SET", "RigL") else max(each)  # those have a budget a tensor
    assert budget - left < slack
    if isinstance(cut, Weight):
        assert left == ledger.effective_macs
    fit(model, optimizer, range(40, 60), images)
    assert footprint(model, IMAGE).total.effective_macs <= budget
    assert pruned_signs(model, attached) == (0, 0)
    assert f"{left:,} of {ledger.macs:,} ({left / ledger.macs:.2%}) are left, at most {budget:,}" in str(result)
    assert result.to_dict()["macs"] == {
        "kept": left, "budget": budget, "dense": ledger.macs, "density": left / ledger.macs
    }  # fmt: skip


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
@pytest.mark.parametrize("method", ["HALO", "Lasso", "GradualMagnitude", "STR", "Movement"])
def test_the_ramp_is_one_of_multiplications(method, kind):
    model, optimizer, attached = begin(
        method, CNN, optimizer=kind, lr=0.01, macs=0.2, steps=60, ramp="linear", start=0.1, end=0.9
    )
    seen = []
    fit(model, optimizer, range(54), images, lambda: seen.append((1 - attached.macs.density, attached.wanted)))
    ledger = footprint(model, IMAGE).total
    step = 64 / ledger.macs  # one weight of the first two layers
    gone = [max(0.0, min(1.0, (k - 6) / 48)) * (1 - math.floor(0.2 * ledger.macs) / ledger.macs) for k in range(1, 55)]
    for (found, asked), wanted in zip(seen, gone, strict=True):
        assert asked == pytest.approx(wanted)
        assert wanted - 1e-3 - step <= found < wanted + 1e-3 + 2 * step


@pytest.mark.parametrize("method", ["HALO", "SET"])
@pytest.mark.parametrize("cut", CUTS, ids=repr)
def test_the_budget_is_kept_from_the_first_zero_on(method, cut):
    """HALO's zeros only become more; SET's exchanges never cost more than before, though units cost differently."""
    options = {"interval": 3, "distribution": "global"} if method == "SET" else {}
    model, optimizer, attached = begin(method, granularity=cut, macs=0.4, **options)
    left = [attached.macs]
    fit(model, optimizer, range(40), images, lambda: left.append(attached.macs))
    if method == "SET":
        assert all(0 <= spent.budget - spent.kept < 15 * 64 for spent in left)
    else:
        assert [spent.kept for spent in left] == sorted((spent.kept for spent in left), reverse=True)


@every
@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_where_all_weights_cost_the_same_it_is_a_sparsity(method, kind):
    """Bit for bit: 96 of 960 weights stay."""
    nets = []
    for target in ({"macs": 0.1, "example": torch.zeros(1, 12)}, {"sparsity": 0.9}):
        torch.manual_seed(0)
        model = MLP()
        optimizer = kind(model.parameters(), lr=0.01)
        attached = METHODS[method](model, steps=60, **target).attach(optimizer)
        fit(model, optimizer, range(60))
        assert attached.finalize().zeros == 864
        nets.append(model.state_dict())
    assert all(torch.equal(tensor, nets[1][name]) for name, tensor in nets[0].items())


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every
@pytest.mark.parametrize("cut", [Weight(), Block(3, 5)], ids=repr)
def test_a_resumed_run_ends_in_the_same_bits(method, cut):
    model, optimizer, attached = begin(method, granularity=cut)
    states = []
    for stop in (0, 14, 29, 31, 40):
        fit(model, optimizer, range(attached.step, stop), images)
        states.append(saved((model.state_dict(), optimizer.state_dict(), attached.state_dict())))
    attached.finalize()
    for weights, moments, state in states:
        again, other, resumed = begin(method, granularity=cut)
        again.load_state_dict(weights)
        other.load_state_dict(moments)
        resumed.load_state_dict(state)
        fit(again, other, range(resumed.step, 40), images)
        resumed.finalize()
        assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())


@every
def test_a_state_belongs_to_its_budget(method):
    _, _, attached = begin(method)
    state = attached.state_dict()
    for options in (
        {"macs": 0.31},
        {"example": IMAGE.repeat(2, 1, 1, 1)},
        {"macs": None, "example": None, "sparsity": 0.7},
    ):
        with pytest.raises(InputError, match=r"taken with (macs|zeros)="):
            begin(method, **options)[2].load_state_dict(state)
    begin(method)[2].load_state_dict(state)


@pytest.mark.parametrize("options", [{"xi": 1e-4, "psi": 1e-4}, {"xi": 1e-4, "psi": 1e-4, "solver": "proximal"}])
def test_fixed_strengths_are_cut_to_a_budget(options):
    model, optimizer, attached = begin("HALO", steps=None, start=0.0, end=1.0, **options)
    fit(model, optimizer, range(20), images)
    spent = attached.finalize().macs
    assert 0 <= spent.budget - spent.kept < 64


def test_costly_weights_go_first_by_the_power_of_their_cost():
    """Equal sizes: in the order of score per cost the convolution's go, though the linear layer's come later."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(128, 4, bias=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model[0].weight[1] = 64**EXPONENT * 1.01
    shrinkage.Magnitude(macs=0.6, example=IMAGE, floor=0).prune(model)  # of 1,664: more than one channel is left
    zeros = [(p == 0).flatten(1).float().mean(1).tolist() for p in model.parameters()]
    assert zeros[0] == [1.0, 0.0] if EXPONENT else zeros[0][0] > 0
    assert sum(zeros[1]) > 0


def test_several_optimisers_and_other_precisions():
    torch.manual_seed(0)
    model = Plain().bfloat16()
    first = optim.SGD(model[0].parameters(), lr=0.05, momentum=0.9)
    second = optim.AdamW([*model[2].parameters(), *model[5].parameters(), *model[7].parameters()], lr=1e-2)
    halo = shrinkage.HALO(model, macs=0.3, example=IMAGE.bfloat16(), steps=40).attach(first, second)
    fit(model, first, range(40), lambda step: (images(step)[0].bfloat16(), images(step)[1]), second.step)
    spent = halo.finalize().macs
    assert 0 <= spent.budget - spent.kept < 64
    assert footprint(model, IMAGE.bfloat16()).total.effective_macs == spent.kept


def test_attention_norms_and_embeddings():
    torch.manual_seed(0)
    model = Transformer()
    example = sequences(0)[0][:1]
    optimizer = optim.Adam(model.parameters(), lr=3e-3)
    halo = shrinkage.HALO(model, macs=0.25, example=example, steps=40).attach(optimizer)
    fit(model, optimizer, range(60), sequences)
    spent, ledger = halo.finalize().macs, footprint(model, example).total
    assert ledger.effective_macs == spent.kept <= 0.25 * ledger.macs
    assert 0 <= spent.budget - spent.kept < 6


def test_what_is_left_out_counts_in_full():
    model, optimizer, attached = begin("HALO", exclude="2.*", macs=0.5)
    fit(model, optimizer, range(40), images)
    result, ledger = attached.finalize(), footprint(model, IMAGE)
    assert ledger.total.effective_macs == result.macs.kept <= 0.5 * ledger.total.macs
    assert next(layer for layer in ledger.layers if layer.name == "2").sparsity == 0


@pytest.mark.parametrize("method", ["HALO", "RigL"])
def test_layer_shares_are_kept_and_paid_for(method):
    model, optimizer, attached = begin(method, layer_sparsity={"0.*": 0.5, "7.*": 0.0}, macs=0.5)
    fit(model, optimizer, range(40), images)
    result = attached.finalize()
    zeros = {layer.name: layer.zeros for layer in result.layers}
    assert (zeros["0.weight"], zeros["7.weight"]) == (27, 0)
    ledger = footprint(model, IMAGE).total
    assert ledger.effective_macs == result.macs.kept <= 0.5 * ledger.macs


@pytest.mark.parametrize("cut", CUTS, ids=repr)
@pytest.mark.parametrize("pruner", PRUNERS)
def test_pruners(pruner, cut):
    torch.manual_seed(0)
    model = Plain()
    method = getattr(shrinkage, pruner)(macs=0.3, example=IMAGE, granularity=cut)
    result = method.prune(model, [images(0)])
    ledger = footprint(model, IMAGE).total
    assert ledger.effective_macs == result.macs.kept <= result.macs.budget == math.floor(0.3 * ledger.macs + 1e-9)
    assert result.macs.budget - result.macs.kept < {"Weight": 64, "Row": 576, "Block": 960}[type(cut).__name__]
    again = shrinkage.Magnitude(macs=0.2, example=IMAGE, granularity=cut).prune(model)
    assert again.macs.kept <= again.macs.budget < result.macs.kept


def test_random_takes_cheap_and_dear_alike():
    model = Plain()
    shares = [layer.zeros / layer.units for layer in shrinkage.Random(macs=0.4, example=IMAGE).prune(model).layers]
    assert max(shares) - min(shares) < 0.2


class Flow(Pruner):
    """SynFlow in one round."""

    def scores(self, model, plan, batches, loss):
        return _flows(_positive(model), plan, torch.ones_like(IMAGE).double())


def test_ranks_of_synflow_have_the_cost_in_them():
    nets = []
    for pruner in (Flow, shrinkage.SynFlow):
        torch.manual_seed(0)
        nets.append(Plain())
        rounds = {"rounds": 1} if pruner is shrinkage.SynFlow else {}
        pruner(macs=0.3, example=IMAGE, **rounds).prune(nets[-1], [(IMAGE, None)])
    assert all(torch.equal(one, other) for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_a_lottery_ticket_approaches_the_budget_round_by_round():
    torch.manual_seed(0)
    model, left = Plain(), []

    def train(model, run):
        optimizer = optim.SGD(model.parameters(), lr=0.05)
        run.attach(optimizer)
        left.append(footprint(model, IMAGE).total.effective_macs)
        fit(model, optimizer, range(run.first_step, run.steps), images)

    ticket = shrinkage.LotteryTicket(macs=0.25, example=IMAGE, rounds=2).run(model, train, 20)
    dense = ticket.macs.dense
    assert left == [dense, pytest.approx(dense / 2, abs=64), ticket.macs.kept]
    assert 0 <= ticket.macs.budget - ticket.macs.kept < 64
    assert str(ticket.macs) in str(ticket)


def test_the_example_may_be_a_tuple_or_a_dict_and_is_run_without_a_trace():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.a, self.b = nn.BatchNorm1d(5), nn.Linear(5, 8), nn.Linear(3, 8)

        def forward(self, x, y):
            return self.a(self.norm(x)) * self.b(y)

    net = Two()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x, y = torch.ones(1, 5), torch.ones(1, 3)
    random = torch.get_rng_state()
    shown = [repr(shrinkage.HALO(net, macs=0.5, example=e, steps=9)) for e in ((x, y), {"y": y, "x": x})]
    assert shown == ["HALO(49.28% of 69 MACs, 64 units in 2 tensors, step 0, shrinking)"] * 2
    assert net.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


# ---- refusals -----------------------------------------------------------------------------------


class Scaled(nn.Linear):
    """A weight that no formula knows: it is multiplied by a function, outside of any product."""

    def __init__(self):
        super().__init__(64, 4)
        self.gain = nn.Parameter(torch.ones(3, 3))

    def forward(self, x):
        return super().forward(x) * self.gain.sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": 0.1, "sparsity": 0.9}, r"sparsity= or macs=, not both \(got sparsity=0.9 and macs=0.1\)"),
        ({"macs": 0.1, "example": None}, "give example="),
        ({"macs": None}, "macs= was not given"),
        ({"macs": 0.0}, r"0\.1 for a tenth\), got 0.0"),
        ({"macs": 1.0}, "got 1.0"),
        ({"macs": 10}, "got 10"),
        ({"macs": float("nan")}, "got nan"),
        ({"macs": True}, "got True"),
        ({"macs": "0.1"}, "got '0.1'"),
        ({"granularity": NM(2, 4)}, "2:4 fixes what is left by itself; leave macs=0.3 out"),
        ({"example": torch.zeros(1, 3)}, r"Plain cannot run on an example of shape \(1, 3\)"),
        ({"exclude": "0.*", "macs": 0.3}, r"macs=0.3 leaves 2,\d\d\d of 8,864 .* takes 3,456 by itself.*than 0.3899"),
        ({"layer_sparsity": {"*": 0.5}}, "fixes every selected tensor"),
        ({"layer_sparsity": {"0.*": 0.0}}, "tensors with a share of their own take 3,456"),
        ({"layer_sparsity": {"0.*": 1.0}}, r"must lie in \[0, 1\), got 1.0"),
        ({"layer_sparsity": {"9.*": 0.5}}, "matches no selected weight"),
        ({"floor": 1.5}, "floor must lie"),
        ({"macs": 0.008}, "floor=0.05 keeps .* multiply–accumulates, more than the 70 that the budget leaves"),
        ({"macs": 0.01, "granularity": Row(), "distribution": "uniform", "floor": 0}, "at least one unit in each of 4"),
        ({"distribution": "best"}, "distribution must be one of"),
        ({"biases": True, "include": nn.Linear}, "'5.bias' .or a part of it. takes part in none"),
        ({"mac": 0.1}, "no argument 'mac'; the nearest is 'macs'"),
    ],
    ids=str,
)
def test_budgets_that_cannot_be_are_refused(options, message):
    for method in ("HALO", "GradualMagnitude", "Movement"):
        with pytest.raises(InputError, match=message):
            begin(method, **options)
    given = {"macs": 0.3, "example": IMAGE} | options
    with pytest.raises(InputError, match=message):
        shrinkage.Magnitude(**given).prune(Plain())


def test_a_weight_that_is_not_counted_is_named():
    net = nn.Sequential(nn.Flatten(), Scaled())
    with pytest.raises(InputError, match=r"'1.gain' .*exclude='1.gain'"):
        shrinkage.HALO(net, macs=0.5, example=IMAGE, steps=10, include="1.gain")


def test_zeros_that_come_back_and_weights_that_die_are_told():
    model, optimizer, attached = begin("HALO")
    fit(model, optimizer, range(40), images)
    attached.finalize()
    with torch.no_grad():
        model[7].weight.zero_()
        model[5].weight.zero_()
    with pytest.raises(TargetError, match="have become exactly zero by themselves"):
        attached.finalize()
    pruner = shrinkage.core.plan.Plan(model, None, {"macs": 0.01, "example": IMAGE, "floor": 0})
    with pytest.raises(TargetError, match="are left where 88 were asked for: pruned weights are no longer zero"):
        pruner.result("HALO", model)


def test_nothing_is_told_without_a_budget():
    model = MLP()
    halo = shrinkage.HALO(model, 0.9, 40)
    assert halo.macs is None
    assert "macs" not in shrinkage.Magnitude(0.5).prune(model).to_dict()
    with pytest.raises(StateError, match="attach"):
        halo.finalize()
    assert batch(0)[0].shape == (32, 12)


# ---- scores in relation to costs ----------------------------------------------------------------


def slot_with(toll, cut, rows=6):
    weight = torch.randn(rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parameter = nn.Parameter(weight)
    return Slot("weight", parameter, 0, cut, optim.SGD([parameter], lr=0.1), 0, toll)


class Passed(torch.autograd.Function):
    """The effective weights of a latent solver's only tensor, with the gradient that it turns, for ``gradcheck``."""

    @staticmethod
    def forward(ctx, theta, solver):
        ctx.save_for_backward(theta)
        ctx.solver = solver
        solver._latents[0] = theta.detach().clone()
        solver._write([0])
        return solver._slots[0].parameter.detach().clone()

    @staticmethod
    def backward(ctx, gradient):
        solver = ctx.solver
        solver._latents[0] = ctx.saved_tensors[0].detach().clone()
        solver._slots[0].parameter.grad = gradient.clone()
        with torch.no_grad():
            solver._turn_gradients([0], None)
        return solver._slots[0].parameter.grad, None


@pytest.mark.parametrize("toll", [2.5, torch.tensor([0.5, 1, 2, 4, 1, 3], dtype=torch.float64)], ids=["one", "each"])
@pytest.mark.parametrize("cut", [Weight(), Row()], ids=repr)
def test_gradients_of_latent_weights_know_what_units_cost(cut, toll):
    """w = θ·max(1 − α·toll/‖θ‖, 0)."""
    toll = toll.view(6, 1).expand(6, 4).contiguous() if isinstance(toll, torch.Tensor) and cut == Weight() else toll
    slot = slot_with(toll, cut)
    solver = LatentSolver(SoftThreshold(0.1, 0.9, 0.0))
    solver.start([slot], None)
    size = slot.sizes() / toll
    limit = float(size.median()) * 2.2  # σ(0) = ½ of it is subtracted
    solver._choices = [Choice(size > limit / 2, None, limit)]
    theta = slot.parameter.detach().clone().requires_grad_()
    wanted = theta.detach() * slot.spread((1 - limit / 2 / size).clamp(min=0))
    torch.testing.assert_close(Passed.apply(theta, solver), wanted)
    assert torch.autograd.gradcheck(lambda t: Passed.apply(t, solver), (theta,))


def test_scores_of_movement_are_per_cost():
    form = Masked()
    form.start([slot_with(4.0, Weight())])
    form.scores[0].copy_(torch.arange(-12.0, 12).view(6, 4))
    assert torch.equal(form.score(0, torch.ones(6, 4)), keys(form.scores[0] / 4))


@pytest.mark.parametrize("toll", [4.0, torch.tensor([1.0, 4, 9, 16, 4, 1])], ids=["one", "each"])
def test_the_pull_grows_with_the_cost(toll):
    """At rest, a unit goes if size/(slope·toll) is among the lowest."""
    torch.manual_seed(0)
    layers = [nn.Parameter(torch.rand(6, 4) + 0.5) for _ in range(2)]
    optimizer = optim.SGD(layers, lr=0.0)
    solver = SteeredProximal(UniformPull(), 1)
    slots = [Slot(f"w{i}", layers[i], 0, Row(), optimizer, 0, toll if i else None) for i in range(2)]
    ratios = torch.cat([slot.sizes() if slot.toll is None else slot.sizes() / toll for slot in slots])
    solver.start(slots, Dial(["w0", "w1"], [6, 6], [0, 0], Row(), 0.5, {}, 0.0))
    solver.after_step(1, 1.0)
    gone = torch.cat([slot.sizes() == 0 for slot in slots])
    assert torch.equal(gone, ratios <= ratios.sort().values[5])
    assert solver.ranking()[0][1].tolist() == (slots[1].sizes() / toll).tolist()

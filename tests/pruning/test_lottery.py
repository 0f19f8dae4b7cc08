"""Lottery tickets against the procedure written out by hand, and what a user would notice in between."""

import copy
import io
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn, optim
from torch.nn import functional

from nets import batch, net, train
from shrinkage import NM, Block, InputError, Row, StateError, TargetError
from shrinkage.core.distribution import spread
from shrinkage.pruning.lottery import LotteryTicket

WEIGHTS = ("0.weight", "3.weight", "5.weight")
UNITS = 512
STEPS = 20

sgd = partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3)
adamw = partial(optim.AdamW, lr=0.01, amsgrad=True)


def seeded():
    torch.manual_seed(0)
    return net()


def loop(build=sgd, begin=lambda model, run: None, end=lambda model, run: None):
    """A plain training; ``begin`` and ``end`` look at, or spoil, the model of each round."""

    def plain(model, run):
        begin(model, run)
        optimizer = build(model.parameters())
        run.attach(optimizer)
        train(model, optimizer, range(run.first_step, run.steps))
        return end(model, run)

    return plain


def snapshots(ticket, steps=STEPS):
    """The model's state as each round finds it, and as it leaves it."""
    found, left = [], []

    def copy_to(states, model, run):
        states.append(copy.deepcopy(model.state_dict()))

    ticket.run(seeded(), loop(begin=partial(copy_to, found), end=partial(copy_to, left)), steps)
    return found, left


def gone(state):
    return {name: state[name] == 0 for name in WEIGHTS}


def zeros(state):
    return sum(int(mask.sum()) for mask in gone(state).values())


# ---- oracles ------------------------------------------------------------------------------------


def on_the_way(sparsity, rounds):
    """Zeros of each round: the whole number that is asked for in the end, and powers of its density before."""
    density = 1 - round(sparsity * UNITS) / UNITS
    return [UNITS - round(UNITS * density ** (index / rounds)) for index in range(rounds + 1)]


def by_hand(build, sparsity, rounds, rewind, point):
    """The whole procedure: sorted lists, and masks multiplied in after every step."""
    model = seeded()
    masks = {name: torch.ones_like(model.get_parameter(name)) for name in WEIGHTS}
    early = None
    for index in range(rounds + 1):
        optimizer = build(model.parameters())
        if index == 0 and point == 0:
            early = copy.deepcopy(model.state_dict())
        for step in range(point if index else 0, STEPS):
            x, y = batch(step)
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            for name, mask in masks.items():
                model.get_parameter(name).data.mul_(mask)
            if index == 0 and step + 1 == point:
                early = copy.deepcopy(model.state_dict())
        if index < rounds:
            alive = [
                (abs(weight), name, place)
                for name in WEIGHTS
                for place, weight in enumerate(model.get_parameter(name).flatten().tolist())
                if masks[name].view(-1)[place]
            ]
            keep = UNITS - on_the_way(sparsity, rounds)[index + 1]
            for _, name, place in sorted(alive)[: len(alive) - keep]:
                masks[name].view(-1)[place] = 0
            if rewind == "weights":
                model.load_state_dict(early)
            for name, mask in masks.items():
                model.get_parameter(name).data.mul_(mask)
    return model


@pytest.mark.parametrize("build", [sgd, adamw], ids=["SGD", "AdamW"])
@pytest.mark.parametrize(
    ("rewind", "share", "point"), [("weights", 0, 0), ("weights", 0.2, 4), ("learning-rate", 0.2, 4)]
)
def test_it_is_the_procedure_written_out_by_hand(build, rewind, share, point):
    model = seeded()
    LotteryTicket(0.9, 3, rewind=rewind, rewind_to=share, floor=0).run(model, loop(build), STEPS)
    reference = by_hand(build, 0.9, 3, rewind, point).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, reference[name]), name


@pytest.mark.parametrize("sparsity", [0.3, 0.9, 0.97])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_the_density_falls_geometrically_to_the_very_target(sparsity, rounds):
    found, left = snapshots(LotteryTicket(sparsity, rounds, floor=0.01), steps=3)
    wanted = on_the_way(sparsity, rounds)
    assert wanted[-1] == round(sparsity * UNITS)
    assert [zeros(state) for state in found] == [zeros(state) for state in left] == wanted


@pytest.mark.parametrize(("share", "point"), [(0.0, 0), (0.05, 1), (0.5, 10), (0.95, 19)])
def test_survivors_and_all_other_state_are_exactly_those_of_the_rewinding_point(share, point):
    plain = seeded()
    train(plain, sgd(plain.parameters()), range(point))
    early = plain.state_dict()
    found, _ = snapshots(LotteryTicket(0.9, 2, rewind_to=share))
    for state in found[1:]:
        for name, tensor in state.items():
            kept = tensor != 0 if name in WEIGHTS else torch.ones_like(tensor, dtype=torch.bool)
            assert torch.equal(tensor, torch.where(kept, early[name], 0)), name
    assert found[1]["1.num_batches_tracked"] == point  # BatchNorm's statistics went back too


def test_with_the_learning_rate_alone_survivors_go_on_from_where_they_were():
    found, left = snapshots(LotteryTicket(0.9, 2, rewind="learning-rate"))
    for before, after in zip(left, found[1:], strict=False):
        for name, tensor in after.items():
            kept = tensor != 0 if name in WEIGHTS else torch.ones_like(tensor, dtype=torch.bool)
            assert torch.equal(tensor, torch.where(kept, before[name], 0)), name


@pytest.mark.parametrize("rewind", ["weights", "learning-rate"])
def test_each_round_keeps_the_largest_of_what_is_left(rewind):
    found, left = snapshots(LotteryTicket(0.9, 3, rewind=rewind, floor=0))
    for trained, pruned in zip(left, found[1:], strict=False):
        stay = torch.cat([trained[name][~gone(pruned)[name]].abs() for name in WEIGHTS])
        go = torch.cat([trained[name][gone(pruned)[name]].abs() for name in WEIGHTS])
        assert go.max() <= stay.min()


def test_what_is_pruned_stays_pruned_where_more_survivors_are_zero_themselves_than_may_go():
    states = []

    def kill(model, run):
        if run.index == 1:
            model[0].weight.data.zero_()

    look = loop(begin=lambda model, run: states.append(copy.deepcopy(model.state_dict())), end=kill)
    LotteryTicket(0.9, 4, floor=0).run(seeded(), look, STEPS)
    alive = int((states[1]["0.weight"] != 0).sum())
    assert alive > zeros(states[2]) - zeros(states[1])
    assert [zeros(state) for state in states] == on_the_way(0.9, 4)
    for before, after in pairwise(states):
        for name in WEIGHTS:
            assert not (gone(before)[name] & ~gone(after)[name]).any()
    assert all(torch.equal(gone(states[1])[name], gone(states[2])[name]) for name in WEIGHTS[1:])  # only dead ones went


# ---- targets ------------------------------------------------------------------------------------


def test_rows_go_as_one_by_their_norms():
    found, left = snapshots(LotteryTicket(0.5, 2, granularity=Row(), exclude="5.*", floor=0))
    for trained, pruned, keep in zip(left, found[1:], [round(32 * 0.5**0.5), 16], strict=False):
        norms = torch.cat([trained[name].norm(dim=1) for name in WEIGHTS[:2]])
        rows = torch.cat([(pruned[name] != 0).any(1) for name in WEIGHTS[:2]])
        assert rows.sum() == keep
        assert norms[rows].min() > norms[~rows].max()


def test_blocks():
    found, _ = snapshots(LotteryTicket(0.75, 3, granularity=Block(4, 4)))
    tiles = [found[-1][name].unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).abs().sum((1, 3)) for name in WEIGHTS]
    assert sum(int((tile == 0).sum()) for tile in tiles) == 24
    assert sum(tile.numel() for tile in tiles) == 32


def test_an_n_m_pattern_is_reached_step_by_step_and_is_exact_in_the_end():
    found, _ = snapshots(LotteryTicket(rounds=3, granularity=NM(1, 4)))
    counts = []
    for state in found:
        groups = torch.cat([(state[name] != 0).unflatten(1, (-1, 4)).sum(2).view(-1) for name in WEIGHTS])
        assert groups.min() >= 1
        counts.append(int(groups.sum()))
    assert counts == [UNITS, round(UNITS * 0.25 ** (1 / 3)), round(UNITS * 0.25 ** (2 / 3)), UNITS // 4]
    assert groups.max() == 1


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_layers_with_shares_of_their_own_come_to_them_geometrically(distribution):
    found, _ = snapshots(LotteryTicket(0.8, 2, distribution=distribution))
    shapes = {name: found[0][name].shape for name in WEIGHTS}
    shares = spread(distribution, shapes, 0.8)
    for name, share in shares.items():
        units = found[0][name].numel()
        halfway, end = (int(gone(state)[name].sum()) for state in found[1:])
        assert end == round(share * units)
        assert halfway == units - round(units * (1 - share) ** 0.5)


def test_a_layer_sparsity_and_a_selection():
    found, _ = snapshots(LotteryTicket(0.9, 2, layer_sparsity={"3.weight": 0.5}, exclude="5.*"))
    assert [int(mask.sum()) for mask in gone(found[-1]).values()] == [round(0.9 * 288), 96, 0]


def test_no_layer_is_emptied():
    def shrink(model, run):
        model[3].weight.data.mul_(1e-6)

    states = []
    look = loop(begin=lambda model, run: states.append(copy.deepcopy(model.state_dict())), end=shrink)
    LotteryTicket(0.9, 3, floor=0.5).run(seeded(), look, STEPS)
    assert int((states[-1]["3.weight"] != 0).sum()) == 10  # half of the density of 0.1, of 192


# ---- living with the user's loop ----------------------------------------------------------------


def test_the_rounds_tell_where_they_begin():
    seen = []
    look = loop(begin=lambda model, run: seen.append((run.index, run.first_step, run.steps)))
    LotteryTicket(0.9, 2, rewind_to=0.29).run(seeded(), look, 100)
    assert seen == [(0, 0, 100), (1, 29, 100), (2, 29, 100)]


def test_only_real_steps_count_towards_the_rewinding_point():
    """Two micro-batches a step, a second optimiser, and steps that an overflow skips."""
    states = []

    def look(model, run):
        states.append(copy.deepcopy(model.state_dict()))
        weights, others = optim.SGD([model.get_parameter(name) for name in WEIGHTS], lr=0.1), sgd(model[1].parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        run.attach(weights, others)
        for step in range(run.first_step, run.steps + 2):
            for part in range(2):
                x, y = batch(2 * step + part)
                scaler.scale(functional.cross_entropy(model(x), y) / 2).backward()
            if step in (0, 2):
                model[0].weight.grad[0] = torch.inf
            scaler.step(weights)
            scaler.step(others)
            scaler.update()
            model.zero_grad()
            if run.index == 0 and run.taken == 4:
                states.append(copy.deepcopy(model.state_dict()))
        assert run.taken == (STEPS if run.index == 0 else STEPS - 2)

    LotteryTicket(0.9, 1, rewind_to=0.2).run(seeded(), look, STEPS)
    early, rewound = states[1], states[-1]
    for name in WEIGHTS:
        assert torch.equal(rewound[name], torch.where(rewound[name] != 0, early[name], 0))


def test_one_optimiser_for_all_rounds_does_not_bring_its_momentum_to_pruned_weights():
    model = seeded()
    optimizer = sgd(model.parameters())

    def same(model, run):
        run.attach(optimizer)
        train(model, optimizer, range(run.first_step, run.steps))

    result = LotteryTicket(0.9, 2).run(model, same, STEPS)
    assert zeros(model.state_dict()) == result.zeros == round(0.9 * UNITS)


def test_an_optimiser_that_moves_every_weight_does_not_revive_them():
    class Noisy(optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(1e-3)

    model = seeded()
    LotteryTicket(0.9, 2).run(model, loop(partial(Noisy, lr=0.1)), STEPS)
    assert zeros(model.state_dict()) == round(0.9 * UNITS)


def test_a_wrapped_model_is_looked_through():
    plain, model = seeded(), seeded()
    LotteryTicket(0.9, 2).run(plain, loop(), STEPS)
    LotteryTicket(0.9, 2).run(nn.DataParallel(model), loop(), STEPS)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in plain.state_dict().items())


def test_a_ticket_can_be_used_again():
    ticket, models = LotteryTicket(0.9, 2), [seeded(), seeded()]
    one, other = (ticket.run(model, loop(), STEPS) for model in models)
    assert one == other
    assert torch.equal(models[0][0].weight, models[1][0].weight)


def test_the_result_has_a_line_a_round():
    result = LotteryTicket(0.9, 2).run(seeded(), loop(end=lambda model, run: torch.tensor(90.0 + run.index)), STEPS)
    assert str(result).splitlines() == [
        "LotteryTicket, 512 units",
        "round  zeros  sparsity  result",
        "─────  ─────  ────────  ──────",
        "0          0     0.00%      90",
        "1        350    68.36%      91",
        "2        461    90.04%      92",
    ]
    assert "result" not in str(LotteryTicket(0.9, 2).run(seeded(), loop(), STEPS))
    assert [(each["zeros"], each["value"]) for each in result.to_dict()["rounds"]] == [(0, 90), (350, 91), (461, 92)]
    assert {layer.name for layer in result.layers} == set(WEIGHTS)


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "at least 1, got 0"),
        ({"rounds": 2.0}, "got 2.0"),
        ({"rounds": True}, "got True"),
        ({"rewind_to": 1.0}, "from 0 to below 1.*got 1.0"),
        ({"rewind_to": -0.1}, "got -0.1"),
        ({"rewind_to": float("nan")}, "got nan"),
        ({"rewind": "weight"}, "weights, learning-rate, got 'weight'"),
        ({"sparsity": None}, "needs a target"),
        ({"sparsity": 95}, "got 95"),
        ({"start": 0.1}, "no ramp: leave 'start' out"),
        ({"rewindto": 0.1}, "no argument 'rewindto'; the nearest is 'rewind_to'"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(arguments, message):
    with pytest.raises(InputError, match=message):
        LotteryTicket(**{"sparsity": 0.9} | arguments)


def test_a_loop_that_never_attached_is_told_how():
    def forgetful(model, run):
        train(model, sgd(model.parameters()), range(run.steps))

    with pytest.raises(StateError, match=r"never attached the round: call run.attach\(optimizer\).*round 0"):
        LotteryTicket(0.9).run(seeded(), forgetful, STEPS)


def test_a_loop_shorter_than_the_rewinding_point_is_told_so():
    def short(model, run):
        optimizer = sgd(model.parameters())
        run.attach(optimizer)
        train(model, optimizer, range(5))

    with pytest.raises(StateError, match="took 5 optimiser steps and never passed the rewinding point, step 10"):
        LotteryTicket(0.9, rewind_to=0.5).run(seeded(), short, STEPS)
    LotteryTicket(0.9, rewind_to=0.5, rewind="learning-rate").run(seeded(), short, STEPS)  # nothing to remember there


def test_weights_that_cannot_be_ranked_are_named():
    def diverge(model, run):
        model[3].weight.data[0, 0] = torch.nan

    with pytest.raises(StateError, match=r"'3.weight' holds NaN or infinite weights after round 0"):
        LotteryTicket(0.9).run(seeded(), loop(end=diverge), STEPS)


def test_writing_over_the_zeros_is_noticed():
    dense = seeded().state_dict()

    def best(model, run):
        model.load_state_dict(dense)

    with pytest.raises(TargetError, match=r"'0.weight' holds pruned weights that are no longer zero after round 1"):
        LotteryTicket(0.9).run(seeded(), loop(end=best), STEPS)


def test_survivors_that_are_zero_in_the_end_are_a_missed_target():
    def kill(model, run):
        model[5].weight.data.zero_()

    with pytest.raises(TargetError, match="become exactly zero by themselves"):
        LotteryTicket(0.9, 1).run(seeded(), loop(end=kill), STEPS)


def test_a_loop_may_only_return_a_number():
    with pytest.raises(InputError, match="train returned dict; return one number"):
        LotteryTicket(0.9).run(seeded(), loop(end=lambda model, run: {"accuracy": 1.0}), STEPS)


@pytest.mark.parametrize("rewind", ["weights", "learning-rate"])
def test_resuming_without_the_models_own_state_is_refused_where_it_is_needed(rewind):
    """Weights that are rewound are in the ticket's state; those that go on from where they were are not."""
    ticket, model, files = LotteryTicket(0.9, 2, rewind=rewind), seeded(), []

    def save(model, run):
        files.append(io.BytesIO())
        torch.save(ticket.state_dict(), files[-1])

    ticket.run(model, loop(begin=save), STEPS)
    files[1].seek(0)
    ticket.load_state_dict(torch.load(files[1], weights_only=True))
    fresh = net()
    if rewind == "learning-rate":
        with pytest.raises(StateError, match="load the model's state_dict too"):
            ticket.run(fresh, loop(), STEPS)
    else:
        ticket.run(fresh, loop(), STEPS)
        assert torch.equal(fresh[0].weight, model[0].weight)

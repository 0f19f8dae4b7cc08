"""The gradients that the gradient solver adds, against autograd on ``penalty()`` inside the loss."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import LBFGS, SGD, Adam, AdamW

from nets import batch, net
from shrinkage import HALO, MCP, SWS, Block, Bridge, Lasso, Row

PENALTIES = {
    "HALO": (HALO, {"xi": 1e-2, "psi": 1e-2}),
    "HALO, all": (HALO, {"xi": 1e-2, "psi": 1e-4, "budget": 99.0, "squared": True, "layerwise": True, "lam_lr": 1e-3}),
    "HALO, decay": (HALO, {"xi": 1e-2, "psi": 1e-3, "lam_weight_decay": 0.1}),
    "HALO, rows": (HALO, {"xi": 1e-2, "psi": 1e-2, "granularity": Row()}),
    "HALO, blocks": (HALO, {"xi": 1e-2, "psi": 1e-2, "granularity": Block(5, 3)}),
    "Lasso": (Lasso, {"xi": 1e-2}),
    "Lasso, rows": (Lasso, {"xi": 1e-2, "granularity": Row()}),
    "SWS": (SWS, {"xi": 1e-3, "psi": 1.0, "lam_lr": 1e-3}),
    "MCP": (MCP, {"xi": 1e-2, "psi": 10.0}),
    "Bridge": (Bridge, {"xi": 1e-2}),
}


def one(model):
    return [SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)]


def grouped(model):
    return [AdamW([{"params": model[0].parameters(), "lr": 1e-2}, {"params": model[3:].parameters()}], lr=1e-3)]


def several(model):
    return [SGD(model[0].parameters(), lr=0.05, momentum=0.9), Adam(model[1:].parameters(), lr=1e-3)]


def reversed_several(model):
    return several(model)[::-1]


def trajectory(kind, build, solver, closure=False, steps=12):
    """Weights and λ after some steps in double precision."""
    method, options = PENALTIES[kind]
    torch.manual_seed(0)
    model = net().double()
    optimizers = build(model)
    attached = method(model, solver=solver, **options).attach(*optimizers)

    def loss(step):
        for optimizer in optimizers:
            optimizer.zero_grad()
        x, y = batch(step)
        value = functional.cross_entropy(model(x.double()), y)
        value = value + attached.penalty() if solver == "loss" else value
        value.backward()
        return value

    for step in range(steps):
        if closure:
            optimizers[0].step(lambda step=step: loss(step))
        else:
            loss(step)
            for optimizer in optimizers:
                optimizer.step()
    assert attached.step == steps
    return [p.detach() for p in model.parameters()] + list(attached.lam().values())


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", PENALTIES)
def test_training_is_that_of_autograd(kind):
    wanted = trajectory(kind, one, "loss")
    assert_same(trajectory(kind, one, "gradient"), wanted)
    assert_same(trajectory(kind, one, "gradient", closure=True), wanted)


@pytest.mark.parametrize("kind", PENALTIES)
def test_parameter_groups(kind):
    assert_same(trajectory(kind, grouped, "gradient"), trajectory(kind, grouped, "loss"))


SHARED = {"HALO, all", "SWS"}  # a λ that is shared moves with the first optimiser's step, before the second one's


@pytest.mark.parametrize("kind", [kind for kind in PENALTIES if kind not in SHARED])
@pytest.mark.parametrize("build", [several, reversed_several])
def test_several_optimisers_in_any_order(kind, build):
    mine, autograds = trajectory(kind, build, "gradient"), trajectory(kind, build, "loss")
    assert_same(mine, autograds)


@pytest.mark.parametrize("kind", sorted(SHARED))
def test_several_optimisers_with_a_shared_scale(kind):
    for mine, autograds in zip(trajectory(kind, several, "gradient"), trajectory(kind, several, "loss"), strict=True):
        assert (mine - autograds).norm() <= 1e-3 * autograds.norm()


@pytest.mark.parametrize("kind", PENALTIES)
def test_added_gradients_to_1e_6_in_single_precision(kind):
    method, options = PENALTIES[kind]
    torch.manual_seed(0)
    model = net()
    optimizer = SGD(model.parameters(), lr=0.0)
    attached = method(model, solver="gradient", **options).attach(optimizer)
    selected = [p for n, p in model.named_parameters() if n in attached.measure()]
    wanted = torch.autograd.grad(attached.penalty(), selected)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, autograds in zip(selected, wanted, strict=True):
        assert (parameter.grad - autograds).norm() <= 1e-6 * autograds.norm()
    others = [p.grad for n, p in model.named_parameters() if n not in attached.measure()]
    assert not any(gradient.any() for gradient in others)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler_and_its_skipped_steps(fused, unscale):
    """A step that an overflow skips moves neither the weights nor λ, and does not count."""

    def run(scaled):
        torch.manual_seed(0)
        model = net().double()
        optimizer = Adam(model.parameters(), lr=1e-3, fused=fused)
        halo = HALO(model, xi=1e-2, psi=1e-2).attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4, enabled=scaled)
        for step in range(12):
            skipped = step in (3, 4, 9)
            if skipped and not scaled:
                continue
            optimizer.zero_grad()
            x, y = batch(step)
            scaler.scale(functional.cross_entropy(model(x.double()), y)).backward()
            if skipped:
                model[0].weight.grad[0, 0] = torch.inf
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert halo.step == 9
        return [p.detach() for p in model.parameters()] + list(halo.lam().values())

    for scaled, plain in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(scaled, plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_minimises_loss_and_penalty_together(line_search):
    """Its line search compares losses: the closure's value has to contain the penalty, as its gradient does."""
    x, y = torch.randn(40, 5).double(), torch.randn(40, 3).double()

    def minimum(solver):
        torch.manual_seed(0)
        model = nn.Linear(5, 3, bias=False).double()
        optimizer = LBFGS(model.parameters(), max_iter=20, line_search_fn=line_search)
        lasso = Lasso(model, xi=0.5, granularity=Row(), solver=solver).attach(optimizer)

        def closure():
            optimizer.zero_grad()
            loss = (model(x) - y).square().sum() / 2
            loss = loss + lasso.penalty() if solver == "loss" else loss
            loss.backward()
            return loss

        values = [optimizer.step(closure).item() for _ in range(3)]
        return torch.tensor(values), model.weight.detach()

    assert_same(minimum("gradient"), minimum("loss"))


def test_schedules_reach_the_optimiser_of_lam():
    model = nn.Linear(3, 3)
    optimizer = SGD(model.parameters(), lr=0.1)
    halo = HALO(model, xi=0.0, psi=1.0, lam_lr=0.1, lam_momentum=0.0)
    assert halo.lam_optimizer is None
    halo.attach(optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(halo.lam_optimizer, lambda step: 0.5**step)
    for _ in range(3):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(halo.lam()["weight"], torch.full((3, 3), 1 - 0.1 - 0.05 - 0.025))


def test_a_weight_without_gradient_is_left_alone():
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    optimizer = SGD(model.parameters(), lr=0.1)
    Lasso(model, xi=0.1).attach(optimizer)
    before = model[1].weight.detach().clone()
    model[0](torch.ones(3)).sum().backward()
    optimizer.step()
    assert torch.equal(model[1].weight, before)


def test_a_state_in_memory_is_a_snapshot():
    model = nn.Linear(3, 3)
    optimizer = SGD(model.parameters(), lr=0.1)
    halo = HALO(model, xi=1.0, psi=1.0).attach(optimizer)
    states = []
    for _ in range(2):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        states.append(halo.state_dict()["solver"]["optimizer"]["state"][0]["momentum_buffer"])
    assert not torch.equal(*states)


@pytest.mark.parametrize("wasted", [0, 5])
def test_in_the_loss_lambda_does_not_see_the_scale_of_the_loss_or_passes_without_a_step(wasted):
    def run(scaler):
        torch.manual_seed(0)
        model = net()
        optimizer = SGD(model.parameters(), lr=0.05)
        halo = HALO(model, xi=1e-3, psi=1e-3, solver="loss").attach(optimizer)
        for step in range(6):
            x, y = batch(step)
            for _ in range(wasted if scaler is not None else 0):
                scaler.scale(functional.cross_entropy(model(x), y) + halo.penalty()).backward()
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y) + halo.penalty()
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        return halo.lam()

    plain, scaled = run(None), run(torch.amp.GradScaler("cpu", init_scale=1024.0))
    for name, lam in plain.items():
        torch.testing.assert_close(scaled[name], lam, rtol=1e-4, atol=1e-6)


def test_lbfgs_sees_the_penalty_also_where_the_closure_returns_a_number():
    def run(number):
        torch.manual_seed(0)
        model = net()
        optimizer = LBFGS(model.parameters(), line_search_fn="strong_wolfe")
        lasso = Lasso(model, xi=1e-2).attach(optimizer)
        x, y = batch(0)

        def closure():
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            return loss.item() if number else loss

        optimizer.step(closure)
        return lasso.penalty().item()

    assert run(True) == pytest.approx(run(False), rel=1e-3)

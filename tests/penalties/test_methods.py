"""From a constructor's words to a method; and λ where the theory puts it."""

import pytest
import torch
from sklearn.linear_model import Lasso as SklearnLasso
from torch import nn

from nets import fit, net, start
from shrinkage import HALO, MCP, SWS, Bridge, InputError, Lasso, Row
from shrinkage.penalties import HALOPrior, SWSPrior


def still(shape=(4, 5), lr=0.0, **options):
    """A weight that does not move, so that λ can be watched alone."""
    model = nn.Linear(shape[1], shape[0], bias=False).double()
    with torch.no_grad():
        model.weight.uniform_(0.2, 2.0).mul_(torch.randn_like(model.weight).sign())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return model, optimizer, HALO(model, **options).attach(optimizer)


def settle(model, optimizer, steps=4000):
    for _ in range(steps):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()


@pytest.mark.parametrize("solver", ["gradient", "proximal"])
def test_lam_settles_at_the_cube_root(solver):
    model, optimizer, halo = still(xi=0.3, psi=0.2, solver=solver, lam_lr=0.02)
    settle(model, optimizer)
    size = model.weight.detach().abs()
    torch.testing.assert_close(halo.lam()["weight"], (2 * 0.3 * size / 0.2).pow(1 / 3), rtol=1e-6, atol=0)
    profile = 3 * 2 ** (-2 / 3) * 0.3 ** (1 / 3) * 0.2 ** (2 / 3) * size.pow(1 / 3).sum()
    torch.testing.assert_close(halo.penalty().detach(), profile, rtol=1e-6, atol=0)


def test_lam_of_rows_settles_on_their_norms():
    model, optimizer, halo = still(xi=0.3, psi=0.2, granularity=Row(), lam_lr=0.02)
    settle(model, optimizer)
    norms = model.weight.detach().norm(dim=1)
    torch.testing.assert_close(halo.lam()["weight"], (2 * 0.3 * norms / 0.2).pow(1 / 3), rtol=1e-6, atol=0)


def test_weight_decay_on_lam_gives_the_square_root_penalty():
    model, optimizer, halo = still(xi=0.3, psi=0.0, lam_lr=0.02, lam_weight_decay=0.4)
    settle(model, optimizer)
    size = model.weight.detach().abs()
    lam = halo.lam()["weight"]
    torch.testing.assert_close(lam, (2 * 0.3 * size / 0.4).pow(1 / 4), rtol=1e-6, atol=0)
    total = halo.penalty().detach() + 0.4 / 2 * lam.square().sum()
    torch.testing.assert_close(total, (2 * 0.3 * 0.4 * size).sqrt().sum(), rtol=1e-6, atol=0)


def test_steered_lam_follows_the_cube_root_of_the_sizes():
    model = nn.Linear(5, 4, bias=False)
    nn.init.constant_(model.weight, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    halo = HALO(model, 0.5, 300, start=0.9, end=1.0).attach(optimizer)
    torch.testing.assert_close(halo.lam()["weight"], torch.ones(4, 5))
    with torch.no_grad():
        model.weight[0] *= 8
        model.weight[1] /= 8
    settle(model, optimizer, 250)
    wanted = torch.tensor([2.0, 0.5, 1.0, 1.0])[:, None].expand(4, 5)
    torch.testing.assert_close(halo.lam()["weight"], wanted, rtol=1e-3, atol=0)


def test_lam_lr_0_holds_lam_at_1():
    model, optimizer, halo = still(xi=0.3, psi=0.2, lam_lr=0.0)
    settle(model, optimizer, 10)
    assert (halo.lam()["weight"] == 1).all()


def test_each_penalty_hands_its_arguments_to_its_prior():
    _, _, halo = start(HALO, xi=0.5, psi=0.25, budget=3.0, squared=True, layerwise=True)
    sizes = [w.detach().abs() for n, w in halo._model.named_parameters() if n in halo.measure()]
    scales = [torch.ones_like(s) for s in sizes] + [torch.ones(())] * 3
    assert halo.penalty().detach() == HALOPrior(0.5, 0.25, 3.0, True, True).value(sizes, scales)
    _, _, sws = start(SWS, xi=0.5, psi=0.25)
    assert sws.penalty().detach() == SWSPrior(0.5, 0.25).value(sizes, [torch.ones(())])
    assert sws.lam() == {}


@pytest.mark.parametrize("method", ["halo", "lasso", "bridge", "mcp"])
def test_proximal_training_on_an_orthogonal_design_is_sklearns_lasso(method):
    """With λ fixed at 1 the minimum of ‖y − Xw‖²/2n + ξ‖w‖₁ has a closed form; scikit-learn finds it as well."""
    torch.manual_seed(3)
    n, d, xi = 64, 12, 0.15
    x = torch.linalg.qr(torch.randn(n, d, dtype=torch.float64)).Q * n**0.5
    y = x @ torch.linspace(-1, 1, d, dtype=torch.float64) + 0.1 * torch.randn(n, dtype=torch.float64)
    model = nn.Linear(d, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    built = {
        "halo": lambda: HALO(model, xi=xi, solver="proximal", lam_lr=0.0),
        "lasso": lambda: Lasso(model, xi=xi, solver="proximal"),
        "bridge": lambda: Bridge(model, xi=xi, power=1 - 1e-9, solver="proximal"),
        "mcp": lambda: MCP(model, xi=xi, psi=1e9, solver="proximal"),
    }[method]()
    built.attach(optimizer)
    for _ in range(300):
        optimizer.zero_grad()
        ((y - model(x)[:, 0]).square().sum() / (2 * n)).backward()
        optimizer.step()
    oracle = SklearnLasso(alpha=xi, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(x.numpy(), y.numpy())
    wanted = torch.from_numpy(oracle.coef_)
    found = model.weight.detach()[0]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    assert torch.equal(found == 0, wanted == 0)
    assert 0 < (found == 0).sum() < d
    assert built.finalize().zeros == (wanted == 0).sum()


def test_adams_first_proximal_step_is_as_long_as_adams_step():
    """Adam's first step moves every weight by lr; so a penalty of the gradient's size halves the way."""
    model = nn.Linear(3, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    Lasso(model, xi=0.5, solver="proximal").attach(optimizer)
    model.weight.grad = torch.tensor([[0.5, 1.0, -2.0]])
    optimizer.step()
    # from 1: ∓lr for the gradient, then lr·ξ/|g| for the penalty
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[0.8, 0.85, 1.075]]))


def test_fixed_strengths_without_a_target_zero_what_is_small():
    model, optimizer, lasso = start(Lasso, model=net, sparsity=None, steps=None, xi=3e-3)
    fit(model, optimizer, range(60))
    assert lasso.wanted == 0
    result = lasso.finalize()
    assert result.target is None
    assert lasso.phase == "final"
    for weight in (dict(model.named_parameters())[name] for name in lasso.measure()):
        assert not ((weight != 0) & (weight.abs() <= 1e-5)).any()


def test_in_loss_mode_adds_nothing_by_itself():
    torch.manual_seed(0)
    model, optimizer, halo = still(lr=0.1, xi=0.3, psi=0.2, solver="loss")
    before = model.weight.detach().clone()
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    assert torch.equal(model.weight, before)
    halo.penalty().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)
    assert not (halo.lam()["weight"] == 1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: HALO(m), "HALO needs a target"),
        (lambda m: HALO(m, 0.9), "HALO with a target needs steps="),
        (lambda m: HALO(m, 0.9, 100, solver="gradient"), "solver='gradient' cannot be steered"),
        (lambda m: HALO(m, xi=-1.0), "xi must be finite and at least 0, got -1.0"),
        (lambda m: HALO(m, xi=float("nan")), "got nan"),
        (lambda m: HALO(m, psi=float("inf")), "psi must be finite and at least 0, got inf"),
        (lambda m: HALO(m, xi=1.0, solver="newton"), "'proximal', 'gradient' or 'loss', got 'newton'"),
        (lambda m: HALO(m, sparsty=0.9, steps=100), "HALO has no argument 'sparsty'; the nearest is 'sparsity'"),
        (lambda m: Lasso(m, xi=1.0, granularty=Row()), "Lasso has no argument 'granularty'.*'granularity'"),
        (lambda m: HALO(m, xi=1.0, lam_lr=-0.1), "lam_lr must be finite and at least 0, got -0.1"),
        (lambda m: MCP(m, xi=1.0), "both xi >= 0 and psi > 0"),
        (lambda m: MCP(m, xi=1.0, psi=0.0), "both xi >= 0 and psi > 0"),
        (lambda m: Bridge(m, 0.9, 100, power=1.0), "power between 0 and 1, got 1.0"),
        (lambda m: SWS(m, xi=1.0, psi=-2.0), "psi must be finite and at least 0, got -2.0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make(nn.Linear(4, 4))

"""Large tensors are worked on piece by piece, and no bit shows it."""

import pytest
import torch

import shrinkage
from shrinkage.core import pieces as module
from shrinkage.core.pieces import LONG, PIECE, pieces


def test_pieces_are_views_that_line_up():
    first, second = torch.zeros(3, PIECE), torch.arange(3.0 * PIECE).view(3, PIECE)
    for one, none, other in pieces(first, None, second):
        assert none is None
        one.copy_(other)
    assert torch.equal(first, second)


def test_what_is_small_or_not_flat_stays_whole():
    small, strided = torch.zeros(10), torch.zeros(PIECE, 2).T
    assert [part is small for (part,) in pieces(small)] == [True]
    assert [part is strided for part, _ in pieces(strided, torch.zeros(2, PIECE))] == [True]


def train(solver, closure=False):
    """Twelve steps of a layer of several pieces, none of whose lengths is a multiple of a vector register."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(811, 401, bias=False)
    assert layer.weight.numel() > LONG > PIECE
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    options = {"xi": 1e-4, "psi": 1e-3, "lam_weight_decay": 1e-3} if solver == "gradient" else {}
    method = shrinkage.HALO(layer, 0.9, 100, solver=solver, **options).attach(optimizer)
    for _ in range(12):
        x = torch.randn(16, 811)

        def evaluate(x=x):
            optimizer.zero_grad()
            loss = layer(x).square().mean()
            loss.backward()
            return loss

        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()
    return [layer.weight.detach(), *method.lam().values()]


@pytest.mark.parametrize("solver", ["gradient", "proximal"])
def test_pieces_leave_no_trace(solver, monkeypatch):
    in_pieces = train(solver)
    monkeypatch.setattr("shrinkage.core.gradient.LONG", 10**9)
    monkeypatch.setattr(module, "PIECE", 10**9)
    monkeypatch.setattr(pieces, "__kwdefaults__", {"length": 10**9})
    for mine, whole in zip(in_pieces, train(solver), strict=True):
        assert torch.equal(mine, whole)


def test_moving_lam_at_once_leaves_no_trace():
    """A closure may be evaluated again, so there λ waits for the step."""
    for mine, closures in zip(train("gradient"), train("gradient", closure=True), strict=True):
        assert torch.equal(mine, closures)

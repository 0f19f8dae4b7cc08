"""The reproduction: what it writes, how it goes on, and its rivals."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from shrinkage.cli.conntra import conntra
from shrinkage.core.errors import InputError
from shrinkage.reproduce import conntra as evidence
from shrinkage.reproduce.conntra import TASKS, Phase, reproduce
from shrinkage.reproduce.rivals import Ternary, backpropagation, straight_through
from shrinkage.testing import toy


@pytest.fixture
def short(monkeypatch):
    once = (Phase("exhaustive", 2),)
    tasks = {
        "iris": replace(TASKS["iris"], seeds=2, phases=once, restarts=2, epochs=20),
        "features": replace(TASKS["features"], phases=(Phase("gradient", 1),), epochs=5),
    }
    monkeypatch.setattr(evidence, "TASKS", tasks)


def lines(folder, name):
    content = (folder / f"{name}.jsonl").read_text().splitlines()
    return [{**line["settings"], **line["outcome"]} for line in map(json.loads, content)]


@pytest.mark.usefixtures("short")
def test_from_nothing_and_again(tmp_path):
    told = []
    (table,) = reproduce(["iris"], tmp_path, data_dir=None, processes=1, tell=told.append)
    found = lines(tmp_path, "iris")
    assert len(told) - 1 == len(found) == 6
    assert "CoNNTrA, ternary" in str(table)
    assert "| CoNNTrA, ternary |" in (tmp_path / "iris.md").read_text()
    assert "each the best of 2 by training loss" in str(table)
    json.dumps(table.to_dict())
    ternary, double = found[0], found[2]
    assert (ternary["method"], double["method"]) == ("conntra", "backprop")
    weights = 4 * 16 + 16 + 16 * 3 + 3
    assert ternary["weights"] == double["weights"] == weights
    assert double["bytes"] == 8 * weights
    assert ternary["bytes"] == 16 + 4 + 4 + 3 * 4 + 1 + 4  # rows of two bits, biases and scales
    assert all(0 <= line["train_error"] < 60 for line in found)
    assert (tmp_path / "conntra.svg").read_text().startswith("<?xml")

    content = (tmp_path / "iris.jsonl").read_text()
    (tmp_path / "iris.jsonl").write_text(content[:-20])  # cut off in the last line
    told.clear()
    (again,) = reproduce(["iris"], tmp_path, data_dir=None, processes=1, tell=told.append)
    assert [each["test_error"] for each in again.outcomes["conntra"]] == [line["test_error"] for line in found[:2]]
    assert len(told) == 3  # the title, the broken line, its training
    content = (tmp_path / "iris.jsonl").read_text().splitlines()[-1]
    again = {**json.loads(content)["settings"], **json.loads(content)["outcome"]}
    assert {**again, "seconds": 0} == {**found[-1], "seconds": 0}


def test_errors_are_compared_seed_by_seed():
    errors = {"conntra": [3.0, 2.0], "backprop": [1.0, 2.0], "straight-through": [1.0, 1.0]}
    rest = {"train_error": 0.0, "bytes": 8, "weights": 4, "seconds": 1.0}
    table = evidence.Comparison(
        "mnist", {method: [{"test_error": error, **rest} for error in found] for method, found in errors.items()}
    )
    assert table.behind("conntra") == [2.0, 0.0]
    column = table.sheet().header.index("more than backpropagation")
    assert [row[column] for row in table.sheet().rows] == ["+1.00 ± 1.00", None, "-0.50 ± 0.50"]


@pytest.mark.parametrize("method", evidence.METHODS)
def test_each_method_has_its_restarts_and_the_least_training_loss_is_taken(method, monkeypatch):
    task = replace(TASKS["iris"], phases=(Phase("exhaustive", 1),), restarts=3, epochs=3)
    monkeypatch.setattr(evidence, "TASKS", {"iris": task})
    own, losses = evidence._loss, []
    monkeypatch.setattr(evidence, "_loss", lambda net, x, y: losses.append((own(net, x, y), net)) or losses[-1][0])
    outcome = evidence.run(evidence.Trial("iris", method, 4), None)
    assert len({loss for loss, _ in losses}) == 3
    _, (x, y, _, _) = evidence._prepare(task, 4, None, None)
    best = min(losses, key=lambda each: each[0])[1]
    assert outcome["train_error"] == evidence._error(best, x, y)
    like = next(best.parameters())
    assert own(best, x, y) == pytest.approx(nn.functional.cross_entropy(best(x.to(like)), y, reduction="sum").item())


@pytest.mark.usefixtures("short")
def test_the_command_trains_a_last_layer_on_features(tmp_path):
    batches = [toy.batch(step) for step in range(10)]
    x, y = (np.concatenate([batch[part].numpy() for batch in batches]) for part in (0, 1))
    np.savez(tmp_path / "features.npz", x=x, y=y, x_test=x, y_test=y)
    app = typer.Typer()
    app.command()(conntra)
    options = ["--features", str(tmp_path / "features.npz"), "--processes", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert "the last layer on given features" in result.output
    assert lines(tmp_path / "out", "features")[0]["test_error"] < 50
    assert CliRunner().invoke(app, ["--quick", "--part", "iris", "--out", str(tmp_path)]).exit_code == 2


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(InputError, match="no part 'mnits'"):
        reproduce(["mnits"], tmp_path, data_dir=None, processes=1, tell=print)
    with pytest.raises(InputError, match="needs a file"):
        reproduce(["features"], tmp_path, data_dir=None, processes=1, tell=print)
    np.savez(tmp_path / "half.npz", x=np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"half\.npz cannot be read"):
        reproduce(["features"], tmp_path, data_dir=None, features=tmp_path / "half.npz", processes=1, tell=print)


def test_ternary_weights_and_their_gradient():
    weight = torch.tensor([[2.0, -0.1], [1.0, -3.0]], requires_grad=True)
    found = Ternary()(weight)
    assert found.tolist() == [[2.5, 0.0], [0.0, -2.5]]  # the mean size is 1.525, and 0.7 of it lies above 1
    (found * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert weight.grad.tolist() == [[1, 2], [3, 4]]


def test_the_rivals_learn():
    x, y = toy.batch(0)
    settings = {"epochs": 60, "batch": 8, "lr": 0.02, "seed": 0}
    net = nn.Sequential(nn.Linear(toy.FEATURES, 32), nn.ReLU(), nn.Linear(32, toy.CLASSES))
    backpropagation(net, x, y, dtype=torch.float64, **settings)
    assert net[0].weight.dtype == torch.float64
    assert (net(x.double()).argmax(1) == y).all()
    other = nn.Sequential(nn.Linear(toy.FEATURES, 32), nn.ReLU(), nn.Linear(32, toy.CLASSES))
    straight_through(other, x, y, **settings)
    assert len(other[0].weight.unique()) == 3
    assert (other(x).argmax(1) == y).float().mean() > 0.9

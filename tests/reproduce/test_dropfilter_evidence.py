"""DropFilter's evidence: what is run, what is kept, how rates are chosen, and the comparison of the two forms."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from shrinkage import InputError, dropfilter
from shrinkage.cli.dropfilter import dropfilter as command
from shrinkage.data import load
from shrinkage.reproduce import dropfilter as evidence
from shrinkage.reproduce import regularized
from shrinkage.reproduce.dropfilter import Noise, Row, Table, noise, reproduce
from shrinkage.reproduce.regularized import PARTS, REGULARISERS, Trial, run, small_cnn

CPU = torch.device("cpu")
TINY = replace(
    PARTS["quick"], images=30, epochs=2, batch_size=15, methods=("none", "dropfilter", "dropout"), seeds=2,
    tuning_seeds=1, held_out=1000,
)  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    """A part that takes a moment."""
    monkeypatch.setitem(PARTS, "tiny", TINY)


def go(out, told=None):
    return reproduce(
        ["tiny"],
        out,
        data_dir=None,
        where=CPU,
        processes=1,
        tell=lambda line: None if told is None else told.append(line),
    )


def test_a_part_becomes_a_table_and_is_not_run_twice(tiny, tmp_path, monkeypatch):
    (table,) = go(tmp_path)
    assert [row.method for row in table.rows] == ["none", "dropfilter", "dropout"]
    assert table.rows[0].over == ()
    assert table.rows[1].over == tuple(a - b for a, b in zip(table.rows[1].scores, table.rows[0].scores, strict=True))
    lines = [json.loads(line) for line in (tmp_path / "tiny.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 5 + 3 * 2
    for method in ("dropfilter", "dropout"):
        tried = {
            line["settings"]["p"]: line["outcome"]["accuracy"]
            for line in lines
            if line["settings"]["validation"] and line["settings"]["method"] == method
        }
        (chosen,) = (row.p for row in table.rows if row.method == method)
        assert tried[chosen] == max(tried.values())
    monkeypatch.setattr(evidence, "run", pytest.fail)
    told = []
    assert go(tmp_path, told) == [table]
    assert told == ["tiny: a small CNN on 200 digits"]
    assert "over none" in str(table)
    assert "| Dropout |" in (tmp_path / "tiny.md").read_text()
    json.dumps(table.to_dict())


def test_the_learning_rate_is_chosen_together_with_the_rate(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(PARTS, "tiny", replace(TINY, methods=("none", "dropfilter"), lrs=(0.05, 1e-9)))
    (table,) = go(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "tiny.jsonl").read_text().splitlines()]
    tried = {(line["settings"]["p"], line["settings"]["lr"]) for line in lines if line["settings"]["validation"]}
    assert tried == {(p, lr) for p in (0.0, *regularized.RATES) for lr in (0.05, 1e-9)}
    assert {row.lr for row in table.rows} == {0.05}  # at the other nothing is learned
    assert "learning rate" in str(table)
    assert "learning rate" not in str(Table("x", (Row("none", 0.0, None, (90.0,), 99.0, ()),)))


def test_lines_that_cannot_be_used_are_told_of_and_run_again(tiny, tmp_path):
    (table,) = go(tmp_path)
    path = tmp_path / "tiny.jsonl"
    lines = path.read_text().splitlines()
    other = {**json.loads(lines[1]), "origin": {"recipe": regularized.RECIPE + 1}}
    path.write_text("\n".join([lines[0][:20], json.dumps(other), *lines[2:-1], lines[-1][:40]]))
    told = []
    assert go(tmp_path, told) == [table]
    assert "not used: 3" in told[1]
    assert len(told) == 2 + 3


def test_a_training_is_a_function_of_its_settings(tiny):
    first, again, other = (run(Trial("tiny", "dropfilter-plus", 0.1, seed, True), None, CPU) for seed in (1, 1, 2))
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    assert (other["accuracy"], other["train_accuracy"]) != (first["accuracy"], first["train_accuracy"])


@pytest.mark.parametrize("method", [name for name in REGULARISERS if not name.startswith("first")])
def test_every_regulariser_acts_in_training_and_starts_from_the_same_network(method):
    torch.manual_seed(0)
    plain = small_cnn((1, 8, 8), 10)
    torch.manual_seed(0)
    model = REGULARISERS[method].apply(small_cnn((1, 8, 8), 10), 0.4)
    values = zip(model.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in values)
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(model(x), model(x)) == (method == "none")
    assert torch.equal(model.eval()(x), plain(x)) == (not method.endswith("-test"))


def test_where_each_regulariser_acts():
    names = {
        method: [type(module).__name__ for module in REGULARISERS[method].apply(small_cnn((1, 8, 8), 10), 0.4)]
        for method in ("dropout", "dropout2d")
    }
    assert names["dropout"][-3:] == ["ReLU", "Dropout", "Linear"]
    assert names["dropout"].count("Dropout") == 1
    assert names["dropout2d"].count("Dropout2d") == 2
    assert names["dropout2d"][1:3] == ["ReLU", "Dropout2d"]
    model = REGULARISERS["dropconnect"].apply(small_cnn((1, 8, 8), 10), 0.4)
    assert [layer.name for layer in dropfilter.dropping(model).layers] == ["7"]
    first = REGULARISERS["first-plus"].apply(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), 0.06)
    assert [(layer.name, layer.form) for layer in dropfilter.dropping(first).layers] == [("0", "DropFilter-PLUS")]


def test_a_growing_rate_follows_the_epochs(tiny, monkeypatch):
    monkeypatch.setitem(PARTS, "tiny", replace(TINY, epochs=3, halved=True))
    model, images = regularized.train(Trial("tiny", "first", 0.06, 0, False), load("digits"), CPU)
    assert dropfilter.dropping(model).layers[0].p == pytest.approx(0.06 * 1.01**2)
    assert len(images) == 30
    assert [regularized.halving(epoch) for epoch in (0, 24, 25, 75)] == [1, 1, 0.5, 0.125]


def test_the_two_forms_are_compared_on_the_layers_of_a_trained_network(tiny):
    found = noise("tiny", None, CPU, rates=(0.25, 0.5))
    assert [(name, row["p"]) for name, row in found.rows] == [("0", 0.25), ("0", 0.5), ("3", 0.25), ("3", 0.5)]
    assert found.rows[1][1]["output_mean"] == 1
    assert found.rows[2][1]["gradient_noise"] == pytest.approx(1, rel=0.05)  # the two agree at a quarter
    assert "over the exact form" in str(found)
    json.dumps(found.to_dict())


def test_tables_print_what_there_is():
    table = Table("x", (Row("none", 0.0, None, (90.0,), 99.0, ()), Row("dropfilter", 0.1, None, (91.0,), 98.0, (1.0,))))
    assert "+1.00" in str(table)
    assert Noise("x", ()).to_dict() == {"title": "x", "rows": []}


def test_what_cannot_be_is_said(tmp_path):
    with pytest.raises(InputError, match="no part 'mnist-100'; did you mean 'mnist-1000'"):
        reproduce(["mnist-100"], tmp_path, data_dir=None, where=CPU, processes=1, tell=print)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        reproduce(["quick"], tmp_path / "file", data_dir=None, where=CPU, processes=1, tell=lambda line: None)


def test_the_command_prints_tables(tiny, tmp_path):
    import typer

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, ["--part", "tiny", "--processes", "1", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "Dropout" in result.output
    both = CliRunner().invoke(app, ["--quick", "--part", "tiny"])
    assert both.exit_code == 2

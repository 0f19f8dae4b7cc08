import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shrinkage.core.errors import InputError
from shrinkage.data import load
from shrinkage.models import build
from shrinkage.training import inspect, resolve, resume, train
from shrinkage.training.config import read_yaml
from shrinkage.training.evaluate import accuracy

Finished = Any


def test_every_file_is_there_and_nothing_else(finished: Finished) -> None:
    folder, _, _ = finished
    files = {path.name for path in folder.path.iterdir() if not path.name.startswith(".")}
    assert files == {
        "checkpoints",
        "command.txt",
        "config.yaml",
        "metrics.csv",
        "model.safetensors",
        "report.html",
        "summary.json",
    }


def test_the_summary_tells_the_truth_about_the_saved_network(finished: Finished) -> None:
    folder, summary, _ = finished
    written = json.loads(folder.summary.read_text())
    assert written == {**summary.to_dict(), "input_shape": list(summary.input_shape)}

    tensors = load_file(folder.model)
    weights = [tensor for name, tensor in tensors.items() if name.endswith("weight")]
    count = sum(tensor.numel() for tensor in weights)
    zeros = sum(int((tensor == 0).sum()) for tensor in weights)
    assert (written["weights"], written["zeros"]) == (count, zeros)
    assert zeros == round(0.95 * count)
    assert written["sparsity"] == zeros / count
    assert written["parameters"] == sum(tensor.numel() for tensor in tensors.values())

    data = load("digits")
    model = build("mlp", data)
    model.load_state_dict(tensors)
    assert written["accuracy"] == accuracy(model, data.test, data.prepare)
    assert written["command"] == "shrinkage train <&>"
    assert written["versions"]["torch"] == torch.__version__
    assert (written["seed"], written["val_accuracy"]) == (0, None)


def test_the_table_sets_the_method_beside_the_dense_network(finished: Finished) -> None:
    _, summary, _ = finished
    table = str(summary)
    assert f"{summary.accuracy:.2f} %" in table
    assert f"{summary.dense_accuracy:.2f} %" in table
    for name in ("parameters", "non-zeros", "bytes", "MACs", "95.00%"):
        assert name in table
    assert summary.bytes < summary.dense_bytes / 5
    assert summary.macs == summary.dense_macs - summary.zeros


def test_the_metrics_hold_a_row_an_epoch_of_both_trainings(finished: Finished) -> None:
    folder, summary, _ = finished
    with folder.metrics.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], int(row["epoch"])) for row in rows] == [
        (method, epoch) for method in ("halo", "dense") for epoch in range(1, 9)
    ]
    halo = rows[:8]
    assert int(halo[-1]["step"]) == 8 * 23
    assert float(halo[-1]["sparsity"]) == summary.sparsity
    assert float(halo[-1]["accuracy"]) == summary.accuracy
    assert float(rows[-1]["accuracy"]) == summary.dense_accuracy
    assert float(halo[0]["train_loss"]) > 2 * float(halo[-1]["train_loss"])
    assert float(halo[0]["lr"]) == 0.1
    assert float(halo[-1]["lr"]) == pytest.approx(0)
    wanted = [float(row["wanted"]) for row in halo]
    assert wanted == sorted(wanted)
    assert {row["sparsity"] for row in rows[8:]} == {""}


def test_every_epoch_is_told_of_where_there_is_no_bar(finished: Finished) -> None:
    _, _, told = finished
    assert sum(line.startswith("HALO epoch ") for line in told) == 8
    assert sum(line.startswith("Dense epoch ") for line in told) == 8
    assert "95.0% zeros" in told[7]


def test_the_resolved_settings_are_kept(finished: Finished, quick: Any) -> None:
    folder, _, _ = finished
    assert resolve(read_yaml(folder.config)) == quick(compare_dense=True, epochs=8)


def test_a_complete_run_is_not_touched_by_resume(finished: Finished) -> None:
    folder, summary, _ = finished
    before = folder.model.read_bytes()
    told: list[str] = []
    _, again = resume(folder.path, tell=told.append)
    assert again == summary
    assert told == [f"{folder.path} is complete; there is nothing to resume"]
    assert folder.model.read_bytes() == before


def test_inspect_measures_the_saved_network(finished: Finished) -> None:
    folder, summary, _ = finished
    ledger = inspect(folder.path)
    assert ledger.total.nonzeros == summary.nonzeros
    assert len(ledger.layers) == 3


def test_held_out_images_are_reported_and_the_test_images_left_alone(tmp_path: Path, quick: Any) -> None:
    folder, summary = train(quick(val=200, epochs=3), out=tmp_path, tell=lambda line: None)
    assert summary.val_accuracy is not None
    assert (summary.val_accuracy * 2).is_integer()  # of 200 images
    with folder.metrics.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["accuracy"] for row in rows] == [""] * 3
    assert float(rows[-1]["val_accuracy"]) == summary.val_accuracy


@pytest.mark.parametrize("method", ["lasso", "sws", "mcp", "bridge"])
def test_every_method_reaches_the_target(tmp_path: Path, quick: Any, method: str) -> None:
    _, summary = train(quick(method=method, sparsity=0.8, epochs=3), out=tmp_path, tell=lambda line: None)
    assert summary.zeros == round(0.8 * summary.weights)


@pytest.mark.parametrize(("method", "model"), [("halo", "resnet-8"), ("rigl", "mlp"), ("soft-topk", "mlp")])
def test_a_budget_of_multiplications(tmp_path: Path, quick: Any, method: str, model: str) -> None:
    told: list[str] = []
    config = quick(method=method, macs=0.2, model=model, epochs=2)
    folder, summary = train(config, out=tmp_path, tell=told.append)
    assert summary.macs <= 0.2 * summary.dense_macs < summary.macs + 65  # a weight is used up to 64 times
    assert summary.macs_target == 0.2
    assert "20.00% were asked for" in str(summary)
    assert json.loads(folder.summary.read_text())["macs_target"] == 0.2
    assert resume(folder.path, tell=told.append)[1] == summary
    assert all(" zeros" in line and ", to " not in line for line in told if " epoch " in line)
    assert "asked for" not in folder.report.read_text()


def test_dense_is_a_method_too(tmp_path: Path, quick: Any) -> None:
    folder, summary = train(quick(method="dense", epochs=2), out=tmp_path, tell=lambda line: None)
    assert (summary.zeros, summary.dense_accuracy) == (0, None)
    assert "asked for" not in folder.report.read_text()


@pytest.mark.parametrize(("granularity", "zeros"), [("row", 0.5), ("block:4x4", 0.5), ("2:4", 0.5)])
def test_granularities(tmp_path: Path, quick: Any, granularity: str, zeros: float) -> None:
    config = quick(granularity=granularity, epochs=3, sparsity=0.5)
    folder, summary = train(config, out=tmp_path, tell=lambda line: None)
    assert summary.sparsity == pytest.approx(zeros, abs=0.15)
    if granularity == "2:4":
        assert summary.zeros == summary.weights / 2
    assert "‖w‖₂ of a group" in folder.report.read_text() or granularity == "2:4"


def test_the_same_seed_gives_the_same_network_and_another_does_not(tmp_path: Path, quick: Any) -> None:
    def model(seed: int) -> bytes:
        folder, _ = train(quick(seed=seed, epochs=2), out=tmp_path, tell=lambda line: None)
        return folder.model.read_bytes()

    first = model(1)
    assert model(1) == first
    assert model(2) != first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet20"}, "there is no model 'resnet20'"),
        ({"data": "mnist", "data_dir": __file__}, "data_dir must be a folder"),
        ({"val": 1437}, "validation must be"),
    ],
)
def test_what_cannot_begin_leaves_no_folder(tmp_path: Path, quick: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(quick(**options), out=tmp_path / "runs", tell=lambda line: None)
    assert not (tmp_path / "runs").exists()


def test_a_damaged_network_is_named(tmp_path: Path, quick: Any) -> None:
    folder, _ = train(quick(epochs=1, method="dense"), out=tmp_path, tell=lambda line: None)
    folder.model.write_bytes(folder.model.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is truncated or damaged"):
        inspect(folder.path)
    folder.model.unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors yet"):
        inspect(folder.path)

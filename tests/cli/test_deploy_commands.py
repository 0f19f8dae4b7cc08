import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_command import run

IMAGE = (1, 8, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    settings = ["--epochs", "2", "--device", "cpu", "--no-compare-dense", "--sparsity", "0.95"]
    result = run("train", *settings, "--out", out, "--name", "mine")
    assert result.exit_code == 0, result.stderr
    return out / "mine"


def test_export_says_what_it_wrote_and_nothing_else(folder, caplog):
    result = run("export", folder, "--to", "onnx")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [
        record for record in caplog.records if record.levelno >= logging.WARNING
    ] == []  # torch's go to the terminal
    assert result.stdout.startswith("mlp as ONNX, for batches of any size; tried at 1 and 3\n")
    assert "Zeros alone do not make this runtime faster" in result.stdout
    assert [path.name for path in (folder / "export").iterdir()] == ["model.onnx"]

    session = pytest.importorskip("onnxruntime").InferenceSession(folder / "export" / "model.onnx")
    images = torch.rand(4, *IMAGE)
    (found,) = session.run(None, {"input": images.numpy()})
    weights = load_file(folder / "model.safetensors")
    hidden = images.flatten(1)
    for layer in ("1", "3"):
        hidden = (hidden @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]).relu()
    expected = hidden @ weights["5.weight"].T + weights["5.bias"]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


def test_export_where_one_wants_it(folder, tmp_path):
    result = run("export", folder, "--to", "safetensors", "--out", tmp_path / "small.safetensors")
    assert result.exit_code == 0, result.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "small.safetensors"]
    assert (tmp_path / "small.safetensors").stat().st_size < (folder / "model.safetensors").stat().st_size / 5


def test_export_compacted(folder):
    whole = run("export", folder, "--to", "torch-export")
    small = run("export", folder, "--to", "torch-export", "--compact")
    assert (whole.exit_code, small.exit_code) == (0, 0), small.stderr
    files = {path.name: path.stat().st_size for path in (folder / "export").glob("*.pt2")}
    assert files["model-compact.pt2"] < files["model.pt2"]
    module = torch.export.load(folder / "export" / "model-compact.pt2").module()
    right = torch.export.load(folder / "export" / "model.pt2").module()
    images = torch.rand(2, *IMAGE)
    torch.testing.assert_close(module(images), right(images), rtol=1e-4, atol=1e-4)


def test_bench_prints_tables_and_writes_them(folder, tmp_path):
    file = tmp_path / "bench.json"
    options = ["--batch", "2", "--batch", "3", "--engine", "eager", "--rounds", "2", "--json", file]
    result = run("bench", folder, *options)
    assert (result.exit_code, result.stderr) == (0, "")
    for batch in (2, 3):
        assert f"mlp, batch {batch}, one thread: processor time a batch" in result.stdout
    written = json.loads(file.read_text())
    assert written["model"] == "mlp"
    assert {row["batch"] for row in written["rows"]} == {2, 3}
    assert {row["engine"] for row in written["rows"]} == {"eager"}
    assert all(row["counts"] and len(row["times"]["wall"]) == 2 for row in written["rows"])
    assert written["machine"]["threads"] == 1
    assert "nothing to be measured against" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "{run}", "--to", "tflite"], "--to must be one of onnx, safetensors, torch-export, openvino"),
        (["export", "{run}", "--to", "onnx", "--out", "x.pb"], "a file for ONNX ends in .onnx, got x.pb"),
        (["export", "nowhere", "--to", "onnx"], "there is no run folder nowhere"),
        (["bench", "nowhere"], "there is no run folder nowhere"),
        (["bench", "{run}", "--engine", "tvm"], "there is no engine 'tvm'"),
        (["bench", "{run}", "--batch", "0"], "a batch size must be a whole number, at least 1, got 0"),
    ],
)
def test_what_cannot_be_done_is_said(folder, arguments, message):
    result = run(*(str(folder) if word == "{run}" else word for word in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_a_run_that_has_not_ended_has_nothing_to_export(folder, tmp_path):
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    for command in (["export", tmp_path, "--to", "onnx"], ["bench", tmp_path]):
        result = run(*command)
        assert result.exit_code == 2
        assert "has no model.safetensors yet" in result.stderr
    assert [path.name for path in Path(tmp_path).iterdir()] == ["config.yaml"]

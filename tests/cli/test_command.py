import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch

import shrinkage
from shrinkage.cli.app import app

QUICK = ["train", "--epochs", "3", "--batch-size", "64", "--device", "cpu"]


@dataclass(frozen=True)
class Result:
    exit_code: int
    stdout: str
    stderr: str
    exception: BaseException


def run(*arguments: str | Path) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with torch.random.fork_rng(), redirect_stdout(out), redirect_stderr(err):
        try:
            app([str(argument) for argument in arguments], prog_name="shrinkage")
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0
            return Result(code, out.getvalue(), err.getvalue(), left)
        except shrinkage.ShrinkageError as error:
            return Result(1, out.getvalue(), err.getvalue(), error)
    raise AssertionError("a command ends by leaving")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    result = run(*QUICK, "--sparsity", "0.9", "--out", out, "--name", "mine")
    assert result.exit_code == 0, result.stderr
    return out / "mine"


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"shrinkage {shrinkage.__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["inspect", "--help"]])
def test_help(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


def test_help_needs_none_of_the_heavy_packages() -> None:
    code = (
        "import sys\n"
        "from shrinkage.cli import main\n"
        "sys.argv[1:] = ['train', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('heavy:', [name for name in ('lightning', 'sklearn', 'rich.progress') if name in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("heavy: []\n")


def test_every_setting_is_an_option_and_says_what_it_is_for() -> None:
    from shrinkage.training import RunConfig

    text = run("train", "--help").stdout
    for field in fields(RunConfig):
        assert "--" + field.name.replace("_", "-") in text


def test_without_typer_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from shrinkage.cli import main

    monkeypatch.delitem(sys.modules, "shrinkage.cli.app")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match=r'pip install "shrinkage\[train\]"'):
        main()


def test_train_prints_the_table_and_where_the_files_are(folder: Path) -> None:
    result = run(*QUICK, "--out", folder.parent, "--quiet")
    assert result.exit_code == 0
    for text in ("test accuracy", "parameters", "non-zeros", "bytes", "MACs", "dense", "report.html"):
        assert text in result.stdout
    assert result.stderr == ""


def test_what_goes_on_is_told_on_stderr(folder: Path) -> None:
    result = run(*QUICK, "--no-compare-dense", "--out", folder.parent, "--name", "other")
    assert f"run folder: {folder.parent / 'other'}" in result.stderr
    assert "HALO epoch 3/3" in result.stderr
    assert "epoch" not in result.stdout
    assert json.loads((folder.parent / "other" / "summary.json").read_text())["dense_accuracy"] is None


def test_flags_override_the_file_and_the_file_the_recipe(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 9\nlr: 5e-2\nmethod: dense\ncompare-dense: false\n")
    result = run(*QUICK, "--config", file, "--epochs", "1", "--out", tmp_path, "--name", "x")
    assert result.exit_code == 0, result.stderr
    written = (tmp_path / "x" / "config.yaml").read_text()
    for line in ("epochs: 1", "lr: 0.05", "method: dense", "compare_dense: false", "weight_decay: 0.002"):
        assert line + "\n" in written


def test_the_saved_settings_repeat_the_run(folder: Path, tmp_path: Path) -> None:
    result = run("train", "--config", folder / "config.yaml", "--out", tmp_path, "--name", "again")
    assert result.exit_code == 0, result.stderr
    again = tmp_path / "again" / "model.safetensors"
    assert again.read_bytes() == (folder / "model.safetensors").read_bytes()


def test_inspect_prints_every_layer(folder: Path) -> None:
    result = run("inspect", folder)
    assert result.exit_code == 0
    assert "Linear" in result.stdout
    assert "50,610" in result.stdout


def test_resuming_a_complete_run_prints_its_table(folder: Path) -> None:
    result = run("train", "--resume", folder)
    assert result.exit_code == 0
    assert "is complete" in result.stderr
    assert "test accuracy" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity", "1.5"], "sparsity must be in (0, 1)"),
        (["--method", "hallo"], "did you mean 'halo'"),
        (["--data", "mnits"], "did you mean 'mnist'"),
        (["--model", "resnet20"], "did you mean 'resnet-20'"),
        (["--epochs", "0"], "epochs must be a whole number of at least 1"),
        (["--granularity", "2:4", "--sparsity", "0.9"], "fixes the sparsity at 0.5"),
        (["--config", "none.yaml"], "none.yaml cannot be read"),
        (["--resume", "nowhere"], "there is no run folder nowhere"),
        (["--resume", ".", "--epochs", "3"], "leave out --epochs"),
        (["--granularity", "2:5"], "do not fall into groups of 5"),
        (["--name", "../../etc"], "name must be a folder's name"),
        (["--sparsity", "much"], "--sparsity"),
        (["--sparsty", "0.5"], "--sparsity"),
    ],
)
def test_bad_usage_is_named_with_status_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("train", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_failure_on_the_way_has_status_1_and_tells_how_to_go_on(tmp_path: Path) -> None:
    result = run(*QUICK, "--lr", "1e9", "--out", tmp_path, "--name", "x")
    assert result.exit_code == 1
    assert "at step " in result.stderr
    assert f"shrinkage train --resume {tmp_path / 'x'}" in result.stderr


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(*arguments: str) -> Any:
        return run("train", "--sparsity", "2", *arguments).exception

    assert isinstance(error(), SystemExit)
    assert isinstance(error("--debug"), shrinkage.InputError)
    monkeypatch.setenv("SHRINKAGE_DEBUG", "1")
    assert isinstance(error(), shrinkage.InputError)

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shrinkage.training.folder import RunFolder
from shrinkage.training.summary import Summary


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    command = "from shrinkage.cli import main; main()"
    options = ["train", "--device", "cpu", "--devices", "2", "--epochs", "6", "--out", str(tmp_path), "--name", "x"]
    (tmp_path / "command.py").write_text(command)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "command.py"), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("HALO epoch 6/6") == 1
    assert done.stdout.count("test accuracy") == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["x"]
    summary = Summary.from_json(RunFolder(tmp_path / "x").summary.read_text())
    assert summary.zeros == round(0.95 * summary.weights)
    assert summary.accuracy > 90
    assert summary.dense_accuracy is not None

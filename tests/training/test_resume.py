"""An interrupted run, resumed, ends with the very bits of the uninterrupted one."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shrinkage.core.errors import InputError, StateError
from shrinkage.training import resume, train
from shrinkage.training.checkpoints import DAMAGED, LAST, PREVIOUS
from shrinkage.training.folder import RunFolder

# Dropout draws from the global random state, which a resumed epoch must find as it would have been.
_NET = """
from torch import nn
def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Dropout(0.2),
                         nn.Linear(40, num_classes))
"""


class _Power(BaseException):
    """The power goes out."""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "dropout_net.py").write_text(_NET)
    monkeypatch.syspath_prepend(tmp_path)
    return "dropout_net:net"


def _cut(line: str) -> Callable[[str], None]:
    def tell(told: str) -> None:
        if told.startswith(line):
            raise _Power

    return tell


def _silent(line: str) -> None:
    pass


def _interrupted(config: Any, out: Path, line: str) -> RunFolder:
    """A run that ends when ``line`` is told: after that epoch, before its checkpoint."""
    begun: list[Path] = []
    with pytest.raises(_Power):
        train(config, out=out, name="cut", begun=begun.append, tell=_cut(line))
    return RunFolder(begun[0])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "HALO epoch 1/"),  # before any checkpoint
        ({}, "HALO epoch 2/"),  # shrinking
        ({"schedule": "cosine"}, "HALO epoch 5/"),  # the pattern is fixed
        ({"optimizer": "adam", "lr": 0.01}, "HALO epoch 4/"),
        ({"method": "mcp"}, "MCP epoch 3/"),
        ({"granularity": "2:4", "sparsity": 0.5}, "HALO epoch 3/"),
        ({"compare_dense": True}, "Dense epoch 3/"),
    ],
)
def test_bit_identical(tmp_path: Path, quick: Any, net: str, options: dict[str, Any], line: str) -> None:
    config = quick(model=net, **options)
    whole, expected = train(config, out=tmp_path, name="whole", tell=_silent)
    cut = _interrupted(config, tmp_path, line)
    _, summary = resume(cut.path, tell=_silent)
    assert cut.model.read_bytes() == whole.model.read_bytes()
    assert summary.dense_accuracy == expected.dense_accuracy

    def rows(folder: RunFolder) -> list[str]:
        return [text.rpartition(",")[0] for text in folder.metrics.read_text().splitlines()]  # less the seconds

    assert rows(cut) == rows(whole)


def test_a_run_cut_several_times(tmp_path: Path, quick: Any, net: str) -> None:
    config = quick(model=net)
    whole, _ = train(config, out=tmp_path, name="whole", tell=_silent)
    cut = _interrupted(config, tmp_path, "HALO epoch 2/")
    for epoch in (3, 4, 6):
        with pytest.raises(_Power):
            resume(cut.path, tell=_cut(f"HALO epoch {epoch}/"))
    resume(cut.path, tell=_silent)
    assert cut.model.read_bytes() == whole.model.read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "outcome.json", "summary.json"])
def test_cut_between_the_last_epoch_and_the_last_file(
    tmp_path: Path, quick: Any, net: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = quick(model=net, epochs=3)
    whole, _ = train(config, out=tmp_path, name="whole", tell=_silent)
    replace = os.replace

    def cut(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise _Power
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(_Power):
        patch.setattr(os, "replace", cut)
        train(config, out=tmp_path, name="cut", tell=_silent)
    folder, _ = resume(tmp_path / "cut", tell=_silent)
    assert folder.model.read_bytes() == whole.model.read_bytes()
    assert folder.summary.is_file()


def test_cut_between_the_two_renames_of_a_checkpoint(
    tmp_path: Path, quick: Any, net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(model=net, epochs=4)
    whole, _ = train(config, out=tmp_path, name="whole", tell=_silent)
    replace = os.replace
    saved: list[str] = []

    def cut(source: Any, target: Any) -> None:
        if Path(target).name == LAST:
            saved.append("")
            if len(saved) == 3:
                raise _Power
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(_Power):
        patch.setattr(os, "replace", cut)
        train(config, out=tmp_path, name="cut", tell=_silent)
    folder = RunFolder(tmp_path / "cut")
    assert sorted(path.name for path in folder.checkpoints("halo").iterdir()) == [PREVIOUS]
    resume(folder.path, tell=_silent)
    assert folder.model.read_bytes() == whole.model.read_bytes()


def test_a_truncated_checkpoint_falls_back_on_the_one_before_and_says_so(tmp_path: Path, quick: Any, net: str) -> None:
    config = quick(model=net, epochs=4)
    whole, _ = train(config, out=tmp_path, name="whole", tell=_silent)
    cut = _interrupted(config, tmp_path, "HALO epoch 4/")
    last = cut.checkpoints("halo") / LAST
    last.write_bytes(last.read_bytes()[:-1000])
    told: list[str] = []
    resume(cut.path, tell=told.append)
    assert any("last.ckpt is truncated or damaged" in line and PREVIOUS in line for line in told)
    assert last.with_name(DAMAGED).is_file()  # and not where the next save would look for the one before
    assert cut.model.read_bytes() == whole.model.read_bytes()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(1000)])
def test_checkpoints_that_cannot_be_read_are_named(tmp_path: Path, quick: Any, net: str, content: bytes) -> None:
    cut = _interrupted(quick(model=net, epochs=3), tmp_path, "HALO epoch 3/")
    for name in (LAST, PREVIOUS):
        (cut.checkpoints("halo") / name).write_bytes(content)
    with pytest.raises(InputError, match=r"previous\.ckpt is truncated or damaged"):
        resume(cut.path, tell=_silent)


def test_the_checkpoint_of_other_settings_is_refused(tmp_path: Path, quick: Any, net: str) -> None:
    cut = _interrupted(quick(model=net), tmp_path, "HALO epoch 3/")
    cut.config.write_text(cut.config.read_text().replace("sparsity: 0.95", "sparsity: 0.9"))
    with pytest.raises(InputError, match="this state was taken with"):
        resume(cut.path, tell=_silent)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, quick: Any, net: str) -> None:
    config = quick(model=net, epochs=4)
    whole, _ = train(config, out=tmp_path, name="whole", tell=_silent)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(line: str) -> None:
        if line.startswith("HALO epoch 3/"):  # its metrics are on the disk, its checkpoint is not yet
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))

    try:
        with pytest.raises(StateError, match=r"last\.ckpt could not be written: file too large"):
            train(config, out=tmp_path, name="cut", tell=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    cut = RunFolder(tmp_path / "cut")
    assert sorted(path.name for path in cut.checkpoints("halo").iterdir()) == [LAST, PREVIOUS]
    told: list[str] = []
    resume(cut.path, tell=told.append)
    assert [line.split(":")[0] for line in told] == ["HALO epoch 3/4", "HALO epoch 4/4"]
    assert cut.model.read_bytes() == whole.model.read_bytes()


def test_a_diverging_training_names_step_and_layer(tmp_path: Path, quick: Any) -> None:
    with pytest.raises(StateError, match=r"step \d+.*(lower the|learning rate)"):
        train(quick(lr=1e6), out=tmp_path, tell=_silent)


def test_a_diverging_dense_training_names_step_and_layer(tmp_path: Path, quick: Any) -> None:
    message = r"NaN or infinite at optimiser step \d+; the first layer with broken weights is '1.weight'"
    with pytest.raises(StateError, match=message):
        train(quick(lr=1e10, method="dense"), out=tmp_path, tell=_silent)


def _start(tmp_path: Path, name: str) -> "subprocess.Popen[str]":
    command = ["train", "--epochs", "40", "--batch-size", "64", "--no-compare-dense", "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-c", "from shrinkage.cli import main; main()", *command, "--out", str(tmp_path),
         "--name", name],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def _wait_for(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stderr is not None
    for told in process.stderr:
        if told.startswith(line):
            return
    raise AssertionError(f"ended with {process.wait()} before {line!r}")


def test_killed_interrupted_and_resumed(tmp_path: Path, quick: Any) -> None:
    whole, _ = train(quick(epochs=40), out=tmp_path, name="whole", tell=_silent)

    process = _start(tmp_path, "killed")
    _wait_for(process, "HALO epoch 7/")
    time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert process.stderr is not None
    process.stderr.close()
    killed = RunFolder(tmp_path / "killed")
    assert not killed.model.is_file()
    resume(killed.path, tell=_silent)
    assert killed.model.read_bytes() == whole.model.read_bytes()

    for signum, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = _start(tmp_path, f"stopped-{status}")
        _wait_for(process, "HALO epoch 7/")
        process.send_signal(signum)
        _, told = process.communicate()
        assert process.returncode == status
        stopped = RunFolder(tmp_path / f"stopped-{status}")
        assert f"Go on with: shrinkage train --resume {stopped.path}" in told
        assert "Traceback" not in told
        resume(stopped.path, tell=_silent)
        assert stopped.model.read_bytes() == whole.model.read_bytes()

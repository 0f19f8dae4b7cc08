import os
import subprocess
import sys
from pathlib import Path

import pytest

from shrinkage.core.errors import InputError, StateError
from shrinkage.training.folder import RunFolder, create, find


def test_every_folder_is_fresh(tmp_path: Path) -> None:
    made = [create(tmp_path / "runs", "mine").path.name for _ in range(3)]
    assert made == ["mine", "mine-2", "mine-3"]


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"no run folder could be made in .*choose another with --out"):
        create(tmp_path / "file", "mine")


def test_only_run_folders_are_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run folder"):
        find(tmp_path / "none")
    with pytest.raises(InputError, match=r"is not a run folder: it holds no config\.yaml"):
        find(tmp_path)


def test_a_second_process_is_turned_away_until_the_first_is_gone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    code = (
        "import fcntl, os, sys, time\n"
        "file = open(sys.argv[1], 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print(os.getpid(), file=file, flush=True)\n"
        "print('held', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StateError, match=f"in use by process {process.pid}"), folder.locked():
            pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with folder.locked(), pytest.raises(StateError, match=f"in use by process {os.getpid()}"):
        folder.locked().__enter__()  # a killed process leaves no lock behind, a living one does

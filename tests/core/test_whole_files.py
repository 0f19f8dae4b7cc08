import errno
import os
from pathlib import Path

import pytest

from shrinkage.core.errors import InputError, StateError
from shrinkage.core.files import write


def test_the_new_content_replaces_the_old_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write(path, "one")
    write(path, "zwölf")
    assert path.read_text(encoding="utf-8") == "zwölf"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_is_replaced_can_be_kept(tmp_path: Path) -> None:
    path, kept = tmp_path / "a", tmp_path / "b"
    write(path, b"1", keep=kept)
    assert not kept.exists()
    write(path, b"2", keep=kept)
    assert (path.read_bytes(), kept.read_bytes()) == (b"2", b"1")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "a"
    write(path, "good")

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match=r"a could not be written: .*Nothing that was saved before is lost"):
        write(path, "new")
    assert path.read_text() == "good"
    assert os.listdir(tmp_path) == ["a"]


def test_an_interruption_leaves_no_part_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", "new")
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or directory"):
        write(tmp_path / "none" / "a", "x")


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    write(tmp_path / "ours", "x")
    (tmp_path / "theirs").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_a_file_gets_the_rights_that_the_process_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "a", "one")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640

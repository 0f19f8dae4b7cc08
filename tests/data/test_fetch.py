import functools
import http.server
import threading
from dataclasses import replace
from hashlib import md5

import pytest

from shrinkage import data
from shrinkage.core.errors import InputError
from shrinkage.data import catalogue, cifar, mnist
from shrinkage.data.fetch import Remote, fetch
from small_files import SMALL10, pack, write_binary, write_mnist


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """Serve the folder ``tmp_path/served``; gives (base URL, folder)."""
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()
        thread.join()


def _digest(path):
    return md5(path.read_bytes()).hexdigest()


def test_fetches_a_file_into_a_new_folder(server, tmp_path):
    base, folder = server
    (folder / "file").write_bytes(b"content")
    path = fetch(Remote("file", _digest(folder / "file"), (base,)), tmp_path / "new" / "place")
    assert path == tmp_path / "new" / "place" / "file"
    assert path.read_bytes() == b"content"


def test_a_wrong_checksum_leaves_nothing_and_the_next_mirror_is_tried(server, tmp_path):
    base, folder = server
    (folder / "bad").mkdir()
    (folder / "bad" / "file").write_bytes(b"tampered")
    (folder / "file").write_bytes(b"content")
    remote = Remote("file", _digest(folder / "file"), (f"{base}/bad", base))
    assert fetch(remote, tmp_path / "place").read_bytes() == b"content"

    with pytest.raises(InputError, match=r"MD5 hash of downloaded file .*put it there"):
        fetch(replace(remote, mirrors=(f"{base}/bad",)), tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_every_mirror_that_failed_is_named(server, tmp_path):
    base, _ = server
    remote = Remote("file", "0" * 32, (f"{base}/a", "http://127.0.0.1:9/b"))
    with pytest.raises(InputError, match=r"/a/file: 404.*127\.0\.0\.1:9/b/file: "):
        fetch(remote, tmp_path)


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    base, folder = server
    (folder / "file").write_bytes(b"content")
    (tmp_path / "blocked").write_text("a file, not a folder")
    with pytest.raises(InputError, match="blocked"):
        fetch(Remote("file", _digest(folder / "file"), (base,)), tmp_path / "blocked" / "place")


def test_mnist_downloads_only_what_is_missing(server, tmp_path, monkeypatch):
    base, folder = server
    write_mnist(folder)
    monkeypatch.setattr(mnist, "MIRRORS", (base,))
    monkeypatch.setattr(mnist, "FILES", {name: _digest(folder / f"{name}.gz") for name in mnist.FILES})
    first = data.load("mnist", tmp_path / "here")
    assert len(first.train) == 6
    raw = tmp_path / "here" / "MNIST" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == sorted(f"{name}.gz" for name in mnist.FILES)

    # A file of the user's own is kept, whatever its checksum; the missing one comes back.
    own = write_mnist(raw, packed=False)
    (raw / "t10k-labels-idx1-ubyte").unlink()
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    again = data.load("mnist", tmp_path / "here")
    assert (again.train.x[:, 0].numpy() == own["train-images-idx3-ubyte"]).all()
    assert again.test.y.tolist() == first.test.y.tolist()


def test_cifar_is_downloaded_unpacked_and_the_archive_not_kept(server, tmp_path, monkeypatch):
    base, folder = server
    layout = pack(folder, SMALL10)
    layout = replace(layout, remote=replace(layout.remote, mirrors=(base,)))
    train, test = cifar.load_cifar(layout, tmp_path / "new", download=True)
    assert (len(train), len(test)) == (20, 3)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [layout.binary]


def test_a_failed_cifar_download_leaves_nothing(server, tmp_path):
    base, folder = server
    layout = pack(folder, SMALL10)
    layout = replace(layout, remote=replace(layout.remote, mirrors=(base,), md5="0" * 32))
    with pytest.raises(InputError, match="MD5"):
        cifar.load_cifar(layout, tmp_path / "new", download=True)
    assert list((tmp_path / "new").iterdir()) == []


def test_without_a_data_dir_the_users_cache_is_used(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setattr(catalogue, "cache_dir", lambda: tmp_path)
    assert len(data.load("mnist", download=False).train) == 6


def test_another_process_that_was_first_is_no_error(tmp_path, monkeypatch):
    layout = pack(tmp_path, SMALL10)
    replaced = cifar.os.replace

    def late(source, target):
        write_binary(target, SMALL10)
        replaced(source, target)

    monkeypatch.setattr(cifar.os, "replace", late)
    assert len(cifar.load_cifar(layout, tmp_path, download=False)[0]) == 20

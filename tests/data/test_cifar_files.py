import os
import pickle
from dataclasses import replace
from hashlib import md5

import numpy as np
import pytest
import torch

from shrinkage.core.errors import InputError
from shrinkage.data.cifar import load_cifar, read_pickle
from small_files import SMALL10, SMALL100, pack, python2_pickle, write_binary, write_python

LAYOUTS = pytest.mark.parametrize("layout", [SMALL10, SMALL100], ids=["cifar10", "cifar100"])


@LAYOUTS
@pytest.mark.parametrize("version", ["binary", "python"])
@pytest.mark.parametrize("usual", [True, False], ids=["usual folder", "folder itself"])
def test_reads_both_versions(tmp_path, layout, version, usual):
    write, folder = (write_binary, layout.binary) if version == "binary" else (write_python, layout.python)
    arrays = write(tmp_path / folder if usual else tmp_path, layout)
    train, test = load_cifar(layout, tmp_path, download=False)
    for split, names in ((train, layout.train), (test, layout.test)):
        np.testing.assert_array_equal(split.x.flatten(1), np.concatenate([arrays[name][0] for name in names]))
        np.testing.assert_array_equal(split.y, np.concatenate([arrays[name][1] for name in names]))
        assert split.x.shape[1:] == (3, 32, 32)
        assert (split.x.dtype, split.y.dtype) == (torch.uint8, torch.int64)


def test_channels_come_first_and_rows_before_columns(tmp_path):
    arrays = write_binary(tmp_path, SMALL10)
    train, _ = load_cifar(SMALL10, tmp_path, download=False)
    assert train.x[1, 2, 5, 7] == arrays["data_batch_1"][0][1, 2 * 1024 + 5 * 32 + 7]


def test_reads_a_pickle_as_python_2_wrote_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    (tmp_path / "batch").write_bytes(python2_pickle(pixels, [9, 0, 4]))
    split = read_pickle(tmp_path / "batch", 3, SMALL10)
    np.testing.assert_array_equal(split.x.flatten(1), pixels)
    assert split.y.tolist() == [9, 0, 4]


class _Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_cannot_run_code(tmp_path, protocol):
    write_python(tmp_path, SMALL10)
    trap = tmp_path / "sprung"
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps({"data": _Harmful(trap)}, protocol=protocol))
    with pytest.raises(InputError, match=r"data_batch_2 .*it asks for .*mkdir, which no CIFAR batch needs"):
        load_cifar(SMALL10, tmp_path, download=False)
    assert not trap.exists()


PIXELS = np.zeros((4, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pickle.dumps({"data": PIXELS, "labels": [1, 2, 3, 4]}, protocol=2)[:-9],
            "not a readable CIFAR batch",
        ),
        (pickle.dumps([1, 2]), "not a readable CIFAR batch"),
        (pickle.dumps({"data": PIXELS}, protocol=2), "KeyError: 'labels'"),
        (
            pickle.dumps({"data": PIXELS[:3], "labels": [1] * 4}, protocol=2),
            r"uint8 of shape \(3, 3072\), exp",
        ),
        (pickle.dumps({"data": PIXELS * 1.0, "labels": [1] * 4}, protocol=2), "float64 of shape"),
        (pickle.dumps({"data": "pixels", "labels": [1] * 4}, protocol=2), "data of str"),
        (pickle.dumps({"data": PIXELS, "labels": [1] * 3}, protocol=2), r"shape \(3,\) for 4 images"),
        (pickle.dumps({"data": PIXELS, "labels": list("cats")}, protocol=2), "labels of <U1"),
        (
            pickle.dumps({"data": PIXELS, "labels": [1, 2, -1, 0]}, protocol=2),
            "the label -1, expected 0 to 9",
        ),
        (b"", "not a readable CIFAR batch"),
    ],
    ids=range(10),
)
def test_a_damaged_pickle_is_named_with_its_fault(tmp_path, content, message):
    write_python(tmp_path, SMALL10)
    (tmp_path / "data_batch_3").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_cifar(SMALL10, tmp_path, download=False)
    assert "data_batch_3" in str(caught.value)


@LAYOUTS
@pytest.mark.parametrize("change", [-1, 1, -(3072 + 1)])
def test_a_binary_file_of_another_length_is_named(tmp_path, layout, change):
    write_binary(tmp_path, layout)
    name = next(iter(layout.test)) + ".bin"
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:change] if change < 0 else content + b"\0" * change)
    with pytest.raises(InputError, match=rf"{name} holds .* bytes, expected 3 records"):
        load_cifar(layout, tmp_path, download=False)


@LAYOUTS
def test_a_label_outside_the_classes_is_named(tmp_path, layout):
    write_binary(tmp_path, layout)
    path = tmp_path / (next(iter(layout.test)) + ".bin")
    content = bytearray(path.read_bytes())
    content[layout.label_bytes - 1] = layout.classes
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"the label {layout.classes}, expected 0 to {layout.classes - 1}"):
        load_cifar(layout, tmp_path, download=False)


def test_an_incomplete_set_is_named_and_not_filled_up_from_elsewhere(tmp_path):
    write_binary(tmp_path / SMALL10.binary, SMALL10)
    (tmp_path / SMALL10.binary / "data_batch_4.bin").unlink()
    with pytest.raises(InputError, match=r"lacks data_batch_4\.bin"):
        load_cifar(SMALL10, tmp_path, download=True)


def test_nothing_there_says_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"neither cifar-10-batches-bin, .* nor cifar-10-binary\.tar\.gz"):
        load_cifar(SMALL10, tmp_path, download=False)


def test_an_archive_that_is_there_is_unpacked(tmp_path):
    layout = pack(tmp_path, SMALL100)
    train, test = load_cifar(layout, tmp_path, download=False)
    assert (len(train), len(test)) == (6, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [layout.binary, layout.remote.name]
    assert sorted(path.name for path in (tmp_path / layout.binary).iterdir()) == ["test.bin", "train.bin"]


def test_a_damaged_archive_is_named_and_left_alone(tmp_path):
    layout = pack(tmp_path, SMALL10)
    archive = tmp_path / layout.remote.name
    damaged = archive.read_bytes()[:-5]
    archive.write_bytes(damaged)
    with pytest.raises(InputError, match=r"cifar-10-binary\.tar\.gz has the MD5 checksum .*delete it"):
        load_cifar(layout, tmp_path, download=True)
    assert archive.read_bytes() == damaged
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


def test_an_archive_that_is_none_is_an_error(tmp_path):
    (tmp_path / SMALL10.remote.name).write_bytes(b"no archive")
    layout = replace(SMALL10, remote=replace(SMALL10.remote, md5=md5(b"no archive").hexdigest()))
    with pytest.raises(InputError, match="could not be unpacked"):
        load_cifar(layout, tmp_path, download=False)

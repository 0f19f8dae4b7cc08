import gzip

import numpy as np
import pytest
import torch

from shrinkage import data
from shrinkage.core.errors import InputError
from shrinkage.data.mnist import read_idx
from small_files import idx, write_mnist


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["MNIST/raw", "raw", "."])
def test_reads_every_usual_place_and_form(tmp_path, place, packed):
    arrays = write_mnist(tmp_path / place, packed=packed)
    mnist = data.load("mnist", tmp_path, download=False)
    assert mnist.input_shape == tuple(mnist.train.x.shape[1:]) == (1, 28, 28)
    assert (mnist.name, mnist.num_classes, mnist.validation, mnist.augment) == ("mnist", 10, None, None)
    np.testing.assert_array_equal(mnist.train.x[:, 0], arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(mnist.train.y, arrays["train-labels-idx1-ubyte"])
    np.testing.assert_array_equal(mnist.test.x[:, 0], arrays["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(mnist.test.y, arrays["t10k-labels-idx1-ubyte"])
    assert mnist.train.x.dtype == torch.uint8
    assert mnist.train.y.dtype == torch.int64


def test_inputs_lie_in_the_unit_interval_and_are_not_normalised(tmp_path):
    write_mnist(tmp_path)
    prepare = data.load("mnist", tmp_path).prepare
    assert prepare(torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8)).flatten().tolist() == [
        0.0,
        1.0,
        pytest.approx(0.2),
    ]


def test_a_file_unpacked_under_its_packed_name_is_read(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(idx(np.zeros((2, 28, 28), np.uint8)))
    assert read_idx(path, 3).shape == (2, 28, 28)


IMAGES = np.zeros((4, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(idx(IMAGES))[:-20], "truncated or damaged"),
        (gzip.compress(idx(IMAGES), mtime=0)[:30] + b"\0" * 40, "truncated or damaged"),
        (idx(IMAGES)[:-1], r"holds 3,151 bytes, its header asks for 3,152"),
        (idx(IMAGES) + b"\0", r"holds 3,153 bytes, its header asks for 3,152"),
        (idx(IMAGES)[:9], "truncated"),
        (idx(np.zeros(4, np.uint8)), r"begins with 00 00 08 01, expected 00 00 08 03"),
        (b"<html>not found</html>", "begins with 3c 68 74 6d"),
        (b"", "begins with nothing"),
        (idx(np.zeros((6, 20, 20), np.uint8)), r"shape \(6, 20, 20\)"),
        (idx(np.zeros((0, 28, 28), np.uint8)), "but .* holds 6 labels"),
        (idx(np.zeros((5, 28, 28), np.uint8)), "holds 5 images but .* holds 6 labels"),
    ],
    ids=range(11),
)
def test_a_damaged_image_file_is_named_with_its_fault(tmp_path, content, message):
    write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        data.load("mnist", tmp_path)
    assert "train-images-idx3-ubyte" in str(caught.value)


def test_a_label_outside_the_classes_is_an_error(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.array([0, 10, 3], np.uint8)))
    with pytest.raises(InputError, match=r"t10k-labels.* the label 10, expected 0 to 9"):
        data.load("mnist", tmp_path)


def test_a_missing_file_is_named_when_downloads_are_off(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte\.gz is not in"):
        data.load("mnist", tmp_path, download=False)


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere cannot be read: No such file"):
        read_idx(tmp_path / "nowhere", 1)

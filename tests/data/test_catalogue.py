import os
from pathlib import Path

import pytest
import torch

from shrinkage import data
from shrinkage.core.errors import InputError
from small_files import write_mnist

DIGITS = data.load("digits")


def _rows(*splits):
    """Every example with its label, as a sorted list."""
    return sorted((*x, int(y)) for split in splits for x, y in zip(split.x.flatten(1).tolist(), split.y, strict=True))


def test_digits_are_all_of_scikit_learns():
    from sklearn.datasets import load_digits

    bundle = load_digits()
    expected = sorted((*map(int, x), int(y)) for x, y in zip(bundle.data.tolist(), bundle.target, strict=True))
    assert _rows(DIGITS.train, DIGITS.test) == expected
    assert (len(DIGITS.train), len(DIGITS.test)) == (1437, 360)
    assert DIGITS.input_shape == tuple(DIGITS.train.x.shape[1:])
    assert DIGITS.prepare(DIGITS.train.x).max() == 1
    assert DIGITS.augment is None


def test_the_test_digits_are_always_the_same_ones():
    assert DIGITS.test.y[:12].tolist() == [0, 8, 8, 9, 8, 3, 7, 5, 0, 6, 6, 3]


def test_validation_is_taken_from_the_training_images_and_the_test_images_stay():
    held = data.load("digits", validation=437)
    assert (len(held.train), len(held.validation)) == (1000, 437)
    assert _rows(held.train, held.validation) == _rows(DIGITS.train)
    assert torch.equal(held.test.x, DIGITS.test.x)


def test_the_seed_fixes_which_images_are_held_out():
    first, again, other = (data.load("digits", validation=100, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.validation.x, again.validation.x)
    assert not torch.equal(first.validation.x, other.validation.x)
    assert torch.equal(first.test.x, other.test.x)


def test_more_validation_images_include_the_fewer():
    small, large = (data.load("digits", validation=count).validation for count in (10, 50))
    assert torch.equal(large.x[-10:], small.x)


@pytest.mark.parametrize("count", [-1, 1437, 10_000, 0.5, True])
def test_a_validation_that_leaves_nothing_to_train_on_is_an_error(count):
    with pytest.raises(InputError, match=r"from 0 to 1436 \(of 1437 training images\), got"):
        data.load("digits", validation=count)


def test_a_negative_seed_is_an_error():
    with pytest.raises(InputError, match="must not be negative, got -3"):
        data.load("digits", validation=10, seed=-3)


def test_an_unknown_name_meets_the_nearest_one():
    with pytest.raises(InputError, match=r"no data set 'cifar-10'; did you mean 'cifar10'"):
        data.load("cifar-10")


def test_a_missing_folder_and_a_file_in_its_place_are_errors(tmp_path):
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        data.load("mnist", tmp_path / "nowhere", download=False)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"must be a folder, .*file is a file"):
        data.load("cifar10", tmp_path / "file")


def test_data_dir_may_be_text(tmp_path):
    write_mnist(tmp_path)
    assert len(data.load("mnist", str(tmp_path)).train) == 6


def test_a_split_of_unequal_lengths_is_an_error():
    with pytest.raises(InputError, match=r"3 examples do not match labels of shape \(2,\)"):
        data.Split(torch.zeros(3, 1), torch.zeros(2))


needs_data = pytest.mark.skipif("SHRINKAGE_DATA" not in os.environ, reason="SHRINKAGE_DATA is not set")


@needs_data
def test_real_mnist():
    mnist = data.load("mnist", Path(os.environ["SHRINKAGE_DATA"]), validation=5000, download=False)
    assert (len(mnist.train), len(mnist.validation), len(mnist.test)) == (55_000, 5_000, 10_000)
    assert mnist.test.y[:5].tolist() == [7, 2, 1, 0, 4]
    # The published mean and deviation of the 60,000 training images.
    pixels = torch.cat([mnist.train.x, mnist.validation.x]).flatten()
    mean = pixels.sum(dtype=torch.int64).item() / pixels.numel() / 255
    assert mean == pytest.approx(0.1307, abs=1e-4)


@needs_data
def test_real_cifar10():
    cifar = data.load("cifar10", Path(os.environ["SHRINKAGE_DATA"]), download=False)
    assert cifar.train.y.bincount().tolist() == [5000] * 10
    assert cifar.test.y.bincount().tolist() == [1000] * 10
    # The channel means are .4914, .4822, .4465, so prepared images have a mean of zero.
    assert cifar.prepare(cifar.train.x[::5]).mean((0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=0.02)
    assert cifar.augment(cifar.train.x[:8], None).shape == (8, 3, 32, 32)

"""The data sets by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from shrinkage.core.errors import InputError, require
from shrinkage.data.cifar import CIFAR10, CIFAR100, Layout, load_cifar
from shrinkage.data.fetch import cache_dir
from shrinkage.data.loader import permutation
from shrinkage.data.mnist import load_mnist
from shrinkage.data.sets import Data, Split
from shrinkage.data.transforms import Normalise, PadCropFlip

NAMES = ("digits", "mnist", "cifar10", "cifar100")
"""What :func:`load` knows."""

_DIGITS_TEST = 360  # a fifth; scikit-learn's digits come without a split of their own

# The constants that HALO's authors, and most of the CIFAR literature, normalise by.
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2023, 0.1994, 0.2010)


def load(
    name: str,
    data_dir: Path | str | None = None,
    *,
    validation: int = 0,
    seed: int = 0,
    download: bool = True,
) -> Data:
    """Load a data set as whole tensors.

    - ``digits``: 1,797 images of 8×8 from scikit-learn, nothing to download; the 360 test images are the
      same whatever the seed. Inputs are scaled to [0, 1].
    - ``mnist``: IDX files; inputs in [0, 1], not normalised further, as in the HALO paper.
    - ``cifar10``, ``cifar100``: binary or Python version; inputs normalised by channel, with the
      paper's augmentation (pad by 4, random crop, mirror).

    Args:
        name: one of :data:`NAMES`.
        data_dir: folder with the data set in its usual files; what is not there is downloaded into it
            and checked against its published checksum. Default: the user's cache folder.
        validation: how many training images to hold out: the last ones of a permutation fixed by ``seed``.
        seed: non-negative; used for that permutation only.
        download: whether to fetch what is missing; otherwise a missing file is an error.

    Raises:
        InputError: if the name is unknown, a file is missing, damaged or cannot be downloaded, or
            ``validation`` leaves nothing to train on.
        MissingExtra: if scikit-learn (digits) or pooch (downloads) is needed and not installed.

    >>> data = load("digits", validation=100)
    >>> len(data.train), len(data.validation), len(data.test), data.input_shape
    (1337, 100, 360, (1, 8, 8))
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1, 0.0)[0]
        raise InputError(f"there is no data set {name!r}; did you mean {near!r}? ({', '.join(NAMES)})")
    data = _LOADERS[name](None if data_dir is None else Path(data_dir), download)
    return _hold_out(data, validation, seed) if validation else data


def _digits(data_dir: Path | None, download: bool) -> Data:
    bundle = require("sklearn.datasets", "train").load_digits()
    x = torch.from_numpy(bundle.images).to(torch.uint8).unsqueeze(1)
    whole = Split(x, torch.from_numpy(bundle.target).long())
    order = permutation(len(whole), 0)
    train, test = whole.take(order[:-_DIGITS_TEST]), whole.take(order[-_DIGITS_TEST:])
    return Data("digits", train, None, test, 10, (1, 8, 8), Normalise(16))


def _mnist(data_dir: Path | None, download: bool) -> Data:
    train, test = load_mnist(_folder(data_dir, download), download=download)
    return Data("mnist", train, None, test, 10, (1, 28, 28), Normalise(255))


def _cifar(name: str, layout: Layout) -> Callable[[Path | None, bool], Data]:
    def loader(data_dir: Path | None, download: bool) -> Data:
        train, test = load_cifar(layout, _folder(data_dir, download), download=download)
        prepare = Normalise(255, _CIFAR_MEAN, _CIFAR_STD)
        return Data(name, train, None, test, layout.classes, (3, 32, 32), prepare, PadCropFlip())

    return loader


_LOADERS: dict[str, Callable[[Path | None, bool], Data]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar("cifar10", CIFAR10),
    "cifar100": _cifar("cifar100", CIFAR100),
}


def _folder(data_dir: Path | None, download: bool) -> Path:
    if data_dir is None:
        return cache_dir()
    if data_dir.exists() and not data_dir.is_dir():
        raise InputError(f"data_dir must be a folder, {data_dir} is a file")
    if not data_dir.exists() and not download:
        raise InputError(f"the data_dir {data_dir} does not exist")
    return data_dir


def _hold_out(data: Data, count: int, seed: int) -> Data:
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count < len(data.train):
        raise InputError(
            f"validation must be a whole number from 0 to {len(data.train) - 1} (of {len(data.train)} "
            f"training images), got {count!r}"
        )
    order = permutation(len(data.train), seed)
    return replace(data, train=data.train.take(order[:-count]), validation=data.train.take(order[-count:]))

"""CIFAR-10 and CIFAR-100 in their binary and their Python (pickle) version."""

from __future__ import annotations

import os
import pickle
import tarfile
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shrinkage.core.errors import InputError
from shrinkage.data.fetch import Remote, check, fetch
from shrinkage.data.sets import Split

_PIXELS = 3 * 32 * 32
_MIRRORS = ("https://www.cs.toronto.edu/~kriz",)


@dataclass(frozen=True)
class Layout:
    """How one of the two data sets is laid out on disk.

    Attributes:
        classes: number of classes.
        train, test: file names, without the binary version's ``.bin``, and the images in each.
        label_bytes: bytes before the pixels of a binary record; the last one is the class.
        label_key: entry of the pickled dictionary that holds the classes.
        binary, python: folder names of the two versions.
        remote: the archive of the binary version.
    """

    classes: int
    train: dict[str, int]
    test: dict[str, int]
    label_bytes: int
    label_key: str
    binary: str
    python: str
    remote: Remote


CIFAR10 = Layout(
    classes=10,
    train={f"data_batch_{i}": 10_000 for i in range(1, 6)},
    test={"test_batch": 10_000},
    label_bytes=1,
    label_key="labels",
    binary="cifar-10-batches-bin",
    python="cifar-10-batches-py",
    remote=Remote("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", _MIRRORS),
)
CIFAR100 = Layout(
    classes=100,
    train={"train": 50_000},
    test={"test": 10_000},
    label_bytes=2,  # the coarse class, then the fine one
    label_key="fine_labels",
    binary="cifar-100-binary",
    python="cifar-100-python",
    remote=Remote("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", _MIRRORS),
)


def load_cifar(layout: Layout, directory: Path, *, download: bool) -> tuple[Split, Split]:
    """Read the training and test images of CIFAR-10 or CIFAR-100.

    Looked for, in this order: the binary version in its usual folder under ``directory`` or in
    ``directory`` itself, then the Python version likewise. No checksum is asked of unpacked files that
    are already there. With none of them, the binary archive is unpacked if it lies in ``directory``, or
    downloaded.

    Returns:
        Training and test split; x (N, 3, 32, 32) uint8, y from 0.

    Raises:
        InputError: if files are missing and not to be downloaded, or one is damaged; it names the file.
    """
    versions: list[tuple[str, str, Callable[[Path, int, Layout], Split]]] = [
        (layout.binary, ".bin", read_binary),
        (layout.python, "", read_pickle),
    ]
    names = [*layout.train, *layout.test]
    for usual, suffix, read in versions:
        for folder in (directory / usual, directory):
            missing = [name + suffix for name in names if not (folder / (name + suffix)).is_file()]
            if not missing:
                train, test = (
                    _join([read(folder / (name + suffix), count, layout) for name, count in files.items()])
                    for files in (layout.train, layout.test)
                )
                return train, test
            if len(missing) < len(names):
                raise InputError(
                    f"{folder} lacks {', '.join(missing)}; copy what is missing, or remove the rest of the "
                    "data set to have it downloaded"
                )
    archive = directory / layout.remote.name
    if not archive.is_file() and not download:
        raise InputError(
            f"neither {layout.binary}, {layout.python} nor {layout.remote.name} is in {directory}; "
            "name the folder that holds one with data_dir, or allow the download"
        )
    _unpack(layout, directory)
    return load_cifar(layout, directory, download=False)


def read_binary(path: Path, count: int, layout: Layout) -> Split:
    """Read one file of the binary version: records of label bytes, then 3 × 32 × 32 pixels.

    Raises:
        InputError: if the file cannot be read, is not ``count`` records long, or holds a label outside
            the classes.
    """
    record = layout.label_bytes + _PIXELS
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if raw.size != count * record:
        raise InputError(
            f"{path} holds {raw.size:,} bytes, expected {count:,} records of {record:,} bytes: it is "
            "truncated or another file; copy or download it again"
        )
    records = torch.from_numpy(raw).view(count, record)
    return _checked(records[:, layout.label_bytes :], records[:, layout.label_bytes - 1], path, layout)


def read_pickle(path: Path, count: int, layout: Layout) -> Split:
    """Read one file of the Python version, letting its pickle build nothing but arrays.

    Raises:
        InputError: if the file cannot be read, asks for anything but arrays, lacks an entry, does not
            hold ``count`` images, or holds a label outside the classes.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the files are from 2009, numpy deprecates how dtypes looked
            content = _ArrayUnpickler(file, encoding="bytes").load()
        entries = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        pixels, labels = entries["data"], np.asarray(entries[layout.label_key])
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(
            f"{path} is not a readable CIFAR batch ({type(error).__name__}: {error}); copy or download it again"
        ) from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (count, _PIXELS):
        raise InputError(
            f"{path} holds data of {_kind(pixels)}, expected uint8 of shape ({count}, {_PIXELS}); "
            "copy or download it again"
        )
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(f"{path} holds labels of {_kind(labels)} for {count} images; copy or download it again")
    return _checked(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)), path, layout)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, strings and numpy arrays; any other global is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]  # the same function, wherever this numpy keeps it
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch needs")


def _checked(pixels: Tensor, labels: Tensor, path: Path, layout: Layout) -> Split:
    outside = labels[(labels < 0) | (labels >= layout.classes)]
    if len(outside):
        raise InputError(
            f"{path} holds the label {int(outside[0])}, expected 0 to {layout.classes - 1}: it is damaged or "
            "another data set"
        )
    return Split(pixels.reshape(-1, 3, 32, 32), labels.long())


def _join(splits: list[Split]) -> Split:
    return Split(torch.cat([split.x for split in splits]), torch.cat([split.y for split in splits]))


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__


def _unpack(layout: Layout, directory: Path) -> None:
    """Unpack the binary archive aside and move the folder into place, so that none is ever half there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=directory) as aside:
            archive = directory / layout.remote.name
            if archive.is_file():
                check(archive, layout.remote)
            else:
                archive = fetch(layout.remote, Path(aside))
            wanted = {f"{layout.binary}/{name}.bin" for name in (*layout.train, *layout.test)}
            with tarfile.open(archive) as packed:
                members = [member for member in packed if member.name in wanted]
                packed.extractall(aside, members, filter="data")
            try:
                os.replace(Path(aside) / layout.binary, directory / layout.binary)
            except OSError:
                if not any((directory / layout.binary).glob("*.bin")):  # else another process was first
                    raise
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{layout.remote.name} could not be unpacked into {directory}: {error}") from error

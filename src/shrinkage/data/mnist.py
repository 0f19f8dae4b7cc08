"""MNIST and whatever comes in its IDX files, packed by gzip or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shrinkage.core.errors import InputError
from shrinkage.data.fetch import Remote, fetch
from shrinkage.data.sets import Split

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
FILES = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
"""Name of each file unpacked, and the MD5 of its published gzip form."""

_CLASSES = 10
_UBYTE = 8  # the third byte of the magic number: elements are unsigned bytes


def load_mnist(directory: Path, *, download: bool) -> tuple[Split, Split]:
    """Read MNIST's training and test images.

    The four files are looked for in ``directory/MNIST/raw``, ``directory/raw`` and ``directory``, each
    either as published (``….gz``) or unpacked; another data set in the same files (Fashion-MNIST, a
    subset) is read as well, and no checksum is asked of files that are already there. What is missing
    is downloaded.

    Returns:
        Training and test split; x (N, 1, 28, 28) uint8, y in 0–9.

    Raises:
        InputError: if a file is missing and not to be downloaded, is damaged, or does not fit the others.
    """
    places = (directory / "MNIST" / "raw", directory / "raw", directory)
    present = [place for place in places if any(_find(place, name) for name in FILES)]
    folder = present[0] if present else places[0]
    paths = []
    for name, md5 in FILES.items():
        path = _find(folder, name)
        if path is None and not download:
            raise InputError(f"MNIST's file {name}.gz is not in {folder}; put it there, or allow the download")
        paths.append(path or fetch(Remote(f"{name}.gz", md5, MIRRORS), folder))
    return _split(*paths[:2]), _split(*paths[2:])


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an IDX file of unsigned bytes, packed by gzip or not.

    Args:
        path: the file.
        dimensions: how many dimensions it must have (1: labels, 3: images).

    Returns:
        A uint8 tensor of the shape that the file's header gives.

    Raises:
        InputError: if the file cannot be read or unpacked, has another magic number, or is shorter or
            longer than its header says.
    """
    remedy = "copy or download it again"
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":  # told by its content: browsers unpack files and keep their name
            raw = gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is truncated or damaged ({error}); {remedy}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    magic = bytes([0, 0, _UBYTE, dimensions])
    if raw[:4] != magic:
        raise InputError(
            f"{path} begins with {raw[:4].hex(' ') or 'nothing'}, expected {magic.hex(' ')} (an IDX file of "
            f"bytes in {dimensions} dimensions): it is another file, or damaged; {remedy}"
        )
    header = 4 + 4 * dimensions
    shape = np.frombuffer(raw[4:header], dtype=">u4", count=len(raw[4:header]) // 4).tolist()
    expected = header + int(np.prod(shape, dtype=object))
    if len(shape) < dimensions or len(raw) != expected:
        raise InputError(
            f"{path} holds {len(raw):,} bytes, its header asks for {expected:,}: it is truncated or damaged; {remedy}"
        )
    return torch.from_numpy(np.frombuffer(bytearray(raw), dtype=np.uint8)[header:].reshape(shape))


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _split(images: Path, labels: Path) -> Split:
    x, y = read_idx(images, 3), read_idx(labels, 1)
    if len(x) != len(y):
        raise InputError(f"{images} holds {len(x):,} images but {labels} holds {len(y):,} labels")
    if not len(x) or x.shape[1:] != (28, 28):
        raise InputError(f"{images} holds images of shape {tuple(x.shape)}, expected (some, 28, 28)")
    if y.max() >= _CLASSES:
        raise InputError(f"{labels} holds the label {int(y.max())}, expected 0 to {_CLASSES - 1}")
    return Split(x.unsqueeze(1), y.long())

"""Writers of small data sets in the formats of the standard downloads."""

import gzip
import pickle
import shutil
import struct
import tarfile
from dataclasses import replace
from hashlib import md5
from pathlib import Path

import numpy as np

from shrinkage.data.cifar import CIFAR10, CIFAR100, Layout

SMALL10 = replace(CIFAR10, train={f"data_batch_{i}": 4 for i in range(1, 6)}, test={"test_batch": 3})
SMALL100 = replace(CIFAR100, train={"train": 6}, test={"test": 3})


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, train: int = 6, test: int = 3, *, packed: bool = True) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = rng.integers(0, 10, count, dtype=np.uint8)
    for name, array in arrays.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array), mtime=0))
        else:
            (folder / name).write_bytes(idx(array))
    return arrays


def cifar_arrays(layout: Layout) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return {
        name: (
            rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            rng.integers(0, layout.classes, count, dtype=np.uint8),
        )
        for name, count in {**layout.train, **layout.test}.items()
    }


def write_binary(folder: Path, layout: Layout) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = cifar_arrays(layout)
    for name, (pixels, labels) in arrays.items():
        coarse = np.full((len(labels), layout.label_bytes - 1), 19, dtype=np.uint8)
        (folder / f"{name}.bin").write_bytes(np.hstack([coarse, labels[:, None], pixels]).tobytes())
    return arrays


def write_python(folder: Path, layout: Layout) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = cifar_arrays(layout)
    for name, (pixels, labels) in arrays.items():
        content = {"data": pixels, layout.label_key: labels.tolist(), "filenames": ["x.png"] * len(labels)}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return arrays


def python2_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2's cPickle wrote in 2009: byte strings throughout, numpy's old module names."""
    rows, columns = pixels.shape
    return b"".join(
        [
            b"\x80\x02}(U\x04data",
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR",
            b"(K\x01" + b"M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"\x86",
            b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + struct.pack("<I", pixels.size) + pixels.tobytes() + b"tb",
            b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"eu.",
        ]
    )


def pack(folder: Path, layout: Layout) -> Layout:
    """Make the published archive under ``folder`` and the layout that knows its checksum."""
    write_binary(folder / layout.binary, layout)
    (folder / layout.binary / "readme.html").write_text("more than the data")
    archive = folder / layout.remote.name
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder / layout.binary, layout.binary)
    shutil.rmtree(folder / layout.binary)
    return replace(layout, remote=replace(layout.remote, md5=md5(archive.read_bytes()).hexdigest()))

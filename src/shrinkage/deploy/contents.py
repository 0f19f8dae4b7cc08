"""What a sparse file holds, tensor by tensor, and how much smaller it is than the dense one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shrinkage.core.tables import render
from shrinkage.formats.container import size_of
from shrinkage.formats.record import FLOATING, Record


@dataclass(frozen=True)
class Stored:
    """One tensor of a file.

    Attributes:
        name: its key in the ``state_dict``.
        dtype: its type, by safetensors' name.
        shape: of the tensor.
        nonzeros: how many of its values are not zero.
        codec: how it is stored: its index, if zeros are left out (``mask``, ``gaps``, or ``rice1`` … ``rice16``; else
            ``dense``), the type of the stored values, and ``zstd`` if compressed; or ``same as`` another.
        bytes: in the file, without the header.
        dense_bytes: as a dense tensor: four a value for floating ones, of whatever type; 0 if it is another's twin.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nonzeros: int
    codec: str
    bytes: int
    dense_bytes: int

    @property
    def density(self) -> float | None:
        """Share of the values that are not zero, in [0, 1]; None for an empty tensor, and for whole numbers."""
        size = size_of("U8", self.shape)
        return self.nonzeros / size if size and self.dtype in FLOATING else None

    @property
    def ratio(self) -> float | None:
        """Dense bytes over stored bytes; None if there are none of either."""
        return self.dense_bytes / self.bytes if self.bytes and self.dense_bytes else None

    def to_dict(self) -> dict[str, Any]:
        """All of the above under the same names."""
        return {**vars(self), "shape": list(self.shape), "density": self.density, "ratio": self.ratio}


@dataclass(frozen=True)
class Contents:
    """What a file holds; prints as a table.

    Attributes:
        path: of the file.
        tensors: in the order of the ``state_dict``.
        metadata: what was given to :func:`~shrinkage.save` as such.
        bytes: of the whole file.
    """

    path: str
    tensors: tuple[Stored, ...]
    metadata: dict[str, str]
    bytes: int

    @property
    def dense_bytes(self) -> int:
        """Bytes of all tensors as dense ones, with four a value for floating ones of whatever type."""
        return sum(tensor.dense_bytes for tensor in self.tensors)

    @property
    def density(self) -> float | None:
        """Share of the values of floating tensors that are not zero, in [0, 1]; None without any."""
        counted = [tensor for tensor in self.tensors if tensor.density is not None and tensor.dense_bytes]
        size = sum(size_of("U8", tensor.shape) for tensor in counted)
        return sum(tensor.nonzeros for tensor in counted) / size if size else None

    @property
    def ratio(self) -> float:
        """Dense bytes over the bytes of the whole file."""
        return self.dense_bytes / self.bytes

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers, texts, lists and dicts, ready for JSON."""
        return {
            "path": self.path,
            "metadata": dict(self.metadata),
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "bytes": self.bytes,
            "dense_bytes": self.dense_bytes,
            "density": self.density,
            "ratio": self.ratio,
        }

    def __str__(self) -> str:
        rows: list[list[object]] = [
            [t.name, "×".join(map(str, t.shape)) or "scalar", _percent(t.density), t.codec, t.bytes, t.ratio]
            for t in self.tensors
        ]
        header = self.bytes - sum(tensor.bytes for tensor in self.tensors)
        rows += [["(header)", "", "", "", header, None], []]
        rows += [["total", "", _percent(self.density), "", self.bytes, self.ratio]]
        return render(["tensor", "shape", "density", "stored as", "bytes", "ratio"], rows, title=self.path)


def stored(name: str, record: Record, twin: str | None) -> Stored:
    """One line of :class:`Contents`; ``twin`` is the name that a tensor is stored under if it is not its own."""
    if twin is not None:
        return Stored(name, record.dtype, record.shape, record.nonzeros, f"same as {twin}", 0, 0)
    codec = f"{record.index or 'dense'} {record.values}{' zstd' if record.compressed else ''}"
    floating = record.dtype in FLOATING or record.dtype.startswith("F8")
    dense = size_of("F32" if floating else record.dtype, record.shape)
    return Stored(name, record.dtype, record.shape, record.nonzeros, codec, record.bytes, dense)


def _percent(density: float | None) -> str | None:
    return None if density is None else f"{100 * density:.2f} %"

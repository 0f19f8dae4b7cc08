"""How one tensor lies in a file: its type, its shape, and the streams of bytes it is made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shrinkage.formats.container import DTYPES, Entry, dtype_from, shape_from, size_of, whole
from shrinkage.formats.index import FORMS, index_bounds
from shrinkage.formats.malformed import Malformed

FLOATING = ("F64", "F32", "F16", "BF16")
"""Types whose zeros may be left out, and whose values may be rounded."""

_CHECKSUMS = 1 << 32


@dataclass(frozen=True)
class Record:
    """How one tensor lies in a file.

    Attributes:
        dtype: the tensor's type, by safetensors' name.
        shape: of the tensor.
        values: the type that its values are stored in: ``dtype``, or a narrower one.
        nonzeros: values that are not zero; with an index the ones that are stored.
        index: how their places are stored, one of :data:`~shrinkage.formats.index.FORMS`; None if all values are.
        streams: bytes of each stream, unpacked and as stored, in their order: index, scales, values or
            their byte planes. A stream whose two numbers differ is a zstd frame. Without streams the tensor lies in the
            file as safetensors itself has it.
        crc32: of its bytes as stored.
    """

    dtype: str
    shape: tuple[int, ...]
    values: str
    nonzeros: int
    index: str | None
    streams: tuple[tuple[int, int], ...]
    crc32: int

    @property
    def size(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)

    @property
    def stored(self) -> int:
        """Values that are stored."""
        return self.size if self.index is None else self.nonzeros

    @property
    def scaled(self) -> bool:
        """Whether the values are int8 with a scale for each slice."""
        return self.values == "I8" and self.dtype in FLOATING

    @property
    def split(self) -> bool:
        """Whether the values are in byte planes."""
        return len(self.streams) - (self.index is not None) - self.scaled > 1

    @property
    def compressed(self) -> bool:
        """Whether any stream is a zstd frame."""
        return any(packed < raw for raw, packed in self.streams)

    @property
    def bytes(self) -> int:
        """Bytes in the file."""
        return sum(packed for _, packed in self.streams) if self.streams else size_of(self.values, self.shape)

    def to_json(self) -> dict[str, Any]:
        """What a file says of the tensor, beside safetensors' own entry."""
        if not self.streams:
            rounded = {} if self.values == self.dtype else {"dtype": self.dtype}
            return {**rounded, "nonzeros": self.nonzeros, "crc32": self.crc32}
        index = {} if self.index is None else {"index": self.index}
        return {
            "dtype": self.dtype,
            "shape": list(self.shape),
            "values": self.values,
            "nonzeros": self.nonzeros,
            **index,
            "streams": [list(sizes) for sizes in self.streams],
            "crc32": self.crc32,
        }


def record_from(fields: object, entry: Entry) -> Record:
    """The inverse of :meth:`Record.to_json`.

    Raises:
        Malformed: if the parts do not fit each other or the ``entry``: what passes needs no more memory
            than the tensor, a few times over.
    """
    if not isinstance(fields, dict):
        raise Malformed("is not described")
    record = _with_streams(fields, entry) if "streams" in fields else _plain(fields, entry)
    if record.nonzeros > record.size:
        raise Malformed(f"has {record.nonzeros} non-zeros of {record.size} values")
    if record.crc32 >= _CHECKSUMS:
        raise Malformed(f"has a checksum of more than 32 bits: {record.crc32}")
    if not _narrows(record):
        raise Malformed(f"has values of {record.values}, which cannot make {record.dtype}")
    if record.streams:
        _check_streams(record)
    return record


def _plain(fields: Mapping[str, object], entry: Entry) -> Record:
    _only(fields, {"nonzeros", "crc32"}, {"dtype"})
    dtype = dtype_from(fields.get("dtype", entry.dtype))
    record = Record(
        dtype, entry.shape, entry.dtype, whole(fields["nonzeros"]), None, (), whole(fields["crc32"])
    )  # fmt: skip
    if record.scaled:
        raise Malformed("has no scales")
    return record


def _with_streams(fields: Mapping[str, object], entry: Entry) -> Record:
    _only(fields, {"dtype", "shape", "values", "nonzeros", "streams", "crc32"}, {"index"})
    dtype, streams = dtype_from(fields["dtype"]), fields["streams"]
    if not isinstance(streams, list) or not all(isinstance(sizes, list) and len(sizes) == 2 for sizes in streams):
        raise Malformed("has streams without two sizes each")
    if not streams:
        raise Malformed("has an empty list of streams")
    record = Record(
        dtype,
        shape_from(fields["shape"], dtype),
        dtype_from(fields["values"]),
        whole(fields["nonzeros"]),
        _form(fields["index"]) if "index" in fields else None,
        tuple((whole(raw), whole(packed)) for raw, packed in streams),
        whole(fields["crc32"]),
    )
    if (entry.dtype, entry.shape) != ("U8", (record.bytes,)):
        raise Malformed(f"has streams of {record.bytes} bytes in a tensor of {entry.dtype} and shape {entry.shape}")
    return record


def _narrows(record: Record) -> bool:
    if record.values == record.dtype:
        return True
    narrower = DTYPES[record.values].itemsize < DTYPES[record.dtype].itemsize
    return record.dtype in FLOATING and record.values in ("F16", "BF16", "I8") and narrower


def _check_streams(record: Record) -> None:
    if record.index is not None and record.dtype not in FLOATING:
        raise Malformed(f"has an index, which a tensor of {record.dtype} cannot have")
    if record.scaled and not record.shape:
        raise Malformed("has scales, but no dimension to scale")
    bounds: list[tuple[int, int]] = []
    if record.index is not None:
        bounds.append(index_bounds(record.index, record.nonzeros, record.size))
    if record.scaled:
        bounds.append((4 * record.shape[0],) * 2)
    width = DTYPES[record.values].itemsize
    planes = len(record.streams) - len(bounds)
    if planes not in (1, width):
        raise Malformed(f"has {len(record.streams)} streams")
    bounds += [(record.stored * width // planes,) * 2] * planes
    for (raw, packed), (least, most) in zip(record.streams, bounds, strict=True):
        if not least <= raw <= most or packed > raw:
            raise Malformed(f"has a stream of {raw} bytes, stored in {packed}, where {least} to {most} are possible")


def _form(index: object) -> str:
    if not isinstance(index, str) or index not in FORMS:
        raise Malformed("has an index of a form that is not known")
    return index


def _only(fields: Mapping[str, object], needed: set[str], possible: set[str]) -> None:
    if not needed <= fields.keys() <= needed | possible:
        raise Malformed(f"is described by {', '.join(sorted(fields))[:200]}")

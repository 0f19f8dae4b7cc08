"""The container: safetensors' header, written with a checksum of itself and read without trust.

A file is the header's length (eight bytes, little-endian), the header (JSON, filled up with blanks to a multiple of
eight bytes) and the tensors' bytes without holes. See https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from shrinkage.formats.malformed import Malformed

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""Types by the names that safetensors has for them."""

LARGEST_HEADER = 100_000_000
"""Safetensors' own limit, in bytes."""

_MAX_DIMS, _MAX_NUMBER = 64, 1 << 53
_CHECKSUM = "shrinkage.crc32"
_START, _DIGITS = f'{{"__metadata__":{{"{_CHECKSUM}":"'.encode(), 8


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file.

    Attributes:
        dtype: one of :data:`DTYPES`.
        shape: of the tensor.
        begin: of its bytes, counted from the end of the header.
        end: of its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A header as it stands there.

    Attributes:
        metadata: texts by name.
        tensors: what it says of each tensor, by name; :func:`entries_of` looks at it.
        size: of length and header in bytes: where the tensors' bytes begin.
        intact: whether its checksum is there and right.
    """

    metadata: dict[str, str]
    tensors: dict[str, Any]
    size: int
    intact: bool


def size_of(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a dense tensor.

    >>> size_of("F16", (3, 5))
    30
    """
    return math.prod(shape) * DTYPES[dtype].itemsize


def write_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The bytes in front of the tensors.

    Args:
        tensors: type and shape by name, in the order of their bytes.
        metadata: texts by name.

    Raises:
        ValueError: if a name cannot be written in UTF-8, or the header exceeds what safetensors reads.
    """
    content: dict[str, Any] = {"__metadata__": {_CHECKSUM: "0" * _DIGITS, **metadata}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + size_of(dtype, shape)
        content[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LARGEST_HEADER:
        raise ValueError(f"a header of {len(text):,} bytes is more than safetensors reads ({LARGEST_HEADER:,})")
    signed = len(_START) + _DIGITS
    checksum = f"{zlib.crc32(text[signed:]):0{_DIGITS}x}".encode()
    return len(text).to_bytes(8, "little") + _START + checksum + text[signed:]


def read_header(data: memoryview) -> Header:
    """Read the header of a whole file.

    Raises:
        Malformed: if it is not a safetensors file.

    >>> header = read_header(memoryview(write_header({"a": ("F32", (2, 1))}, {"by": "me"}) + bytes(8)))
    >>> header.metadata["by"], header.intact, entries_of(header, payload=8)
    ('me', True, {'a': Entry(dtype='F32', shape=(2, 1), begin=0, end=8)})
    """
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(len(data) - 8, LARGEST_HEADER):
        raise Malformed("it is not a safetensors file, or cut off")
    text = bytes(data[8 : 8 + length])
    content = parse_json(text)
    if not isinstance(content, dict):
        raise Malformed("its header is not a JSON object")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Malformed("its __metadata__ are not texts by name")
    signed = len(_START) + _DIGITS
    intact = text.startswith(_START) and text[len(_START) : signed] == b"%08x" % zlib.crc32(text[signed:])
    return Header(metadata, content, 8 + length, intact)


def entries_of(header: Header, payload: int) -> dict[str, Entry]:
    """The tensors of a file that has ``payload`` bytes after its header.

    Raises:
        Malformed: if something is missing, or tensors overlap, leave holes, or end elsewhere than the file.
    """
    entries = {name: _entry(name, fields) for name, fields in header.tensors.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise Malformed(f"the bytes of {name!r} begin at {entry.begin}, where the ones before end at {end}")
        end = entry.end
    if end != payload:
        raise Malformed(f"its tensors have {end} bytes, {payload} are there: cut off, or something added")
    return entries


def parse_json(text: bytes | str) -> Any:
    """JSON without duplicate names, NaN and Infinity.

    Raises:
        Malformed: if it is not that, or nested too deeply.

    >>> parse_json('{"a": [1, 2]}')
    {'a': [1, 2]}
    """
    try:
        return json.loads(
            text.decode() if isinstance(text, bytes) else text, object_pairs_hook=_unique, parse_constant=_refuse
        )
    except RecursionError:
        raise Malformed("its header is nested too deeply") from None
    except ValueError as error:
        raise error if isinstance(error, Malformed) else Malformed(f"its header is not JSON ({error})") from error


def whole(value: object) -> int:
    """A whole number from JSON that is not negative and not beyond 2⁵³.

    Raises:
        Malformed: if it is anything else.
    """
    if type(value) is not int or not 0 <= value <= _MAX_NUMBER:
        raise Malformed(f"its header has {_short(value)} where a size is expected")
    return value


def shape_from(value: object, dtype: str) -> tuple[int, ...]:
    """A shape from JSON, of a tensor whose size in bytes can be told.

    Raises:
        Malformed: if it is anything else.
    """
    if not isinstance(value, list) or len(value) > _MAX_DIMS:
        raise Malformed(f"its header has {_short(value)} where a shape is expected")
    shape = tuple(whole(length) for length in value)
    whole(math.prod(length for length in shape if length) * DTYPES[dtype].itemsize)  # torch multiplies strides
    return shape


def dtype_from(value: object) -> str:
    """A type's name from JSON.

    Raises:
        Malformed: if it is anything else.
    """
    if not isinstance(value, str) or value not in DTYPES:
        raise Malformed(f"its header has the type {_short(value)}; known are {', '.join(DTYPES)}")
    return value


def _entry(name: str, fields: object) -> Entry:
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise Malformed(f"its header does not give type, shape and offsets of {name!r}")
    dtype = dtype_from(fields["dtype"])
    shape = shape_from(fields["shape"], dtype)
    offsets = fields["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise Malformed(f"its header does not give two offsets of {name!r}")
    begin, end = map(whole, offsets)
    if end - begin != size_of(dtype, shape):
        raise Malformed(f"{name!r} of type {dtype} and shape {shape} does not have {end - begin} bytes")
    return Entry(dtype, shape, begin, end)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Malformed("a name occurs twice in its header")
    return found


def _short(value: object) -> str:
    """For a message. What is nested may be so deeply that it cannot be printed."""
    return type(value).__name__ if isinstance(value, list | dict) else repr(str(value)[:40])


def _refuse(constant: str) -> NoReturn:
    raise Malformed(f"its header holds {constant}")

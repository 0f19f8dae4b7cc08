"""One tensor to streams of bytes and back: narrowed, its zeros left out, compressed, where that makes it smaller."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shrinkage.formats.container import DTYPES
from shrinkage.formats.gaps import Bytes
from shrinkage.formats.index import pack_index, unpack_index
from shrinkage.formats.malformed import Malformed
from shrinkage.formats.planes import Codes, join_planes, split_planes
from shrinkage.formats.record import FLOATING, Record
from shrinkage.formats.values import NARROW, narrow, widen
from shrinkage.formats.zstd import compress, decompress

NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""Safetensors' names by type."""

_DESCRIPTION = 128
"""Bytes that a file spends on the description of streams; a tensor that saves less lies in it as it is."""

_Stream = tuple[int, Bytes]  # bytes before compression, and what is stored


def pack(tensor: Tensor, *, values: str = "fp32", zstd: bool = False) -> tuple[Record, list[Bytes]]:
    """The smallest form of a tensor.

    Args:
        tensor: strided, of a type in :data:`~shrinkage.formats.container.DTYPES`, with data on any device.
        values: one of :data:`~shrinkage.formats.values.NARROW` rounds floating tensors of two dimensions or more, if
            that saves bytes and their values are in its range; with anything else values stay as they are. Zeros
            of floating tensors lose their sign in any case.
        zstd: compress what can be compressed.

    Returns:
        The record, and the stored streams; of a tensor without streams its bytes, in its own memory where possible.

    >>> record, data = pack(torch.eye(64))
    >>> record.index, record.streams, unpack(record, np.concatenate(data)).equal(torch.eye(64))
    ('gaps', ((64, 64), (256, 256)), True)
    """
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    stored, scales = _narrowed(plain, values) or (plain, None)
    name = NAMES[stored.dtype]
    codes, floating = _codes(stored), name in FLOATING
    kept = codes << 1 != 0 if floating else codes != 0  # all bits but the sign
    nonzeros = int(np.count_nonzero(kept))
    head = [] if scales is None else [_stream(scales.numpy().view(np.uint8), zstd)]

    def record(index: str | None, streams: Iterable[_Stream], data: list[Bytes]) -> tuple[Record, list[Bytes]]:
        sizes = tuple((raw, len(part)) for raw, part in streams)
        shape = tuple(tensor.shape)
        return Record(NAMES[tensor.dtype], shape, name, nonzeros, index, sizes, checksum(data)), data

    forms = list(pack_index(kept)) if nonzeros < len(codes) and (floating or head) else []
    smallest = min((len(places) for _, places in forms), default=codes.nbytes)
    if smallest + nonzeros * codes.itemsize + _DESCRIPTION <= codes.nbytes:
        packed = [(form, _stream(places, zstd)) for form, places in forms]
        index, places = min(packed, key=lambda item: len(item[1][1]))
        streams = [places, *head, *_value_streams(codes[kept], floating, zstd)]
        return record(index, streams, [part for _, part in streams])
    if floating:
        codes = np.where(kept, codes, codes.dtype.type(0)) if _has_negative_zero(codes) else codes
    if head or zstd:
        streams = [*head, *_value_streams(codes, floating, zstd)]
        if head or sum(len(part) for _, part in streams) + _DESCRIPTION <= codes.nbytes:
            return record(None, streams, [part for _, part in streams])
    return record(None, [], [codes.view(np.uint8)])


def unpack(record: Record, data: Bytes) -> Tensor:
    """The inverse of :func:`pack`: a tensor in memory of its own, on the CPU.

    Args:
        record: checked, as :func:`~shrinkage.formats.record.record_from` gives it.
        data: the bytes in the file.

    Raises:
        Malformed: if the bytes are not those that the record was made for.
    """
    if checksum([data]) != record.crc32:
        raise Malformed("its bytes do not have the checksum they were written with")
    streams = _unpacked_streams(record, data)
    width = DTYPES[record.values].itemsize
    selected = None
    if record.index is not None:
        selected = unpack_index(record.index, streams.pop(0), record.nonzeros, record.size)
    scales = torch.from_numpy(streams.pop(0).view("<f4").astype(np.float32)) if record.scaled else None
    if record.split:
        codes = join_planes(streams, rotate=record.values in FLOATING)
    else:
        codes = np.frombuffer(streams[0], f"<u{width}")
    if selected is None:
        dense = codes if codes.flags.writeable else codes.copy()
    else:
        dense = np.zeros(record.size, f"<u{width}")
        dense[selected] = codes
    tensor = _tensor(dense, DTYPES[record.values]).reshape(record.shape)
    return tensor if record.values == record.dtype else widen(tensor, scales, DTYPES[record.dtype])


def checksum(data: Iterable[Bytes]) -> int:
    """CRC-32 of all bytes in a row.

    >>> checksum([np.frombuffer(b"12345", np.uint8), np.frombuffer(b"6789", np.uint8)]) == 0xCBF43926
    True
    """
    crc = 0
    for part in data:
        crc = zlib.crc32(part.data, crc)
    return crc


def _narrowed(tensor: Tensor, values: str) -> tuple[Tensor, Tensor | None] | None:
    if values not in NARROW or NAMES[tensor.dtype] not in FLOATING or tensor.ndim < 2 or not tensor.numel():
        return None
    spared = (tensor.itemsize - NARROW[values].itemsize) * int(tensor.count_nonzero())
    scales = 4 * len(tensor) + _DESCRIPTION if values == "int8" else 0
    return narrow(tensor, values) if spared > scales else None


def _codes(tensor: Tensor) -> Codes:
    """A tensor's bits, flat, as unsigned numbers in the same memory."""
    return tensor.reshape(-1).view(torch.uint8).numpy().view(f"<u{tensor.itemsize}")


def _has_negative_zero(codes: Codes) -> bool:
    return bool((codes == 1 << (8 * codes.itemsize - 1)).any())


def _tensor(codes: Codes, dtype: torch.dtype) -> Tensor:
    """The inverse of :func:`_codes`."""
    if not len(codes):  # NumPy gives it a stride of 0, with which PyTorch changes no type
        return torch.empty(0, dtype=dtype)
    return torch.from_numpy(codes.view(np.uint8)).view(dtype)


def _stream(data: Bytes, zstd: bool) -> _Stream:
    frame = compress(data) if zstd else None
    return len(data), data if frame is None else np.frombuffer(frame, np.uint8)


def _value_streams(codes: Codes, floating: bool, zstd: bool) -> list[_Stream]:
    """The values in one stream, or in planes if any of these can be compressed."""
    if zstd:
        planes = [_stream(plane, True) for plane in split_planes(codes, rotate=floating)]
        if any(len(part) < raw for raw, part in planes):
            return planes
    return [_stream(codes.view(np.uint8), False)]


def _unpacked_streams(record: Record, data: Bytes) -> list[Bytes]:
    streams, begin = [], 0
    for raw, packed in record.streams or [(len(data), len(data))]:
        part: NDArray[np.uint8] = data[begin : begin + packed]
        streams.append(part if packed == raw else np.frombuffer(decompress(part, raw), np.uint8))
        begin += packed
    return streams

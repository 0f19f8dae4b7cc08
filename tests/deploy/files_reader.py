"""A second reader of sparse files, written after ``docs/reference/files.md`` alone: slow, and without the library."""

from __future__ import annotations

import json
import math
import zlib

import torch
import zstandard
from safetensors import safe_open
from safetensors.torch import _TYPES as TYPES


def read(path):
    """The ``state_dict``, with tied tensors as one."""
    check_header(path)
    with safe_open(path, "pt") as file:
        assert file.metadata()["shrinkage.version"] == "1"
        described = json.loads(file.metadata()["shrinkage.tensors"])
        assert sorted(file.keys()) == sorted(name for name, fields in described.items() if "same" not in fields)
        found = {
            name: tensor(fields, file.get_tensor(name)) for name, fields in described.items() if "same" not in fields
        }
    return {name: found[fields.get("same", name)] for name, fields in described.items()}


def check_header(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    start = b'{"__metadata__":{"shrinkage.crc32":"'
    assert header.startswith(start)
    assert length % 8 == 0
    digits = header[len(start) : len(start) + 8]
    assert digits == f"{zlib.crc32(header[len(start) + 8 :]):08x}".encode()


def tensor(fields, stored):
    data = stored.reshape(-1).view(torch.uint8).numpy().tobytes() if stored.numel() else b""
    assert zlib.crc32(data) == fields["crc32"]
    if "streams" not in fields:
        return stored.to(TYPES[fields.get("dtype", dtype_name(stored.dtype))])
    dtype, values, shape = fields["dtype"], fields["values"], fields["shape"]
    size, width = math.prod(shape), TYPES[fields["values"]].itemsize
    streams = []
    for raw, packed in fields["streams"]:
        part, data = data[:packed], data[packed:]
        streams.append(part if raw == packed else zstandard.ZstdDecompressor().decompress(part))
        assert len(streams[-1]) == raw
    assert data == b""
    places = list(range(size))
    if "index" in fields:
        places = index(fields["index"], streams.pop(0), fields["nonzeros"], size)
    scales = None
    if values == "I8" and dtype != "I8":
        scales = torch.frombuffer(bytearray(streams.pop(0)), dtype=torch.float32)
    numbers = [0] * size
    for place, number in zip(places, numbers_of(streams, width, values in ("F64", "F32", "F16", "BF16")), strict=True):
        numbers[place] = number
    joined = b"".join(number.to_bytes(width, "little") for number in numbers)
    flat = torch.frombuffer(bytearray(joined), dtype=TYPES[values]) if joined else torch.empty(0, dtype=TYPES[values])
    result = flat.reshape(shape)
    if scales is not None:
        result = torch.stack([row.float() * scale for row, scale in zip(result, scales, strict=True)])
    return result.to(TYPES[dtype])


def numbers_of(streams, width, rotated):
    """Each value's bits as a whole number."""
    if len(streams) == 1:
        (data,) = streams
        return [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]
    assert len(streams) == width
    top = 8 * width - 1
    numbers = [int.from_bytes(bytes(column), "little") for column in zip(*streams, strict=True)]
    return [(number >> 1) | ((number & 1) << top) for number in numbers] if rotated else numbers


def index(form, data, count, size):
    bits = [(byte >> i) & 1 for byte in data for i in range(8)]
    if form == "mask":
        assert len(data) == -(-size // 8)
        return [place for place, bit in enumerate(bits) if bit]
    gaps = []
    if form == "gaps":
        gap = 0
        for byte in data:
            gap += byte
            if byte < 255:
                gaps.append(gap)
                gap = 0
        assert gap == 0
    else:
        k = int(form.removeprefix("rice"))
        unary = iter(bits[8 * -(-count * k // 8) :])
        for i in range(count):
            high = 0
            while next(unary) == 0:
                high += 1
            low = sum(bit << j for j, bit in enumerate(bits[i * k : i * k + k]))
            gaps.append((high << k) + low)
        assert not any(unary)
    places, place = [], -1
    for gap in gaps:
        place += gap + 1
        places.append(place)
    assert len(places) == count
    return places


def dtype_name(dtype):
    return next(name for name, known in TYPES.items() if known == dtype)

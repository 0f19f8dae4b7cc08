"""A sparse file that has been looked at: every size in it is known to be possible before memory is taken for it."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from shrinkage.core.errors import FileError, require
from shrinkage.deploy.contents import Contents, Stored, stored
from shrinkage.formats.container import Entry, entries_of, parse_json, read_header, size_of
from shrinkage.formats.malformed import Malformed
from shrinkage.formats.packed import unpack
from shrinkage.formats.record import Record, record_from

VERSION = 1
"""Of the format. A reader refuses what is newer."""

VERSION_KEY, TENSORS_KEY, TWIN_KEY = "shrinkage.version", "shrinkage.tensors", "same"


def is_reserved(key: str) -> bool:
    """Whether a name in the metadata is the format's own.

    >>> is_reserved("shrinkage.version"), is_reserved("author")
    (True, False)
    """
    return key == "format" or key.startswith("shrinkage.")


@dataclass(frozen=True)
class Opened:
    """A file whose header has been checked.

    Attributes:
        path: of the file.
        bytes: of the file.
        metadata: the user's own.
        records: how each tensor is stored, in the order of the ``state_dict``; twins have their original's.
        twins: originals by the names of their twins.
        entries: where the tensors lie, twins excepted.
        start: where their bytes begin.
        mapped: the file.
    """

    path: Path
    bytes: int
    metadata: dict[str, str]
    records: dict[str, Record]
    twins: dict[str, str]
    entries: dict[str, Entry]
    start: int
    mapped: mmap.mmap

    @property
    def dense_bytes(self) -> int:
        """Bytes that the tensors will take in memory."""
        return sum(size_of(record.dtype, record.shape) for name, record in self.records.items() if name in self.entries)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor, or a twin's original.

        Raises:
            FileError: if its bytes are damaged.
            MissingExtra: if it is compressed and ``zstandard`` is not installed.
        """
        record, entry = self.records[name], self.entries[self.twins.get(name, name)]
        if record.compressed:
            require("zstandard", "zstd")
        data = np.frombuffer(self.mapped, np.uint8, entry.end - entry.begin, self.start + entry.begin)
        try:
            return unpack(record, data)
        except Malformed as error:
            raise FileError(f"{self.path} is damaged: {name!r}: {error}") from error

    def contents(self) -> Contents:
        """What it holds."""
        tensors: list[Stored] = [stored(name, record, self.twins.get(name)) for name, record in self.records.items()]
        return Contents(str(self.path), tuple(tensors), self.metadata, self.bytes)


def opened(path: Path) -> Opened:
    """Map a file and check its header.

    Raises:
        FileError: if it cannot be read, is damaged, was not written by this library, or by a newer version of it.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise FileError(f"{path} is empty")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    try:
        return _checked(path, mapped)
    except Malformed as error:
        raise FileError(f"{path} is damaged, or not a sparse file: {error}") from error


def _checked(path: Path, mapped: mmap.mmap) -> Opened:
    header = read_header(memoryview(mapped))
    version = header.metadata.get(VERSION_KEY)
    if version is None:
        raise FileError(
            f"{path} is a safetensors file that shrinkage.save has not written; safetensors.torch.load_file reads it"
        )
    if re.fullmatch("[1-9][0-9]{0,8}", version) and int(version) > VERSION:
        raise FileError(
            f"{path} was written by a newer version of shrinkage: its format is {version}, "
            f"this version reads up to {VERSION}; update shrinkage to read it"
        )
    if not header.intact:
        raise Malformed("its header does not have the checksum it was written with")
    if version != str(VERSION):
        raise Malformed(f"there is no version {version[:20]!r} of the format")
    entries = entries_of(header, len(mapped) - header.size)
    records, twins = _records(parse_json(header.metadata.get(TENSORS_KEY, "")), entries)
    own = {key: text for key, text in header.metadata.items() if not is_reserved(key)}
    return Opened(path, len(mapped), own, records, twins, entries, header.size, mapped)


def _records(described: object, entries: Mapping[str, Entry]) -> tuple[dict[str, Record], dict[str, str]]:
    if not isinstance(described, dict):
        raise Malformed("its tensors are not described")
    twins: dict[str, str] = {}
    for name, fields in described.items():
        if isinstance(fields, dict) and fields.keys() == {TWIN_KEY}:
            original = fields[TWIN_KEY]
            if not isinstance(original, str) or original not in entries:
                raise Malformed(f"{name!r} is the same as a tensor that is not there")
            twins[name] = original
    if described.keys() - twins.keys() != entries.keys():
        raise Malformed("it describes other tensors than it holds")
    found: dict[str, Record] = {}
    for name, entry in entries.items():
        try:
            found[name] = record_from(described[name], entry)
        except Malformed as error:
            raise Malformed(f"{name!r} {error}") from error
    names: list[str] = list(described)
    return {name: found[twins.get(name, name)] for name in names}, twins

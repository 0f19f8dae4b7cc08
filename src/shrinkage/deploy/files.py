"""Sparse models as files: safetensors in which zeros take next to no room.

The format is described in ``docs/reference/files.md``.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from shrinkage.core.errors import FileError, InputError, require
from shrinkage.core.files import writing
from shrinkage.core.selection import unwrap
from shrinkage.deploy.contents import Contents, stored
from shrinkage.deploy.opened import TENSORS_KEY, TWIN_KEY, VERSION, VERSION_KEY, Opened, is_reserved, opened
from shrinkage.formats.container import DTYPES, write_header
from shrinkage.formats.gaps import Bytes
from shrinkage.formats.packed import NAMES, pack
from shrinkage.formats.record import Record
from shrinkage.formats.values import NARROW

_VALUES = ("fp32", *NARROW)
_SPOOL = 64 << 20  # packed tensors beyond this wait on the disk, not in memory
_ALWAYS, _TIMES = 1 << 30, 1000

M = TypeVar("M", bound=nn.Module)


def save(
    model: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    values: str = "fp32",
    compress: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Contents:
    """Write a model's ``state_dict`` to a file in which zeros take next to no room.

    Each tensor is stored in the smallest of these forms: its non-zero values with a bit mask, with the gaps between
    them, or all of its values. The file is a valid safetensors file: other tools read its metadata and the
    tensors that are stored with all of their values.

    The file is written aside and renamed: it is whole, or the one before is untouched. Beside the model, memory is
    taken for one tensor at a time, and for at most 64 MiB of packed ones.

    Args:
        model: a module, or a ``state_dict``. Wrappers of ``torch.compile`` and DDP are looked through. Tied tensors are
            stored once.
        path: of the file; its folder must exist.
        values: ``"fp32"`` keeps values as they are, whatever their type, to the last bit (zeros lose their
            sign). The others round floating tensors of two dimensions and more, which come back in their
            own type: ``"fp16"`` with a relative error of at most 2⁻¹¹ (below 2⁻¹⁴ an absolute one of 2⁻²⁵),
            ``"bf16"`` of 2⁻⁸, ``"int8"`` with an absolute error of 1/254 of the largest value in the slice
            along the first dimension. A tensor with values out of range (beyond 65504 for fp16; infinite or NaN for
            int8) is stored as it is, and so is one that would not become smaller; the result shows it.
        compress: by zstandard; needs the extra ``zstd``.
        metadata: texts of your own, which :func:`describe` and other tools show.

    Returns:
        What the file holds, tensor by tensor; prints as a table.

    Raises:
        InputError: for what cannot be stored, and if the file cannot be written.
        StateError: if the disk is full.
        MissingExtra: if ``compress`` is set and ``zstandard`` is not installed.

    >>> import tempfile
    >>> net = nn.Linear(1000, 10)
    >>> with torch.no_grad():
    ...     _ = net.weight[:, 50:].zero_()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     contents = save(net, f"{folder}/net.safetensors", values="fp16")
    ...     restored = load(f"{folder}/net.safetensors")
    >>> contents.tensors[0].codec, contents.tensors[0].bytes
    ('rice4 F16', 1379)
    >>> torch.equal(restored["weight"], net.weight.half().float())
    True
    """
    if values not in _VALUES:
        raise InputError(f"values={values!r} is not known; known are {', '.join(map(repr, _VALUES))}")
    if compress:
        require("zstandard", "zstd")
    tensors = _tensors(model)
    twins = _twins(tensors)
    path = Path(path)
    own = _own(metadata)
    records: dict[str, Record] = {}
    data: dict[str, Bytes | int] = {}  # in the model's memory, or where in the spool
    with writing(path) as file, tempfile.SpooledTemporaryFile(_SPOOL, dir=str(path.parent)) as spool:
        for name, tensor in tensors.items():
            if name in twins:
                continue
            records[name], parts = pack(tensor, values=values, zstd=compress)
            if not records[name].streams and parts[0].ctypes.data == tensor.data_ptr():
                data[name] = parts[0]
                continue
            data[name] = spool.tell()
            for part in parts:
                spool.write(part.data)
        order = sorted(records, key=lambda name: _place(records[name]))
        described = {
            name: {TWIN_KEY: twins[name]} if name in twins else records[name].to_json() for name in tensors
        }  # fmt: skip
        texts = {
            "format": "pt",  # by which other tools know tensors of PyTorch
            **own,
            VERSION_KEY: str(VERSION),
            TENSORS_KEY: json.dumps(described, ensure_ascii=False, separators=(",", ":")),
        }
        file.write(_header({name: records[name] for name in order}, texts, path))
        for name in order:
            source = data[name]
            if isinstance(source, int):
                spool.seek(source)
                file.write(spool.read(records[name].bytes))
            else:
                file.write(source.data)
        size = file.tell()
    listed = [stored(name, records[twins.get(name, name)], twins.get(name)) for name in tensors]
    return Contents(str(path), tuple(listed), own, size)


@overload
def load(path: str | os.PathLike[str], model: None = None, *, max_bytes: int | None = None) -> dict[str, Tensor]: ...
@overload
def load(path: str | os.PathLike[str], model: M, *, max_bytes: int | None = None) -> M: ...
def load(
    path: str | os.PathLike[str], model: M | None = None, *, max_bytes: int | None = None
) -> dict[str, Tensor] | M:
    """Read a file of :func:`save`.

    The whole file is checked before anything is changed: sizes before memory is taken for them, and a checksum for each
    tensor. The file is mapped; beside the result, memory is taken for one tensor at a time.

    Args:
        path: of the file.
        model: a module whose ``state_dict`` has the same names and shapes. It is loaded in place, on its own device and
            in its own types.
        max_bytes: without a model, the most bytes that the tensors may take in memory. By default 1 GiB or 1000 times
            the file's size, whichever is more: a small file can claim to hold a tensor of any size.

    Returns:
        The model; without one the ``state_dict``, on the CPU, in which tied tensors are one.

    Raises:
        FileError: if the file cannot be read, is damaged, was not written by :func:`save`, is of a newer version, or
            would take more than ``max_bytes``.
        InputError: if the file and the model do not fit.
        MissingExtra: if the file is compressed and ``zstandard`` is not installed.

    >>> import tempfile
    >>> net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save(net, f"{folder}/net.safetensors")
    ...     other = load(f"{folder}/net.safetensors", other)
    >>> torch.equal(net.weight, other.weight)
    True
    """
    file = opened(Path(path))
    if model is None:
        _check_room(file, max_bytes)
        own = {name: file.tensor(name) for name in file.entries}
        return {name: own[file.twins.get(name, name)] for name in file.records}
    if not isinstance(model, nn.Module):
        raise InputError(f"a file is loaded into a torch.nn.Module, got {type(model).__name__}")
    inner = unwrap(model)
    state = inner.state_dict()
    _check_fit(file, inner, state)
    for name in file.entries:  # nothing is changed by a file that turns out to be damaged
        file.tensor(name)
    if not _is_the_models_own(state.values(), inner):
        inner.load_state_dict({name: file.tensor(name) for name in file.records})
        return model
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(file.tensor(name))
    return model


def describe(path: str | os.PathLike[str]) -> Contents:
    """What a file of :func:`save` holds, from its header alone; prints as a table.

    Raises:
        FileError: if the file cannot be read, its header is damaged, it was not written by :func:`save`, or is of a
            newer version.
    """
    return opened(Path(path)).contents()


def _tensors(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(model, nn.Module):
        model = unwrap(model).state_dict()
    if not isinstance(model, Mapping):
        raise InputError(f"a torch.nn.Module or a state_dict is saved, got {type(model).__name__}")
    for name, tensor in model.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise InputError(f"a tensor cannot be named {name!r} in a safetensors file")
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name!r} is {type(tensor).__name__}; only tensors can be stored, leave it out")
        if is_lazy(tensor):
            raise InputError(f"{name!r} has no shape yet: run the model on one batch first")
        if tensor.is_meta:
            raise InputError(f"{name!r} is on the meta device and has no values to store")
        strange = bool(is_traceable_wrapper_subclass(tensor))  # its data lies in other tensors
        if strange or tensor.layout != torch.strided or tensor.dtype not in NAMES:
            raise InputError(
                f"{name!r} is a {type(tensor).__name__} of {tensor.dtype} in layout {tensor.layout}; "
                f"plain tensors of {', '.join(DTYPES)} can be stored"
            )
    return dict(model)


def _twins(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The name that each tensor shares all of its memory with, if one comes before it."""
    first: dict[Any, str] = {}
    twins: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            memory = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device
            original = first.setdefault((*memory, tensor.is_conj(), tensor.is_neg()), name)
            if original != name:
                twins[name] = original
    return twins


def _own(metadata: Mapping[str, str] | None) -> dict[str, str]:
    own = dict(metadata or {})
    for key, text in own.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise InputError(f"metadata are texts by name, got {key!r}: {text!r}")
        if is_reserved(key):
            raise InputError(f"metadata cannot be named {key!r}: the name is taken by the format")
    return own


def _place(record: Record) -> tuple[bool, int]:
    """Wide types first, so that each tensor is aligned; streams, which are bytes, last."""
    return bool(record.streams), -DTYPES[record.values].itemsize


def _header(records: Mapping[str, Record], metadata: Mapping[str, str], path: Path) -> bytes:
    entries = {
        name: ("U8", (record.bytes,)) if record.streams else (record.values, record.shape)
        for name, record in records.items()
    }
    try:
        return write_header(entries, metadata)
    except ValueError as error:
        raise InputError(f"{path} could not be written: {error}") from error


def _check_room(file: Opened, max_bytes: int | None) -> None:
    allowed = max(_ALWAYS, _TIMES * file.bytes) if max_bytes is None else max_bytes
    if file.dense_bytes > allowed:
        raise FileError(
            f"{file.path} has {file.bytes:,} bytes and would take {file.dense_bytes:,} in memory, "
            f"more than {allowed:,}; if you trust it, load it with max_bytes={file.dense_bytes}, or into a model"
        )


def _check_fit(file: Opened, model: nn.Module, state: Mapping[str, Any]) -> None:
    lines = []
    for what, names in (
        ("Missing", [name for name in state if name not in file.records]),
        ("Unexpected", [name for name in file.records if name not in state]),
    ):
        if names:
            lines.append(f"{what} key(s): {', '.join(map(repr, names))}.")
    for name in [name for name in state if name in file.records]:
        if not isinstance(state[name], Tensor) or is_lazy(state[name]):
            raise InputError(f"{name!r} of the model has no shape yet: run the model on one batch first")
        if state[name].is_meta:
            raise InputError(
                f"{name!r} is on the meta device: call model.to_empty(device=…) before, or "
                "model.load_state_dict(shrinkage.load(path), assign=True)"
            )
        ours, theirs = tuple(state[name].shape), file.records[name].shape
        if ours != theirs:
            lines.append(f"size mismatch for {name}: {theirs} in the file, {ours} in the model.")
    if lines:
        raise InputError("\n\t".join([f"{file.path} does not fit {type(model).__name__}:", *lines]))


def _is_the_models_own(tensors: Any, model: nn.Module) -> bool:
    """Whether writing to these tensors writes to the model: a hook may have put copies into its ``state_dict``."""
    held = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    return all(t.untyped_storage().data_ptr() in held for t in tensors)

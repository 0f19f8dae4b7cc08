"""From LLVM's intermediate representation to a function in memory, through a cache of machine code on disk.

Kernels are written with llvmlite, which brings LLVM in one wheel, so no compiler is needed where a model runs. Every
kernel has the same signature, ``void kernel(int64*)``: its arguments are a row of 64-bit numbers (addresses, counts).
The machine code of a kernel is kept under its text, the processor and LLVM's version, so that it is compiled once on
a machine; a folder that cannot be written to only means that it is compiled again next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from shrinkage.core.errors import InputError

FORMAT = "7"
"""Part of every key: what the kernels' arguments mean, and how a way of computing is described."""


@dataclass(frozen=True)
class Machine:
    """What a kernel is made for.

    Attributes:
        triple: LLVM's name of the platform.
        cpu: LLVM's name of the processor.
        features: its instructions, in LLVM's notation.
        lanes: floats in a vector register.
        registers: vector registers.
    """

    triple: str
    cpu: str
    features: str
    lanes: int
    registers: int

    @property
    def name(self) -> str:
        """For people: ``znver4, 16 lanes``."""
        return f"{self.cpu}, {self.lanes} lanes"


@cache
def machine(lanes: int | None = None) -> Machine:
    """The processor at hand.

    Args:
        lanes: take it for one with vectors of so many floats (8 on one with AVX-512 leaves that out); the default
            is its best. The environment variable ``SHRINKAGE_LANES`` sets another default.

    Raises:
        InputError: if it has no vectors of that length, or is of a kind that no kernel is known for.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = dict(llvm.get_host_cpu_features())
    kind = platform.machine().lower()
    if kind in ("arm64", "aarch64"):
        best, registers = 4, {4: 32}
    elif kind in ("x86_64", "amd64") and features.get("avx2") and features.get("fma"):
        wide = all(features.get(name) for name in ("avx512f", "avx512dq", "avx512bw", "avx512vl"))
        best, registers = (16, {16: 32, 8: 16}) if wide else (8, {8: 16})
    else:
        raise InputError(f"the CPU engine has kernels for x86-64 with AVX2 and for Arm64, not for this {kind}")
    wanted = lanes or int(os.environ.get("SHRINKAGE_LANES", best))
    if wanted not in registers:
        raise InputError(f"this processor has vectors of {' or '.join(map(str, registers))} floats, not of {wanted}")
    if wanted < best:
        features = {name: on and not name.startswith(("avx512", "avx10")) for name, on in features.items()}
    flags = ",".join(("+" if on else "-") + name for name, on in sorted(features.items()))
    if wanted == 16:
        flags += ",-prefer-256-bit"
    return Machine(llvm.get_process_triple(), llvm.get_host_cpu_name(), flags, wanted, registers[wanted])


@cache
def _target(host: Machine) -> llvm.TargetMachine:
    return llvm.Target.from_triple(host.triple).create_target_machine(
        cpu=host.cpu, features=host.features, opt=3, reloc="pic", codemodel="jitdefault"
    )


def compile_object(text: str, host: Machine) -> bytes:
    """Machine code of the functions in ``text``."""
    target = _target(host)
    module = llvm.parse_assembly(text)
    module.verify()
    passes = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
    manager = passes.getModulePassManager()
    manager.run(module, passes)
    code: bytes = target.emit_object(module)
    return code


def assembly(text: str, host: Machine) -> str:
    """The same for people to read."""
    target = _target(host)
    module = llvm.parse_assembly(text)
    passes = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    listing: str = target.emit_assembly(module)
    return listing


def cache_folder() -> Path:
    """Where machine code is kept: ``SHRINKAGE_CACHE``, or the user's cache folder."""
    if named := os.environ.get("SHRINKAGE_CACHE"):
        return Path(named)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home()))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "shrinkage" / "kernels"


def read_checked(path: Path) -> bytes | None:
    """What :func:`write_checked` wrote, if it is whole: the first 32 bytes of the file are the digest of the others."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data[32:] if len(data) > 32 and hashlib.sha256(data[32:]).digest() == data[:32] else None


def write_checked(path: Path, code: bytes) -> None:
    """Keep some bytes, if the folder can be written to."""
    with contextlib.suppress(OSError):  # a folder that cannot be written to
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(aside, path)


_engines: list[Any] = []  # keep the code in memory as long as the process


@cache
def function(text: str, name: str, host: Machine) -> int:
    """Address of a function, compiled or from the cache."""
    key = hashlib.sha256("\0".join((FORMAT, llvmlite.__version__, str(host), text)).encode()).hexdigest()
    path = cache_folder() / key[:2] / f"{key}.o"
    code = read_checked(path)
    if code is None:
        code = compile_object(text, host)
        write_checked(path, code)
    engine = llvm.create_mcjit_compiler(
        llvm.parse_assembly(""), llvm.Target.from_triple(host.triple).create_target_machine()
    )
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    address: int = engine.get_function_address(name)
    return address

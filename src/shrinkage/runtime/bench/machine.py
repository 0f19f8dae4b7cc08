"""What figures were measured on."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from torch.backends import cpu

PACKAGES = ("shrinkage", "torch", "numpy", "onnxruntime", "openvino", "numba", "llvmlite")

_VECTOR = ("sse4", "avx", "fma", "f16c", "amx", "asimd", "sve", "bf16", "i8mm")


def machine(threads: int) -> dict[str, Any]:
    """The processor with its vector instructions, the memory, the system, the versions, the load and the day.

    Args:
        threads: that the engines compute with.

    >>> machine(1)["threads"]
    1
    """
    fields = _cpuinfo()
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "processor": fields.get("model name", platform.processor() or platform.machine()),
        "family, model, stepping": ", ".join(fields.get(k, "?") for k in ("cpu family", "model", "stepping")),
        "cores": os.cpu_count(),
        "cache": fields.get("cache size", "unknown"),
        "vector instructions": [flag for flag in flags if flag.startswith(_VECTOR)],
        "torch uses": cpu.get_cpu_capability(),
        "memory GiB": _memory(),
        "system": platform.platform(terse=True),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "load average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

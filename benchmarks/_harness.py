"""What the benchmarks share: interleaved repeats, medians with their spread, the machine, and JSON."""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks"

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h

Step = Callable[..., object]


@dataclass(frozen=True)
class Measured:
    """Repeated measurements of one quantity.

    Attributes:
        median: of all repeats.
        low: lower quartile.
        high: upper quartile.
        repeats: how many there were.
    """

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Measured:
        """Sum the repeats up."""
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return cls(middle, low, high, len(values))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f}–{self.high:.3f})"


def interleave(
    contestants: Mapping[str, Step],
    inputs: Callable[[], Sequence[tuple[Any, ...]]],
    *,
    rounds: int,
    turn: int,
) -> Iterator[dict[str, float]]:
    """Time several ways of doing the same thing, taking turns so that all meet the same machine.

    Args:
        contestants: by name; each is called with one item of the inputs.
        inputs: makes the items of one round, afresh and outside the timing; all contestants get the same.
        rounds: repeats. In each, every contestant goes through all items; who begins moves on by one.
        turn: how many items it takes before the next one's turn. Long turns keep small models in the
            cache, where a training has them; with short ones, slow steps meet the same disturbances.

    Yields:
        After each round, seconds of processor time an item, by contestant. The clock is that of the process, so that
        other jobs on the machine disturb less.
    """
    names = list(contestants)
    for r in range(rounds):
        items = inputs()
        spent = dict.fromkeys(names, 0.0)
        first = r % len(names)
        for start in range(0, len(items), turn):
            for name in names[first:] + names[:first]:
                step = contestants[name]
                begin = time.process_time()
                for item in items[start : start + turn]:
                    step(*item)
                spent[name] += time.process_time() - begin
        yield {name: seconds / len(items) for name, seconds in spent.items()}


def steady() -> None:
    """One thread, and the same conditions for every contestant.

    Denormal numbers are flushed to zero: a network with dead units computes in them sooner or later, each takes
    many times longer than a normal one, and how many there are has little to do with the method.
    glibc is told to keep freed memory: else it returns the end of the heap to the system and takes it
    again at every step, and whose temporaries lie there is a matter of luck that decides by up to 20 %.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": fields.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "cache": fields.get("cache size", "unknown"),
        "vector extensions": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(pages / 2**30, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def write(name: str, content: Mapping[str, Any]) -> Path:
    """Store results as JSON, written aside and renamed; :class:`Measured` becomes a mapping."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".json.partial")
    text = json.dumps(content, indent=1, ensure_ascii=False, default=asdict)
    aside.write_text(text + "\n", encoding="utf-8")
    aside.replace(path)
    return path

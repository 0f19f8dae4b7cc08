"""Sparse files that are damaged at random, or made to deceive: is each refused, or read rightly?

    python benchmarks/fuzz_files.py                      # 100,000 mutations, minutes; writes results/benchmarks/
    python benchmarks/fuzz_files.py --mutations 2000     # seconds; writes nothing
    python benchmarks/fuzz_files.py --atheris 100000     # runs guided by coverage; needs the package atheris

Every mutation starts from a valid file. *Damaged* files are left as the mutation has made them: loading one must
raise the library's error, or give the very tensors that were saved. *Deceiving* files have all their checksums put
right again, so that the checks behind them are met: loading one must raise the library's error, or give tensors of the
types and shapes that the file itself describes. Any other error, a crash, more memory than allowed, or a wrong
tensor ends the run and keeps the file.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from _harness import machine, write

from shrinkage.core.errors import FileError
from shrinkage.core.tables import render
from shrinkage.deploy.files import describe, load, save
from shrinkage.formats.container import DTYPES

MODES = [("fp32", False), ("fp32", True), ("fp16", False), ("int8", True)]
ROOM = 1 << 24  # bytes that a deceiving file may claim
MEMORY = 1 << 30  # bytes of address space for all of it, beside what is taken before the first file
PLACES = "shrinkage.tensors"

Content = dict[str, Any]


def state(mode: int) -> dict[str, torch.Tensor]:
    """A small network's worth of every kind of tensor."""
    generator = torch.Generator().manual_seed(mode)

    def sparse(density: float, *shape: int) -> torch.Tensor:
        kept = torch.rand(shape, generator=generator) < density
        return torch.randn(shape, generator=generator) * kept + 0.0

    weight = sparse(0.1, 24, 30)
    return {
        "conv": sparse(0.4, 8, 6, 3, 3),
        "fc": weight,
        "tied": weight,
        "half": sparse(0.05, 40, 20).bfloat16(),
        "double": sparse(0.05, 500).double(),
        "dense": sparse(1.0, 12, 8),
        "zero": torch.zeros(300),
        "norm": torch.ones(40),
        "count": torch.tensor(7),
        "mask": torch.arange(9) % 2 == 0,
        "empty": torch.zeros(0, 3),
    }


# ------------------------------------------------------------------------------------------ bytes


def flip(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    at, size = rng.randrange(len(data)), rng.choice([1, 2, 4, 8, 64])
    filling = rng.choice([b"\0", b"\xff", rng.randbytes(1)]) * size
    data[at : at + size] = filling[: len(data) - at]


def truncate(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    del data[rng.randrange(len(data)) :]


def extend(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    data += rng.randbytes(rng.choice([1, 8, 100]))


def cut(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice([1, 2, 8, 100])]


def splice(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    """A piece of this file or another in the place of one of this."""
    source = rng.choice(others)
    begin, at, size = rng.randrange(len(source)), rng.randrange(len(data)), rng.choice([4, 16, 64, 500])
    data[at : at + rng.choice([0, size])] = source[begin : begin + size]


def length(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    """Another length of the header."""
    now = int.from_bytes(data[:8], "little")
    new = rng.choice([0, 1, now - 8, now + 8, now + rng.randrange(1000), len(data), 1 << 40, (1 << 64) - 1])
    data[:8] = new.to_bytes(8, "little")


def header_text(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    """A character of the header becomes another that JSON uses."""
    end = 8 + int.from_bytes(data[:8], "little")
    data[rng.randrange(8, end)] = rng.choice(b'0123456789{}[]",:\\ -.eEntf')


BYTES: list[Callable[[bytearray, random.Random, list[bytes]], None]] = [
    flip, overwrite, truncate, extend, cut, splice, length, header_text
]  # fmt: skip


# ------------------------------------------------------------------------------------------ headers


def parts(data: bytes) -> tuple[Content, Content, bytearray]:
    """A valid file's header, its descriptions of tensors, and the tensors' bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    content = json.loads(data[8:end])
    return content, json.loads(content["__metadata__"][PLACES]), bytearray(data[end:])


def joined(content: Content, described: Any, payload: bytes) -> bytes:
    """A file with a right checksum of its header."""
    metadata = content.get("__metadata__")
    if isinstance(metadata, dict):
        metadata[PLACES] = json.dumps(described)
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = b'{"__metadata__":{"shrinkage.crc32":"'
    if text.startswith(start):
        rest = text[len(start) + 8 :]
        text = start + f"{zlib.crc32(rest):08x}".encode() + rest
    return len(text).to_bytes(8, "little") + text + payload


def sign(content: Content, described: Any, payload: bytes) -> None:
    """Right checksums of the tensors, where a tensor and its description can be made out."""
    for name, entry in content.items():
        with suppress(KeyError, TypeError, ValueError):
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                described[name]["crc32"] = zlib.crc32(payload[begin:end])


def nodes(tree: Any) -> list[tuple[Any, Any]]:
    """Every container in a tree of JSON with each of its keys."""
    found = []
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        found.append((tree, key))
        found += nodes(value)
    return found


def edit(tree: Any, rng: random.Random) -> None:
    """Change, remove or double one thing anywhere in a tree of JSON."""
    container, key = rng.choice(nodes(tree))
    other, other_key = rng.choice(nodes(tree))
    value = container[key]
    kind = rng.randrange(8)
    if kind == 0:
        del container[key]
    elif kind == 1:
        container[key] = copy.deepcopy(other[other_key])
    elif kind == 2 and isinstance(container, list):
        container.insert(key, value)
    elif kind == 3 and isinstance(container, dict):
        container[str(other_key)] = value
    elif isinstance(value, int):
        near = [0, 1, -1, value - 1, value + 1, value * 2, value // 2, value + rng.randrange(-64, 64)]
        container[key] = rng.choice([*near, 2**20, 2**31, 2**32, 2**53, 2**63, 10**30, 1.5, None, True])
    elif isinstance(value, str):
        names = [*DTYPES, "mask", "gaps", "rice1", "rice16", "rice17", "", "1", "2", "\ud800"]
        container[key] = rng.choice(names) if kind < 7 else rng.choice([0, None, [], {}])
    else:
        container[key] = rng.choice([0, None, "", [], {}, [[]], [0, 0]])


def deceive(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Change headers, descriptions or tensors, and put the checksums right."""
    content, described, payload = parts(data)
    kind = rng.randrange(4)
    if kind in (0, 3) and payload:
        rng.choice([flip, flip, overwrite, cut, extend, splice])(payload, rng, others)
    if kind in (1, 3):
        for _ in range(rng.choice([1, 1, 2, 4])):
            edit(described, rng)
    if kind == 2:
        entries = {name: entry for name, entry in content.items() if name != "__metadata__"}
        edit(entries, rng)
        content = {"__metadata__": content["__metadata__"], **entries}
    if rng.random() < 0.9:
        sign(content, described, payload)
    return joined(content, described, payload)


# ---------------------------------------------------------------------------------------------- runs


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def damaged_outcome(path: Path, expected: dict[str, torch.Tensor]) -> str:
    """What became of a file that may have been changed by chance."""
    try:
        found = load(path)
    except FileError:
        return "refused"
    if list(found) != list(expected) or not all(same(found[name], tensor) for name, tensor in expected.items()):
        raise AssertionError("other tensors than were saved")
    return "read rightly"


def deceiving_outcome(path: Path) -> str:
    """What became of a file with right checksums; whether its tensors are right, nothing can tell."""
    try:
        found = load(path, max_bytes=ROOM)
    except FileError:
        return "refused"
    described = {tensor.name: (DTYPES[tensor.dtype], tensor.shape) for tensor in describe(path).tensors}
    if {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in found.items()} != described:
        raise AssertionError("other types or shapes than it describes")
    return "read as described"


def run(mutations: int, seed: int, folder: Path) -> dict[str, Any]:
    """Mutate, load, and count what happens.

    Raises:
        AssertionError: at the first wrong outcome; the file is ``failed.safetensors`` in the folder.
    """
    rng = random.Random(seed)
    paths = [folder / f"{i}.safetensors" for i in range(len(MODES))]
    for i, (values, compress) in enumerate(MODES):
        save(state(i), paths[i], values=values, compress=compress, metadata={"of": "a fuzzer"})
    files, expected = [path.read_bytes() for path in paths], [load(path) for path in paths]
    path, outcomes, slowest = folder / "failed.safetensors", Counter[tuple[str, str]](), 0.0
    for _ in range(mutations):
        i = rng.randrange(len(files))
        if rng.random() < 0.5:
            mutate = rng.choice(BYTES)
            data = bytearray(files[i])
            mutate(data, rng, files)
            kind = f"damaged: {mutate.__name__.replace('_', ' ')}"
        else:
            kind = "deceiving"
            data = bytearray(deceive(files[i], rng, files))
        path.write_bytes(data)
        begin = time.perf_counter()
        try:
            outcome = deceiving_outcome(path) if kind == "deceiving" else damaged_outcome(path, expected[i])
        except Exception as error:
            raise AssertionError(f"{kind}, file {path}: {type(error).__name__}: {error}") from error
        slowest = max(slowest, time.perf_counter() - begin)
        outcomes[kind, outcome] += 1
    kinds = sorted({kind for kind, _ in outcomes})
    return {
        "outcomes": {kind: {what: n for (k, what), n in sorted(outcomes.items()) if k == kind} for kind in kinds},
        "slowest_ms": round(1000 * slowest, 2),
    }


def guided(runs: int, folder: Path) -> None:
    """Runs of libFuzzer on deceiving files; checksums are put right before each is loaded."""
    import atheris

    for i, (values, compress) in enumerate(MODES):
        save(state(i), folder / str(i), values=values, compress=compress)
    for name, module in list(sys.modules.items()):
        if name.startswith(("shrinkage.formats.", "shrinkage.deploy.")):
            for function in vars(module).values():
                if getattr(function, "__module__", None) == name and hasattr(function, "__code__"):
                    atheris.instrument_func(function)
    path = folder.parent / "one.safetensors"

    def one(data: bytes) -> None:
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            content, described, payload = parts(data)
            sign(content, described, payload)
            data = joined(content, described, payload)
        path.write_bytes(data)
        deceiving_outcome(path)

    atheris.Setup([sys.argv[0], f"-runs={runs}", "-max_len=8192", "-rss_limit_mb=2048", str(folder)], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=100_000, help="results of fewer are not written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", type=int, metavar="RUNS", help="runs guided by coverage instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    memory = Path("/dev/shm")  # files are rewritten by the thousand
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None))
    if options.atheris:
        (folder / "corpus").mkdir()
        child = os.fork()  # libFuzzer ends its process
        if child == 0:
            guided(options.atheris, folder / "corpus")
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            shutil.rmtree(folder)
        sys.exit(status)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    begin = time.perf_counter()
    found = run(options.mutations, options.seed, folder)
    result = {
        "machine": machine(),
        "mutations": options.mutations,
        "seed": options.seed,
        "seconds": round(time.perf_counter() - begin, 1),
        "memory_limit_mib": MEMORY >> 20,
        **found,
    }
    shutil.rmtree(folder)
    rows = [[kind, *(row.get(what) for what in ("refused", "read rightly", "read as described"))]
            for kind, row in found["outcomes"].items()]  # fmt: skip
    title = f"{options.mutations:,} mutations in {result['seconds']} s, the slowest {found['slowest_ms']} ms"
    print(render(["mutation", "refused", "read rightly", "read as described"], rows, title=title))
    if options.mutations >= 100_000:
        print(f"\nwritten to {write('fuzz_files', result)}")


if __name__ == "__main__":
    main()

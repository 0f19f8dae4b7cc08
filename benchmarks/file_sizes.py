"""How small the files of sparse networks are, and how long it takes to write and read them.

    python benchmarks/file_sizes.py        # a minute or two; writes results/benchmarks/

VGG-16 for CIFAR with its weights as they are drawn, thinned by a uniform random mask, with biases, norms and their
statistics filled with random numbers, which is as much as trained ones hold; and a small network that HALO has
trained on digits, whose mask is not uniform. Ratios are those of dense float32 bytes to bytes of the whole file. The
*bound* is what the weights' entropies allow, tensor by tensor: that of a random mask of the same density, and that of
the values' bits; it knows nothing of patterns in masks, which compression can find.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _harness import machine, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import shrinkage
from shrinkage.core.tables import render
from shrinkage.data import load as load_data
from shrinkage.deploy.files import load, save
from shrinkage.formats.index import pack_index
from shrinkage.formats.values import narrow
from shrinkage.formats.zstd import compress as compressed
from shrinkage.models import build
from shrinkage.models.vgg import vgg_16

SPARSITIES = (0.9, 0.95, 0.98)
MODES = [(values, compress) for values in ("fp32", "fp16", "bf16", "int8") for compress in (False, True)]
MANTISSA = {torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}
REPEATS = 3


@dataclass(frozen=True)
class Goal:
    """A ratio that was set beforehand."""

    what: str
    measured: float
    goal: float

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.measured >= self.goal


def thinned_vgg(sparsity: float) -> nn.Module:
    torch.manual_seed(0)
    model = vgg_16((3, 32, 32), 10)
    shrinkage.Random(sparsity=sparsity).prune(model)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.ndim == 1:
                tensor.normal_()
    return model


def trained_mlp(sparsity: float) -> nn.Module:
    """LeNet-300-100 on digits, by HALO."""
    torch.manual_seed(0)
    data = load_data("digits")
    model = build("mlp", data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps = 2000
    halo = shrinkage.HALO(model, sparsity=sparsity, steps=steps).attach(optimizer)
    for _ in range(steps):
        chosen = torch.randint(len(data.train.y), (64,))
        optimizer.zero_grad()
        cross_entropy(model(data.train.x[chosen].float() / 16), data.train.y[chosen]).backward()
        optimizer.step()
    halo.finalize()
    return model


# ------------------------------------------------------------------------------------------- bounds


def entropy(counts: Tensor) -> float:
    """Bits a symbol."""
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum())


def value_bits(values: Tensor, zstd: bool) -> float:
    """Bits of a value: all of them, or noise for sign and mantissa and the entropy of exponents; or of int8 codes."""
    if not zstd:
        return 8.0 * values.element_size()
    if values.dtype == torch.int8:
        return entropy(torch.bincount(values.long() + 128))
    exponents = torch.frexp(values.float()).exponent
    return 1 + MANTISSA[values.dtype] + entropy(torch.bincount(exponents - exponents.min()))


def bound(model: nn.Module, values: str, zstd: bool) -> float:
    """Bytes of the weights by their entropies; biases and norms as they are."""
    total = 0.0
    for tensor in model.state_dict().values():
        if tensor.ndim < 2:
            total += tensor.nbytes
            continue
        codes, scales = (tensor, None) if values == "fp32" else narrow(tensor, values) or (tensor, None)
        kept = int(codes.count_nonzero())
        mask = tensor.numel() * entropy(torch.tensor([kept, tensor.numel() - kept]))
        total += (mask + kept * value_bits(codes[codes != 0], zstd)) / 8
        total += 0 if scales is None else scales.nbytes
    return total


def index_bits(model: nn.Module) -> dict[str, float]:
    """Bits a non-zero of the largest tensor's places, in every form, and by zstd over it."""
    largest = max(model.state_dict().values(), key=Tensor.numel)
    kept = int(largest.count_nonzero())
    found = {"entropy": largest.numel() * entropy(torch.tensor([kept, largest.numel() - kept])) / kept}
    for form, packed in pack_index((largest != 0).flatten().numpy()):
        found[form] = 8 * len(packed) / kept
        found[f"{form} zstd"] = 8 * len(compressed(packed) or packed) / kept
    return found


# ---------------------------------------------------------------------------------------- measuring


def measured(model: nn.Module, path: Path) -> dict[str, Any]:
    """Bytes, ratios and times in every mode."""
    rows = {}
    for values, compress in MODES:
        writing, reading, loading = [], [], []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            contents = save(model, path, values=values, compress=compress)
            writing.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            restored = load(path)
            reading.append(time.perf_counter() - begin)
            if values == "fp32":  # else the model would not be the same in the next mode
                begin = time.perf_counter()
                load(path, model)
                loading.append(time.perf_counter() - begin)
                assert all(torch.equal(restored[name], tensor) for name, tensor in model.state_dict().items())
        least = bound(model, values, compress)
        rows[f"{values}{' zstd' if compress else ''}"] = {
            "bytes": contents.bytes,
            "ratio": contents.ratio,
            "header": contents.bytes - sum(tensor.bytes for tensor in contents.tensors),
            "bound_ratio": contents.dense_bytes / least,
            "save_seconds": statistics.median(writing),
            "load_seconds": statistics.median(reading),
            "load_into_model_seconds": statistics.median(loading) if loading else None,
        }
    return rows


def report(result: dict[str, Any]) -> str:
    parts = []
    for name, row in result["networks"].items():
        lines: list[list[object]] = [
            [mode, cell["bytes"], f"{cell['ratio']:.2f}", f"{cell['bound_ratio']:.2f}", f"{cell['save_seconds']:.2f}",
             f"{cell['load_seconds']:.2f}"]
            for mode, cell in row["modes"].items()
        ]  # fmt: skip
        title = f"{name}: {row['weights']:,} weights, {row['dense_bytes']:,} bytes as dense float32"
        parts.append(render(["mode", "bytes", "ratio", "bound", "save s", "load s"], lines, title=title))
        bits = ", ".join(f"{form} {value:.2f}" for form, value in row["index_bits"].items())
        parts.append(f"index of the largest tensor, bits a non-zero: {bits}")
    rows = [[g["what"], g["goal"], f"{g['measured']:.2f}", "met" if g["met"] else "missed"] for g in result["goals"]]
    parts.append(render(["goal", "at least", "measured", ""], rows))
    return "\n\n".join(parts)


def main() -> None:
    torch.set_num_threads(1)
    networks: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for sparsity in SPARSITIES:
            for name, make in (("VGG-16, random mask", thinned_vgg), ("LeNet-300-100 on digits, HALO", trained_mlp)):
                model = make(sparsity)
                state = model.state_dict().values()
                networks[f"{name}, {sparsity:.0%}".replace("%", " %")] = {
                    "weights": sum(tensor.numel() for tensor in state if tensor.ndim > 1),
                    "dense_bytes": sum(4 * t.numel() if t.is_floating_point() else t.nbytes for t in state),
                    "index_bits": index_bits(model),
                    "modes": measured(model, Path(folder) / "model.safetensors"),
                }
    modes = networks["VGG-16, random mask, 95 %"]["modes"]
    goals = [
        Goal("exact, uncompressed", modes["fp32"]["ratio"], 15),
        Goal("exact, zstd", modes["fp32 zstd"]["ratio"], 18),
        Goal("fp16, zstd", modes["fp16 zstd"]["ratio"], 30),
    ]
    result = {
        "machine": machine(),
        "repeats": REPEATS,
        "networks": networks,
        "goals": [{**asdict(goal), "met": goal.met} for goal in goals],
    }
    print(report(result))
    print(f"\nwritten to {write('file_sizes', result)}")


if __name__ == "__main__":
    main()

"""What networks that HALO has trained come to: accuracy, zeros, files, compaction, export and speed.

    shrinkage train --data mnist --data-dir DIR --sparsity 0.98 --name lenet
    shrinkage train --data cifar10 --data-dir DIR --model vgg-16 --sparsity 0.95 --epochs 4 --lr 0.05 \
        --precision bf16 --no-compare-dense --name vgg-weights     # three quarters of an hour on a CPU core
    shrinkage train --data cifar10 --data-dir DIR --model vgg-16 --macs 0.05 --epochs 4 --lr 0.05 \
        --precision bf16 --no-compare-dense --name vgg-macs
    python benchmarks/trained.py runs/lenet runs/vgg-weights runs/vgg-macs      # writes results/benchmarks/

For every run: the bytes of its small file, exact and with float16 values and compression, beside those of dense
float32; what compaction takes out; whether its ONNX file gives the same outputs, and its bytes; and how many times as
fast this library's engine is as the fastest dense one in float32 on one thread, at batches of 1 and 64.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from _harness import RESULTS, steady, write
from inference import ratio, two_threads
from torch import nn

import shrinkage
from shrinkage.core.tables import render
from shrinkage.runtime.bench import bench
from shrinkage.runtime.bench.machine import machine
from shrinkage.training.config import read_yaml, resolve
from shrinkage.training.run import network

NAME = "trained"
BATCHES = (1, 64)


def command(config: dict[str, Any]) -> str:
    """What to type for a run: the settings that differ from the recipe's."""
    settings = vars(resolve(config))
    usual = {**vars(resolve({"data": settings["data"]})), "sparsity": None, "macs": None}  # the target is always said
    words = [f"shrinkage train --data {settings['data']} --data-dir DIR"]
    for name, value in settings.items():
        if name not in ("data", "data_dir", "threads", "compare_dense") and value not in (None, usual[name]):
            words.append(f"--{name.replace('_', '-')} {value}")
    return " ".join(words)


def files(model: nn.Module, folder: Path) -> dict[str, int]:
    """Bytes of the model's files."""
    kinds: dict[str, dict[str, Any]] = {"exact": {}, "fp16, compressed": {"values": "fp16", "compress": True}}
    found = {"dense": 4 * sum(tensor.numel() for tensor in model.state_dict().values())}
    for name, options in kinds.items():
        path = folder / "small.safetensors"
        shrinkage.save(model, path, **options)
        found[name] = path.stat().st_size
    return found


def measure(run: Path, rounds: int) -> dict[str, Any]:
    """All figures of a run."""
    model, summary = network(run)
    model.eval()
    example = torch.zeros(1, *summary.input_shape)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = files(model, folder)
        shrinkage.export(model, example, folder / "model.onnx")  # raises if an output differs
        sizes["ONNX"] = (folder / "model.onnx").stat().st_size
    small = shrinkage.compact(model, example).model
    result = bench(model, example, batches=list(BATCHES), rounds=rounds)
    print(f"{result}\n", flush=True)
    total = shrinkage.footprint(model, example).total
    return {
        "model": summary.model,
        "by": "weights" if summary.macs_target is None else "MACs",
        "command": command(read_yaml(run / "config.yaml")),
        "accuracy": summary.accuracy,
        "sparsity": summary.sparsity,
        "macs_left": total.effective_macs / total.macs,
        "bytes": sizes,
        "parameters": {"dense": total.parameters, "compacted": sum(p.numel() for p in small.parameters())},
        "ratio": {str(batch): ratio(result, batch, "as trained") for batch in BATCHES},
        "ratio_compacted": {str(batch): ratio(result, batch, "compacted") for batch in BATCHES},
        "two_threads": two_threads(model, example, max(BATCHES), rounds),
        "bench": result.to_dict(),
    }


def table(rows: dict[str, Any]) -> str:
    """The figures in short."""
    lines: list[list[object]] = []
    for row in rows.values():
        sizes, speeds = row["bytes"], [row["ratio"][str(batch)] for batch in BATCHES]
        lines.append(
            [
                f"{row['model']}, by {row['by']}",
                f"{row['accuracy']:.2f} %",
                f"{row['sparsity']:.2%}",
                f"{row['macs_left']:.1%}",
                *(f"{sizes[kind]:,} ({sizes['dense'] / sizes[kind]:.1f} ×)" for kind in ("exact", "fp16, compressed")),
                *("–" if speed is None else f"{speed['median']:.1f} × ({speed['rival']})" for speed in speeds),
            ]
        )
    header = ["network", "accuracy", "zeros", "MACs left", "file", "fp16, compressed", "batch 1", "batch 64"]
    return render(header, lines, title="trained by HALO; this library's engine over the fastest dense one, one thread")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of shrinkage train")
    parser.add_argument("--rounds", type=int, default=15, help="turns of every engine [15]")
    options = parser.parse_args()
    steady()
    path = RESULTS / f"{NAME}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
    for run in options.runs:
        rows[run.name] = measure(run, options.rounds)
        write(NAME, {"machine": machine(1), "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()

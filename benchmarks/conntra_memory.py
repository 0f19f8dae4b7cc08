"""What a running mean of gradients is worth to CoNNTrA's steps that are taken together, beside the last gradient alone.

    python benchmarks/conntra_memory.py --data-dir DIR

LeNet-300-100 with ternary weights, ten sweeps of 5,000 out of 10,000 MNIST images, three seeds, judged by 10,000 other
training images.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

import torch
from _harness import machine, write

from shrinkage.core.tables import render
from shrinkage.data import load
from shrinkage.discrete.losses import cross_entropy
from shrinkage.discrete.sweeps import Memory
from shrinkage.discrete.trainer import Settings, Trainer
from shrinkage.discrete.values import value_set
from shrinkage.models import build

IMAGES, BATCH, SWEEPS, SEEDS = 10_000, 5_000, 10, (0, 1, 2)
WEIGHTS = (0.0, 0.5, 0.9, 0.97)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("SHRINKAGE_DATA"))
    data = load("mnist", parser.parse_args().data_dir)
    x, y = data.prepare(data.train.x[:IMAGES]), data.train.y[:IMAGES]
    others = slice(IMAGES, 2 * IMAGES)
    judge = data.prepare(data.train.x[others]), data.train.y[others]
    settings = Settings(value_set((-1, 0, 1)), "together", "layer", None, True, "random", cross_entropy)
    found, rows = [], []
    for weight in WEIGHTS:
        errors = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            trainer, memory = Trainer(build("lenet-300-100", data), settings), Memory(weight)
            trainer.begin(generator)
            for _ in range(SWEEPS):
                here = torch.randperm(IMAGES, generator=generator)[:BATCH]
                sweep = trainer.sweep(x[here], y[here], generator, memory=memory)
            errors.append(100 - trainer.accuracy(*judge))
            found.append({"weight": weight, "seed": seed, "error": errors[-1], "loss": sweep.loss})
            print(f"weight {weight}, seed {seed}: {errors[-1]:.2f} %", flush=True)
        rows.append([weight, f"{statistics.mean(errors):.2f} ± {statistics.stdev(errors) / len(errors) ** 0.5:.2f}"])
    title = f"Error on others, %, after {SWEEPS} sweeps of {BATCH:,} images (mean ± standard error of {len(SEEDS)})"
    print(render(["weight of the gradients before", "error"], rows, title=title))
    print(f"\nwritten to {write('conntra_memory', {'machine': machine(), 'images': IMAGES, 'trainings': found})}")


if __name__ == "__main__":
    main()

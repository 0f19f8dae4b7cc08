"""Which strength of NoiseOut's noise is best, judged by held-out images, so that the test images have no say in it.

    python benchmarks/noiseout_strength.py --data-dir DIR

LeNet-300-100 on MNIST, shrunk to two sizes, two seeds, by the code of ``shrinkage reproduce noiseout``. Strengths are
those of its parts: 1 in ``mnist``, 10 in ``mnist-strong``.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

import torch
from _harness import machine, write

from shrinkage.core.tables import render
from shrinkage.reproduce.shrinking import PARTS, Trial, run

ROWS = {"none": ("mnist", "none"), "strength 1": ("mnist", "gaussian"), "strength 10": ("mnist-strong", "gaussian")}
LEFT, SEEDS = (0.15, 0.06), (1000, 1001)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("SHRINKAGE_DATA"))
    options = parser.parse_args()
    found, rows = [], []
    for name, (part, noise) in ROWS.items():
        scores: dict[float, list[float]] = {left: [] for left in LEFT}
        for left in LEFT:
            for seed in SEEDS:
                trial = Trial(part, "noiseout", noise, left, seed, validation=True)
                outcome = run(trial, options.data_dir, torch.device("cpu"))
                scores[left].append(outcome["accuracy"])
                found.append({"noise": name, **{key: outcome[key] for key in ("accuracy", "parameters", "seconds")},
                              "left": left, "seed": seed})  # fmt: skip
                print(f"{name}, {left:.0%} left, seed {seed}: {outcome['accuracy']:.2f} %", flush=True)
        means = [statistics.mean(scores[left]) for left in LEFT]
        rows.append([name, *(f"{mean:.2f}" for mean in means), f"{statistics.mean(means):.2f}"])
    title = f"{PARTS['mnist'].title}: accuracy on held-out images, %, mean of {len(SEEDS)} seeds"
    header = ["noise", *(f"{left:.0%} of the parameters left" for left in LEFT), "mean"]
    print(render(header, rows, title=title))
    result = {"machine": machine(), "held_out": PARTS["mnist"].held_out, "trainings": found}
    print(f"\nwritten to {write('noiseout_strength', result)}")


if __name__ == "__main__":
    main()

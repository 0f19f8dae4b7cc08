"""What a sweep of CoNNTrA costs on LeNet-300-100 and 10,000 MNIST images, and what it would cost without its cache.

    SHRINKAGE_DATA=DIR python benchmarks/conntra_sweep.py

Each variant makes one sweep from the same random ternary weights. The naive evaluation is a forward pass of the whole
network for each value of each weight: a few hundred are measured, and the sweep's time is computed from them. So is the
ratio of single trials: the same weights are tried both ways, taking turns. Times are those of the wall clock, on two
threads: leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from pathlib import Path
from typing import Any

import torch
from _harness import Measured, machine, write
from torch import nn

from shrinkage.core.tables import render
from shrinkage.data import load
from shrinkage.discrete import CoNNTrA
from shrinkage.discrete.losses import cross_entropy
from shrinkage.discrete.sites import Sites
from shrinkage.discrete.trainer import Settings, Trainer
from shrinkage.discrete.values import value_set
from shrinkage.models import build

IMAGES, ROUNDS, TURN = 10_000, 10, 20
GOALS = {"gradient": 120.0, "exhaustive": 600.0}  # seconds


def trainer(net: nn.Module) -> Trainer:
    made = Trainer(net, Settings(value_set((-1, 0, 1)), "gradient", "layer", None, True, "random", cross_entropy))
    made.begin(torch.Generator().manual_seed(0))
    return made


def trials(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, Measured]:
    """Seconds a value: a forward pass of everything, and a trial from the cache."""
    method = trainer(net)
    cache, sites = method.cache(x, y), method.sites()
    times: dict[str, list[float]] = {"naive": [], "cached": []}
    for index in range(ROUNDS):
        numbers = torch.randint(len(sites), (TURN,), generator=torch.Generator().manual_seed(index)).tolist()
        for name, one in (("naive", _naive), ("cached", _cached)):
            begin = time.perf_counter()
            for number in numbers:
                one(cache, sites, number)
            times[name].append((time.perf_counter() - begin) / TURN)
    return {name: Measured.of(seconds) for name, seconds in times.items()}


def _naive(cache: Any, sites: Sites, number: int) -> None:
    weight, table = sites.coordinate(number)
    value = weight.value
    weight.set(next(other for other in table if other != value))
    cache.evaluate()
    weight.set(value)


def _cached(cache: Any, sites: Sites, number: int) -> None:
    weight, table = sites.coordinate(number)
    other = next(other for other in table if other != weight.value)
    cache.trial(weight.site.stage, weight.channel, weight.place, torch.tensor([other - weight.value]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("SHRINKAGE_DATA"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load("mnist", options.data_dir)
    x, y = data.prepare(data.train.x[: options.images]), data.train.y[: options.images]
    torch.manual_seed(0)
    net = build("lenet-300-100", data)
    single = trials(copy.deepcopy(net), x, y)
    ratio = single["naive"].median / single["cached"].median
    rows, found = [], []
    for variant, goal in GOALS.items():
        method = CoNNTrA(copy.deepcopy(net), variant=variant)  # type: ignore[arg-type]
        (sweep,) = method.fit(x, y).sweeps
        spent = sweep.seconds
        naive = sweep.naive * single["naive"].median
        found.append(
            {
                "variant": variant,
                "seconds": spent,
                "goal_seconds": goal,
                "met": spent < goal,
                "before": sweep.before,
                "loss": sweep.loss,
                "trials": sweep.trials,
                "moved": sweep.moved,
                "naive_evaluations": sweep.naive,
                "naive_seconds": naive,
                "ratio": naive / spent,
            }
        )
        rows.append(
            [variant, sweep.before, sweep.loss, sweep.trials, sweep.moved, spent, goal,
             f"{naive / 3600:.1f} h", f"{naive / spent:.0f} ×"]
        )  # fmt: skip
    header = [
        "variant",
        "loss before",
        "loss",
        "trials",
        "moved",
        "seconds",
        "goal",
        "naive",
        "naive over ours",
    ]
    print(render(header, rows, title=f"One sweep, LeNet-300-100, {options.images:,} MNIST images"))
    naive, cached = (1000 * single[name].median for name in ("naive", "cached"))
    print(f"\na value, naive {naive:.1f} ms, from the cache {cached:.3f} ms: {ratio:.0f} ×")
    result = {
        "machine": machine(),
        "images": options.images,
        "seconds_a_value": single,
        "ratio_a_value": ratio,
        "sweeps": found,
    }
    print(f"\nwritten to {write('conntra_sweep', result)}")


if __name__ == "__main__":
    main()

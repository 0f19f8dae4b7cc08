"""How fast sparse networks run in this library's engine, against the fastest maintained dense engine of the same run.

    python benchmarks/inference.py                      # every row that is not there yet; results/benchmarks/
    python benchmarks/inference.py --only mlp-95        # this row, measured anew
    python benchmarks/inference.py --only vgg-16-95 --masks learned.safetensors
    python benchmarks/inference.py --quick              # a few turns; only shows that it runs

Weights are zero at random places, drawn by a seeded generator, the same share in every layer or, *uneven*, by the
Erdős–Rényi rule, which leaves narrow layers denser. Weights and BatchNorm are scaled so that activations keep their
size through the network. ``--masks`` takes a trained network's ``state_dict`` instead, from a file of
``shrinkage.save``, of safetensors or of ``torch.save``.

The rival is the fastest of inductor, AOTInductor, ONNX Runtime and OpenVINO in float32 at the same batch, with the same
inputs and one thread; eager PyTorch and engines below float32 are shown, but are none. All outputs are checked. Where
compaction removes anything, both sides are also measured on the compacted network, which is the fairer comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _harness import RESULTS, steady, write
from torch import Tensor, nn

import shrinkage
from shrinkage.core.evaluation import evaluating
from shrinkage.core.tables import render
from shrinkage.models import MODELS
from shrinkage.runtime.bench import ENGINES, Bench, Row, Spread, bench
from shrinkage.runtime.bench.forms import Form, Pool
from shrinkage.runtime.bench.machine import machine
from shrinkage.runtime.bench.race import race

NAME = "inference"
OWN = "shrinkage"
SEED = 0


@dataclass(frozen=True)
class Case:
    """A network with zeros, and how much faster than dense it is to run, by batch size."""

    title: str
    network: str
    shape: tuple[int, ...]
    sparsity: float
    distribution: str
    goals: dict[int, float]


IMAGE = (3, 32, 32)
CASES = {
    "vgg-16-95": Case("VGG-16, 95 %", "vgg-16", IMAGE, 0.95, "uniform", {1: 12, 64: 12}),
    "vgg-16-95-uneven": Case("VGG-16, 95 % uneven", "vgg-16", IMAGE, 0.95, "erk", {1: 7, 64: 6.5}),
    "vgg-16-98": Case("VGG-16, 98 %", "vgg-16", IMAGE, 0.98, "uniform", {1: 22, 64: 22}),
    "resnet-20-95": Case("ResNet-20, 95 %", "resnet-20", IMAGE, 0.95, "uniform", {1: 5, 64: 5}),
    "resnet-50-95": Case("ResNet-50, 95 %", "resnet-50", IMAGE, 0.95, "uniform", {1: 6, 64: 6}),
    "mlp-95": Case("MLP 768–3072–768, 95 %", "mlp", (768,), 0.95, "uniform", {1: 5, 128: 10}),
    "lenet-98": Case("LeNet-300-100, 98 %", "lenet-300-100", (1, 28, 28), 0.98, "uniform", {1: 6, 64: 10}),
}


# ---- networks -----------------------------------------------------------------------------------


def network(case: Case, masks: Path | None) -> nn.Module:
    """The case's network in evaluation mode, with zeros at random places or as a file has it."""
    torch.manual_seed(SEED)
    if case.network == "mlp":
        model: nn.Module = nn.Sequential(nn.Linear(768, 3072), nn.ReLU(), nn.Linear(3072, 768))
    else:
        model = MODELS[case.network](case.shape, 10)
    if masks is not None:
        restore(model, masks)
    else:
        shrinkage.Random(case.sparsity, seed=SEED, distribution=case.distribution).prune(model)
        keep_scale(model, case.shape)
    return model.eval()


@torch.no_grad()
def keep_scale(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Make up for the zeros in the size of the weights, and give every BatchNorm numbers as after a training."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            kept = module.weight.ne(0).sum() / len(module.weight)  # a neuron's inputs, on average
            module.weight.mul_((2 / kept).sqrt() / module.weight[module.weight != 0].std())
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.2)
        norm.momentum = None  # statistics are those of all that is seen
    model.train()
    for _ in range(4 if norms else 0):
        model(torch.randn(32, *shape))


def restore(model: nn.Module, path: Path) -> None:
    """Fill a network from a ``state_dict``."""
    if path.suffix == ".safetensors":
        from shrinkage.deploy.files import load

        load(path, model)
    else:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


# ---- figures ------------------------------------------------------------------------------------


def fastest(result: Bench, rows: list[Row]) -> Row | None:
    return min(rows, key=lambda row: Spread.of(result.figures(row)).median, default=None)


def ratio(result: Bench, batch: int, form: str) -> dict[str, Any] | None:
    """The fastest dense engine over this library's, round by round, on one form of the network."""
    counting = [row for row in result.at(batch) if row.counts and row.form == form]
    rival = fastest(result, [row for row in counting if row.rival])
    own = fastest(result, [row for row in counting if row.engine == OWN])
    if rival is None or own is None:
        return None
    pairs = zip(result.figures(rival), result.figures(own), strict=True)
    return {"rival": rival.name, **vars(Spread.of([a / b for a, b in pairs]))}


def two_threads(model: nn.Module, example: Tensor, batch: int, rounds: int) -> dict[str, float] | str:
    """One thread's wall time over that of two, in this library's engine; or why there is none."""
    if (os.cpu_count() or 1) < 2:
        return "one core"
    pool = Pool.of((example,), batch, SEED)
    with tempfile.TemporaryDirectory() as folder, evaluating(model):
        form = Form("as trained", model, (example,), Path(folder))
        try:
            runs = {str(threads): ENGINES[OWN].make(form, pool, threads).run for threads in (1, 2)}
        except Exception as error:  # the table goes on without it
            return f"{type(error).__name__}: {error}"
        for run in runs.values():
            run(0)
        times = race(runs, len(pool), rounds)
    return vars(Spread.of([a / b for a, b in zip(times["1"].wall, times["2"].wall, strict=True)]))


def measure(case: Case, masks: Path | None, rounds: int) -> dict[str, Any]:
    """All figures of a case."""
    model = network(case, masks)
    example = torch.zeros(1, *case.shape)
    total = shrinkage.footprint(model, example).total
    result = bench(
        model,
        example,
        batches=list(case.goals),
        rounds=rounds,
        seed=SEED,
        tell=lambda line: print(f"  {line}", file=sys.stderr),
    )
    result = replace(result, model=case.title)
    print(f"{result}\n", flush=True)
    return {
        "title": case.title,
        "masks": "random" if masks is None else masks.name,
        "sparsity": total.sparsity,
        "macs_left": total.effective_macs / total.macs,
        "goals": {str(batch): goal for batch, goal in case.goals.items()},
        "ratio": {str(batch): ratio(result, batch, "as trained") for batch in case.goals},
        "ratio_compacted": {str(batch): ratio(result, batch, "compacted") for batch in case.goals},
        "two_threads": {"batch": max(case.goals), "ratio": two_threads(model, example, max(case.goals), rounds)},
        "bench": result.to_dict(),
    }


# ---- the whole ----------------------------------------------------------------------------------


def goals(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """What was set beforehand and what was reached; ``measured`` is 0 where the engine did not run."""
    found = []
    for row in rows.values():
        for batch, goal in row["goals"].items():
            measured = row["ratio"][batch]
            value = 0.0 if measured is None else measured["median"]
            masks = "" if row["masks"] == "random" else f", masks of {row['masks']}"
            what = f"{row['title']}{masks}, batch {batch}"
            found.append({"what": what, "goal": goal, "measured": value, "met": value >= goal})
    return found


def table(rows: dict[str, Any]) -> str:
    """Ratios beside their goals."""
    lines: list[list[object]] = []
    for row in rows.values():
        for batch, goal in row["goals"].items():
            measured, threads = row["ratio"][batch], row["two_threads"]
            smaller = row["ratio_compacted"][batch]
            two = threads["ratio"] if str(threads["batch"]) == batch else None
            lines.append(
                [
                    row["title"],
                    row["masks"],
                    f"{100 * row['macs_left']:.1f} %",
                    int(batch),
                    None if measured is None else measured["rival"],
                    None if measured is None else f"{measured['median']:.2f} ×",
                    None if measured is None else f"{measured['low']:.2f}–{measured['high']:.2f}",
                    f"{goal:g} ×",
                    "met" if measured is not None and measured["median"] >= goal else "missed",
                    None if smaller is None else f"{smaller['median']:.2f} ×",
                    f"{two['median']:.2f} ×" if isinstance(two, dict) else None,
                ]
            )
    header = ["network", "masks", "MACs left", "batch", "fastest dense engine", "faster", "quartiles", "goal", "",
              "both compacted", "two threads"]  # fmt: skip
    return render(header, lines, title="this library's engine over the fastest dense one, float32, one thread")


def stored() -> dict[str, Any]:
    path = RESULTS / f"{NAME}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=CASES, help="measure this row anew; may be repeated")
    parser.add_argument("--masks", type=Path, help="a network's state_dict; needs --only")
    parser.add_argument("--rounds", type=int, default=15, help="turns of every engine [15]")
    parser.add_argument("--quick", action="store_true", help="three turns; writes nothing")
    options = parser.parse_args()
    if options.masks is not None and not options.only:
        parser.error("--masks needs --only: which network is in the file?")
    steady()

    rows = {} if options.quick else stored()
    for key, case in CASES.items():
        name = key if options.masks is None else f"{key} {options.masks.stem}"
        if key not in options.only if options.only else name in rows:
            continue
        print(f"{name} …", file=sys.stderr, flush=True)
        rows[name] = measure(case, options.masks, 3 if options.quick else options.rounds)
        if not options.quick:
            write(NAME, {"machine": machine(1), "rows": rows, "goals": goals(rows)})
    print(table(rows))


if __name__ == "__main__":
    main()

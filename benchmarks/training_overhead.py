"""What the methods cost while a network trains: time, memory, and how both grow with the network.

    python benchmarks/training_overhead.py            # some minutes; writes results/benchmarks/
    python benchmarks/training_overhead.py --quick    # seconds; only shows that it runs

- *Step time* over plain training, one thread, all contestants taking turns on the same fresh inputs, labelled by a
  network that they can learn. The proximal solver goes through a whole training: its figures are those of
  the early, middle and late ramp (proximal steps averaged over the steps between them) and of the time after the
  pattern is fixed. ``mask`` multiplies the weights by a mask after each step, the usual way of keeping zeros;
  ``in the loss`` adds the paper's penalty to the loss and lets autograd do the rest. ``STR`` and ``soft top-k`` train
  latent weights, as HALO does under AdamW.
- *Memory*: bytes a weight that a method holds between steps, and the most it has in use inside one.
- *Growth*: one step of the method on a single matrix, without network or data, against the time that reading
  and writing the tensors involved would take at the memory bandwidth measured beside it.
"""

from __future__ import annotations

import argparse
import math
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from _harness import Measured, interleave, machine, steady, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile

import shrinkage
from shrinkage.core.engine import Sparsifier
from shrinkage.core.tables import render
from shrinkage.models import MODELS

BATCH = 128
SPARSITY = 0.95
STRENGTHS = {"xi": 1e-6, "psi": 1e-6}
INTERVAL = shrinkage.penalties.halo.EVERY  # optimiser steps that hold exactly one proximal step
PHASES = ("shrinking, early", "shrinking, middle", "shrinking, late", "holding")


@dataclass(frozen=True)
class Goal:
    """A figure that was set beforehand."""

    what: str
    measured: float
    goal: float

    @property
    def met(self) -> bool:
        """Whether it was reached, to three digits after the point."""
        return round(self.measured, 3) <= self.goal


def at_a_standstill(model: nn.Module, steps: int) -> Sparsifier:
    """HALO in a training without end, always half way up its ramp."""
    return shrinkage.HALO(model, SPARSITY, 10**9, start=0.0, end=1.0, ramp=lambda x: 0.5 if x < 1 else 1.0)


def holding(model: nn.Module, steps: int) -> Sparsifier:
    """HALO with its pattern fixed after the first step."""
    return shrinkage.HALO(model, SPARSITY, 100, start=0.0, end=0.01, ramp="one-shot")


METHODS: dict[str, Callable[[nn.Module, int], Sparsifier]] = {
    "proximal": lambda model, steps: shrinkage.HALO(model, SPARSITY, steps),
    "shrinking": at_a_standstill,
    "holding": holding,
    "gradient": lambda model, steps: shrinkage.HALO(model, **STRENGTHS),
    "in the loss": lambda model, steps: shrinkage.HALO(model, **STRENGTHS, solver="loss"),
    "STR": lambda model, steps: shrinkage.STR(model, SPARSITY, steps),
    "soft top-k": lambda model, steps: shrinkage.SoftTopK(model, SPARSITY, steps),
}


@dataclass
class Contestant:
    """One way of training a network, a step at a time."""

    kind: str
    model: nn.Module
    optimizer: Optimizer
    method: Sparsifier | None
    masks: list[tuple[Tensor, Tensor]]

    def step(self, x: Tensor, y: Tensor) -> None:
        """A step of the training."""
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(x), y)
        if self.method is not None and self.kind == "in the loss":
            loss = loss + self.method.penalty()
        loss.backward()
        self.optimizer.step()
        for weight, mask in self.masks:
            weight.mul_(mask)

    def phase(self) -> str:
        """Under what name a round that begins now is counted."""
        if self.method is None or self.kind != "proximal":
            return self.kind
        if self.method.phase != "shrinking":
            return PHASES[3]
        return PHASES[int(3 * self.method.wanted / SPARSITY)]


def contestant(
    kind: str, network: str, shape: tuple[int, ...], make: Callable[[Any], Optimizer], steps: int
) -> Contestant:
    """One contestant, from the same initial weights as the others."""
    torch.manual_seed(0)
    model = MODELS[network](shape, 10)
    optimizer = make(model.parameters())
    method = METHODS[kind](model, steps).attach(optimizer) if kind in METHODS else None
    weights = [parameter.data for parameter in model.parameters() if kind == "mask" and parameter.ndim > 1]
    masks = [(weight, (torch.rand_like(weight) > SPARSITY).float()) for weight in weights]
    return Contestant(kind, model, optimizer, method, masks)


def step_times(
    network: str, shape: tuple[int, ...], make: Callable[[Any], Optimizer], kinds: list[str], **how: int
) -> dict[str, Any]:
    """Ratios to plain training, and what is added in microseconds."""
    steps = how["rounds"] * how["steps"]
    contestants = {kind: contestant(kind, network, shape, make, steps) for kind in ["plain", *kinds]}
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 10))

    @torch.no_grad()
    def inputs() -> list[tuple[Tensor, Tensor]]:
        batches = [torch.randn(BATCH, *shape) for _ in range(how["steps"])]
        return [(x, teacher(x).argmax(1)) for x in batches]

    plain: list[float] = []
    over: dict[str, list[float]] = defaultdict(list)
    added: dict[str, list[float]] = defaultdict(list)
    takers = {kind: one.step for kind, one in contestants.items()}
    turns = interleave(takers, inputs, rounds=how["rounds"], turn=how["turn"])
    while True:
        phases = {kind: contestants[kind].phase() for kind in kinds}
        seconds = next(turns, None)
        if seconds is None:
            break
        plain.append(seconds["plain"])
        for kind, phase in phases.items():
            over[phase].append(seconds[kind] / seconds["plain"])
            added[phase].append(1e6 * (seconds[kind] - seconds["plain"]))
    order = [name for name in (*PHASES, *kinds) if name in over]
    return {
        "plain_ms": Measured.of([1e3 * value for value in plain]),
        "over_plain": {name: Measured.of(over[name]) for name in dict.fromkeys(order)},
        "added_us": {name: Measured.of(added[name]) for name in dict.fromkeys(order)},
    }


# ---- one matrix ---------------------------------------------------------------------------------


# Tensors of the weights' size that a step has to read or write at least, as float32.
TRAFFIC = {
    "gradient": 7,  # reads w, its gradient, λ and its momentum; writes all but w
    "shrinking": 4,  # reads and writes w and the memory of sizes; once in INTERVAL steps
    "holding": 3,  # reads the gradient and the mask, writes the gradient
}


def matrix(kind: str, weights: int, make: Callable[[Any], Optimizer]) -> tuple[nn.Linear, Optimizer, Sparsifier]:
    """A layer of so many weights, in the middle of a training by one method, with its gradients there."""
    torch.manual_seed(0)
    layer = nn.Linear(1000, weights // 1000, bias=False)
    optimizer = make(layer.parameters())
    layer.weight.grad = torch.rand_like(layer.weight)
    optimizer.step()
    method = METHODS[kind](layer, 0).attach(optimizer)
    for _ in range(INTERVAL):
        method_step(method, optimizer)
    return layer, optimizer, method


def method_step(method: Sparsifier, optimizer: Optimizer) -> None:
    """The method's part of an optimiser step."""
    method.before_step(optimizer, None, True)
    method.after_step(optimizer)


def held_bytes(method: Sparsifier, known: list[Tensor]) -> int:
    """Bytes of the tensors that a method keeps alive beside those that were there before it."""
    seen: set[int] = set()
    storages: dict[int, int] = {}

    def visit(thing: Any) -> None:
        if id(thing) in seen:
            return
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
            visit(thing.grad if thing.is_leaf else None)
        elif isinstance(thing, dict):
            for key, value in thing.items():
                visit(key), visit(value)
        elif isinstance(thing, list | tuple | set | frozenset):
            for value in thing:
                visit(value)
        elif type(thing).__module__.startswith("shrinkage") or isinstance(thing, Optimizer):
            for value in attributes(thing):
                visit(value)

    visit(method)
    for tensor in known:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def attributes(thing: object) -> Iterator[Any]:
    """The values of an object's attributes, slots included."""
    yield from getattr(thing, "__dict__", {}).values()
    for name in getattr(type(thing), "__slots__", ()):
        yield getattr(thing, name, None)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that a call has in use at once beyond what it found, torch's and numpy's."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        call()
    events = [event for event in traced.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    tracemalloc.start()
    call()
    _, of_numpy = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most + of_numpy


def memory(weights: int) -> dict[str, dict[str, float]]:
    """Bytes a weight held between steps and in use inside one, by method."""
    found = {}
    for name, kind, make in [*((kind, kind, sgd) for kind in TRAFFIC), ("shrinking, AdamW", "shrinking", adamw)]:
        layer, optimizer, method = matrix(kind, weights, make)
        gradient = layer.weight.grad
        assert gradient is not None
        held = held_bytes(method, [layer.weight, gradient, *optimizer.state[layer.weight].values()])

        def steps(method: Sparsifier = method, optimizer: Optimizer = optimizer) -> None:
            for _ in range(INTERVAL):
                method_step(method, optimizer)

        found[name] = {"held": held / weights, "peak": (held + peak_bytes(steps)) / weights}
    return found


def growth(sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    """Time of one step of the method by the number of weights, against the bandwidth floor."""
    rows = []
    for weights in sizes:
        for kind, tensors in TRAFFIC.items():
            layer, optimizer, method = matrix(kind, weights, sgd)
            weight = layer.weight.data
            floors, times = [], []
            for _ in range(repeats + 1):
                weight.normal_(std=0.1)  # what training does in between: no ties
                begin = time.process_time()
                weight.mul_(1.0)  # reads and writes one tensor
                middle = time.process_time()
                for _ in range(INTERVAL if kind == "shrinking" else 1):
                    method_step(method, optimizer)
                floors.append((middle - begin) * tensors / 2)
                times.append(time.process_time() - middle)
            rows.append(
                {
                    "method": kind,
                    "weights": weights,
                    "ms": Measured.of([1e3 * value for value in times[1:]]),
                    "over_floor": Measured.of([a / b for a, b in zip(times[1:], floors[1:], strict=True)]),
                }
            )
    return rows


# ---- the whole ----------------------------------------------------------------------------------


def sgd(parameters: Any) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)


def adamw(parameters: Any) -> Optimizer:
    return AdamW(parameters, lr=1e-3)


def goals(times: dict[str, Any], bytes_used: dict[str, dict[str, float]]) -> list[Goal]:
    """The figures that were set beforehand, each in its dearest phase."""

    def worst(setting: str, phases: tuple[str, ...]) -> float:
        over = times[setting]["over_plain"]
        return max(over[phase].median for phase in phases if phase in over)

    lenet, resnet, adam = "lenet-300-100, SGD", "resnet-20, SGD", "lenet-300-100, AdamW"
    held = {name: row["held"] for name, row in bytes_used.items()}
    return [
        Goal("proximal, LeNet-300-100", worst(lenet, PHASES), 1.10),
        Goal("proximal, ResNet-20", worst(resnet, ("shrinking", "holding")), 1.03),
        Goal("proximal, LeNet-300-100 under AdamW", worst(adam, PHASES), 1.10),
        Goal("gradient, LeNet-300-100", worst(lenet, ("gradient",)), 1.25),
        Goal("memory held, bytes a weight", max(held[kind] for kind in TRAFFIC), 8.0),
        Goal("memory held under AdamW, bytes a weight", held["shrinking, AdamW"], 8.0),
    ]


def report(result: dict[str, Any]) -> str:
    """All figures as tables."""
    tables = []
    for setting, row in result["step_time"].items():
        lines = [
            [kind, str(row["over_plain"][kind]), round(row["added_us"][kind].median)] for kind in row["over_plain"]
        ]
        title = f"{setting}, batch {BATCH}: plain step {row['plain_ms'].median:.2f} ms"
        tables.append(render(["method", "over plain (quartiles)", "added µs"], lines, title=title))
    lines = [[kind, round(row["held"], 2), round(row["peak"], 2)] for kind, row in result["memory"].items()]
    tables.append(render(["method", "held", "peak"], lines, title="extra memory, bytes a weight"))
    lines = [[row["method"], row["weights"], row["ms"].median, str(row["over_floor"])] for row in result["growth"]]
    tables.append(
        render(["method", "weights", "ms", "over the floor (quartiles)"], lines, title="one step of the method")
    )
    lines = [[goal["what"], round(goal["measured"], 3), goal["goal"], "met" if goal["met"] else "missed"]
             for goal in result["goals"]]  # fmt: skip
    tables.append(render(["goal", "measured", "at most", ""], lines, title="goals"))
    return "\n\n".join(tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few repeats of everything small; writes nothing")
    quick = parser.parse_args().quick
    steady()

    kinds = ["proximal", "gradient", "in the loss", "mask", "STR", "soft top-k"]
    lenet = {"rounds": 12 if quick else 90, "steps": INTERVAL if quick else 2 * INTERVAL, "turn": 2 * INTERVAL}
    resnet = {"rounds": 1 if quick else 5, "steps": INTERVAL, "turn": 1}
    times = {
        "lenet-300-100, SGD": step_times("lenet-300-100", (1, 28, 28), sgd, kinds, **lenet),
        "lenet-300-100, AdamW": step_times("lenet-300-100", (1, 28, 28), adamw, kinds, **lenet),
        "resnet-20, SGD": step_times("resnet-20", (3, 32, 32), sgd, ["shrinking", "holding", "gradient"], **resnet),
    }
    used = memory(100_000 if quick else 10_000_000)
    sizes = [10**5, 10**6] if quick else [10**5, 10**6, 10**7, 10**8]
    result = {
        "machine": machine(),
        "settings": {"batch": BATCH, "sparsity": SPARSITY, **STRENGTHS, "lenet": lenet, "resnet": resnet},
        "step_time": times,
        "memory": used,
        "growth": growth(sizes, repeats=3 if quick else 7),
        "goals": [{**asdict(goal), "met": goal.met} for goal in goals(times, used)],
    }
    print(report(result))
    if not quick:
        print(f"\nwritten to {write('training_overhead', result)}")


if __name__ == "__main__":
    main()

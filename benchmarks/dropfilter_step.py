"""What DropFilter and DropFilter-PLUS cost while a network trains.

    python benchmarks/dropfilter_step.py            # some minutes; writes results/benchmarks/
    python benchmarks/dropfilter_step.py --quick    # seconds; only shows that it runs

- *Networks*: a training step (forward, backward, SGD) over the plain network's, with all convolutions converted; on
  LeNet-5 also with the exact form of DropFilter-PLUS, which draws a mask at every position, at a batch that it fits in.
- *Layers*: forward and backward of single convolutions, where nothing else hides the cost.

One thread; all contestants take turns on the same fresh inputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from _harness import Measured, Step, interleave, machine, steady, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shrinkage import dropfilter
from shrinkage.core.tables import render
from shrinkage.models import MODELS

P = 0.1
GOALS = {"DropFilter": 1.10, "DropFilter-PLUS": 1.20}


@dataclass(frozen=True)
class Network:
    """One row of the first table."""

    name: str
    shape: tuple[int, ...]
    batch: int
    exact: bool = False

    @property
    def title(self) -> str:
        """Name and batch."""
        return f"{self.name}, batch {self.batch}"


@dataclass(frozen=True)
class Convolution:
    """One row of the second table: a 2-d convolution and its input."""

    channels: int
    filters: int
    size: int
    side: int
    batch: int

    @property
    def title(self) -> str:
        """What it maps to what."""
        return f"{self.channels}→{self.filters}, {self.size}×{self.size} on {self.side}×{self.side}, batch {self.batch}"


NETWORKS = (
    Network("lenet-5", (1, 28, 28), 128),
    Network("lenet-5", (1, 28, 28), 16, exact=True),
    Network("resnet-20", (3, 32, 32), 64),
)
LAYERS = (
    Convolution(1, 20, 5, 28, 128),
    Convolution(20, 50, 5, 12, 128),
    Convolution(16, 16, 3, 32, 64),
    Convolution(64, 64, 3, 8, 64),
    Convolution(256, 256, 3, 8, 64),
)


class Exact(nn.Conv2d):
    """DropFilter-PLUS with a mask at every position."""

    def forward(self, x: Tensor) -> Tensor:
        """One draw a multiplication."""
        return dropfilter.per_position(self, x, P)


def plain(model: nn.Module) -> None:
    """Nothing is changed."""


def exact(model: nn.Module) -> None:
    """Every convolution becomes an :class:`Exact` one, which is fit for a benchmark only."""
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = Exact


FORMS: dict[str, Callable[[nn.Module], object]] = {
    "plain": plain,
    "DropFilter": lambda model: dropfilter.convert(model, P),
    "DropFilter-PLUS": lambda model: dropfilter.convert(model, P, plus=True),
}


def over_plain(contestants: dict[str, Step], inputs: Callable[[], list[Any]], rounds: int) -> dict[str, Any]:
    """Milliseconds of a plain step, and the others in relation to it."""
    for step in contestants.values():  # the first step allocates
        step(*inputs()[0])
    seconds = list(interleave(contestants, inputs, rounds=rounds, turn=1))
    return {
        "plain_ms": Measured.of([1e3 * row["plain"] for row in seconds]),
        "over_plain": {
            name: Measured.of([row[name] / row["plain"] for row in seconds]) for name in contestants if name != "plain"
        },
    }


def of_network(network: Network, rounds: int, steps: int) -> dict[str, Any]:
    """Ratios of training steps."""
    forms = {**FORMS, "exact": exact} if network.exact else FORMS
    contestants: dict[str, Step] = {}
    for name, convert in forms.items():
        torch.manual_seed(0)
        model = MODELS[network.name](network.shape, 10)
        convert(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

        def step(x: Tensor, y: Tensor, model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()

        contestants[name] = step

    def inputs() -> list[tuple[Tensor, Tensor]]:
        return [(torch.randn(network.batch, *network.shape), torch.randint(10, (network.batch,))) for _ in range(steps)]

    return over_plain(contestants, inputs, rounds)


def of_layer(layer: Convolution, rounds: int, steps: int) -> dict[str, Any]:
    """Ratios of forward and backward passes, the gradient of the input included."""
    contestants: dict[str, Step] = {}
    for name, convert in FORMS.items():
        torch.manual_seed(0)
        model = nn.Conv2d(layer.channels, layer.filters, layer.size)
        convert(model)

        def step(x: Tensor, upstream: Tensor, model: nn.Module = model) -> None:
            model.zero_grad()
            x.grad = None
            model(x).backward(upstream)

        contestants[name] = step

    def inputs() -> list[tuple[Tensor, Tensor]]:
        out = layer.side - layer.size + 1
        return [
            (
                torch.randn(layer.batch, layer.channels, layer.side, layer.side, requires_grad=True),
                torch.randn(layer.batch, layer.filters, out, out),
            )
            for _ in range(steps)
        ]

    return over_plain(contestants, inputs, rounds)


def goals(networks: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures that were set beforehand, on every network."""
    return [
        {"what": f"{form}, {title}", "measured": row["over_plain"][form].median, "goal": goal,
         "met": round(row["over_plain"][form].median, 3) <= goal}
        for title, row in networks.items()
        for form, goal in GOALS.items()
    ]  # fmt: skip


def report(result: dict[str, Any]) -> str:
    """All figures as tables."""
    tables = []
    for kind in ("networks", "layers"):
        forms = list(dict.fromkeys(form for row in result[kind].values() for form in row["over_plain"]))
        rows = [
            [title, row["plain_ms"].median, *(str(row["over_plain"].get(form, "–")) for form in forms)]
            for title, row in result[kind].items()
        ]
        tables.append(render([kind, "plain ms", *forms], rows, title="over plain (quartiles)"))
    lines = [[goal["what"], round(goal["measured"], 3), goal["goal"], "met" if goal["met"] else "missed"]
             for goal in result["goals"]]  # fmt: skip
    tables.append(render(["goal", "measured", "at most", ""], lines))
    return "\n\n".join(tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few repeats of everything small; writes nothing")
    quick = parser.parse_args().quick
    steady()
    rounds, steps = (2, 1) if quick else (25, 4)
    networks = {each.title: of_network(each, rounds, steps) for each in (NETWORKS[:2] if quick else NETWORKS)}
    layers = {each.title: of_layer(each, rounds, steps) for each in (LAYERS[:2] if quick else LAYERS)}
    result = {
        "machine": machine(),
        "settings": {"p": P, "rounds": rounds, "steps": steps, "networks": [asdict(each) for each in NETWORKS]},
        "networks": networks,
        "layers": layers,
        "goals": goals(networks),
    }
    print(report(result))
    if not quick:
        print(f"\nwritten to {write('dropfilter_step', result)}")


if __name__ == "__main__":
    main()

"""What is compared with what: the parts of the evidence, each one table and one plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shrinkage.reproduce.ablations import ABLATIONS

_PENALTIES = ("lasso", "mcp", "bridge")  # SWS, steered, is the lasso
_AT_START = ("random", "snip", "grasp", "synflow")
_MOVING = ("set", "rigl", "str", "soft-topk", "movement")
_TICKETS = ("lottery-weights", "lottery-lr")
_CUTS = ("magnitude", "magnitude-tuned", "gradual")

_QUICK = ("halo", "magnitude-tuned", "gradual", "rigl", "snip", "lasso", "dense")
_SERIOUS = ("halo", "magnitude-tuned", "gradual", "rigl", "str", "soft-topk", "bridge", "snip")


@dataclass(frozen=True)
class Part:
    """One row of :data:`PARTS`.

    Attributes:
        task: one of :data:`~shrinkage.reproduce.tasks.TASKS`.
        methods: of :data:`~shrinkage.reproduce.entrants.ENTRANTS`; the first is the one that is judged.
        sparsities: shares of zeros.
        seeds: how many trainings each.
        tuning: trials to choose a method's settings by, after which each also tries what any other has chosen, so that
            none is behind for want of luck in its own trials; 0: the task's own settings for all.
        paired: at these sparsities the first method and the three best others get ``paired_seeds`` trainings.
        paired_seeds: how many.
    """

    task: str
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    seeds: int
    tuning: int
    paired: tuple[float, ...] = ()
    paired_seeds: int = 10

    @property
    def trainings(self) -> int:
        """How many there are in all, but for those with settings that others chose."""
        sparse = len(self.methods) - ("dense" in self.methods)
        table = self.seeds * (sparse * len(self.sparsities) + len(self.methods) - sparse)
        others = min(3, sparse - 1)
        return (
            self.tuning * len(self.methods) + table + len(self.paired) * (self.paired_seeds - self.seeds) * (1 + others)
        )


PARTS: Mapping[str, Part] = {
    "quick": Part("digits", _QUICK, (0.9, 0.95, 0.98), seeds=3, tuning=0),
    "mnist": Part(
        "mnist",
        ("halo", *_CUTS, *_TICKETS, *_AT_START, *_MOVING, *_PENALTIES, "halo-paper", "dense"),
        (0.9, 0.95, 0.98, 0.99, 0.995),
        seeds=5,
        tuning=8,
        paired=(0.98, 0.99, 0.995),
    ),
    "ablation": Part(
        "mnist", ("halo", *(f"halo-{name}" for name in ABLATIONS), "gradual"), (0.98, 0.99, 0.995), seeds=3, tuning=0
    ),
    "lenet-5": Part(
        "lenet-5", ("halo", "magnitude-tuned", "gradual", "rigl", "str", "snip", "dense"), (0.95, 0.98, 0.99), 3, 6
    ),
    "cnn": Part("cnn", (*_SERIOUS, "dense"), (0.9, 0.95, 0.98), seeds=3, tuning=6),
    "vit": Part("vit", (*_SERIOUS, "gradual-moment", "dense"), (0.9, 0.95, 0.98), seeds=3, tuning=8),
    "cifar10-resnet-20": Part("cifar10-resnet-20", (*_SERIOUS, "dense"), (0.95,), seeds=5, tuning=0),
    **{
        f"{data}-{model}": Part(
            f"{data}-{model}", ("halo", "magnitude", "gradual", "rigl", "dense"), (0.7, 0.85, 0.95, 0.98), 3, tuning=0
        )
        for data, model in (
            ("cifar10", "vgg-16"), ("cifar10", "resnet-50"), ("cifar100", "vgg-16"), ("cifar100", "resnet-50"),
        )
    },
}  # fmt: skip
"""The parts by the name that ``--part`` takes."""

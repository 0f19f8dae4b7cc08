"""The methods that the command line knows, by name: one row each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import nn

import shrinkage
from shrinkage.core.engine import Sparsifier
from shrinkage.core.errors import InputError
from shrinkage.core.granularity import NM, Block, Granularity, Row, Weight


@dataclass(frozen=True)
class Method:
    """One row of :data:`METHODS`.

    Attributes:
        title: its name in tables and plots.
        make: from (model, sparsity, optimiser steps, granularity) to a sparsifier; None: plain training.
        removes: what its target is a share of: ``weights``, or the parameters of a network that loses ``neurons``. With
            ``precision`` weights are from a finite set, and there is no target.
    """

    title: str
    make: Make | None
    removes: Literal["weights", "neurons", "precision"] = "weights"


class Make(Protocol):
    """Builds a sparsifier for a target: a sparsity, or None and a budget ``macs=`` on an ``example=``."""

    def __call__(
        self, model: nn.Module, sparsity: float | None, steps: int, granularity: Granularity, **budget: Any
    ) -> Sparsifier:
        """The sparsifier."""
        ...


def _living(constructor: Callable[..., Sparsifier]) -> Make:
    def make(
        model: nn.Module, sparsity: float | None, steps: int, granularity: Granularity, **budget: Any
    ) -> Sparsifier:
        # An N:M pattern fixes the sparsity by itself.
        target = None if isinstance(granularity, NM) else sparsity
        return constructor(model, sparsity=target, steps=steps, granularity=granularity, **budget)

    return make


METHODS: dict[str, Method] = {
    "halo": Method("HALO", _living(shrinkage.HALO)),
    "lasso": Method("Lasso", _living(shrinkage.Lasso)),
    "sws": Method("SWS", _living(shrinkage.SWS)),
    "mcp": Method("MCP", _living(shrinkage.MCP)),
    "bridge": Method("Bridge", _living(shrinkage.Bridge)),
    "gradual": Method("Gradual magnitude", _living(shrinkage.GradualMagnitude)),
    "set": Method("SET", _living(shrinkage.SET)),
    "rigl": Method("RigL", _living(shrinkage.RigL)),
    "str": Method("STR", _living(shrinkage.STR)),
    "soft-topk": Method("Soft top-k", _living(shrinkage.SoftTopK)),
    "movement": Method("Movement", _living(shrinkage.Movement)),
    "noiseout": Method("NoiseOut", None, removes="neurons"),
    "conntra": Method("CoNNTrA", None, removes="precision"),
    "dense": Method("Dense", None),
}
"""The methods by the name that ``--method`` takes."""


def granularity(text: str) -> Granularity:
    """Read a granularity as the command line writes it.

    Args:
        text: ``weight``, ``row`` (output rows and channels), ``block:RxC``, or ``N:M``.

    Raises:
        InputError: if it is none of these.

    >>> granularity("block:4x8")
    Block(rows=4, columns=8)
    >>> granularity("2:4")
    NM(n=2, m=4)
    """
    if text in ("weight", "row"):
        return Weight() if text == "weight" else Row()
    if match := re.fullmatch(r"block:(\d+)x(\d+)", text):
        return Block(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        return NM(int(match[1]), int(match[2]))
    raise InputError(f"granularity {text!r} is not known; use weight, row, block:4x4 (rows x columns) or 2:4 (N of M)")

"""What a run reached: the figures in ``summary.json`` and the table at the end."""

from __future__ import annotations

import dataclasses
import json
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

from shrinkage.core.tables import render
from shrinkage.training.methods import METHODS


@dataclass(frozen=True)
class Summary:
    """The figures of a run.

    Attributes:
        data, model, method, granularity: what was trained on what, and how.
        accuracy: on the test images, in percent.
        dense_accuracy: of the same network trained without the method; None if it was not.
        val_accuracy: on the held-out training images, in percent; None if none were held out.
        sparsity: zeros / weights.
        zeros: weights that are exactly zero, of those that the method works on.
        weights: how many it works on.
        parameters: of the whole network.
        nonzeros: of those, how many are not zero.
        bytes: of the network with its zeros left out, or its weights packed; ``dense_bytes`` as it was to begin with.
        macs: multiplications for one example with the zeros left out; ``dense_macs`` with them.
        macs_target: the share of them that was to be left at most; None where a sparsity was asked for.
        epochs: passes over the training images.
        seed: of all that is random.
        seconds: spent in training by the method, evaluation included.
        input_shape: of one example.
        num_classes: how many there are.
        versions: of Python and of the packages that matter to the result.
        command: what was typed.
    """

    data: str
    model: str
    method: str
    granularity: str
    accuracy: float
    dense_accuracy: float | None
    val_accuracy: float | None
    sparsity: float
    zeros: int
    weights: int
    parameters: int
    nonzeros: int
    bytes: int
    dense_bytes: int
    macs: int
    dense_macs: int
    epochs: int
    seed: int
    seconds: float
    input_shape: tuple[int, ...]
    num_classes: int
    versions: dict[str, str]
    command: str
    macs_target: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers and strings."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The same as a JSON document."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Summary:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: if it is no JSON.
            TypeError: if its keys are not those of a summary.
        """
        content = json.loads(text)
        return Summary(**{**content, "input_shape": tuple(content["input_shape"])})

    def __str__(self) -> str:
        dense = None if self.dense_accuracy is None else f"{self.dense_accuracy:.2f} %"
        rows: list[list[object]] = [
            ["test accuracy", f"{self.accuracy:.2f} %", dense],
            ["parameters", self.parameters, self.parameters],
            ["non-zeros", self.nonzeros, self.parameters],
            ["bytes", self.bytes, self.dense_bytes],
            ["MACs", self.macs, self.dense_macs],
        ]
        if self.val_accuracy is not None:
            rows.insert(1, ["validation accuracy", f"{self.val_accuracy:.2f} %", None])
        state = "gone" if METHODS[self.method].removes == "neurons" else "zero"
        title = (
            f"{self.model} on {self.data}, {self.method}: {self.sparsity:.2%} of {self.weights:,} weights are {state}"
        )
        if self.macs_target is not None:
            title += f"\n{self.macs / self.dense_macs:.2%} of the MACs are left, {self.macs_target:.2%} were asked for"
        return render(["", self.method, "dense"], rows, title=title)


def versions() -> dict[str, str]:
    """Versions of Python and of what a result depends on, as far as it is installed."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("shrinkage", "lightning", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

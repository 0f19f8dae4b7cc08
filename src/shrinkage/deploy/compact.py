"""Dead neurons and channels leave the model: plain PyTorch with smaller tensors, and the same function.

A unit is dead if nobody reads it (all its outgoing weights are zero, or lead to dead units alone), or if it is
a constant (all its incoming weights are zero, or come from constants). Constants go into the biases of those that read
them, or into the running mean of the BatchNorm behind. Where that would not be exact, as beside the zero padding of a
convolution, one constant channel stays and takes over for the others. Removing units makes others dead; what is
removed here is everything that follows.

What cannot be taken apart stays whole: features under a LayerNorm, the inside of attention heads, channels that
the model's own code counts by a fixed number. The inputs and outputs of the model keep their size, and every layer
keeps one unit at least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from shrinkage.core.errors import InputError
from shrinkage.core.footprint import Footprint, footprint
from shrinkage.core.selection import unwrap
from shrinkage.core.tables import render
from shrinkage.deploy.copies import COPIES
from shrinkage.deploy.dataflow import Flow
from shrinkage.deploy.dead import Choice, Family
from shrinkage.deploy.products import SUMS
from shrinkage.deploy.rework import Arguments, Rework, rework
from shrinkage.deploy.rules import ELEMENTS
from shrinkage.deploy.surgery import apply, refresh
from shrinkage.deploy.tracing import arguments, trace

RULES = {**ELEMENTS, **COPIES, **SUMS}


@dataclass(frozen=True)
class Size:
    """How large a layer is.

    Attributes:
        units: output neurons or channels; 0 where the layer has no weight of its own.
        parameters: entries of its own parameters.
        macs: multiply–accumulates on the example.
    """

    units: int
    parameters: int
    macs: int


@dataclass(frozen=True)
class Layer:
    """One layer before and after.

    Attributes:
        name: the module's path in the model.
        kind: the name of its class.
        before: its size in the model that was given.
        after: its size in the compacted one.
    """

    name: str
    kind: str
    before: Size
    after: Size


@dataclass(frozen=True)
class Compacted:
    """What :func:`compact` made; prints as a table.

    Attributes:
        model: the smaller model.
        layers: every layer that has parameters or multiplies, in the model's order.
        left: parameters with dead units that could not be removed, because the model's code relies on their
            size, or another would change the function.
    """

    model: nn.Module
    layers: tuple[Layer, ...]
    left: tuple[str, ...]

    @property
    def total(self) -> Layer:
        """The sum over all layers."""

        def total(sizes: list[Size]) -> Size:
            return Size(*(sum(getattr(size, key) for size in sizes) for key in ("units", "parameters", "macs")))

        before, after = [layer.before for layer in self.layers], [layer.after for layer in self.layers]
        return Layer("total", type(self.model).__name__, total(before), total(after))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the compacted model's ``state_dict``.

        :func:`~shrinkage.deploy.surgery.reshape_like` gives them to a fresh model.
        """
        return {
            name: tuple(value.shape) for name, value in self.model.state_dict().items() if isinstance(value, Tensor)
        }

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers, texts, lists and dicts, without the model."""

        def row(layer: Layer) -> dict[str, Any]:
            return {"kind": layer.kind, "before": vars(layer.before), "after": vars(layer.after)}

        return {
            "model": type(self.model).__name__,
            "layers": {layer.name: row(layer) for layer in self.layers},
            "total": row(self.total),
            "left": list(self.left),
        }

    def __str__(self) -> str:
        def row(layer: Layer) -> list[object]:
            cells: list[object] = [layer.name or "(model)", layer.kind]
            for key in ("units", "parameters", "macs"):
                before, after = getattr(layer.before, key), getattr(layer.after, key)
                cells += [before, after] if before else [None, None]
            return cells

        table = render(
            ["layer", "kind", "units", "left", "parameters", "left", "MACs", "left"],
            [*map(row, self.layers), [], row(self.total)],
            title=f"{type(self.model).__name__}, compacted",
        )
        if not self.left:
            return table
        return f"{table}\nstayed, because the model's code relies on their size: {', '.join(self.left)}"


def compact(model: nn.Module, example: Any) -> Compacted:
    """Remove dead neurons and channels, and whatever is dead without them.

    The function in evaluation mode is the same but for rounding: this is checked in double precision on the
    example and on a random input like it, and what would change it is left in the model.

    Args:
        model: any module that ``torch.export`` can trace; it is not changed. Wrappers of ``torch.compile`` and DDP are
            looked through. Its zeros may come from any method, whole rows of them or single ones.
        example: an input on the model's device: a tuple or list of positional arguments, a mapping of keyword
            arguments, or anything else as the only argument. A batch of one or two is enough.

    Returns:
        The smaller model, a copy with the same classes and parameter names, in the mode (training or evaluation)
        of the original, without gradients, and what was removed. Methods that held zeros
        through optimiser steps are attached to the original's parameters: attach
        :func:`~shrinkage.keep_zeros` anew.

    Raises:
        InputError: if the model cannot be copied or traced, does not run on the example, or gives two outputs for
            one input.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> with torch.no_grad():
    ...     _ = net[0].weight[:2].zero_()           # two neurons that are constant
    ...     _ = net[2].weight[:, 2:4].zero_()       # two that nobody reads
    >>> x = torch.randn(1, 4)
    >>> result = compact(net, x)
    >>> result.model
    Sequential(
      (0): Linear(in_features=4, out_features=2, bias=True)
      (1): ReLU()
      (2): Linear(in_features=2, out_features=2, bias=True)
    )
    >>> torch.allclose(result.model(x), net(x), atol=1e-6)
    True
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    original = unwrap(model)
    before = footprint(original, example)
    compacted, _, left = rework(original, arguments(example), _find)
    after = footprint(compacted, example)
    refresh(compacted)  # a weight that a hook computes is of its new size since the model has run
    layers = _layers(original, compacted, before, after)
    return Compacted(compacted, layers, tuple(dict.fromkeys(name for family in left for name in family.names)))


def _find(model: nn.Module, inputs: Arguments) -> Rework[Family]:
    flow = Flow(trace(model, *inputs), RULES)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):  # it counts on its sizes in many ways
            mine = {id(parameter) for parameter in module.parameters()}
            flow.fix(*(value for value in flow.sources.values() if id(value.data) in mine))
    choice = Choice(flow)
    families = choice.families()

    def make(model: nn.Module, some: Sequence[Family]) -> None:
        spared = [number for family in families if family not in some for number in family.sets]
        apply(model, choice.plan(choice.kept(spared)))

    return Rework(families, make, flow.trace.epsilon)


def _layers(original: nn.Module, compacted: nn.Module, before: Footprint, after: Footprint) -> tuple[Layer, ...]:
    def sizes(model: nn.Module, ledger: Footprint) -> Mapping[str, Size]:
        return {
            layer.name: Size(_units(model.get_submodule(layer.name)), layer.parameters, layer.macs)
            for layer in ledger.layers
        }

    old, new = sizes(original, before), sizes(compacted, after)
    gone = Size(0, 0, 0)
    return tuple(Layer(each.name, each.kind, old[each.name], new.get(each.name, gone)) for each in before.layers)


def _units(module: nn.Module) -> int:
    for name in ("out_features", "out_channels", "nf"):
        if isinstance(count := getattr(module, name, None), int):
            return count
    return 0

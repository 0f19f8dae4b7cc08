"""The sparsifier's part of a checkpoint: whose it is, and its masks at a bit a weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from shrinkage.core.errors import InputError
from shrinkage.core.hold import Held
from shrinkage.formats.bits import pack_bits, unpack_bits

FORMAT = 1


def header(method: str, config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What identifies the state: method, targets, and the tensors it belongs to."""
    return {
        "format": FORMAT,
        "method": method,
        "config": config,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
    }


def check(state: Mapping[str, Any], method: str, config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless ``state`` was taken from the same method on the same tensors with the same target."""
    if state.get("format") != FORMAT or "shapes" not in state:
        raise InputError(
            f"this is not the state of a sparsifier of this version (format {state.get('format')}, needs {FORMAT})"
        )
    if state["method"] != method:
        raise InputError(f"this is the state of {state['method']}, not of {method}")
    mine = {name: list(shape) for name, shape in shapes.items()}
    for name in [*mine, *state["shapes"]]:
        if mine.get(name) != state["shapes"].get(name):
            raise InputError(
                f"this state belongs to another model: {name!r} has units of shape "
                f"{state['shapes'].get(name, 'none')} there and {mine.get(name, 'none')} here"
            )
    for key in [*config, *state["config"]]:
        if config.get(key) != state["config"].get(key):
            raise InputError(
                f"this state was taken with {key}={state['config'].get(key)}, but here {key}={config.get(key)}; "
                "build the method with the same arguments to continue"
            )


def pack_masks(held: Mapping[str, Held]) -> dict[str, Tensor]:
    """Masks by name, eight weights a byte."""
    return {name: pack_bits(item.mask != 0) for name, item in held.items()}


def unpack_masks(packed: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`pack_masks`, shaped like the tensors of the same names."""
    return {name: unpack_bits(bits, like[name].shape) for name, bits in packed.items()}

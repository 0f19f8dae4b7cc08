"""Calls of kernels, with names in place of addresses, and the loop that makes them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from shrinkage.runtime.emit import I64, POINTER, Emit
from shrinkage.runtime.jit import Machine, function
from shrinkage.runtime.layout import address


@dataclass(frozen=True)
class At:
    """A place in a buffer.

    Attributes:
        buffer: its name.
        offset: bytes from its start.
    """

    buffer: str
    offset: int = 0


Argument = int | At | npt.NDArray[Any] | None


@dataclass(frozen=True)
class Step:
    """One call of a kernel.

    Attributes:
        text: the kernel.
        args: numbers, places in buffers, and constant arrays; None is never read.
    """

    text: str
    args: tuple[Argument, ...]


class Program:
    """Steps whose buffers have addresses; keeps what they point to.

    Args:
        steps: calls in order, each with the addresses of the buffers it names.
        host: the machine to run on.
    """

    def __init__(self, steps: Sequence[tuple[Step, Mapping[str, int]]], host: Machine) -> None:
        self._keep = [step.args for step, _ in steps]
        self._arguments = [np.array([_resolve(arg, places) for arg in step.args], np.int64) for step, places in steps]
        functions = [function(step.text, "kernel", host) for step, _ in steps]
        self._table = np.array(list(zip(functions, map(address, self._arguments), strict=True)), np.int64).reshape(
            -1, 2
        )
        self._call = np.array([address(self._table), len(steps)], np.int64)
        self._place = address(self._call)
        self._run = _driver(host)

    def __call__(self) -> None:
        """Run; other Python threads go on meanwhile."""
        self._run(self._place)

    def keep(self, buffers: object) -> None:
        """Have something live as long as the program."""
        self._buffers = buffers

    def redirect(self, step: int, argument: int, place: int) -> None:
        """Let an argument of a step be another address from now on."""
        self._arguments[step][argument] = place


def _resolve(arg: Argument, places: Mapping[str, int]) -> int:
    if isinstance(arg, At):
        return places[arg.buffer] + arg.offset
    if isinstance(arg, np.ndarray):
        return address(arg)
    return arg or 0


@cache
def _driver(host: Machine) -> Callable[[int], None]:
    """A function that calls every step of a table of (function, arguments)."""
    e = Emit("kernel", 1)
    table, count = e.argument(0), e.argument(1)
    kernel = ir.FunctionType(ir.VoidType(), [POINTER]).as_pointer()
    with e.loop(0, count) as turn:
        entry = e.add(table, e.times(turn.index, 16))
        arguments = e.b.inttoptr(e.load(e.at(entry, 8), I64), POINTER)
        e.b.call(e.b.inttoptr(e.load(entry, I64), kernel), [arguments])
    text = e.finish().replace("void (ptr)*", "ptr")
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function(text, "kernel", host))

"""What checks say with: a truth that must hold, tensors that must agree, a call that must be refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


def expect(truth: bool, message: str) -> None:
    """Raise ``AssertionError`` with ``message`` unless ``truth``."""
    if not truth:
        raise AssertionError(message)


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are now."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def differ(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names under which ``other`` holds something else."""
    return [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]


@contextmanager
def refused(kind: type[Exception], what: str, *names: object) -> Iterator[None]:
    """Expect ``kind``, with ``names`` in its message."""
    try:
        yield
    except kind as error:
        for name in names:
            expect(str(name) in str(error), f"the error on {what} does not name {name}: {error}")
    else:
        raise AssertionError(f"{what} was accepted")

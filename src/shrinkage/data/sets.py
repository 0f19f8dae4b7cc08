"""What a data set is here: tensors that hold all of it, and the two functions that make batches usable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shrinkage.core.errors import InputError

Prepare = Callable[[Tensor], Tensor]
Augment = Callable[[Tensor, torch.Generator | None], Tensor]


@dataclass(frozen=True, eq=False)
class Split:
    """Examples and their classes.

    Attributes:
        x: examples, shape (N, ...), uint8 or float32, on the CPU.
        y: classes, shape (N,), int64, from 0.

    Raises:
        InputError: if the two differ in length.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.y.shape != self.x.shape[:1]:
            raise InputError(f"{len(self.x)} examples do not match labels of shape {tuple(self.y.shape)}")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor) -> Split:
        """The examples at ``index``, in its order."""
        return Split(self.x[index], self.y[index])


@dataclass(frozen=True, eq=False)
class Data:
    """A data set split for training.

    A training batch becomes the network's input by ``prepare(augment(x, generator))``, every other
    batch by ``prepare(x)``; both run on the device the batch is on.

    Attributes:
        name: what :func:`shrinkage.data.load` was asked for.
        train: what to learn from.
        validation: held out of the training images to choose settings by, or None.
        test: the data set's own test images.
        num_classes: number of classes.
        input_shape: shape of one example, (channels, height, width).
        prepare: raw batch ``(B, *input_shape)`` to the float32 batch that the network sees.
        augment: raw batch and an optional random generator to a raw batch of the same shape and dtype,
            each image changed at random; None where the task uses no augmentation.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split
    num_classes: int
    input_shape: tuple[int, ...]
    prepare: Prepare
    augment: Augment | None = None

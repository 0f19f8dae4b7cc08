"""Batches of a data set that lies in memory, in an order that is a function of (seed, epoch) only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from shrinkage.core.errors import InputError
from shrinkage.data.sets import Split

Batch = tuple[Tensor, Tensor]


def batches(
    split: Split, batch_size: int, *, shuffle: bool, seed: int = 0, drop_last: bool = False
) -> DataLoader[Batch]:
    """Make a loader whose items are whole batches ``(x, y)``.

    The sampler yields tensors of indices and a batch is taken by one indexing operation, so nothing
    is collated example by example, and the global random state is left alone.
    ``loader.sampler.set_epoch(epoch)`` (Lightning calls it by itself) chooses the permutation, a
    function of ``seed`` and ``epoch`` only: a resumed epoch sees the batches it would have seen. A loop
    that never calls it sees the same order in every epoch.

    Args:
        split: what to iterate over.
        batch_size: examples in a batch, at least 1; the last batch may be smaller.
        shuffle: whether to permute, or keep the split's order.
        seed: non-negative; orders with different seeds are unrelated.
        drop_last: leave out a last batch that is not full.

    Raises:
        InputError: if ``batch_size`` is not a positive whole number, the seed is negative, or
            ``drop_last`` would leave no batch.

    >>> split = Split(torch.arange(10.0), torch.arange(10))
    >>> loader = batches(split, 4, shuffle=False)
    >>> [y.tolist() for x, y in loader]
    [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size must be a positive whole number, got {batch_size!r}")
    if drop_last and len(split) < batch_size:
        raise InputError(
            f"batch_size={batch_size} with drop_last leaves no batch of {len(split)} examples; choose a smaller one"
        )
    sampler = EpochSampler(len(split), batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last)
    return DataLoader(
        _Indexed(split),
        batch_size=None,
        sampler=sampler,
        collate_fn=_unchanged,
        generator=_WorkerSeeds(),
    )


def permutation(count: int, *key: int) -> Tensor:
    """A permutation of ``range(count)`` that is a function of ``key`` only; int64, on the CPU.

    Raises:
        InputError: if a part of the key is negative.
    """
    if min(key) < 0:
        raise InputError(f"a seed must not be negative, got {min(key)}")
    # Not torch.manual_seed(seed + epoch): (0, 1) and (1, 0) would be the same order.
    return torch.from_numpy(np.random.default_rng(key).permutation(count))


class EpochSampler(Sampler[Tensor]):
    """Yields index tensors, one a batch; see :func:`batches`."""

    def __init__(self, count: int, batch_size: int, *, shuffle: bool, seed: int, drop_last: bool) -> None:
        self.count = count
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0
        permutation(0, seed)  # a bad seed is an error here, not in the first epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration: ``epoch`` counts from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self.count, self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def __iter__(self) -> Iterator[Tensor]:
        order = permutation(self.count, self.seed, self.epoch) if self.shuffle else torch.arange(self.count)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size]


class _WorkerSeeds(torch.Generator):
    """Where the loader draws a seed for its workers at each epoch, which else the global generator would give.

    A plain generator cannot be sent to a spawned process.
    """

    def __reduce__(self) -> tuple[type[_WorkerSeeds], tuple[()]]:  # type: ignore[override]
        return _WorkerSeeds, ()


class _Indexed(Dataset[Batch]):
    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, index: Tensor) -> Batch:
        return self.split.x[index], self.split.y[index]


def _unchanged(batch: Any) -> Any:
    return batch

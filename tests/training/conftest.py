from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from shrinkage.training import resolve, train
from shrinkage.training.config import RunConfig
from shrinkage.training.folder import RunFolder
from shrinkage.training.summary import Summary

Quick = Callable[..., RunConfig]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def quick() -> Quick:
    """Settings of a run on digits of about a second: six epochs of 23 steps, no dense comparison."""

    def make(**options: Any) -> RunConfig:
        given = {"data": "digits", "device": "cpu", "epochs": 6, "batch_size": 64, "compare_dense": False}
        return resolve({**given, **options})

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, quick: Quick) -> tuple[RunFolder, Summary, list[str]]:
    """A complete run with the dense comparison, and what it told."""
    told: list[str] = []
    folder, summary = train(
        quick(compare_dense=True, epochs=8),
        out=tmp_path_factory.mktemp("runs"),
        command="shrinkage train <&>",
        tell=told.append,
    )
    return folder, summary, told

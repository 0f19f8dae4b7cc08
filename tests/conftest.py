"""What every test shares: one thread, fixed seeds, and no skip that nobody has agreed to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shrinkage.runtime import tuning

# A skip for any other reason fails a CI run: a missing extra must not pass for green.
AGREED_SKIPS = ("SHRINKAGE_DATA is not set", "needs a CUDA device")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _own_kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is compiled and measured stays in a folder of the tests; which kernel is fastest is of no matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHRINKAGE_CACHE", str(tmp_path_factory.mktemp("kernels")))
        patch.setattr(tuning, "RUNS", 1)
        patch.setattr(tuning, "ENOUGH", 0.0)
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Where MNIST and CIFAR lie in their standard files."""
    folder = os.environ.get("SHRINKAGE_DATA")
    if not folder:
        pytest.skip("SHRINKAGE_DATA is not set")
    return Path(folder)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if os.environ.get("CI") != "true":
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    surprises = [
        f"{report.nodeid}: {report.longrepr[-1]}"
        for report in reporter.stats.get("skipped", [])
        if not any(reason in str(report.longrepr) for reason in AGREED_SKIPS)
    ]
    if surprises:
        reporter.write_line("skipped without agreement:\n" + "\n".join(surprises), red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED

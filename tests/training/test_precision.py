from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from shrinkage.core.errors import InputError
from shrinkage.training import train


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype]:
    """The types that the network's hidden layer has come out in, while training."""
    found: set[torch.dtype] = set()

    def net(shape: tuple[int, ...], classes: int) -> nn.Module:
        class Watch(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                if self.training:
                    found.add(x.dtype)
                return x

        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), Watch(), nn.ReLU(), nn.Linear(32, classes))

    monkeypatch.setattr("shrinkage.models.registry.MODELS", {"watched": net})
    return found


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_arithmetic_has_the_precision_and_the_weights_are_float32(
    tmp_path: Path, quick: Any, seen: set[torch.dtype], precision: str, dtype: torch.dtype
) -> None:
    folder, summary = train(quick(model="watched", precision=precision), out=tmp_path, tell=lambda line: None)
    assert seen == {dtype}
    assert {tensor.dtype for tensor in load_file(folder.model).values()} == {torch.float32}
    assert summary.zeros == round(0.95 * summary.weights)
    assert summary.accuracy > 60


def test_a_precision_that_cannot_be_is_refused(quick: Any) -> None:
    with pytest.raises(InputError, match=r"precision 'bf61' is not known; did you mean 'bf16'\? \(fp32, bf16\)"):
        quick(precision="bf61")
    with pytest.raises(InputError, match="method conntra has a precision of its own"):
        quick(method="conntra", precision="bf16")

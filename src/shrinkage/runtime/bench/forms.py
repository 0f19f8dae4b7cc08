"""A network as it is handed to the engines: in memory, as the files they load, and the inputs they all get."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from shrinkage.core.errors import require
from shrinkage.deploy.export_formats import quiet, write_onnx
from shrinkage.deploy.export_inputs import Inputs, input_names, random_inputs

_CALIBRATION_BATCH, _CALIBRATION_BATCHES = 16, 4
_POOL_BYTES, _POOL_ITEMS = 2**28, 16


@dataclass(frozen=True)
class Pool:
    """Random inputs of one batch size, in both forms so that no engine pays for a conversion.

    Attributes:
        tensors: for the engines of torch.
        arrays: the same memory, for the others.
    """

    tensors: tuple[Inputs, ...]

    @cached_property
    def arrays(self) -> tuple[tuple[np.ndarray[Any, Any], ...], ...]:
        """The same memory as numpy arrays."""
        return tuple(tuple(tensor.numpy() for tensor in inputs) for inputs in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @classmethod
    def of(cls, inputs: Inputs, batch: int, seed: int) -> Pool:
        """As many as a quarter of a gigabyte holds, at least two and at most sixteen."""
        dice = torch.Generator().manual_seed(seed)
        size = batch * sum(tensor[0].nbytes for tensor in inputs)
        return cls(tuple(random_inputs(inputs, batch, dice) for _ in range(_pool_items(size))))


def _pool_items(size: int) -> int:
    return max(2, min(_POOL_ITEMS, _POOL_BYTES // max(size, 1)))


class Form:
    """A network and its files, each written when it is first asked for.

    Args:
        title: what is told of it in tables, such as ``"as trained"``.
        model: in evaluation mode, on the CPU.
        inputs: an example.
        folder: where the files go; its own.
    """

    def __init__(self, title: str, model: nn.Module, inputs: Inputs, folder: Path) -> None:
        self.title = title
        self.model = model
        self.inputs = inputs
        self.folder = folder

    @property
    def names(self) -> list[str]:
        """Of the inputs in the graph."""
        return input_names(self.model, len(self.inputs))

    @cached_property
    def onnx(self) -> Path:
        """The graph in float32, for batches of any size."""
        for module in ("onnx", "onnxscript"):
            require(module, "export")
        path = self.folder / "model.onnx"
        write_onnx(self.model, self.inputs, path, True)
        return path

    @cached_property
    def int8(self) -> Path:
        """The same with weights and activations of 8 bits, by the quantisation of ONNX Runtime.

        Weights have a scale for every output channel; those of the activations come from random inputs.
        """
        quantization = require("onnxruntime.quantization", "export")
        shape_inference = require("onnxruntime.quantization.shape_inference", "export")
        prepared, path = self.folder / "prepared.onnx", self.folder / "int8.onnx"
        with quiet():
            shape_inference.quant_pre_process(self.onnx, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                path,
                _Calibration(self.names, self.inputs),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        return path

    @cached_property
    def dense_bytes(self) -> int:
        """Of the ``state_dict`` as a plain file."""
        tensors = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        return len(safetensors.torch.save(tensors))

    @cached_property
    def sparse_bytes(self) -> int:
        """Of the file that :func:`shrinkage.save` writes."""
        from shrinkage.deploy.files import save

        path = self.folder / "model.safetensors"
        save(self.model, path)
        return path.stat().st_size


class _Calibration:
    """Random inputs, one after the other, as the quantisation asks for them."""

    def __init__(self, names: list[str], inputs: Inputs) -> None:
        self._batches = self._draw(names, inputs)

    @staticmethod
    def _draw(names: list[str], inputs: Inputs) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        dice = torch.Generator().manual_seed(0)
        for _ in range(_CALIBRATION_BATCHES):
            drawn = random_inputs(inputs, _CALIBRATION_BATCH, dice)
            yield {name: tensor.numpy() for name, tensor in zip(names, drawn, strict=True)}

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        return next(self._batches, None)

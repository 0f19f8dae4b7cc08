"""The files that :func:`~shrinkage.deploy.export.export` writes, and the runtimes that read them back."""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.core.errors import InputError, require
from shrinkage.deploy.export_inputs import Inputs, input_names, numbered, outputs

Run = Callable[[Inputs], list[Tensor]]

_LARGEST_ONNX = 2**31 - 2**20  # a protocol buffer ends at 2 GiB; the graph around the weights takes little

DENSE_RUNTIME = (
    "Zeros alone do not make this runtime faster: it multiplies by them like by any other number. What does is\n"
    "compaction, which takes emptied neurons and channels out, or an engine that skips zeros (shrinkage.runtime)."
)


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        title: what people call it.
        suffix: how the file's name ends.
        runtime: the distribution that runs it, for its version.
        needs: modules that must be there, each with the extra that brings it.
        write: (model, inputs, path, dynamic) writes the file; further ones it consists of lie beside it.
        load: (path, model) reads it in its runtime and gives a function from inputs to outputs.
        note: what is to be known about speed.
    """

    title: str
    suffix: str
    runtime: str
    needs: tuple[tuple[str, str], ...]
    write: Callable[[nn.Module, Inputs, Path, bool], None]
    load: Callable[[Path, nn.Module], Run]
    note: str

    @property
    def version(self) -> str:
        """The runtime's name and version."""
        return f"{self.runtime} {metadata.version(self.runtime)}"

    def check(self) -> None:
        """Raise MissingExtra if a package is not there."""
        for module, extra in self.needs:
            require(module, extra)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters and compilers tell of their own insides off the terminal; errors are still raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)  # of two inputs
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def write_onnx(model: nn.Module, inputs: Inputs, path: Path, dynamic: bool) -> None:
    """Write one ``.onnx`` file with the weights inside.

    Raises:
        InputError: if the weights are too many for one file.
    """
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > _LARGEST_ONNX:
        raise InputError(
            f"an ONNX file holds at most 2 GiB, the weights of {type(model).__name__} take {size:,} bytes; "
            "use to='openvino' or to='torch-export'"
        )
    _write_onnx(model, inputs, path, dynamic, beside=False)


def _write_onnx(model: nn.Module, inputs: Inputs, path: Path, dynamic: bool, *, beside: bool) -> None:
    """``beside`` puts the weights into a second file, which torch does of its own accord unless told not to."""
    inputs, shapes = _traced(inputs, dynamic)
    given = model(*inputs)
    names = [*map(str, given)] if isinstance(given, Mapping) else numbered("output", len(outputs(given)))
    with quiet():
        program = torch.onnx.export(
            model,
            inputs,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=input_names(model, len(inputs)),
            output_names=names,
            verbose=False,
        )
        assert program is not None
        _forget_origin(program.model.graph)
        program.save(path, external_data=beside)


def _forget_origin(graph: Any) -> None:
    """Drop what is noted about the lines of Python behind every node: it grows the file and tells of this machine."""
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


def write_torch_export(model: nn.Module, inputs: Inputs, path: Path, dynamic: bool) -> None:
    """Write one ``.pt2`` file that :func:`torch.export.load` reads without the model's code."""
    inputs, shapes = _traced(inputs, dynamic)
    with quiet():
        program = torch.export.export(model, inputs, dynamic_shapes=shapes)
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)  # lines of Python with the paths of this machine
        torch.export.save(program, path)


def write_openvino(model: nn.Module, inputs: Inputs, path: Path, dynamic: bool) -> None:
    """Write an ``.xml`` file with the graph and a ``.bin`` file with the weights, as float32."""
    openvino = require("openvino", "openvino")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        between = Path(folder) / "model.onnx"
        _write_onnx(model, inputs, between, dynamic, beside=True)
        graph = openvino.Core().read_model(between)
        openvino.save_model(graph, path, compress_to_fp16=False)  # the default rounds the weights


def write_safetensors(model: nn.Module, inputs: Inputs, path: Path, dynamic: bool) -> None:
    """Write the small file of :func:`shrinkage.save`."""
    from shrinkage.deploy.files import save

    save(model, path)


def load_onnx(path: Path, model: nn.Module) -> Run:
    """A session of ONNX Runtime with as many threads as torch has."""
    ort = require("onnxruntime", "export")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(inputs: Inputs) -> list[Tensor]:
        arrays = [tensor.numpy() for tensor in inputs]
        return [torch.from_numpy(each) for each in session.run(None, dict(zip(names, arrays, strict=True)))]

    return run


def load_torch_export(path: Path, model: nn.Module) -> Run:
    """The program as a module."""
    with quiet():
        module = torch.export.load(path).module()
    return lambda inputs: outputs(module(*inputs))


def load_openvino(path: Path, model: nn.Module) -> Run:
    """The graph compiled for the CPU, in float32 even where the processor has a faster, coarser type."""
    openvino = require("openvino", "openvino")
    threads = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", threads)
    return lambda inputs: [
        torch.from_numpy(each.copy()) for each in compiled([tensor.numpy() for tensor in inputs]).values()
    ]


def load_safetensors(path: Path, model: nn.Module) -> Run:
    """A copy of the model with every number blotted out, then filled from the file."""
    from shrinkage.deploy.files import load

    module = copy.deepcopy(model)
    for tensor in module.state_dict().values():
        tensor.fill_(0)
    load(path, module)
    return lambda inputs: outputs(module(*inputs))


def _traced(inputs: Inputs, dynamic: bool) -> tuple[Inputs, Any]:
    """What to trace with: torch takes a batch of one for a constant, so that one is doubled."""
    if not dynamic:
        return inputs, None
    if inputs[0].shape[0] == 1:
        inputs = tuple(torch.cat([tensor, tensor]) for tensor in inputs)
    batch = torch.export.Dim("batch")
    return inputs, tuple({0: batch} for _ in inputs)


FORMATS = {
    "onnx": Format(
        "ONNX",
        ".onnx",
        "onnxruntime",
        (("onnx", "export"), ("onnxscript", "export"), ("onnxruntime", "export")),
        write_onnx,
        load_onnx,
        DENSE_RUNTIME,
    ),
    "safetensors": Format(
        "safetensors",
        ".safetensors",
        "safetensors",
        (),
        write_safetensors,
        load_safetensors,
        "The zeros are left out of the file; loading puts them back, and the network computes as before.",
    ),
    "torch-export": Format("torch.export", ".pt2", "torch", (), write_torch_export, load_torch_export, DENSE_RUNTIME),
    "openvino": Format(
        "OpenVINO IR",
        ".xml",
        "openvino",
        (("onnx", "openvino"), ("onnxscript", "openvino"), ("openvino", "openvino")),
        write_openvino,
        load_openvino,
        DENSE_RUNTIME,
    ),
}
"""The kinds of file, by the name that ``to=`` takes."""

"""The engines, each set up as its makers intend for speed.

All have the same threads, shapes fixed to the batch at hand where the engine can use that, and buffers of their own
into which inputs are copied where that is faster than handing new ones over. What they return may be overwritten by
the next call.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from shrinkage.core.errors import ShrinkageError, require
from shrinkage.deploy.export_formats import quiet
from shrinkage.runtime.bench.forms import Form, Pool


class NotHere(ShrinkageError):
    """An engine cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Ready:
    """An engine with a network in it.

    Attributes:
        run: computes on the pool's item of that number; gives tensors or arrays, alone or in lists.
        bytes: of the file it was, or could be, loaded from.
    """

    run: Callable[[int], Any]
    bytes: int


@dataclass(frozen=True)
class Engine:
    """One way of running a network.

    Attributes:
        key: how it is chosen.
        title: how it is called in tables.
        precision: of its arithmetic: ``"fp32"`` stands for the network's own type.
        rival: whether it is a maintained dense engine in the network's own type, of which the fastest is
            what others are measured against.
        make: (form, pool, threads) sets it up.
    """

    key: str
    title: str
    precision: str
    rival: bool
    make: Callable[[Form, Pool, int], Ready]


def eager(form: Form, pool: Pool, threads: int) -> Ready:
    """PyTorch as the model is written: no rival, only the reference for the outputs."""
    model = form.model
    return Ready(lambda item: model(*pool.tensors[item]), form.dense_bytes)


def inductor(form: Form, pool: Pool, threads: int) -> Ready:
    """``torch.compile`` for one shape, with the weights as constants."""
    from torch._inductor import config

    with quiet(), config.patch(freezing=True):
        compiled = torch.compile(_own_code(form.model), dynamic=False)
        for inputs in pool.tensors[:2]:
            compiled(*inputs)
    return Ready(lambda item: compiled(*pool.tensors[item]), form.dense_bytes)


def aot_inductor(form: Form, pool: Pool, threads: int) -> Ready:
    """The same compiler ahead of time: a shared library in a file, without Python's guards around it."""
    import torch._inductor as compiler

    path = form.folder / f"batch-{len(pool.tensors[0][0])}-threads-{threads}.pt2"
    with quiet(), compiler.config.patch(freezing=True):
        program = torch.export.export(form.model, pool.tensors[0])
        compiler.aoti_compile_and_package(program, package_path=str(path))
        package: Any = compiler.aoti_load_package(str(path))
    return Ready(lambda item: package(*pool.tensors[item]), path.stat().st_size)


def onnxruntime(form: Form, pool: Pool, threads: int) -> Ready:
    """ONNX Runtime, every optimisation of graphs, in float32."""
    return _onnxruntime(form.onnx, form, pool, threads)


def onnxruntime_int8(form: Form, pool: Pool, threads: int) -> Ready:
    """ONNX Runtime on the network of 8 bits."""
    return _onnxruntime(form.int8, form, pool, threads)


def _onnxruntime(path: Any, form: Form, pool: Pool, threads: int) -> Ready:
    ort = require("onnxruntime", "export")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    first = dict(zip(form.names, pool.arrays[0], strict=True))
    given = {name: ort.OrtValue.ortvalue_from_numpy(array.copy()) for name, array in first.items()}
    for name, value in given.items():
        binding.bind_ortvalue_input(name, value)
    results = []
    for output, array in zip(session.get_outputs(), session.run(None, first), strict=True):
        results.append(ort.OrtValue.ortvalue_from_numpy(array))
        binding.bind_ortvalue_output(output.name, results[-1])
    buffers = list(given.values())

    def run(item: int) -> list[Any]:
        for buffer, array in zip(buffers, pool.arrays[item], strict=True):
            buffer.update_inplace(array)
        session.run_with_iobinding(binding)
        return [result.numpy() for result in results]

    return Ready(run, path.stat().st_size)


def openvino(form: Form, pool: Pool, threads: int) -> Ready:
    """OpenVINO tuned for latency, kept to float32."""
    return _openvino(form.onnx, form, pool, threads, "f32")


def openvino_bf16(form: Form, pool: Pool, threads: int) -> Ready:
    """The same in bfloat16, which is OpenVINO's own choice where the processor has it."""
    if "BF16" not in require("openvino", "openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise NotHere("the processor has no instructions for bfloat16")
    return _openvino(form.onnx, form, pool, threads, "bf16")


def openvino_int8(form: Form, pool: Pool, threads: int) -> Ready:
    """OpenVINO on the network of 8 bits."""
    return _openvino(form.int8, form, pool, threads, "f32")


def _openvino(path: Any, form: Form, pool: Pool, threads: int, precision: str) -> Ready:
    ov = require("openvino", "openvino")
    core = ov.Core()
    graph = core.read_model(path)
    graph.reshape({name: list(array.shape) for name, array in zip(form.names, pool.arrays[0], strict=True)})
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = core.compile_model(graph, "CPU", options).create_infer_request()
    buffers = [request.get_tensor(name).data for name in form.names]
    results = [request.get_tensor(port).data for port in request.model_outputs]

    def run(item: int) -> list[Any]:
        for buffer, array in zip(buffers, pool.arrays[item], strict=True):
            np.copyto(buffer, array)
        request.infer(share_outputs=True)
        return results

    return Ready(run, path.stat().st_size)


def own(form: Form, pool: Pool, threads: int) -> Ready:
    """This library's engine, which skips zeros."""
    from shrinkage import runtime

    inputs = pool.tensors[0]
    engine: Any = runtime.compile(form.model, inputs[0] if len(inputs) == 1 else inputs, threads=threads)
    return Ready(lambda item: engine(*pool.arrays[item]), form.sparse_bytes)


def _own_code(model: nn.Module) -> Callable[..., Any]:
    """The model behind a function with a code object of its own.

    torch keeps what it compiled with the code, so that models of one class would share a list, be tried one after the
    other at each call, and from the eighth on not be compiled at all.
    """

    def forward(*inputs: torch.Tensor) -> Any:
        return model(*inputs)

    code = forward.__code__.replace(co_name=f"forward_{id(model)}")
    return types.FunctionType(code, globals(), code.co_name, None, forward.__closure__)


ENGINES = {
    engine.key: engine
    for engine in (
        Engine("eager", "PyTorch eager", "fp32", False, eager),
        Engine("inductor", "inductor", "fp32", True, inductor),
        Engine("aot-inductor", "AOTInductor", "fp32", True, aot_inductor),
        Engine("onnxruntime", "ONNX Runtime", "fp32", True, onnxruntime),
        Engine("openvino", "OpenVINO", "fp32", True, openvino),
        Engine("openvino-bf16", "OpenVINO", "bf16", False, openvino_bf16),
        Engine("onnxruntime-int8", "ONNX Runtime", "int8", False, onnxruntime_int8),
        Engine("openvino-int8", "OpenVINO", "int8", False, openvino_int8),
        Engine("shrinkage", "shrinkage", "fp32", False, own),
    )
}
"""All engines, by the name they are chosen by."""

"""Dense engines, for models that they run faster than sparse kernels do."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shrinkage.core.evaluation import evaluating
from shrinkage.core.selection import unwrap
from shrinkage.deploy.export_formats import quiet, write_onnx
from shrinkage.runtime.graph import Graph

_SPARSE_ENOUGH = 0.15
"""Below this share of the dense multiply–accumulates the sparse kernels have always won; no race is run."""

_LOG = logging.getLogger(__name__)


@dataclass
class Handover:
    """A whole model in a dense engine.

    Attributes:
        name: of the engine.
        run: arrays in the order of the model's inputs to arrays in the order of its outputs.
        graph: says how calls are taken apart and outputs put together.
    """

    name: str
    run: Callable[[list[Any]], list[Any]]
    graph: Graph

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output; arrays in give arrays out."""
        arrays = any(isinstance(value, np.ndarray) for value in (*args, *kwargs.values()))

        def tensor(value: Any) -> Any:
            return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value

        tensors = self.graph.flatten_inputs(
            tuple(tensor(value) for value in args), {key: tensor(value) for key, value in kwargs.items()}
        )
        outputs = self.run([value.detach().numpy() for value in tensors])
        return self.graph.rebuild([value if arrays else torch.from_numpy(value) for value in outputs])


def fastest_dense(
    model: nn.Module,
    graph: Graph,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    engine: Callable[..., Any],
    threads: int,
) -> Handover | None:
    """The dense engine that is faster than ``engine`` on these arguments, if one is."""
    if kwargs or _flops_density(graph) < _SPARSE_ENOUGH:
        return None
    network = unwrap(model)
    inputs = [value.numpy() for value in graph.flatten_inputs(args, kwargs)]
    best, winner = _seconds(lambda: engine(*args)), None
    for name, package, make in (("OpenVINO", "openvino", _openvino), ("ONNX Runtime", "onnxruntime", _onnxruntime)):
        if importlib.util.find_spec(package) is None:
            continue
        try:
            with evaluating(network), warnings.catch_warnings(), quiet():
                warnings.simplefilter("ignore")
                run = make(network, args, threads)
            candidate = Handover(name, run, graph)
            wanted = engine(*args)
            same = _same(candidate(*args), wanted)
            seconds = _seconds(lambda run=run: run(inputs))  # type: ignore[misc]
        except Exception as error:  # whatever another library raises: it only means that it does not take part
            _LOG.info("%s cannot run this model: %s", name, error)
            continue
        if same and seconds < best:
            best, winner = seconds, candidate
    return winner


def _flops_density(graph: Graph) -> float:
    kept = dense = 0
    for node in graph.nodes.values():
        if node.weight is not None and node.op in ("conv", "linear"):
            uses = int(np.prod(node.shape[1:])) // node.weight.shape[0]
            kept += int(np.count_nonzero(node.weight)) * uses
            dense += node.weight.size * uses
    return kept / dense if dense else 1.0


def _seconds(run: Callable[[], Any]) -> float:
    best, runs, spent = float("inf"), 0, 0.0
    while runs < 4 or (spent < 0.2 and runs < 100):
        start = time.perf_counter()
        run()
        took = time.perf_counter() - start
        best, runs, spent = min(best, took), runs + 1, spent + took
    return best


def _same(one: Any, other: Any) -> bool:
    a, b = (torch.utils._pytree.tree_leaves(value) for value in (one, other))
    return len(a) == len(b) and all(
        torch.allclose(x, y, rtol=1e-3, atol=1e-4 * float(y.abs().max()))
        for x, y in zip(a, b, strict=True)
        if isinstance(y, Tensor)
    )


def _openvino(model: nn.Module, args: tuple[Any, ...], threads: int) -> Callable[[list[Any]], list[Any]]:
    import openvino as ov

    network = ov.convert_model(model, example_input=args)
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
    }
    compiled: dict[tuple[tuple[int, ...], ...], Any] = {}

    def run(inputs: list[Any]) -> list[Any]:
        shapes = tuple(value.shape for value in inputs)
        if shapes not in compiled:  # a fixed shape is faster
            fixed = network.clone()
            fixed.reshape({port: list(shape) for port, shape in zip(fixed.inputs, shapes, strict=True)})
            compiled[shapes] = ov.Core().compile_model(fixed, "CPU", options).create_infer_request()
        results = compiled[shapes].infer(inputs, share_inputs=True)
        return [results[i] for i in range(len(results))]

    return run


def _onnxruntime(model: nn.Module, args: tuple[Any, ...], threads: int) -> Callable[[list[Any]], list[Any]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(model, args, path, dynamic=True)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda inputs: list(session.run(None, dict(zip(names, inputs, strict=True))))

"""The engine: a network compiled for the processor at hand."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shrinkage.core.errors import InputError
from shrinkage.runtime.choose import leave_dense
from shrinkage.runtime.evaluate import Values, bind
from shrinkage.runtime.files import Tuned, read_engine, write_engine
from shrinkage.runtime.graph import Graph, Node
from shrinkage.runtime.handover import Handover, fastest_dense
from shrinkage.runtime.jit import Machine, machine
from shrinkage.runtime.partition import Region, fuse_sums, partition
from shrinkage.runtime.plan import EnginePlan, PlannedLayer
from shrinkage.runtime.runner import Floats, Runner
from shrinkage.runtime.simplify import simplify
from shrinkage.runtime.trace import call_arguments, trace

_FLOAT = np.dtype(np.float32)

Stage = Runner | tuple[Node, Callable[[Values], Any]]


class Engine:
    """A compiled network: call it as the model is called, with tensors or NumPy arrays.

    Arrays in give arrays out. Any batch size will do that the model takes; one of another order than the
    example's is tuned when it first comes. One engine serves one caller at a time.

    Made by :func:`compile` and :func:`load`.

    Attributes:
        threads: how many work at once.
    """

    def __init__(self, graph: Graph, threads: int, host: Machine, tuned: Mapping[str, Tuned] | None = None) -> None:
        self._graph, self._host = graph, host
        self.threads = threads
        self._stages: list[Stage] = []
        for part in partition(graph):
            if isinstance(part, Region):
                known = (tuned or {}).get(part.name, Tuned({}, {}))
                self._stages.append(Runner(part, threads, host, dict(known.timings), dict(known.levels)))
            else:
                self._stages.append((part, bind(part)))
        self._done = self._last_uses()
        self._others: dict[str, float] = {}  # seconds of the nodes that PyTorch computes
        self._handover: Handover | None = None
        self._plain = self._only_region()
        self._direct: dict[tuple[int, ...], Callable[[Floats], Floats]] = {}  # by the input's shape

    def _last_uses(self) -> list[list[str]]:
        """For each stage the values that none after it needs."""
        last: dict[str, int] = {}
        for i, stage in enumerate(self._stages):
            for name in stage.region.inputs if isinstance(stage, Runner) else stage[0].inputs:
                last[name] = i
        for name in self._graph.outputs:
            last[name] = len(self._stages)
        return [[name for name, i in last.items() if i == stage] for stage in range(len(self._stages))]

    def _only_region(self) -> tuple[Runner, str, tuple[int, ...], str, tuple[int, ...]] | None:
        """Where one region from one input to one output is all there is: it, and the shapes of an item."""
        graph = self._graph
        if len(self._stages) != 1 or len(graph.inputs) != 1 or not graph.output_spec.is_leaf():
            return None
        (runner,), (given,), (result,) = self._stages, graph.inputs, graph.outputs
        if not isinstance(runner, Runner) or runner.region.rows or graph.batch_range != (1, None) or graph.static_batch:
            return None
        return runner, given, graph.nodes[given].shape[1:], result, graph.nodes[result].shape[1:]

    # -------------------------------------------------------------------- calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output.

        Raises:
            InputError: if the call is not of the example's form, or a tensor has another shape (but for
                the batch) or type.
        """
        if self._handover is not None:
            return self._handover(*args, **kwargs)
        if self._plain is not None and len(args) == 1 and not kwargs:
            quick = self._quick(args[0])
            if quick is not None:
                return quick
        arrays = False

        def tensor(value: Any) -> Any:
            nonlocal arrays
            if isinstance(value, np.ndarray):
                arrays = True
                return torch.from_numpy(np.ascontiguousarray(value))
            return value

        values = self._run(
            tuple([tensor(value) for value in args]), {key: tensor(value) for key, value in kwargs.items()}
        )
        if arrays:
            values = [value.numpy() if isinstance(value, Tensor) else value for value in values]
        return self._graph.rebuild(values)

    def _quick(self, x: Any) -> Any:
        """The same for the simplest models and calls, without the bookkeeping; None for others."""
        assert self._plain is not None
        array = x if type(x) is np.ndarray else x.detach().numpy() if isinstance(x, Tensor) and x.is_cpu else None
        if array is None or array.dtype != _FLOAT or array.size == 0:
            return None
        direct = self._direct.get(array.shape)
        if direct is None:
            runner, given, shape, result, out = self._plain
            if array.shape[1:] != shape:
                return None
            found = (len(array), *out)
            direct = runner.direct(array.shape, found)
            if direct is None:

                def direct(array: Floats) -> Floats:
                    return runner({given: np.ascontiguousarray(array)})[result].reshape(found)

            self._direct[array.shape] = direct
        value = direct(array)
        return value if array is x else torch.from_numpy(value)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], clock: dict[str, float] | None = None) -> list[Any]:
        tensors = self._graph.flatten_inputs(args, kwargs)
        values: dict[str, Any] = dict(zip(self._graph.inputs, tensors, strict=True))
        with torch.no_grad():
            for stage, done in zip(self._stages, self._done, strict=True):
                if isinstance(stage, Runner):
                    self._region(stage, values)
                else:
                    start = time.perf_counter()
                    values[stage[0].name] = stage[1](values)
                    if clock is not None:
                        clock[stage[0].name] = time.perf_counter() - start
                for name in done:
                    del values[name]
        return [values[name] for name in self._graph.outputs]

    def _region(self, runner: Runner, values: dict[str, Any]) -> None:
        region = runner.region
        first = values[region.inputs[0]]
        lead = first.shape[:-1] if region.rows else first.shape[:1]
        items = lead.numel()
        inputs = {name: values[name].detach().contiguous().numpy().reshape(items, -1) for name in region.inputs}
        for name, output in runner(inputs).items():
            values[name] = torch.from_numpy(output).reshape(*lead, *self._graph.nodes[name].shape[len(lead) :])

    # --------------------------------------------------------------------- plan

    @property
    def plan(self) -> EnginePlan:
        """How each layer is computed, for a batch of the example's size."""
        graph = self._graph
        batch = next((n.shape[0] for n in graph.nodes.values() if n.op == "input" and n.attrs["batch"]), 1)
        layers = []
        for stage in self._stages:
            if isinstance(stage, Runner):
                layers += self._planned(stage)
            else:
                node = stage[0]
                seconds = self._others.get(node.name)
                if node.dtype.is_floating_point and node.shape:  # not the arithmetic of sizes
                    share = None if seconds is None else seconds / batch
                    layers.append(_planned_layer(node, node.shape[1:], "PyTorch", None, share, batch))
        name = None if self._handover is None else self._handover.name
        return EnginePlan(self._host.name, self.threads, batch, tuple(layers), name)

    def _planned(self, runner: Runner) -> list[PlannedLayer]:
        region = runner.region
        example = self._graph.nodes[region.nodes[0].name].shape
        items = int(np.prod(example[:-1])) if region.rows else example[0]
        size = max(piece.size for share in runner.pieces(items) for piece in share)
        plan = runner.plan(size)
        layers = []
        for node in region.nodes:
            if node.op == "flatten":
                continue
            side = plan.sizes[plan.level[node.name]]
            way = plan.way.get(node.name)
            seconds = runner.timings[side][node.name].seconds
            per_batch = items / example[0]
            shape = self._graph.nodes[node.name].shape[1:]
            layers.append(_planned_layer(node, shape, str(way or "vector"), side, seconds * per_batch, 1))
        return layers

    # -------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the engine to a file, with what was measured: on a machine like this it is not tuned again.

        Raises:
            InputError: if a part that runs through PyTorch cannot be written down.
        """
        tuned = {
            stage.region.name: Tuned(stage.timings, stage.levels) for stage in self._stages if isinstance(stage, Runner)
        }
        write_engine(path, self._graph, tuned, self._host)


def compile(model: nn.Module, example: Any, *, threads: int = 1, dense: bool = True) -> Engine:
    """Compile a network with zeros in its weights for fast inference on the processor at hand.

    The model is traced in evaluation mode with its weights as they are; BatchNorm is folded, activations and residual
    sums are fused. For each convolution and linear layer several sparse kernels are made and measured, and the
    fastest is kept; what has no kernel runs through PyTorch, and so does a layer with few zeros where that is faster.
    ``print(engine.plan)`` shows it all. Kernels and measurements are cached (``SHRINKAGE_CACHE``, or the user's cache
    folder), so that the same network compiles in a moment next time.

    Args:
        model: float32, on the CPU.
        example: an input: a tensor, a tuple of positional or a mapping of keyword arguments, with the batch on axis 0
            and of the size that matters most.
        threads: how many work at once, each on its part of the batch; at least 1. A batch of one is for one.
        dense: where many weights are not zero, race OpenVINO and ONNX Runtime, as far as they are
            installed, and hand the model to one that is faster.

    Raises:
        InputError: if the model cannot be traced, has weights that are not finite or not float32, or the
            processor is of a kind that no kernel is known for.
        MissingExtra: if llvmlite is not installed.

    >>> net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> for layer in (net[0], net[2]):
    ...     layer.weight.data *= torch.rand_like(layer.weight) < 0.1
    >>> engine = compile(net, torch.zeros(1, 64))
    >>> x = torch.randn(5, 64)
    >>> torch.allclose(engine(x), net(x), atol=1e-6)
    True
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise InputError(f"threads must be a whole number of at least 1, got {threads!r}")
    host = machine()
    args, kwargs = call_arguments(example)
    graph = simplify(trace(model, example))
    graph = fuse_sums(leave_dense(graph, graph.flatten_inputs(args, kwargs), host))
    engine = Engine(graph, threads, host)
    engine._run(args, kwargs)  # tunes
    engine._run(args, kwargs, engine._others)
    if dense:
        engine._handover = fastest_dense(model, graph, args, kwargs, engine, threads)
    return engine


def load(path: str | os.PathLike[str], *, threads: int = 1) -> Engine:
    """An engine from the file that :meth:`Engine.save` wrote.

    On a machine of another kind than it was written on, it is tuned anew when it is first called.

    Raises:
        FileError: if the file is damaged or not of an engine.
    """
    host = machine()
    graph, tuned = read_engine(path, host)
    return Engine(graph, threads, host, tuned)


def _planned_layer(
    node: Node, shape: tuple[int, ...], kernel: str, side: int | None, seconds: float | None, batch: int
) -> PlannedLayer:
    density = gflops = None
    if node.weight is not None and node.op in ("conv", "linear"):
        count = int(np.count_nonzero(node.weight))
        density = count / node.weight.size
        uses = int(np.prod(shape)) // node.weight.shape[0]
        gflops = None if not seconds else 2e-9 * count * uses / seconds
    extra = (["sum"] if node.op in ("conv", "linear") and len(node.inputs) == 2 else []) + (
        [node.activation] if node.activation else []
    )
    operation = " + ".join([node.op if node.op != "torch" else str(node.attrs["target"]), *extra])
    return PlannedLayer(node.label, operation, shape, density, kernel, side, seconds, gflops)

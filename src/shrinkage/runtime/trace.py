"""From a PyTorch model to a graph, by ``torch.export``."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils import _pytree as pytree

from shrinkage.core.errors import InputError
from shrinkage.core.evaluation import evaluating
from shrinkage.core.selection import unwrap
from shrinkage.runtime.evaluate import evaluate
from shrinkage.runtime.graph import Graph
from shrinkage.runtime.program import to_graph

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def trace(model: nn.Module, example: Any) -> Graph:
    """Record what a model computes in evaluation mode, with its weights as they are now.

    The model is left as it was; its weights are copied. The size of the batch is free where the model allows it:
    where an export with a free size exists and computes what the model does at another size than the example's.

    Args:
        model: float32 parameters and buffers, on the CPU; wrappers of ``torch.compile`` and DDP are looked through.
        example: an input: a tuple or list of positional arguments, a mapping of keyword arguments, or anything else as
            the only argument. Axis 0 of a tensor is the batch where it has the size it has in the first one.

    Raises:
        InputError: if the model cannot run on the example, or does what cannot be recorded (such as a branch
            that depends on values), or has parameters of another type or device, or ones that are not finite.

    >>> graph = trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.ReLU()), torch.zeros(1, 3, 4))
    >>> [node.op for node in graph.nodes.values()]
    ['input', 'flatten', 'linear', 'activation']
    """
    model = unwrap(model)
    call = call_arguments(example)
    _check_weights(model)
    _check_example(call)
    with _undisturbed(model):
        graph = _with_free_batch(model, call)
        if graph is not None:
            return graph
        try:
            return to_graph(_export(model, call), call)
        except InputError:
            raise
        except Exception as error:  # export may raise anything
            raise InputError(_why(model, call, error)) from error


def call_arguments(example: Any) -> Arguments:
    """Positional and keyword arguments that an example stands for.

    >>> call_arguments([1, 2]), call_arguments({"x": 1}), call_arguments(1)
    (((1, 2), {}), ((), {'x': 1}), ((1,), {}))
    """
    if isinstance(example, Mapping):
        return (), dict(example)
    if type(example) in (tuple, list):  # not a named tuple: that is one argument
        return tuple(example), {}
    return (example,), {}


# ------------------------------------------------------------------ the batch


def _with_free_batch(model: nn.Module, call: Arguments) -> Graph | None:
    """The graph for any batch size, or None if there is none to be trusted."""
    batch = _batch(call)
    if batch < 1:
        return None
    wide = _resize(call, max(2, batch))  # export takes a size of one for a constant
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf in pytree.tree_leaves(wide):
        if _has_batch(leaf, max(2, batch)):
            shapes[leaf] = {0: Dim.AUTO}
    try:
        program = _export(model, wide, shapes)
    except Exception:  # export may raise anything
        return None
    try:
        graph = to_graph(program, call)
    except RuntimeError:  # an operation fails on a batch of one
        return None
    if graph.static_batch:
        return None
    # Export does not promise anything for a batch of one, and drops conditions such as "an even batch".
    low, high = graph.batch_range
    other = 3 if batch != 3 else 4
    if low <= other <= (high or other) and not _agrees(model, graph, _resize(call, other)):
        return None
    if low == 2 and _agrees(model, graph, _resize(call, 1)):
        low = 1
    graph.batch_range = (low, high)
    return graph if batch >= low else None


def _agrees(model: nn.Module, graph: Graph, call: Arguments) -> bool:
    args, kwargs = call
    limits, graph.batch_range = graph.batch_range, (1, None)
    try:
        got = pytree.tree_leaves(evaluate(graph, *args, **kwargs))
        wanted = pytree.tree_leaves(model(*args, **kwargs))  # after the graph, as the model may change its inputs
        return len(wanted) == len(got) and all(map(_close, wanted, got))
    except Exception:  # models may raise anything
        return False
    finally:
        graph.batch_range = limits


def _close(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point() or not a.numel():
        return torch.equal(a, b)
    scale = float(a.abs().nan_to_num(0, 0, 0).amax())
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)


def _batch(call: Arguments) -> int:
    return next((leaf.shape[0] for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor) and leaf.dim()), 0)


def _has_batch(leaf: Any, batch: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch


def _resize(call: Arguments, size: int) -> Arguments:
    """A copy of the call with a batch of another size: rows left out or repeated."""
    batch = _batch(call)

    def resize(leaf: Any) -> Any:
        if _has_batch(leaf, batch):
            return leaf[torch.arange(size) % batch]
        return leaf.clone() if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(resize, call)  # type: ignore[no-any-return]


# ------------------------------------------------------------------ export


def _export(model: nn.Module, call: Arguments, shapes: ShapesCollection | None = None) -> ExportedProgram:
    """The exported program, in which no operation changes its inputs and layers stay whole."""
    args, kwargs = call
    with _quiet():
        program = torch.export.export(_naming(model, kwargs), args, kwargs, dynamic_shapes=shapes, strict=False)  # type: ignore[arg-type]
        without_changes: ExportedProgram = program.run_decompositions({})
    return without_changes


def _naming(model: nn.Module, kwargs: Mapping[str, Any]) -> nn.Module:
    """The model, or one with the same contents whose ``forward`` names every keyword of the call.

    An export with a free size does not take a tensor that goes through ``**kwargs``.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    named = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    known = {parameter.name for parameter in named}
    more = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY) for key in kwargs if key not in known]
    if len(named) == len(parameters) or not more:
        return model

    def forward(*args: Any, **kwargs: Any) -> Any:
        return model.forward(*args, **kwargs)

    forward.__signature__ = inspect.Signature([*named, *more])  # type: ignore[attr-defined]
    twin = copy.copy(model)
    twin.forward = forward
    return twin


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings, the log and the print-outs of an export that may fail; what matters is raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; flags, random state and switches come back as they were."""
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # it hides layers in one operation
        with evaluating(model), torch.random.fork_rng([]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


# ------------------------------------------------------------------ what cannot be traced


def _check_weights(model: nn.Module) -> None:
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in named:
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise InputError(f"{name!r} has no shape yet: run the model on one batch first")
        if tensor.device.type != "cpu":
            raise InputError(f"{name!r} is on {tensor.device}, and the engine runs on the CPU: call model.cpu() first")
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != torch.float32:
            raise InputError(f"{name!r} is of {tensor.dtype}, expected torch.float32: call model.float() first")
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise InputError(f"the weight {name!r} has entries that are NaN or infinite")
    for name, buffer in model.named_buffers():
        if bool(torch.isnan(buffer).any()):  # infinities are how attention masks say "not here"
            raise InputError(f"the buffer {name!r} has entries that are NaN")


def _check_example(call: Arguments) -> None:
    tensors = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor)]
    if not tensors:
        raise InputError("the example has no tensor in it")
    for tensor in tensors:
        if tensor.device.type != "cpu":
            raise InputError(f"the example is on {tensor.device}, and the engine runs on the CPU: call .cpu() on it")
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != torch.float32:
            raise InputError(f"the example is of {tensor.dtype}, expected torch.float32: call .float() on it")


def _why(model: nn.Module, call: Arguments, error: Exception) -> str:
    """What went wrong, in one line."""
    args, kwargs = _resize(call, _batch(call))  # a copy, as the model may change its inputs
    name = type(model).__name__
    try:
        model(*args, **kwargs)
    except Exception as cause:  # models may raise anything
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor))
        return f"{name} cannot run on an example of shape {shapes}: {type(cause).__name__}: {cause}"
    reason = str(error).strip().partition("\n")[0]
    return (
        f"{name} cannot be traced: {type(error).__name__}: {reason}. A branch or a size that depends on the values of "
        "tensors, such as `if x.sum() > 0`, is a common reason"
    )

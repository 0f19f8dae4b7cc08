"""The benchmark itself: every engine made ready, checked against eager PyTorch, and raced."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from shrinkage.core.errors import InputError, ShrinkageError
from shrinkage.core.evaluation import evaluating
from shrinkage.core.selection import unwrap
from shrinkage.deploy.export_inputs import Inputs, as_inputs, difference, outputs
from shrinkage.runtime.bench.engines import ENGINES, Engine
from shrinkage.runtime.bench.forms import Form, Pool
from shrinkage.runtime.bench.machine import machine
from shrinkage.runtime.bench.race import Call, race
from shrinkage.runtime.bench.result import Bench, Row

AS_TRAINED, COMPACTED = "as trained", "compacted"

_CHECKED = 2  # items of the pool on which outputs are compared

Tell = Callable[[str], None]


def bench(
    model: nn.Module,
    example: Any,
    *,
    batches: Sequence[int] = (1, 64),
    threads: int = 1,
    engines: Sequence[str] | None = None,
    compacted: bool = True,
    rounds: int = 15,
    seed: int = 0,
    tell: Tell | None = None,
) -> Bench:
    """Run a network in every engine that is there, on the same inputs, and say which is the fastest.

    The engines are PyTorch eager and compiled (``torch.compile`` and AOTInductor), ONNX Runtime and OpenVINO in float32
    and below, and this library's. If compaction removes anything, the compacted network runs in all of them, too.
    They take turns on random inputs, drawn afresh in every round; medians and quartiles are over the rounds.
    Compilation and warm-up are not in the times but beside them. The outputs are compared with those of eager PyTorch:
    an engine in float32 that differs by more than 1e-4 of the largest output does not count.

    With one thread the clock is the processor time of this process, so that other jobs on the machine disturb less;
    with more it is the wall's. Both are kept.

    Args:
        model: any module that can be exported; it is left as it was. One on a GPU is copied to the CPU.
        example: an input: a tensor, or a tuple of tensors in the order of ``forward``'s arguments. The first dimension
            counts examples.
        batches: examples a call.
        threads: of every engine.
        engines: which ones, of :data:`~shrinkage.runtime.bench.ENGINES`; by default all.
        compacted: also try the compacted network.
        rounds: repeats.
        seed: of the inputs.
        tell: receives a line whenever an engine is ready.

    Returns:
        The figures. An engine that is not installed, or cannot run the network, has a row that says why.

    Raises:
        InputError: if the arguments cannot be used.

    >>> result = bench(nn.Linear(8, 4), torch.zeros(1, 8), batches=[2], engines=["eager", "onnxruntime"], rounds=3)
    >>> result.winner(2).counts
    True
    """
    chosen = _chosen(engines)
    _check(batches, threads, rounds)
    inputs = as_inputs(example)
    model = unwrap(model)
    if any(tensor.device.type != "cpu" for tensor in model.state_dict().values()):
        model = copy.deepcopy(model).cpu()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, _threads(threads), evaluating(model):
        forms = [Form(AS_TRAINED, model, inputs, _made(Path(folder) / "trained"))]
        remarks: list[str] = []
        if compacted:
            smaller, remark = compact_form(model, inputs, Path(folder) / "compacted")
            remarks.append(remark)
            forms += [smaller] if smaller is not None else []
        for batch in batches:
            rows += compare(forms, chosen, Pool.of(inputs, batch, seed), threads, rounds, tell=tell)
    clock = "processor" if threads == 1 else "wall"
    return Bench(type(model).__name__, threads, clock, tuple(rows), machine(threads), tuple(remarks))


def compare(
    forms: Sequence[Form], engines: Sequence[Engine], pool: Pool, threads: int, rounds: int, *, tell: Tell | None = None
) -> list[Row]:
    """Make every engine ready with every form of a network, check the outputs, and race those that run.

    Args:
        forms: the first is the one whose outputs in eager PyTorch are right.
        engines: which ones.
        pool: the inputs.
        threads: of every engine; torch has been told.
        rounds: repeats.
        tell: receives a line whenever an engine is ready.
    """
    batch = len(pool.tensors[0][0])
    expected = [[each.clone() for each in outputs(forms[0].model(*inputs))] for inputs in pool.tensors[:_CHECKED]]
    rows: list[Row] = []
    runs: dict[str, Call] = {}
    for form in forms:
        for engine in engines:
            row, run = _prepared(form, engine, pool, threads, expected)
            rows.append(row)
            if run is not None:
                runs[row.name] = run
            if tell is not None:
                tell(f"batch {batch}: {row.name} " + (f"ready in {row.ready:.2f} s" if run else f"not run: {row.note}"))
    times = race(runs, len(pool), rounds)
    return [Row(**{**vars(row), "times": times.get(row.name)}) for row in rows]


def compact_form(model: nn.Module, inputs: Inputs, folder: Path) -> tuple[Form | None, str]:
    """The network without its emptied neurons and channels, if there are any, and a remark on what came of it."""
    from shrinkage.deploy.compact import compact

    before = sum(parameter.numel() for parameter in model.parameters())
    try:
        smaller = compact(model, inputs[0] if len(inputs) == 1 else inputs).model.eval()
    except ShrinkageError as error:
        return None, f"not compacted: {error}"
    after = sum(parameter.numel() for parameter in smaller.parameters())
    if after == before:
        return None, "compaction finds nothing to remove: no neuron or channel is empty"
    return Form(COMPACTED, smaller, inputs, _made(folder)), f"compacted: {after:,} of {before:,} parameters are left"


def _prepared(
    form: Form, engine: Engine, pool: Pool, threads: int, expected: list[list[Tensor]]
) -> tuple[Row, Call | None]:
    """The row so far, and what to call."""
    row = {**vars(engine), "engine": engine.key, "form": form.title, "batch": len(pool.tensors[0][0])}
    del row["key"], row["make"]
    begin = time.perf_counter()
    try:
        ready = engine.make(form, pool, threads)
        ready.run(0)
        seconds = time.perf_counter() - begin
        error = max(difference(_tensors(ready.run(item)), right) for item, right in enumerate(expected))
    except Exception as problem:  # an engine that fails must not end the comparison
        lines = str(problem).strip().splitlines()
        reason = lines[0] if lines else ""
        return Row(
            **row, note=reason if isinstance(problem, ShrinkageError) else f"{type(problem).__name__}: {reason}"
        ), None
    return Row(**row, ready=seconds, bytes=ready.bytes, error=error), ready.run


def _tensors(result: Any) -> list[Tensor]:
    """What an engine gave, as tensors of their own."""
    leaves = _pytree.tree_leaves(result)
    return [torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in copy.deepcopy(leaves)]


def _chosen(engines: Sequence[str] | None) -> list[Engine]:
    names = list(ENGINES) if engines is None else list(engines)
    if unknown := [name for name in names if name not in ENGINES]:
        raise InputError(f"there is no engine {unknown[0]!r}; there are {', '.join(ENGINES)}")
    if not names:
        raise InputError(f"name at least one engine, of {', '.join(ENGINES)}")
    return [ENGINES[name] for name in dict.fromkeys(names)]


def _check(batches: Sequence[int], threads: int, rounds: int) -> None:
    if not batches:
        raise InputError("batches must name at least one batch size")
    for what, values in (("a batch size", batches), ("threads", [threads]), ("rounds", [rounds])):
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{what} must be a whole number, at least 1, got {value!r}")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)

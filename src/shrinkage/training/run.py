"""A whole run: the method, the dense comparison, and the files that tell what came of them."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from shrinkage.core.errors import InputError
from shrinkage.core.files import write
from shrinkage.core.footprint import Footprint, footprint
from shrinkage.core.selection import select
from shrinkage.data import Data, load
from shrinkage.deploy.surgery import reshape_like
from shrinkage.models import build
from shrinkage.training import folder as folders
from shrinkage.training import outcome as outcomes
from shrinkage.training.callbacks import Row
from shrinkage.training.config import RunConfig, read_yaml, resolve
from shrinkage.training.discrete import fit_discrete, packed
from shrinkage.training.fit import assemble, fit
from shrinkage.training.folder import RunFolder
from shrinkage.training.methods import METHODS
from shrinkage.training.outcome import Outcome
from shrinkage.training.presentation import present
from shrinkage.training.summary import Summary, versions

Tell = Callable[[str], None]

_FOLDER = "SHRINKAGE_RUN_FOLDER"  # tells the processes of further devices where to read


def train(
    config: RunConfig,
    *,
    out: Path = Path("runs"),
    name: str | None = None,
    command: str = "",
    begun: Callable[[Path], None] | None = None,
    tell: Tell = print,
    progress: bool = False,
) -> tuple[RunFolder, Summary]:
    """Train by the settings of ``config`` in a fresh folder.

    Args:
        config: the settings; see :func:`~shrinkage.training.config.resolve`.
        out: where run folders are made.
        name: of the folder; by default the time, the data set, the model and the method.
        command: kept in the summary: what a person typed.
        begun: receives the run's folder as soon as it is there.
        tell: receives what a person should know, a line at a time.
        progress: whether to draw a progress bar on stderr; otherwise every epoch is told of.

    Returns:
        The run's folder and the figures in its ``summary.json``.

    Raises:
        InputError, StateError, TargetError: see :func:`~shrinkage.training.fit.fit`.
    """
    _take_part()
    data = _load(config)
    assemble(config, config.method, data)  # what cannot begin leaves no folder behind
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    label = config.model.replace(":", "-")
    folder = folders.create(out, name or f"{stamp}-{config.data}-{label}-{config.method}")
    if begun is not None:
        begun(folder.path)
    with folder.locked():
        write(folder.config, config.to_yaml())
        write(folder.path / "command.txt", command + "\n")
        return folder, _run(config, data, folder, command, tell, progress)


def resume(path: Path, *, tell: Tell = print, progress: bool = False) -> tuple[RunFolder, Summary]:
    """Go on with a run that was interrupted; one that is complete is left as it is.

    Args:
        path: the run's folder.
        tell: see :func:`train`.
        progress: see :func:`train`.

    Returns:
        The run's folder and the figures in its ``summary.json``.

    Raises:
        InputError: if it is no run folder, or what is in it cannot be read.
        StateError: if another process holds it.
    """
    _take_part()
    folder = folders.find(path)
    config = resolve(read_yaml(folder.config))
    note = folder.path / "command.txt"
    command = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    with folder.locked():
        missing = [method for method in _methods(config) if not folder.outcome(method).is_file()]
        if not missing:
            tell(f"{path} is complete; there is nothing to resume")
        return folder, _run(config, _load(config), folder, command, tell, progress)


def network(path: Path) -> tuple[nn.Module, Summary]:
    """The trained network of a run, from its ``model.safetensors``, and the run's summary.

    Raises:
        InputError: if it is no run folder, the run has no network yet, or it cannot be read.
    """
    folder = folders.find(path)
    config = resolve(read_yaml(folder.config))
    if not folder.model.is_file():
        raise InputError(
            f"{path} has no {folder.model.name} yet: the training has not ended; "
            f"go on with: shrinkage train --resume {path}"
        )
    try:
        summary = Summary.from_json(folder.summary.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder.summary} cannot be read: {error}") from error
    return _restore(folder, config, summary), summary


def inspect(path: Path) -> Footprint:
    """What the network of a run costs, layer by layer, measured on its ``model.safetensors``.

    Raises:
        InputError: as :func:`network`.
    """
    model, summary = network(path)
    return _footprint(model, summary.method, summary.input_shape)


def _run(
    config: RunConfig,
    data: Data,
    folder: RunFolder,
    command: str,
    tell: Tell,
    progress: bool,
) -> Summary:
    # The method comes first: whoever stops during the comparison has what they came for.
    if config.devices > 1:
        os.environ[_FOLDER] = str(folder.path.resolve())
    done: dict[str, Outcome] = {}
    summary: Summary | None = None
    for method in _methods(config):
        path = folder.outcome(method)
        if not path.is_file():
            train_one = fit_discrete if METHODS[method].removes == "precision" else fit
            model, outcome = train_one(
                config,
                method,
                data,
                folder.checkpoints(method),
                publish=_publisher(config, method, done, folder, None if progress else tell),
                tell=tell,
                progress=progress,
            )
            if method == config.method:
                write(folder.model, safetensors.torch.save(_tensors(model)))
            write(path, outcome.to_json())
        done[method] = outcomes.read(path)
        summary = _conclude(config, data, folder, command, done)
    assert summary is not None
    return summary


def _take_part() -> None:
    """In a process that Lightning has started for a further device: train along, write nothing, end.

    Lightning repeats the first process's command in each of them.
    """
    if int(os.environ.get("LOCAL_RANK", "0")) == 0 or _FOLDER not in os.environ:
        return
    folder = folders.find(Path(os.environ[_FOLDER]))
    config = resolve(read_yaml(folder.config))
    data = _load(config)
    for method in _methods(config):
        if not folder.outcome(method).is_file():
            fit(
                config,
                method,
                data,
                folder.checkpoints(method),
                publish=_ignore,
                tell=_ignore,
                progress=False,
            )
    sys.exit()


def _ignore(what: object) -> None:
    pass


def _footprint(model: nn.Module, method: str, input_shape: tuple[int, ...]) -> Footprint:
    """What a network costs in the form that its method is for."""
    form = packed(model) if METHODS[method].removes == "precision" else model
    return footprint(form, torch.zeros(1, *input_shape))


def _methods(config: RunConfig) -> Iterator[str]:
    """What is to be trained, in this order."""
    yield config.method
    if config.compare_dense and config.method != "dense":
        yield "dense"


def _conclude(
    config: RunConfig,
    data: Data,
    folder: RunFolder,
    command: str,
    done: dict[str, Outcome],
) -> Summary:
    """Write the summary, the metrics and the report of what has been trained so far."""
    model = _restore(folder, config, data)
    ledger = _footprint(model, config.method, data.input_shape)
    outcome = done[config.method]
    dense = done.get("dense") if config.method != "dense" else None
    zeros = sum(layer.zeros for layer in outcome.figures.layers)
    weights = sum(layer.weights for layer in outcome.figures.layers)
    total = whole = footprint(model, torch.zeros(1, *data.input_shape)).total
    if METHODS[config.method].removes == "neurons":  # what is gone counts as zeros
        with torch.random.fork_rng(devices=[]):
            begun = build(config.model, data)
        whole = footprint(begun, torch.zeros(1, *data.input_shape)).total
        begun_with = sum(begun.get_parameter(item.name).numel() for item in select(begun))
        zeros, weights = zeros + begun_with - weights, begun_with
    summary = Summary(
        data=config.data,
        model=config.model,
        method=config.method,
        granularity=config.granularity,
        accuracy=outcome.accuracy,
        dense_accuracy=dense.accuracy if dense else None,
        val_accuracy=outcome.val_accuracy,
        sparsity=zeros / weights,
        zeros=zeros,
        weights=weights,
        parameters=whole.parameters,
        nonzeros=total.nonzeros,
        bytes=ledger.total.sparse_bytes,
        dense_bytes=whole.dense_bytes,
        macs=total.effective_macs,
        dense_macs=whole.macs,
        macs_target=config.macs if config.method != "dense" else None,
        epochs=config.epochs,
        seed=config.seed,
        seconds=round(outcome.seconds, 3),
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        versions=versions(),
        command=command,
    )
    write(folder.metrics, _csv({method: each.rows for method, each in done.items()}))
    write(folder.report, present(config, summary, ledger, outcome, dense))
    write(folder.summary, summary.to_json())
    return summary


def _publisher(
    config: RunConfig,
    method: str,
    done: dict[str, Outcome],
    folder: RunFolder,
    tell: Tell | None,
) -> Callable[[list[Row]], None]:
    """Writes the metrics after each epoch and, without a progress bar, tells of it."""
    before = {other: outcome.rows for other, outcome in done.items()}

    def publish(rows: list[Row]) -> None:
        write(folder.metrics, _csv({**before, method: rows}))
        if tell is None:
            return
        row = rows[-1]
        score = row["accuracy"] if row["val_accuracy"] is None else row["val_accuracy"]
        zeros = ""
        if row["phase"] is not None:
            shrinking = row["phase"] == "shrinking" and config.macs is None
            zeros = f", to {row['wanted']:.1%} zeros" if shrinking else f", {row['sparsity']:.1%} zeros"
        tell(
            f"{METHODS[method].title} epoch {row['epoch']}/{config.epochs}: "
            f"loss {row['train_loss']:.4f}, accuracy {score:.2f} %{zeros}"
        )

    return publish


def _csv(rows: dict[str, list[Row]]) -> str:
    """The rows of all methods, with the method as first column."""
    text = io.StringIO()
    names = ["method", *next(iter(rows.values()))[0]]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for method, lines in rows.items():
        writer.writerows({"method": method, **line} for line in lines)
    return text.getvalue()


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state_dict as tensors of their own: safetensors refuses shared memory."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}


def _restore(folder: RunFolder, config: RunConfig, task: Data | Summary) -> nn.Module:
    """The network as ``model.safetensors`` has it."""
    with torch.random.fork_rng(devices=[]):
        model = build(config.model, task)
    try:
        saved = safetensors.torch.load_file(folder.model)
        if METHODS[config.method].removes == "neurons":
            reshape_like(model, saved)
        model.load_state_dict(saved)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder.model} is truncated or damaged: {error}") from error
    except RuntimeError as error:
        raise InputError(f"{folder.model} does not fit the model {config.model}: {error}") from error
    return model


def _load(config: RunConfig) -> Data:
    directory = None if config.data_dir is None else Path(os.path.expanduser(config.data_dir))
    return load(config.data, directory, validation=config.val, seed=config.seed)

"""One network trained by one method, from its seed or from its last checkpoint."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader

from shrinkage.core.selection import resolve, select
from shrinkage.data import Data, batches
from shrinkage.discrete.chain import chain
from shrinkage.models import build
from shrinkage.report import Figures, gather
from shrinkage.training.bar import TrainingBar
from shrinkage.training.callbacks import Inside, Metrics, Row, Sparsify
from shrinkage.training.checkpoints import EveryEpoch, SafeCheckpoints, latest
from shrinkage.training.config import PRECISIONS, RunConfig, accelerator
from shrinkage.training.evaluate import accuracy
from shrinkage.training.methods import METHODS, granularity
from shrinkage.training.outcome import Outcome
from shrinkage.training.regularizers import regularize
from shrinkage.training.shrinker import Shrinker
from shrinkage.training.task import Batch, Classifier

_LOOKED_AT = 2000  # training images that layers' outputs are looked at with


def fit(
    config: RunConfig,
    method: str,
    data: Data,
    checkpoints: Path,
    *,
    publish: Callable[[list[Row]], None],
    tell: Callable[[str], None],
    progress: bool,
) -> tuple[nn.Module, Outcome]:
    """Train the network of ``config`` by ``method``.

    On a CPU the weights are a function of the configuration only, however often the training was
    interrupted and resumed.

    Args:
        config: the settings; its own ``method`` is not looked at.
        method: one of :data:`~shrinkage.training.methods.METHODS`.
        data: what to train on.
        checkpoints: folder for the checkpoints; the training goes on from the newest one there.
        publish: receives the rows of all epochs so far after each one.
        tell: receives what a person should know.
        progress: whether to draw a progress bar on stderr.

    Returns:
        The trained network on the CPU, and what it reached.

    Raises:
        InputError: if the settings do not go together, or no checkpoint there can be read.
        StateError: if the training diverges or the disk is full.
        TargetError: if the sparsity was not reached.
    """
    model, loader, sparsifier = assemble(config, method, data)
    metrics = Metrics(data, sparsifier, publish)
    callbacks: list[Callback] = [metrics, EveryEpoch(checkpoints)]
    if sparsifier is not None:
        callbacks.insert(0, Sparsify(sparsifier))
    if progress:
        callbacks.append(TrainingBar(METHODS[method].title))
    kind, index = accelerator(config.device)
    with _quiet(), _threads(config.threads):
        trainer = Trainer(
            accelerator=kind,
            devices=config.devices if index is None else [index],
            precision=PRECISIONS[config.precision],
            strategy="ddp" if config.devices > 1 else "auto",
            max_epochs=config.epochs,
            callbacks=callbacks,
            plugins=[SafeCheckpoints(tell)],
            logger=False,
            enable_progress_bar=progress,
            enable_model_summary=False,
            use_distributed_sampler=False,  # each process takes its share of every batch, see Classifier
            default_root_dir=checkpoints,
        )
        trainer.fit(Classifier(model, data, config, len(loader)), loader, ckpt_path=latest(checkpoints))
    model.to(trainer.strategy.root_device)  # Lightning has moved it back to the CPU
    score = accuracy(model, data.test, data.prepare)
    held_out = None if data.validation is None else accuracy(model, data.validation, data.prepare)
    model.cpu()
    seconds = metrics.rows[-1]["seconds"]
    return model, Outcome(score, held_out, seconds, metrics.rows, _figures(model, sparsifier, config, data))


def assemble(config: RunConfig, method: str, data: Data) -> tuple[nn.Module, DataLoader[Batch], Inside | None]:
    """The network with its first weights, the batches, and the method if there is one.

    Raises:
        InputError: if the settings do not go together.
    """
    seed_everything(config.seed, verbose=False)
    model = build(config.model, data)
    regularize(model, config.regularizer, config.drop_rate)
    # A rest that does not reach all devices would leave one without an example.
    several = config.devices > 1
    loader = batches(data.train, config.batch_size, shuffle=True, seed=config.seed, drop_last=several)
    if METHODS[method].removes == "precision":
        chain(model)
    if METHODS[method].removes == "neurons":
        assert config.sparsity is not None
        seen = data.train.x[: min(_LOOKED_AT, len(data.train))]
        inputs = [data.prepare(part) for part in torch.split(seen, config.batch_size)]
        return model, loader, Shrinker(model, config.sparsity, len(loader) * config.epochs, inputs, config.seed)
    make = METHODS[method].make
    if make is None:
        return model, loader, None
    steps = len(loader) * config.epochs
    budget = {} if config.macs is None else {"macs": config.macs, "example": torch.zeros(1, *data.input_shape)}
    return model, loader, make(model, config.sparsity, steps, granularity(config.granularity), **budget)


def _figures(model: nn.Module, sparsifier: Inside | None, config: RunConfig, data: Data) -> Figures:
    chosen = select(model)
    names = [item.name for item in chosen]
    starts = range(0, min(_LOOKED_AT, len(data.train)), config.batch_size)
    inputs = [data.prepare(data.train.x[start : min(start + config.batch_size, _LOOKED_AT)]) for start in starts]
    if sparsifier is None:
        return gather(model, names, {}, {}, inputs)
    units = granularity(config.granularity)
    weights = resolve(model, names)
    sizes = {item.name: units.sizes(weights[item.name].detach(), item.out_dim) for item in chosen}
    lam = sparsifier.lam()
    sparsifier.detach()
    return gather(model, names, sizes, {name: lam[name] for name in names if name in lam}, inputs)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice, which is for those who call it themselves, off the screen."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", module=r"lightning\.")  # and what it does is not theirs to mend
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""One network trained by CoNNTrA, in place of :func:`~shrinkage.training.fit.fit`: an epoch is a sweep."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from shrinkage.data import Data
from shrinkage.discrete import CoNNTrA, Sweep
from shrinkage.models import build
from shrinkage.report import gather
from shrinkage.training.callbacks import Row
from shrinkage.training.config import RunConfig
from shrinkage.training.evaluate import accuracy
from shrinkage.training.outcome import Outcome

_BATCH = 10_000  # examples of a sweep, at most
_LOOKED_AT = 2000  # training images that layers' outputs are looked at with


def fit_discrete(
    config: RunConfig,
    method: str,
    data: Data,
    checkpoints: Path,
    *,
    publish: Callable[[list[Row]], None],
    tell: Callable[[str], None],
    progress: bool,
) -> tuple[nn.Module, Outcome]:
    """Train the network of ``config`` with ternary weights, by ``config.epochs`` sweeps.

    All but the last take many steps of the gradient at once; the last one tries them one by one. Of a larger data set
    each sweep takes 10,000 training images, drawn afresh. Model, data, epochs and seed are what counts; there is no
    optimiser, it runs on the CPU, and an interrupted training begins anew.

    Args:
        config: the settings; its own ``method`` is not looked at.
        method: as :func:`~shrinkage.training.fit.fit` has it, of one row here.
        data: what to train on; it is not augmented.
        checkpoints: not used.
        publish: receives the rows of all sweeps so far after each one.
        tell: not used.
        progress: not used.

    Returns:
        The trained network, and what it reached.

    Raises:
        InputError: if the network is not a chain of layers.
        StateError: if the loss is not finite.
    """
    torch.manual_seed(config.seed)
    model = build(config.model, data)
    driver = CoNNTrA(model, variant="together", seed=config.seed)
    x, y = data.prepare(data.train.x), data.train.y
    batch = _BATCH if len(x) > _BATCH else None
    held_out = data.validation
    rows: list[Row] = []
    began = time.perf_counter()
    for sweep in range(config.epochs):
        last = sweep + 1 == config.epochs
        result = driver.fit(x, y, batch=batch, variant="gradient" if last else "together")
        score = accuracy(model, held_out or data.test, data.prepare)
        rows.append(_row(result.sweeps[-1], sweep + 1, score, held_out is not None, result.sparsity))
        rows[-1]["seconds"] = time.perf_counter() - began
        publish(rows)
    names = [layer.name for layer in result.layers]
    figures = gather(model, names, {}, {}, [x[:_LOOKED_AT]])
    score = accuracy(model, data.test, data.prepare)
    validated = None if held_out is None else accuracy(model, held_out, data.prepare)
    return model, Outcome(score, validated, rows[-1]["seconds"], rows, figures)


def packed(model: nn.Module) -> nn.Module:
    """A network that was trained here with its weights packed at two bits each."""
    return CoNNTrA(copy.deepcopy(model), start="round").packed()


def _row(sweep: Sweep, epoch: int, score: float, held_out: bool, sparsity: float) -> Row:
    return {
        "epoch": epoch,
        "step": epoch,
        "lr": None,
        "train_loss": sweep.loss,
        "accuracy": None if held_out else score,
        "val_accuracy": score if held_out else None,
        "sparsity": sparsity,
        "wanted": None,
        "phase": None,
        "strength": None,
        "seconds": None,
    }

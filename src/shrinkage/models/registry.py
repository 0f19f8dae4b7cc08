"""Models by name, or by ``package.module:factory``."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from shrinkage.core.errors import InputError
from shrinkage.core.evaluation import evaluating
from shrinkage.models.lenet import lenet_5, lenet_300_100
from shrinkage.models.resnet import resnet
from shrinkage.models.vgg import vgg_16
from shrinkage.models.vit import vit_micro, vit_tiny


class Factory(Protocol):
    """Makes a network for a task: any callable of this form will do."""

    def __call__(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Make one for examples of ``input_shape`` (without the batch) with ``num_classes`` logits."""


class Task(Protocol):
    """What a model has to fit; :class:`shrinkage.data.Data` is one."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""


MODELS: dict[str, Factory] = {
    "mlp": lenet_300_100,
    "lenet-300-100": lenet_300_100,
    "lenet-5": lenet_5,
    "vgg-16": vgg_16,
    "resnet-8": partial(resnet, 8),
    "resnet-20": partial(resnet, 20),
    "resnet-32": partial(resnet, 32),
    "resnet-50": partial(resnet, 50),
    "resnet-56": partial(resnet, 56),
    "vit-tiny": vit_tiny,
    "vit-micro": vit_micro,
}
"""The networks that :func:`build` knows by name."""

_DEFAULTS = {"digits": "mlp", "mnist": "lenet-300-100", "cifar10": "resnet-20", "cifar100": "resnet-20"}


def default_model(data: str) -> str:
    """The model that is trained on a data set when none is named.

    Raises:
        InputError: if the data set is unknown.

    >>> default_model("mnist")
    'lenet-300-100'
    """
    if data not in _DEFAULTS:
        raise InputError(f"no model is set for the data set {data!r}; name one of {', '.join(MODELS)}")
    return _DEFAULTS[data]


def build(name_or_path: str, data: Task) -> nn.Module:
    """Make a network that fits ``data``, with fresh weights from torch's global random state.

    Args:
        name_or_path: one of :data:`MODELS`, or ``"package.module:factory"``, found on the import path or
            in the working directory. The factory, any callable, is given ``input_shape`` and
            ``num_classes`` if it takes arguments of these names.
        data: anything with ``input_shape`` and ``num_classes``.

    Returns:
        The network. One by path has been tried on two blank examples, in evaluation mode and without a trace.

    Raises:
        InputError: if the name is unknown, the module or factory cannot be found or fails, what it gives
            is not a ``torch.nn.Module``, or the network does not map a batch of these examples to
            logits of shape (batch, num_classes).

    >>> from shrinkage.data import load
    >>> net = build("mlp", load("digits"))
    >>> sum(p.numel() for p in net.parameters())
    50610
    """
    if name_or_path in MODELS:
        return MODELS[name_or_path](data.input_shape, data.num_classes)
    if ":" not in name_or_path:
        near = difflib.get_close_matches(name_or_path, MODELS, 1, 0.0)[0]
        raise InputError(
            f"there is no model {name_or_path!r}; did you mean {near!r}? Known are {', '.join(MODELS)}; "
            'your own is named "package.module:factory"'
        )
    model = _call(_find(name_or_path), name_or_path, data)
    _try(model, name_or_path, data)
    return model


def _find(path: str) -> Callable[..., Any]:
    module_name, _, factory_name = path.partition(":")
    try:
        module = _import(module_name)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise InputError(
            f"{path}: the module {module_name!r} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        near = difflib.get_close_matches(factory_name, [key for key in vars(module) if key[0] != "_"], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{path}: the module {module_name!r} has no callable {factory_name!r}{hint}")
    return factory  # type: ignore[no-any-return]


def _import(name: str) -> Any:
    """Import a module, also from the working directory, where an installed command does not look."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        here = str(Path.cwd())
        if error.name is None or error.name != name.partition(".")[0] or here in sys.path:
            raise
        sys.path.append(here)  # last, so that a file there hides no installed package
        importlib.invalidate_caches()
        try:
            return importlib.import_module(name)
        except BaseException:
            sys.path.remove(here)
            raise


def _call(factory: Callable[..., Any], path: str, data: Task) -> nn.Module:
    offered = {"input_shape": data.input_shape, "num_classes": data.num_classes}
    try:
        parameters = inspect.signature(factory).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            names = {parameter.name for parameter in parameters}
            offered = {key: value for key, value in offered.items() if key in names}
        model = factory(**offered)
    except Exception as error:  # the user's code may raise anything
        given = ", ".join(f"{key}={value!r}" for key, value in offered.items())
        raise InputError(f"{path}({given}) failed: {type(error).__name__}: {error}") from error
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise InputError(f"{path} gave the class {model.__name__}; the factory must return an instance of it")
    if not isinstance(model, nn.Module):
        raise InputError(f"{path} gave {type(model).__name__}, expected a torch.nn.Module")
    return model


def _try(model: nn.Module, path: str, data: Task) -> None:
    """Run two blank examples through, so that a model of another shape fails here and not in training."""
    first = next(iter(model.parameters()), torch.empty(0))
    blank = torch.zeros(2, *data.input_shape, device=first.device)
    devices = [first.device] if first.device.type == "cuda" else []
    try:
        with evaluating(model), torch.random.fork_rng(devices):  # BatchNorm's statistics stay out of it
            out = model(blank)
    except Exception as error:
        raise InputError(
            f"{path} does not accept a batch of shape {tuple(blank.shape)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(out, torch.Tensor) or out.shape != (2, data.num_classes):
        seen = f"shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
        raise InputError(
            f"{path} maps a batch of shape {tuple(blank.shape)} to {seen}, expected logits of shape "
            f"(2, {data.num_classes})"
        )

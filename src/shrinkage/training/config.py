"""The settings of a run: defaults from the data set's recipe, overridden by a file, overridden by flags."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch

from shrinkage.core.errors import InputError, require
from shrinkage.core.granularity import NM
from shrinkage.data import NAMES
from shrinkage.training.methods import METHODS, granularity
from shrinkage.training.recipes import OPTIMIZERS, RECIPES, SCHEDULES
from shrinkage.training.regularizers import REGULARIZERS

PRECISIONS: Mapping[str, Literal["32-true", "bf16-mixed"]] = {"fp32": "32-true", "bf16": "bf16-mixed"}
"""What the arithmetic of a training may be in, and what Lightning calls it."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run does; what its ``config.yaml`` holds.

    Make one by :func:`resolve`, which fills in the recipe's defaults.

    Attributes:
        data: data set, one of :data:`shrinkage.data.NAMES`.
        data_dir: folder with its files; None: the user's cache folder.
        model: name of a network or ``package.module:factory``.
        method: one of :data:`METHODS`.
        sparsity: share of zeros to reach, in (0, 1); N:M fixes its own; of the parameters with ``noiseout``; None
            where ``macs`` is given, and with ``conntra``.
        macs: share of the multiply–accumulates of one example to leave, in (0, 1), in place of a sparsity.
        granularity: ``weight``, ``row``, ``block:4x4`` or ``2:4``.
        epochs: passes over the training images, at least 1.
        batch_size: images an optimiser step, at least 1. This and the next four are the recipe's with ``conntra``,
            which has no use for them; a dense network to compare with is trained by them.
        optimizer: ``sgd`` (momentum 0.9), ``adam`` or ``adamw``.
        lr: learning rate, > 0.
        weight_decay: at least 0.
        schedule: ``flat-cosine``, ``cosine``, ``step`` or ``constant``.
        seed: of the initial weights, the order of the images and all else that is random; from 0 to below 2³².
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        devices: how many of them train together, each on its share of every batch.
        threads: of the CPU, 1 to 1024; None: as many as PyTorch sees fit. Another number rounds otherwise.
        precision: of the arithmetic, one of :data:`PRECISIONS`; weights and optimiser are float32 in either.
        val: training images held out and reported on, at least 0.
        regularizer: ``none``, ``dropfilter`` or ``dropfilter-plus``, of all convolutions and of both networks.
        drop_rate: of the regularizer, in [0, 1).
        compare_dense: whether the same network is also trained without the method.

    Raises:
        InputError: if a value is out of its range.
    """

    data: str
    data_dir: str | None
    model: str
    method: str
    sparsity: float | None
    macs: float | None
    granularity: str
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    schedule: str
    seed: int
    device: str
    devices: int
    threads: int | None
    precision: str
    val: int
    regularizer: str
    drop_rate: float
    compare_dense: bool

    def __post_init__(self) -> None:
        one_of("data", self.data, NAMES)
        one_of("method", self.method, METHODS)
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("regularizer", self.regularizer, REGULARIZERS)
        one_of("precision", self.precision, PRECISIONS)
        _within("drop_rate", self.drop_rate, 0 <= self.drop_rate < 1, "in [0, 1), such as 0.1 to drop a tenth")
        self._check_target()
        for name, low in (("epochs", 1), ("batch_size", 1), ("devices", 1), ("seed", 0), ("val", 0)):
            value = getattr(self, name)
            _within(name, value, value >= low, f"a whole number of at least {low}")
        _within("seed", self.seed, self.seed < 1 << 32, "below 2³²")
        if self.threads is not None:
            _within("threads", self.threads, 1 <= self.threads <= 1024, "a whole number from 1 to 1024")
        _within("lr", self.lr, 0 < self.lr < math.inf, "a number greater than 0")
        _within("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0")
        accelerator(self.device)

    def _check_target(self) -> None:
        units, sparsity, macs = granularity(self.granularity), self.sparsity, self.macs
        removes = METHODS[self.method].removes
        if removes == "precision":
            self._refuse(sparsity is not None, "has no sparsity to reach")
            self._refuse(self.regularizer != "none", "needs a network without masks")
            self._refuse(self.precision != "fp32", "has a precision of its own")
            for name in ("batch_size", "optimizer", "lr", "weight_decay", "schedule"):
                other = getattr(self, name) != getattr(RECIPES[self.data], name)
                self._refuse(other, f"makes no steps of an optimiser, so that {name} has no effect on it")
        if removes != "weights":
            self._refuse(macs is not None, "knows no budget of multiplications")
            self._refuse(self.granularity != "weight", "has no granularity")
            self._refuse(self.devices > 1, "trains on one device")
        if removes == "precision":
            return
        if (sparsity is None) == (macs is None):
            raise InputError(f"the target is a sparsity or macs, one of them, got {sparsity=} and {macs=}")
        if sparsity is not None:
            _within("sparsity", sparsity, 0 < sparsity < 1, "in (0, 1), such as 0.95 for 95 % zeros")
        if macs is not None:
            _within("macs", macs, 0 < macs < 1, "in (0, 1), such as 0.1 for a tenth of the multiply–accumulates")
        if not isinstance(units, NM):
            return
        if sparsity is None or not math.isclose(sparsity, units.sparsity):
            given = f"macs is set to {macs:g}" if sparsity is None else f"it is set to {sparsity:g}"
            raise InputError(
                f"granularity {self.granularity} fixes the sparsity at {units.sparsity:g}, but {given}; leave it out"
            )

    def _refuse(self, given: bool, why: str) -> None:
        if given:
            raise InputError(f"method {self.method} {why}; leave it out")

    def to_yaml(self) -> str:
        """The settings as a YAML document that :func:`read_yaml` reads back."""
        text: str = require("yaml", "train").safe_dump(dataclasses.asdict(self), sort_keys=False)
        return text


def resolve(options: Mapping[str, Any]) -> RunConfig:
    """Complete some settings to all of them.

    Args:
        options: settings by the names of :class:`RunConfig`; what is absent is taken from the recipe of
            the data set. A value may come as text.

    Raises:
        InputError: if a name is unknown, or a value has the wrong type or is out of its range.

    >>> resolve({"data": "mnist"}).model
    'lenet-300-100'
    >>> resolve({"sparsty": 0.9})
    Traceback (most recent call last):
    ...
    shrinkage.core.errors.InputError: there is no setting 'sparsty'; did you mean 'sparsity'?
    """
    given = {_known(key): value for key, value in options.items()}
    for name in ("sparsity", "macs"):  # an empty one in a file is none
        if name in given and _typed(name, given[name]) is None:
            del given[name]
    data = _typed("data", given.get("data", "digits"))
    one_of("data", data, NAMES)
    targetless = "macs" in given or given.get("method") == "conntra"
    defaults: dict[str, Any] = {
        "data": data,
        "data_dir": None,
        "method": "halo",
        "sparsity": None if targetless else 0.95,
        "macs": None,
        "granularity": "weight",
        "seed": 0,
        "device": "auto",
        "devices": 1,
        "precision": "fp32",
        "val": 0,
        "regularizer": "none",
        "drop_rate": 0.1,
        "compare_dense": True,
        **dataclasses.asdict(RECIPES[data]),
    }
    if given.get("model", defaults["model"]) != defaults["model"]:
        defaults["threads"] = None  # what suits the recipe's network need not suit this one
    chosen = {**defaults, **{name: _typed(name, value) for name, value in given.items()}}
    units = granularity(chosen["granularity"])
    if isinstance(units, NM) and "sparsity" not in given and "macs" not in given:
        chosen["sparsity"] = units.sparsity
    return RunConfig(**chosen)


def override(written: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file with others put over them; a target in either form takes the place of one in the other.

    >>> override({"sparsity": "0.9", "seed": "1"}, {"macs": 0.1})
    {'seed': '1', 'macs': 0.1}
    """
    targets = {"sparsity", "macs"}
    gone = targets if targets & given.keys() else set()
    return {**{name: value for name, value in written.items() if name not in gone}, **given}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read settings from a YAML file.

    Returns:
        What the file says, by the names of :class:`RunConfig`; values are not checked yet.

    Raises:
        InputError: if it cannot be read, is not a mapping, or holds an unknown name.
    """
    yaml = require("yaml", "train")
    try:
        # Everything as text: the types are known here, and YAML's own guesses read 2:4 as 124.
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None or content == "":
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold lines such as 'sparsity: 0.9', it holds {content!r}")
    try:
        return {_known(key): value for key, value in content.items()}
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def one_of(name: str, value: str, known: Iterable[str]) -> None:
    """Check that ``value`` is known.

    Raises:
        InputError: if it is not; the message names the nearest and all that are.
    """
    names = list(known)
    if value not in names:
        near = difflib.get_close_matches(value, names, 1, 0.0)[0]
        raise InputError(f"{name} {value!r} is not known; did you mean {near!r}? ({', '.join(names)})")


def accelerator(device: str) -> tuple[str, int | None]:
    """Split a device into Lightning's accelerator and an index, None for any.

    Raises:
        InputError: if the name is unknown or there is no such device here.

    >>> accelerator("cpu")
    ('cpu', None)
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and (kind != "cuda" or not index.isdecimal())):
        raise InputError(f"device {device!r} is not known; use auto, cpu, cuda, cuda:0 … or mps")
    if kind == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise InputError(f"device is {device!r}, but this PyTorch sees no CUDA device; use cpu or auto")
        if index and int(index) >= count:
            raise InputError(f"device is {device!r}, but the last CUDA device here is cuda:{count - 1}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("device is 'mps', but there is no Apple GPU here; use cpu or auto")
    return kind, int(index) if index else None


_TYPES: dict[str, Any] = get_type_hints(RunConfig)
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _known(key: object) -> str:
    names = [field.name for field in fields(RunConfig)]
    name = str(key).replace("-", "_")
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.0)[0]
        raise InputError(f"there is no setting {key!r}; did you mean {near!r}?")
    return name


def _typed(name: str, value: Any) -> Any:
    """``value`` as the setting's own type, where nothing is lost by it."""
    wanted = _TYPES[name]
    if type(None) in get_args(wanted):
        if value is None or value in ("", "null", "~"):
            return None
        wanted = get_args(wanted)[0]
    try:
        return _PARSERS[wanted](value)
    except (TypeError, ValueError, OverflowError, KeyError, AttributeError):
        kind = "" if isinstance(value, str) else f" ({type(value).__name__})"
        raise InputError(f"{name} must be {_WORDS[wanted]}, got {value!r}{kind}") from None


def _whole(value: Any) -> int:
    number = int(value)
    if isinstance(value, bool) or (not isinstance(value, str) and number != value):
        raise ValueError
    return number


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}[value.lower()]


def _text(value: Any) -> str:
    if not isinstance(value, str | Path):
        raise TypeError
    return str(value)


_PARSERS: dict[type, Callable[[Any], Any]] = {int: _whole, float: _number, bool: _truth, str: _text}


def _within(name: str, value: object, fine: bool, wanted: str) -> None:
    if not fine:
        raise InputError(f"{name} must be {wanted}, got {value!r}")

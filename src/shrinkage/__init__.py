"""Train neural networks that end up small, and prove it."""

import importlib
from typing import Any

from shrinkage import dropfilter
from shrinkage.core.costs import Cost, register_cost
from shrinkage.core.errors import (
    DivergedError,
    FileError,
    InputError,
    MissingExtra,
    ShrinkageError,
    StateError,
    TargetError,
)
from shrinkage.core.footprint import footprint
from shrinkage.core.granularity import NM, Block, Row, Weight
from shrinkage.core.hold import keep_zeros
from shrinkage.deploy.compact import compact
from shrinkage.deploy.export import export
from shrinkage.deploy.files import describe, load, save
from shrinkage.deploy.fold import fold_batchnorm
from shrinkage.deploy.surgery import reshape_like
from shrinkage.discrete import CoNNTrA
from shrinkage.noiseout import NoiseOut
from shrinkage.penalties import HALO, MCP, SWS, Bridge, Lasso, faithful
from shrinkage.pruning import (
    SET,
    SNIP,
    STR,
    GradualMagnitude,
    GraSP,
    LotteryTicket,
    Magnitude,
    Movement,
    Random,
    RigL,
    SoftTopK,
    SynFlow,
)

__version__ = "0.1.0"

__all__ = [
    "HALO",
    "MCP",
    "NM",
    "SET",
    "SNIP",
    "STR",
    "SWS",
    "Block",
    "Bridge",
    "CoNNTrA",
    "Cost",
    "DivergedError",
    "FileError",
    "GraSP",
    "GradualMagnitude",
    "InputError",
    "Lasso",
    "LotteryTicket",
    "Magnitude",
    "MissingExtra",
    "Movement",
    "NoiseOut",
    "Random",
    "RigL",
    "Row",
    "ShrinkageError",
    "SoftTopK",
    "StateError",
    "SynFlow",
    "TargetError",
    "Weight",
    "__version__",
    "compact",
    "describe",
    "dropfilter",
    "export",
    "faithful",
    "fold_batchnorm",
    "footprint",
    "keep_zeros",
    "load",
    "register_cost",
    "reshape_like",
    "save",
]


def __getattr__(name: str) -> Any:
    # The engine needs an extra; only who asks for it imports it.
    if name == "runtime":
        return importlib.import_module("shrinkage.runtime")
    raise AttributeError(f"module 'shrinkage' has no attribute {name!r}")

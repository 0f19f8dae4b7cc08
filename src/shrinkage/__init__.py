"""Train neural networks that end up small, and prove it."""

from shrinkage.core.costs import Cost, register_cost
from shrinkage.core.errors import InputError, MissingExtra, ShrinkageError, StateError, TargetError
from shrinkage.core.footprint import footprint
from shrinkage.core.granularity import NM, Block, Row, Weight
from shrinkage.core.hold import keep_zeros
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
    "Cost",
    "GraSP",
    "GradualMagnitude",
    "InputError",
    "Lasso",
    "LotteryTicket",
    "Magnitude",
    "MissingExtra",
    "Movement",
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
    "faithful",
    "footprint",
    "keep_zeros",
    "register_cost",
]

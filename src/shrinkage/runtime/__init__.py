"""The CPU engine: sparse networks that are really faster."""

# ruff: noqa: E402 - a missing extra is to be named before the first of its imports fails
from shrinkage.core.errors import require

require("llvmlite", "runtime")

from shrinkage.runtime.engine import Engine, compile, load
from shrinkage.runtime.plan import EnginePlan, PlannedLayer

__all__ = ["Engine", "EnginePlan", "PlannedLayer", "compile", "load"]

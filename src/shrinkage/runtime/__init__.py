"""The CPU engine: sparse networks that are really faster."""

from shrinkage.runtime.engine import Engine, compile, load
from shrinkage.runtime.plan import EnginePlan, PlannedLayer

__all__ = ["Engine", "EnginePlan", "PlannedLayer", "compile", "load"]

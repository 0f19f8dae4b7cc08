"""Penalties that make weights small: pure priors, one file each, and the methods built on them."""

from shrinkage.penalties.bridge import Bridge, BridgePrior
from shrinkage.penalties.halo import HALO, HALOPrior
from shrinkage.penalties.lasso import Lasso, LassoPrior
from shrinkage.penalties.mcp import MCP, MCPPrior
from shrinkage.penalties.paper import Faithful, faithful
from shrinkage.penalties.sws import SWS, SWSPrior

__all__ = [
    "HALO",
    "MCP",
    "SWS",
    "Bridge",
    "BridgePrior",
    "Faithful",
    "HALOPrior",
    "Lasso",
    "LassoPrior",
    "MCPPrior",
    "SWSPrior",
    "faithful",
]

"""Weights from a finite set: training, packing, and computing with what is packed."""

from shrinkage.discrete.conntra import CoNNTrA
from shrinkage.discrete.packed import PackedConv2d, PackedLinear, unpacked
from shrinkage.discrete.result import Discretised, Sweep

__all__ = [
    "CoNNTrA",
    "Discretised",
    "PackedConv2d",
    "PackedLinear",
    "Sweep",
    "unpacked",
]

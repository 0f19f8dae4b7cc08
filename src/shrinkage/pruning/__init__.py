"""Methods that score units and mask them, inside a training or at one moment, and lottery tickets."""

from shrinkage.pruning.gradualmagnitude import GradualMagnitude
from shrinkage.pruning.grasp import GraSP
from shrinkage.pruning.lottery import LotteryTicket
from shrinkage.pruning.magnitude import Magnitude
from shrinkage.pruning.movement import Movement
from shrinkage.pruning.random import Random
from shrinkage.pruning.rigl import RigL
from shrinkage.pruning.set import SET
from shrinkage.pruning.snip import SNIP
from shrinkage.pruning.softtopk import SoftTopK
from shrinkage.pruning.synflow import SynFlow
from shrinkage.pruning.thresholds import STR

__all__ = [
    "SET",
    "SNIP",
    "STR",
    "GraSP",
    "GradualMagnitude",
    "LotteryTicket",
    "Magnitude",
    "Movement",
    "Random",
    "RigL",
    "SoftTopK",
    "SynFlow",
]

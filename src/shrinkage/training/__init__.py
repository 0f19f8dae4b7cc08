"""Training from the command line or from Python: settings in, a folder with a small network out."""

# ruff: noqa: E402 - a missing extra is to be named before the first of its imports fails
from shrinkage.core.errors import require

for _module in ("lightning.pytorch", "rich", "yaml"):
    require(_module, "train")

from shrinkage.training.callbacks import Sparsify as Sparsify
from shrinkage.training.config import RunConfig as RunConfig
from shrinkage.training.config import resolve as resolve
from shrinkage.training.run import inspect as inspect
from shrinkage.training.run import network as network
from shrinkage.training.run import resume as resume
from shrinkage.training.run import train as train
from shrinkage.training.summary import Summary as Summary

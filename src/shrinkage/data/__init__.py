"""Data sets as whole tensors: digits, MNIST, CIFAR-10 and CIFAR-100, and batches of them."""

from shrinkage.data.catalogue import NAMES as NAMES
from shrinkage.data.catalogue import load as load
from shrinkage.data.loader import batches as batches
from shrinkage.data.sets import Data as Data
from shrinkage.data.sets import Split as Split

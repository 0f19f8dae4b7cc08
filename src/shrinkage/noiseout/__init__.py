"""NoiseOut: neurons that say the same are folded into one, and the network gets smaller."""

from shrinkage.noiseout.method import NoiseOut
from shrinkage.noiseout.noise import Binomial, Constant, Gaussian
from shrinkage.noiseout.shrunk import Fold, Round, Shrunk, Units

__all__ = ["Binomial", "Constant", "Fold", "Gaussian", "NoiseOut", "Round", "Shrunk", "Units"]

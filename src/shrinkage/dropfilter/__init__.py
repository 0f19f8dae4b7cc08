"""DropFilter and DropFilter-PLUS: regularisation by masks over the filters of convolutions.

See :mod:`shrinkage.dropfilter.masks` for the equations and the source.
"""

from shrinkage.dropfilter.convert import Dropped as Dropped
from shrinkage.dropfilter.convert import Dropping as Dropping
from shrinkage.dropfilter.convert import convert as convert
from shrinkage.dropfilter.convert import dropping as dropping
from shrinkage.dropfilter.convert import revert as revert
from shrinkage.dropfilter.convert import set_rate as set_rate
from shrinkage.dropfilter.exact import Moments as Moments
from shrinkage.dropfilter.exact import moments as moments
from shrinkage.dropfilter.exact import per_position as per_position
from shrinkage.dropfilter.layers import DropFilterConv1d as DropFilterConv1d
from shrinkage.dropfilter.layers import DropFilterConv2d as DropFilterConv2d
from shrinkage.dropfilter.layers import DropFilterConv3d as DropFilterConv3d
from shrinkage.dropfilter.layers import DropFilterLinear as DropFilterLinear
from shrinkage.dropfilter.layers import DropFilterPlusConv1d as DropFilterPlusConv1d
from shrinkage.dropfilter.layers import DropFilterPlusConv2d as DropFilterPlusConv2d
from shrinkage.dropfilter.layers import DropFilterPlusConv3d as DropFilterPlusConv3d
from shrinkage.dropfilter.masks import SCALINGS as SCALINGS
from shrinkage.dropfilter.rates import Growing as Growing

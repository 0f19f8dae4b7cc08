"""How fast a network runs, in every engine that is there: see :func:`bench`."""

from shrinkage.runtime.bench.engines import ENGINES
from shrinkage.runtime.bench.race import Spread, Times
from shrinkage.runtime.bench.result import Bench, Row
from shrinkage.runtime.bench.run import bench

__all__ = ["ENGINES", "Bench", "Row", "Spread", "Times", "bench"]

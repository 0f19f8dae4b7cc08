"""Run the engine's kernels on plain arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shrinkage.runtime.jit import Machine
from shrinkage.runtime.layout import Frame, Layout, address, allocate
from shrinkage.runtime.sparse import SCRATCH, Work
from shrinkage.runtime.steps import Program

Array = npt.NDArray[np.float32]
NOISE = 3.0e33  # what lies in memory that no result may depend on


def put(x: Array, lanes: int, side_by_side: bool, frame: Frame = (0, 0, 0, 0)) -> tuple[Layout, npt.NDArray[np.uint8]]:
    """Images (N, C, H, W) in the engine's layout; N = 1 with pixels in the lanes unless ``side_by_side``."""
    count, channels, height, width = x.shape
    layout = Layout(count if side_by_side else 1, channels, height, width, lanes, frame)
    buffer = allocate(layout.size)
    floats = buffer.view(np.float32)
    for i in range(count):
        floats[layout.features() // 4 + i] = x[i].reshape(-1)
    return layout, buffer


def get(layout: Layout, buffer: npt.NDArray[np.uint8]) -> Array:
    """The inverse."""
    floats = buffer.view(np.float32)
    images = [floats[layout.features() // 4 + i] for i in range(layout.images)]
    return np.stack(images).reshape(layout.images, layout.channels, layout.height, layout.width)


def run(work: Work, buffers: dict[str, npt.NDArray[np.uint8]], host: Machine) -> None:
    """The steps of a node."""
    scratch = allocate(work.scratch)
    scratch.view(np.float32)[:] = NOISE
    places = {name: address(buffer) for name, buffer in buffers.items()} | {SCRATCH: address(scratch)}
    Program([(step, places) for step in work.steps], host)()


def sparse_weight(shape: Sequence[int], density: float, seed: int) -> Array:
    """Normal weights of which this share is not zero; density −1: a single one."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape).astype(np.float32)
    if density < 0:
        mask = np.zeros(weight.size, bool)
        mask[rng.integers(weight.size)] = True
    else:
        mask = rng.random(weight.size) < density
    return weight * mask.reshape(weight.shape)

"""What a convolution, a linear layer or a pool reads, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shrinkage.runtime.graph import Node
from shrinkage.runtime.layout import Layout

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """A window that moves over an image: its size, steps, distances and the padding around the image."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    @classmethod
    def of(cls, node: Node) -> Window:
        """Of a convolution or pool; a linear layer has the smallest."""
        if node.op == "linear":
            return cls()
        kernel = node.attrs["kernel"] if node.weight is None else node.weight.shape[2:]
        return cls(tuple(kernel), node.attrs["stride"], node.attrs["dilation"], node.attrs["padding"])

    @property
    def taps(self) -> int:
        """Places in the window."""
        return self.kernel[0] * self.kernel[1]

    @property
    def point(self) -> bool:
        """Whether each output reads the pixel at its own place and no other."""
        return self.taps == 1 and self.stride == (1, 1) and not any(self.padding)

    def extent(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that a block of ``height`` × ``width`` outputs reads."""
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        return (height - 1) * sh + (kh - 1) * dh + 1, (width - 1) * sw + (kw - 1) * dw + 1

    def row(self, y: int, tap: int) -> int:
        """The image's row that the window for output row ``y`` reads at row ``tap`` of the filter."""
        return y * self.stride[0] + tap * self.dilation[0] - self.padding[0]

    def column(self, x: int, tap: int) -> int:
        """The same for columns."""
        return x * self.stride[1] + tap * self.dilation[1] - self.padding[2]


def turns(window: Window, image: Layout, out: Layout) -> tuple[tuple[int, ...], ...]:
    """For each place of the window the pixel of the image that each pixel of the output meets there; −1: padding."""
    found = []
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            lanes = [-1] * out.vector
            for y in range(out.height):
                for x in range(out.width):
                    row, column = window.row(y, i), window.column(x, j)
                    if 0 <= row < image.height and 0 <= column < image.width:
                        lanes[y * out.width + x] = row * image.width + column
            found.append(tuple(lanes))
    return tuple(found)

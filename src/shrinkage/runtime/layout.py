"""How a value lies in memory while the engine works on it.

PyTorch keeps the pixels of one image after another. A kernel wants whole vectors, and finds them in one of two ways:

- *pixels* in the lanes: one image, its channels as planes of contiguous pixels, each plane filled up to whole vectors;
- *images* in the lanes: N images at a time, where every pixel is N floats in a row. A frame of zeros around the
  planes serves convolutions that pad.

A vector of features is an image of 1×1 pixels; the rows of a transformer are its images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Frame = tuple[int, int, int, int]  # top, bottom, left, right
NO_FRAME: Frame = (0, 0, 0, 0)
Bytes = npt.NDArray[np.uint8]


def vector_length(pixels: int, lanes: int) -> int:
    """Floats in a vector over that many pixels: the registers are not filled where a plane is smaller."""
    for length in (1, 4, 8, 16):
        if pixels <= length or length == lanes:
            return length
    return lanes


@dataclass(frozen=True)
class Layout:
    """Places of a value's entries.

    Attributes:
        images: how many lie side by side; 1: the pixels are in the lanes.
        channels: of an image.
        height: of an image.
        width: of an image.
        lanes: floats in a vector register.
        frame: rows and columns of zeros around each plane, where images are in the lanes.
    """

    images: int
    channels: int
    height: int
    width: int
    lanes: int
    frame: Frame = NO_FRAME

    @property
    def pixels(self) -> int:
        """Of one image."""
        return self.height * self.width

    @property
    def vector(self) -> int:
        """Floats in the vectors this is made for."""
        return self.lanes if self.images > 1 else vector_length(self.pixels, self.lanes)

    @property
    def column(self) -> int:
        """Bytes from a pixel to its right neighbour."""
        return 4 * self.images

    @property
    def row(self) -> int:
        """Bytes from a pixel to the one below."""
        return self.column * (self.width + self.frame[2] + self.frame[3])

    @property
    def plane(self) -> int:
        """Bytes from a channel to the next."""
        if self.images > 1:
            return self.row * (self.height + self.frame[0] + self.frame[1])
        return 4 * (-(-self.pixels // self.vector) * self.vector)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.plane * self.channels

    def place(self, y: int, x: int) -> int:
        """Bytes from the start of a plane to a pixel; y and x may lie in the frame."""
        return (y + self.frame[0]) * self.row + (x + self.frame[2]) * self.column

    def features(self) -> npt.NDArray[np.int64]:
        """Place of each entry of one image, in PyTorch's order."""
        c, y, x = np.ogrid[: self.channels, : self.height, : self.width]
        return np.asarray(c * self.plane + self.place(0, 0) + y * self.row + x * self.column, np.int64).reshape(-1)


SLACK = 512
"""Bytes before and after every buffer that a kernel may read, but does not use."""


def allocate(size: int) -> Bytes:
    """``size`` bytes of zeros, rounded up to a multiple of 64, at a multiple of 64, with slack around."""
    size = -(-size // 64) * 64
    whole = np.zeros(size + 2 * SLACK + 64, np.uint8)
    start = SLACK + (-(whole.ctypes.data + SLACK)) % 64
    return whole[start : start + size]


def address(array: npt.NDArray[np.generic]) -> int:
    """Where an array begins."""
    return int(array.ctypes.data)

"""Normalisation and augmentation of whole batches, on the device they are on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Normalise:
    """(x / scale − mean) / std, channel by channel, in float32.

    Attributes:
        scale: the raw value that becomes 1.
        mean, std: one number a channel after the division by ``scale``; empty: leave it at that.

    >>> Normalise(255)(torch.tensor([0, 51, 255], dtype=torch.uint8))
    tensor([0.0000, 0.2000, 1.0000])
    """

    scale: float
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise a raw batch of shape (B, C, H, W); the batch itself is left as it is."""
        out = x.to(torch.float32, copy=True).div_(self.scale)
        if self.mean:
            # non_blocking: a few bytes from the CPU must not make every step wait for the GPU.
            mean, std = (
                torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).to(x.device, non_blocking=True)
                for values in (self.mean, self.std)
            )
            out.sub_(mean).div_(std)
        return out


@dataclass(frozen=True)
class PadCropFlip:
    """The augmentation of the CIFAR papers: pad with zeros, crop at random, mirror half of the images.

    Attributes:
        pad: pixels added on each side; the crop has the original size.

    >>> x = torch.arange(9, dtype=torch.uint8).reshape(1, 1, 3, 3)
    >>> PadCropFlip(pad=1)(x, torch.Generator().manual_seed(0)).shape
    torch.Size([1, 1, 3, 3])
    """

    pad: int = 4

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augment a raw batch (B, C, H, W); every image gets its own offset and its own coin.

        Args:
            x: the batch, before normalisation, so that the padding is black.
            generator: where the random numbers come from; it may live on the CPU while the batch is
                on a GPU. The global one by default.

        Returns:
            A new batch of the same shape and dtype.
        """
        count, _, height, width = x.shape
        source = x.device if generator is None else generator.device
        offsets = torch.randint(2 * self.pad + 1, (2, count), generator=generator, device=source)
        mirrored = torch.randint(2, (count,), generator=generator, device=source)
        rows, columns = offsets.to(x.device, non_blocking=True)
        flip = mirrored.to(x.device, non_blocking=True).bool().view(-1, 1, 1, 1)

        padded = functional.pad(x, (self.pad,) * 4)
        # A view of all crops, (B, C, 2·pad + 1, 2·pad + 1, H, W): nothing is copied until one is taken.
        crops = padded.unfold(2, height, 1).unfold(3, width, 1)
        taken = crops[torch.arange(count, device=x.device), :, rows, columns]
        return torch.where(flip, taken.flip(3), taken)

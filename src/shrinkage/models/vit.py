"""A small vision Transformer: enough attention to try a method on, quick enough for a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.core.costs import Cost, register_cost
from shrinkage.core.errors import InputError
from shrinkage.models.shapes import image_shape


class Block(nn.Module):
    """A pre-norm Transformer block: attention, then a two-layer perceptron, each added to its input.

    Args:
        width: size of a token.
        heads: attention heads; divides ``width``.
        hidden: neurons of the perceptron.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T, width) to tokens of the same shape."""
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """Patches to tokens, blocks, the mean of the tokens, one linear layer.

    Args:
        input_shape: (channels, height, width); ``patch`` divides both sides.
        num_classes: number of outputs (logits).
        patch: side of a patch in pixels.
        width: size of a token.
        depth: number of blocks.
        heads: attention heads in each.

    Raises:
        InputError: if the image cannot be cut into whole patches.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        *,
        patch: int,
        width: int,
        depth: int,
        heads: int,
    ) -> None:
        super().__init__()
        channels, height, columns = image_shape("a vision Transformer", input_shape, smallest=patch)
        if height % patch or columns % patch:
            raise InputError(f"images of {height}×{columns} cannot be cut into patches of {patch}×{patch}")
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(torch.empty(height // patch * (columns // patch), width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, 2 * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


@register_cost(VisionTransformer)
def _cost(module: VisionTransformer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Cost:
    return Cost()  # of its own it has only the positions, which are added


def vit_tiny(input_shape: tuple[int, ...], num_classes: int) -> VisionTransformer:
    """A vision Transformer of four blocks with tokens of 96 and four heads; about 310,000 parameters.

    Patches are 4×4 pixels, 2×2 on images under 16×16.

    Args:
        input_shape: (channels, height, width).
        num_classes: number of outputs (logits).

    Raises:
        InputError: if the image cannot be cut into whole patches.

    >>> vit_tiny((1, 28, 28), 10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    patch = 4 if min(input_shape[1:], default=0) >= 16 else 2
    return VisionTransformer(input_shape, num_classes, patch=patch, width=96, depth=4, heads=4)


def vit_micro(input_shape: tuple[int, ...], num_classes: int) -> VisionTransformer:
    """A vision Transformer for experiments by the hundred: three blocks, tokens of 64; about 105,000 parameters.

    Patches are a quarter of the image's side, so that there are 16 tokens.

    Args:
        input_shape: (channels, height, width), square, with sides that 4 divides.
        num_classes: number of outputs (logits).

    Raises:
        InputError: if the image cannot be cut into whole patches.

    >>> vit_micro((1, 28, 28), 10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    patch = max(input_shape[1] // 4, 1) if len(input_shape) > 1 else 1
    return VisionTransformer(input_shape, num_classes, patch=patch, width=64, depth=3, heads=4)

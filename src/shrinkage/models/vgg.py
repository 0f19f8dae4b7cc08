"""VGG-16 for CIFAR, as the HALO paper trains it."""

from __future__ import annotations

import math

from torch import nn

from shrinkage.models.shapes import image_shape

_CONFIGURATION_D = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)


def vgg_16(input_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """VGG-16: configuration D with BatchNorm, a last 2×2 average pool and one linear layer.

    Convolutions have biases; their weights start from N(0, σ² = 2/(k²·C_in)), those of the linear
    layer from N(0, σ = 0.01), all biases from zero (Seto et al., "HALO", 2021; the paper writes
    N(0, .01), read here as a standard deviation, as usual for VGG).

    Args:
        input_shape: (channels, height, width), at least 32×32; on larger images the features are averaged
            over what is left of the plane.
        num_classes: number of outputs (logits).

    Raises:
        InputError: if the images are smaller.

    >>> sum(m.weight.numel() for m in vgg_16((3, 32, 32), 10) if isinstance(m, nn.Conv2d))
    14710464
    """
    channels, height, width = image_shape("vgg-16", input_shape, smallest=32)
    layers: list[nn.Module] = []
    for entry in _CONFIGURATION_D:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, entry, 3, padding=1), nn.BatchNorm2d(entry), nn.ReLU(inplace=True)]
        channels = entry
    layers += [nn.AvgPool2d((height // 16, width // 16)), nn.Flatten(), nn.Linear(channels, num_classes)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in) if isinstance(layer, nn.Conv2d) else 0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)

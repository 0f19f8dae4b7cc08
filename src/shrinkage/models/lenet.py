"""The two LeNets that pruning papers report on MNIST, for images of any size."""

from __future__ import annotations

import math

from torch import nn

from shrinkage.models.shapes import image_shape


def lenet_300_100(input_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """LeNet-300-100: two hidden layers of 300 and 100 ReLU neurons; 266,610 parameters on MNIST.

    Args:
        input_shape: shape of one example; it is flattened.
        num_classes: number of outputs (logits).

    >>> sum(p.numel() for p in lenet_300_100((1, 28, 28), 10).parameters())
    266610
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, num_classes),
    )


def lenet_5(input_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """LeNet-5 in the widths of Caffe (20 and 50 filters of 5×5, 500 neurons); 431,080 parameters on MNIST.

    Each convolution is followed by a ReLU and a 2×2 maximum pool. (Caffe's own has a ReLU only after
    the first linear layer.)

    Args:
        input_shape: (channels, height, width), at least 16×16.
        num_classes: number of outputs (logits).

    Raises:
        InputError: if the images are smaller.

    >>> sum(p.numel() for p in lenet_5((1, 28, 28), 10).parameters())
    431080
    """
    channels, height, width = image_shape("lenet-5", input_shape, smallest=16)
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    return nn.Sequential(
        nn.Conv2d(channels, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * rows * columns, 500),
        nn.ReLU(),
        nn.Linear(500, num_classes),
    )

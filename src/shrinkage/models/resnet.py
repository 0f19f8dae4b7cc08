"""The residual networks for CIFAR: three stages of basic blocks with 16, 32 and 64 channels."""

from __future__ import annotations

from torch import Tensor, nn

from shrinkage.core.errors import InputError
from shrinkage.models.shapes import image_shape


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm, and around them the identity or a 1×1 convolution.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: of the first convolution and the shortcut; the shortcut is a 1×1 convolution with
            BatchNorm where ``stride`` or the channels change, else the identity.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = (
            nn.Sequential()
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, ⌈H / stride⌉, ⌈W / stride⌉)."""
        hidden = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))
        return out


def resnet(depth: int, input_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """Residual network of ``depth`` = 6n + 2 layers, n basic blocks in each of three stages.

    At depth 50 this is what the HALO paper calls ResNet-50: eight blocks a stage and 754,096
    weights in convolutions (the ImageNet network of that name has bottleneck blocks). Convolutions are
    without bias and start from He's normal distribution; the linear layer keeps PyTorch's default.

    Args:
        depth: 8, 14, 20, 26, 32, …
        input_shape: (channels, height, width), at least 4×4.
        num_classes: number of outputs (logits).

    Raises:
        InputError: if no whole number of blocks gives ``depth``, or the images are smaller.

    >>> net = resnet(50, (3, 32, 32), 100)
    >>> sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d))
    754096
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise InputError(f"a CIFAR ResNet has 6n + 2 layers (8, 14, 20, 26, 32, …), got depth={depth}")
    channels, _, _ = image_shape(f"resnet-{depth}", input_shape, smallest=4)

    def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    net = nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        stage(16, 16, 1),
        stage(16, 32, 2),
        stage(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net

"""Small networks of every structure that compaction has to follow, and ways to make their units dead."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional


def zero(tensor, *index):
    with torch.no_grad():
        tensor[index or ...] = 0


def units(result):
    """Units that are left, by layer."""
    return {layer.name: layer.after.units for layer in result.layers if layer.after.units}


def assert_same(result, model, *inputs):
    with torch.no_grad():
        was, now = (copy.deepcopy(each).eval()(*inputs) for each in (model, result.model))
    torch.testing.assert_close(now, was, rtol=1e-9, atol=1e-9 * float(was.abs().max()))


def drawn(model, seed=0):
    """Biases, norms and running statistics away from their defaults, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like, low, high):
        return (low + (high - low) * torch.rand(like.shape, generator=generator)).to(like)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(noise(parameter, 0.5, 1.5) if name.endswith("weight") else noise(parameter, -1.0, 1.0))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(noise(buffer, -0.5, 0.5) if name.endswith("mean") else noise(buffer, 0.5, 2.0))
    return model


def thinned(model, share, seed=0, skip=()):
    """A share of the weights set to zero at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not any(part in name for part in skip):
                parameter[torch.rand(parameter.shape, generator=generator) < share] = 0
    return model


def without_rows(model, share, seed=0, skip=()):
    """A share of each weight's rows set to zero, as by ``Row()``; biases stay."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not any(part in name for part in skip):
                parameter[torch.rand(len(parameter), generator=generator) < share] = 0
    return model


class DenseNet(nn.Module):
    """Concatenations with BatchNorm before convolutions; input [n, 3, h, w]."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 8 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 8 * i, 8, 3, padding=1, bias=False) for i in range(3))
        self.norm, self.down = nn.BatchNorm2d(32), nn.Conv2d(32, 16, 1, bias=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(norm(x).relu())], 1)
        return self.head(functional.avg_pool2d(self.down(self.norm(x).relu()), 2).mean((2, 3)))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Linear(channels, channels // 4), nn.Linear(channels // 4, channels)

    def forward(self, x):
        return x * self.up(self.down(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]


class Inverted(nn.Module):
    """MobileNet's block: expand, depthwise, gate, project; a residual where the sizes allow."""

    def __init__(self, inputs, outputs, expand=4):
        super().__init__()
        hidden = inputs * expand
        self.body = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Hardswish(),
            Gate(hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = inputs == outputs

    def forward(self, x):
        return x + self.body(x) if self.residual else self.body(x)


class MobileNet(nn.Sequential):
    """Input [n, 3, h, w]."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            Inverted(8, 8),
            Inverted(8, 12),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(12, 5),
        )


class ResNeXt(nn.Module):
    """A residual around a convolution in groups; input [n, 3, h, w]."""

    def __init__(self, groups=4, width=16):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.down, self.norm1 = nn.Conv2d(16, width, 1, bias=False), nn.BatchNorm2d(width)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False)
        self.norm2, self.up = nn.BatchNorm2d(width), nn.Conv2d(width, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        y = self.norm1(self.down(x)).relu()
        y = self.up(self.norm2(self.grouped(y)).relu())
        return self.head((x + y).relu().mean((2, 3)))


class UNet(nn.Module):
    """A transposed convolution and a skip connection; input [n, 3, h, w], output alike."""

    def __init__(self):
        super().__init__()
        self.outer, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x):
        outer = functional.gelu(self.outer(x))
        inner = functional.silu(self.inner(outer))
        return self.last(torch.cat([outer, self.up(inner)], 1))


class Encoder(nn.Module):
    """Attention written out, with heads counted from the size of a head; input [n, t, 5]."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 16), nn.LayerNorm(16)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        x = self.embed(x)
        y = self.norm(x)
        query, key, value = (
            each(y).view(*y.shape[:2], -1, 4).transpose(1, 2) for each in (self.query, self.key, self.value)
        )
        weights = (query @ key.transpose(-1, -2) / 2).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).flatten(2))
        return (x + self.down(functional.gelu(self.up(self.norm(x))))).mean(1)


class Gated(nn.Sequential):
    """Halves that meet in a gated linear unit; input [n, 4]."""

    def __init__(self):
        super().__init__(nn.Linear(4, 24), nn.GLU(), nn.Linear(12, 2))


class Recurrent(nn.Module):
    """An LSTM between linear layers; input [n, t, 4]."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Linear(4, 8), nn.LSTM(8, 8, batch_first=True)
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.hidden(self.lstm(self.embed(x))[0]).relu())


class LowRank(nn.Module):
    """A weight that is computed from others; input [n, 4]."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 12), nn.Linear(12, 2)
        self.matrix = nn.Parameter(torch.randn(12, 12))
        self.down, self.up = nn.Parameter(torch.randn(12, 3)), nn.Parameter(torch.randn(3, 12))

    def forward(self, x):
        return self.last(functional.linear(self.first(x).relu(), self.matrix + self.down @ self.up).relu())


class Counted(nn.Module):
    """Code that counts its channels by fixed numbers: in a view, a slice, a permutation; input [n, 3, 8, 8]."""

    def __init__(self):
        super().__init__()
        self.conv, self.wide = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 20)
        self.free, self.part = nn.Linear(20, 20), nn.Linear(10, 20)
        self.head = nn.Linear(20, 3)
        self.register_buffer("order", torch.arange(19, -1, -1))

    def forward(self, x):
        x = self.wide(self.conv(x).relu().view(-1, 8 * 36)).relu()
        x = self.free(x).relu()[:, :10]
        return self.head(self.part(x).relu()[:, self.order])


class Mirrored(nn.Module):
    """Hidden units that two layers read in opposite orders; input [n, 4]."""

    def __init__(self):
        super().__init__()
        self.hidden, self.one, self.other = nn.Linear(4, 12), nn.Linear(12, 2), nn.Linear(12, 2)

    def forward(self, x):
        x = self.hidden(x).relu()
        return self.one(x) + self.other(x.flip(-1))


def twice():
    """One layer in two places."""
    layer = nn.Linear(12, 12)
    return nn.Sequential(nn.Linear(4, 12), nn.Tanh(), layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(12, 2))


STRUCTURES = {
    "concatenation": (DenseNet, (2, 3, 8, 8)),
    "depthwise": (MobileNet, (2, 3, 8, 8)),
    "groups": (ResNeXt, (2, 3, 8, 8)),
    "transposed": (UNet, (2, 3, 8, 8)),
    "attention": (Encoder, (2, 6, 5)),
    "gate": (Gated, (3, 4)),
    "recurrent": (Recurrent, (2, 5, 4)),
    "computed": (LowRank, (3, 4)),
    "counted": (Counted, (2, 3, 8, 8)),
    "mirrored": (Mirrored, (3, 4)),
    "twice": (twice, (3, 4)),
}
"""Makers of models and shapes of their inputs."""

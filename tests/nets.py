"""Small networks that learn in a second, shared by the tests."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

import shrinkage
from shrinkage.testing.toy import batch, net, train

__all__ = [
    "CNN",
    "MLP",
    "RAMP",
    "Transformer",
    "batch",
    "fit",
    "images",
    "net",
    "pruned_signs",
    "sequences",
    "start",
    "train",
]


class MLP(nn.Sequential):
    def __init__(self, dtype=torch.float32):
        super().__init__(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
        self.to(dtype)


class CNN(nn.Module):
    """BatchNorm, a residual connection and a strided convolution; input [n, 1, 8, 8]."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.down, self.norm3 = nn.Conv2d(8, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.norm1(self.stem(x)).relu()
        x = (x + self.norm2(self.inner(x))).relu()
        return self.head(self.norm3(self.down(x)).relu().mean((2, 3)))


class Transformer(nn.Module):
    """Embedding, one attention layer, one feed-forward block; input [n, 6] of tokens below 10."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 16)
        self.attention, self.norm1 = nn.MultiheadAttention(16, 2, batch_first=True), nn.LayerNorm(16)
        self.up, self.down, self.norm2 = nn.Linear(16, 32), nn.Linear(32, 16), nn.LayerNorm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens):
        x = self.embed(tokens)
        x = self.norm1(x + self.attention(x, x, x, need_weights=False)[0])
        x = self.norm2(x + self.down(self.up(x).relu()))
        return self.head(x.mean(1))


def images(step):
    """A bright bar in one of four quadrants."""
    generator = torch.Generator().manual_seed(step)
    y = torch.randint(4, (32,), generator=generator)
    x = torch.randn(32, 1, 8, 8, generator=generator)
    for i, quadrant in enumerate(y.tolist()):
        row, column = 4 * (quadrant // 2), 4 * (quadrant % 2)
        x[i, 0, row : row + 4, column : column + 4] += 1.5
    return x, y


def sequences(step):
    """The label is the sum of the first two tokens, modulo 4."""
    x = torch.randint(10, (32, 6), generator=torch.Generator().manual_seed(step))
    return x, (x[:, 0] + x[:, 1]) % 4


RAMP = {"start": 0.05, "end": 0.75}  # not the default, which may change


def start(method=shrinkage.HALO, *, model=None, optimizer=torch.optim.SGD, lr=0.1, steps=40, sparsity=0.9, **options):
    """A seeded model, its optimiser, and the method attached to it; the pattern is fixed after 3/4 of the steps."""
    torch.manual_seed(0)
    model = MLP() if model is None else model()
    optimizer = optimizer(model.parameters(), lr=lr)
    ramp = {} if steps is None else RAMP
    return model, optimizer, method(model, sparsity, steps, **ramp | options).attach(optimizer)


def fit(model, optimizer, steps, data=batch, after=None):
    """Plain training on any of the data sets above; returns the last loss."""
    loss = torch.tensor(torch.nan)
    for step in steps:
        x, y = data(step)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if after is not None:
            after()
    return loss.item()


def pruned_signs(model, method):
    """(pruned weights that are not zero, pruned weights with the sign bit set)."""
    pruned = [dict(model.named_parameters())[name].detach()[~mask] for name, mask in method.masks().items()]
    return sum(int((w != 0).sum()) for w in pruned), sum(int(w.signbit().sum()) for w in pruned)

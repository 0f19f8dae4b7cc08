"""Small networks with weights from a set, and data, shared by the tests of discrete weights."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from shrinkage.discrete.chain import chain
from shrinkage.discrete.losses import cross_entropy
from shrinkage.discrete.trainer import Settings, Trainer
from shrinkage.discrete.values import value_set


def mlp(dtype=torch.float64):
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).to(dtype)


def cnn(dtype=torch.float64):
    """Padding, stride, dilation, norms before and after flattening, an in-place activation, pools, nesting."""
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, stride=2), nn.BatchNorm2d(3), nn.ReLU(inplace=True)),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, (1, 2), dilation=(1, 2), padding=(0, 1), bias=False),
        nn.Hardtanh(),
        nn.Flatten(),
        nn.BatchNorm1d(16),
        nn.Dropout(0.5),
        nn.Linear(16, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ).to(dtype)
    for norm in (net[0][1], net[5]):
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 2)
    return net


def narrow(input_shape, num_classes):
    """For images, small enough to be trained in a second."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 16), nn.ReLU(), nn.Linear(16, num_classes))


def examples(net, count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (5,) if isinstance(net[0], nn.Linear) else (1, 8, 8)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    x[x < 0.3] = 0
    return x.to(next(net.parameters()).dtype), torch.randint(3, (count,), generator=generator)


def trainer(net, values=(-1, 0, 1), *, variant="exhaustive", scale="layer", temperature=1.0, biases=True):
    made = Trainer(net, Settings(value_set(values), variant, scale, temperature, biases, "random", cross_entropy))
    made.begin(torch.Generator().manual_seed(0))
    return made


def total(net, x, y, temperature=1.0):
    """The loss as anybody would compute it."""
    was = net.training
    with torch.no_grad():
        loss = functional.cross_entropy(net.eval()(x) / temperature, y, reduction="sum").item()
    net.train(was)
    return loss


def layers(net):
    return [stage.layer for stage in chain(net).stages]


def kept(cache):
    """All that a cache keeps."""
    return [*cache._inputs, *cache._padded, *cache._z.values(), *cache._z_of, cache._outputs, cache.losses]

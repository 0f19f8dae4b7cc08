"""A small network in a loop with noise outputs, for the tests of NoiseOut."""

import torch
from torch import nn
from torch.nn import functional

from nets import batch
from shrinkage.noiseout.method import NoiseOut

INPUTS = [batch(step)[0] for step in range(4)]


def mlp(dtype=torch.float32):
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).to(dtype)


def step(model, optimizer, number):
    x, y = batch(number)
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


def method(model, **options):
    return NoiseOut(model, INPUTS[0][:2], **{"outputs": 5} | options)

"""Latent methods the slow way: effective weights as a function in the graph, and autograd for everything."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from nets import MLP, batch
from shrinkage.core.schedules import Ramp

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, weight_decay=1e-2),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=1e-2),
}


def double():
    """A perceptron in double precision, the same at every call."""
    torch.manual_seed(0)
    return MLP(torch.float64)


class Reference:
    """A latent method in autograd. Units are single weights, or rows.

    A form overrides ``factor``, and ``relevel`` which follows every step.
    """

    def __init__(self, optimizer, steps, sparsity, rows):
        self.model = double()
        parameters = dict(self.model.named_parameters())
        self.names = [name for name, p in parameters.items() if p.ndim == 2]
        self.theta = {name: parameters[name].detach().clone().requires_grad_() for name in self.names}
        self.others = {name: p for name, p in parameters.items() if p.ndim == 1}
        self.rows, self.steps, self.step = rows, steps, 0
        self.ramp = Ramp("cubic", 0.1, 0.8, steps)
        self.target = round(sparsity * sum(size.numel() for size in self.sizes()))
        self.gone = 0
        self.kept = [torch.ones_like(size, dtype=torch.bool) for size in self.sizes()]
        self.optimizer = optimizer([*self.theta.values(), *self.others.values()])

    def sizes(self):
        return [t.norm(dim=1) if self.rows else t.abs() for t in self.theta.values()]

    def weights(self):
        factors = self.factors(self.sizes())
        spread = [factor[:, None] if self.rows else factor for factor in factors]
        return {name: t * f for (name, t), f in zip(self.theta.items(), spread, strict=True)}

    def keep_highest(self, scores):
        """Brute force: sort everything; returns the highest score that goes."""
        flat = torch.cat([score.detach().flatten() for score in scores])
        self.gone = int(self.ramp(self.step) * self.target + 1e-9)
        order = flat.argsort()
        kept = torch.ones_like(flat, dtype=torch.bool)
        kept[order[: self.gone]] = False
        parts = kept.split([score.numel() for score in scores])
        self.kept = [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]
        return flat[order[self.gone - 1]] if self.gone else None

    def train(self, steps):
        for _ in range(steps):
            x, y = batch(self.step)
            self.optimizer.zero_grad()
            logits = functional_call(self.model, {**self.weights(), **self.others}, x.double())
            functional.cross_entropy(logits, y).backward()
            self.optimizer.step()
            self.step += 1
            with torch.no_grad():
                self.relevel()
        return {name: w.detach() for name, w in self.weights().items()}


def train(method, optimizer, steps):
    """The same with the library: the ordinary loop, and the Parameters at its end."""
    model = double()
    built = optimizer(model.parameters())
    attached = method(model).attach(built)
    for step in range(steps):
        x, y = batch(step)
        built.zero_grad()
        functional.cross_entropy(model(x.double()), y).backward()
        built.step()
    return {name: p.detach() for name, p in model.named_parameters() if p.ndim == 2}, attached


def assert_same(found, wanted):
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-9, atol=1e-12)
        assert torch.equal(found[name] == 0, weight == 0)


class Passing(torch.autograd.Function):
    """A form's effective weights of one tensor, with the form's own gradients, for ``gradcheck``."""

    @staticmethod
    def forward(ctx, theta, slot, form, choice, cut):
        size = slot.sizes(theta)
        ctx.save_for_backward(theta)
        ctx.rest = slot, form, choice
        return theta * slot.spread(form.factor(0, size, choice) if cut else form.mask(0, size, choice))

    @staticmethod
    def backward(ctx, gradient):
        from shrinkage.core.latent import totals

        (theta,), (slot, form, choice) = ctx.saved_tensors, ctx.rest
        with torch.no_grad():
            pulls = [totals(slot, gradient * theta)]
            ((gate, turn),) = form.gradients([0], [slot.sizes(theta)], [choice], pulls, None)
        passed = gradient * slot.spread(gate)
        return passed if turn is None else passed + theta * slot.spread(turn), None, None, None, None


def slot_of(weight, granularity):
    from shrinkage.core.slots import Slot

    parameter = nn.Parameter(weight)
    return Slot("weight", parameter, 0, granularity, torch.optim.SGD([parameter], lr=0.1), 0)

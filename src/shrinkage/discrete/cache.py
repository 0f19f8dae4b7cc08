"""What the network computes for every example, kept, so that a trial costs only what lies downstream of a weight.

A weight of output channel o and input i changes one channel, for the examples whose input i is not zero. Behind the
activation some of these changes vanish. For the examples that are left the next layer gets one changed input, an update
of rank one; only the layers after it are computed as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shrinkage.core.errors import DivergedError, InputError
from shrinkage.discrete.chain import Chain, Stage
from shrinkage.discrete.losses import cross_entropy

Loss = Callable[[Tensor, Tensor], Tensor]
"""From outputs (M, …) and targets (M, …) to a loss for each example, shape (M,)."""

Place = tuple[int, ...] | None
"""Where a weight is in its channel: (input,) or (input, row, column); None for the bias."""

_ROUNDING = 16  # units in the last place of the total loss below which a fall is not one


@dataclass(frozen=True)
class Trial:
    """What would come of a weight's taking other values.

    Attributes:
        falls: by how much the total loss would change, for each value; inf where it would not be finite.
        stage: of the weight.
        channel: of the weight.
        touched: examples whose output of the stage changes; None for all.
        z: the changed output of the stage, shape (values, touched, …).
        value: which value each of the changed examples is for.
        rows: the changed examples: those whose loss may be another.
        inner: what the next layer gets of the channel, for the changed examples.
        further: outputs of each later layer, before and after its activation.
        losses: of the changed examples.
    """

    falls: list[float]
    stage: int
    channel: int
    touched: Tensor | None
    z: Tensor
    value: Tensor
    rows: Tensor
    inner: Tensor
    further: list[tuple[Tensor, Tensor]]
    losses: Tensor


class Cache:
    """The activations of a chain for a set of examples, and the losses.

    Args:
        chain: the network; its parameters are read as they are at each call.
        x: inputs, shape (N, …), of the network's type.
        y: targets, shape (N, …).
        loss: a loss for each example.
        temperature: what outputs are divided by before the loss, > 0.

    Raises:
        InputError: if the network, the loss and the data do not fit each other.
        StateError: if the loss is not finite.
    """

    def __init__(self, chain: Chain, x: Tensor, y: Tensor, loss: Loss, temperature: float = 1.0) -> None:
        check_examples(x, y)
        self._chain = chain
        self._x, self._y = x, y
        self._loss = loss
        self.temperature = temperature
        self._columns: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in range(len(chain.stages) + 1)]
        self.refresh()
        if not math.isfinite(self.total):
            raise DivergedError(
                f"the loss is {self.total}: check the data, the scale of the layers and the temperature"
            )

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute everything afresh, for weights that were changed by others, and to get rid of rounding errors."""
        try:
            x = self._chain.first(self._x)
            self._padded: list[Tensor] = []
            self._inputs: list[Tensor] = []  # by channel; the last one holds the network's outputs
            self._z: dict[int, Tensor] = {}  # by example, of the stages after the first
            self._z_of: list[Tensor] = []  # by channel
            for columns in self._columns[1:]:  # the network's own inputs stay as they are
                columns.clear()
            for stage in self._chain.stages:
                padded, inner = _padded(stage, x)
                self._padded.append(padded)
                self._inputs.append(inner)
                z = stage.forward(x)
                if stage is not self._chain.stages[0]:
                    self._z[len(self._z_of)] = z
                self._z_of.append(z.transpose(0, 1).contiguous())
                x = stage.outputs(z)
        except RuntimeError as error:
            raise InputError(f"the model cannot run on examples of shape {tuple(self._x.shape)}: {error}") from error
        self._outputs = x
        self._inputs.append(x.transpose(0, 1).contiguous())
        try:
            self.losses = self._losses(x, self._y)
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"the loss cannot take outputs of shape {tuple(x.shape)} and targets of shape {tuple(self._y.shape)} "
                f"and {self._y.dtype}, from {self._y.min()} to {self._y.max()}: {error}"
            ) from error
        if self.losses.shape != self._y.shape[:1]:
            raise InputError(
                f"loss must give a number for each of {len(self._y)} examples, as with reduction='none'; it gave shape "
                f"{tuple(self.losses.shape)}"
            )
        self.total = _sum(self.losses)

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self._y)

    @property
    def margin(self) -> float:
        """A fall of the total loss that is more than rounding."""
        return _ROUNDING * torch.finfo(self.losses.dtype).eps * max(abs(self.total), 1e-30)

    @torch.no_grad()
    def evaluate(self) -> float:
        """The total loss with the weights as they are, inf if it is not finite; the cache stays as it was."""
        total = _sum(self._losses(self._chain.forward(self._chain.first(self._x)), self._y))
        return total if math.isfinite(total) else math.inf

    def gradients(self, parameters: list[nn.Parameter], block: int = 8192) -> list[Tensor]:
        """Gradients of the total loss, by back-propagation in blocks of examples."""
        wanted = [parameter.requires_grad for parameter in parameters]
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        try:
            for parameter in parameters:
                parameter.requires_grad_(True)
            with torch.enable_grad():
                for first in range(0, len(self._x), block):
                    here = slice(first, first + block)
                    outputs = self._chain.forward(self._chain.first(self._x[here]))
                    loss = self._losses(outputs, self._y[here]).sum()
                    for total, part in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
                        total += part
        finally:
            for parameter, before in zip(parameters, wanted, strict=True):
                parameter.requires_grad_(before)
        return sums

    @torch.no_grad()
    def best_temperature(self) -> float:
        """The temperature with the least loss, by golden section within a factor of 8 of the present one.

        One more example counts there, whose target is the others' in random order: N examples that are all right do
        not say that less than one in N + 1 will be wrong. Without it the temperature of separable examples has no
        lower bound. The present one, if the loss of the examples themselves does not fall.
        """
        shuffled = torch.randperm(len(self._y), generator=torch.Generator().manual_seed(0)).to(self._y.device)
        others = self._y[shuffled]

        def loss(power: float, share: float = 1 / len(others)) -> float:
            outputs = self._outputs / (self.temperature * 2.0**power)
            return _sum(self._loss(outputs, self._y)) + share * _sum(self._loss(outputs, others))

        low, high, ratio = -3.0, 3.0, (5**0.5 - 1) / 2
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        at_a, at_b = loss(a), loss(b)
        for _ in range(20):
            if at_a <= at_b:
                high, b, at_b = b, a, at_a
                a = high - ratio * (high - low)
                at_a = loss(a)
            else:
                low, a, at_a = a, b, at_b
                b = low + ratio * (high - low)
                at_b = loss(b)
        found = loss((low + high) / 2, 0)
        return self.temperature * 2.0 ** ((low + high) / 2) if found < self.total - self.margin else self.temperature

    @torch.no_grad()
    def trial(self, stage: int, channel: int, place: Place, deltas: Tensor) -> Trial | None:
        """What comes of changing one weight by each of some amounts; None if no output changes.

        Args:
            stage: which layer.
            channel: which of its outputs.
            place: where in the channel.
            deltas: the amounts, shape (K,).
        """
        layer = self._chain.stages[stage]
        touched, values = self._column(stage, place)
        if not len(values):
            return None
        z = self._z_of[stage][channel]
        z = z if touched is None else z.index_select(0, touched)
        count = len(z)
        z = z + deltas.view(-1, *[1] * z.ndim) * values
        inner = layer.outputs(z.reshape(-1, 1, *z.shape[2:]), channel)
        width = inner.shape[1]
        first, last = channel * width, (channel + 1) * width
        before = self._inputs[stage + 1][first:last]
        before = before if touched is None else before.index_select(1, touched)
        change = inner.view(len(deltas), count, *inner.shape[1:]) - before.transpose(0, 1)
        changed = change.flatten(0, 1)
        hit = (changed.flatten(1) != 0).any(1) if changed[0].numel() > 1 else changed.flatten() != 0
        index = hit.nonzero()[:, 0]
        if len(deltas) == 1:
            value, rows = torch.zeros_like(index), index
        else:
            value = index // count
            rows = index - value * count
        rows = rows if touched is None else touched.index_select(0, rows)
        inner = inner.index_select(0, index)
        further: list[tuple[Tensor, Tensor]] = []
        if stage + 1 == len(self._chain.stages):
            outputs = self._outputs.index_select(0, rows)
            outputs[:, first:last] = inner
        else:
            after = self._chain.stages[stage + 1]
            z_after = self._z[stage + 1].index_select(0, rows)
            z_after += after.multiply(changed.index_select(0, index), first, last)
            outputs = after.outputs(z_after)
            further.append((z_after, outputs))
            for after in self._chain.stages[stage + 2 :]:
                z_after = after.forward(outputs)
                outputs = after.outputs(z_after)
                further.append((z_after, outputs))
        losses = self._losses(outputs, self._y.index_select(0, rows))
        rises = losses - self.losses.index_select(0, rows)
        if len(deltas) == 1:
            falls = rises.sum(dtype=torch.float64).unsqueeze(0)
        else:
            falls = torch.zeros(len(deltas), dtype=torch.float64, device=losses.device)
            falls.index_add_(0, value, rises.double())
        sure = [fall if math.isfinite(fall) else math.inf for fall in falls.tolist()]
        return Trial(sure, stage, channel, touched, z, value, rows, inner, further, losses)

    @torch.no_grad()
    def accept(self, trial: Trial, chosen: int) -> None:
        """Let the cache follow a change; the weight itself is the caller's to set."""
        mine: slice | Tensor = slice(None) if len(trial.falls) == 1 else (trial.value == chosen).nonzero()[:, 0]
        rows, stage, z = trial.rows[mine], trial.stage, trial.z[chosen]
        kept = [self._z_of[stage][trial.channel]]
        if stage in self._z:
            kept.append(self._z[stage][:, trial.channel])
        for each in kept:
            if trial.touched is None:
                each.copy_(z)
            else:
                each.index_copy_(0, trial.touched, z)
        inner = trial.inner[mine]
        width = inner.shape[1]
        first, last = trial.channel * width, (trial.channel + 1) * width
        self._inputs[stage + 1][first:last].index_copy_(1, rows, inner.transpose(0, 1))
        for index in range(first, last):
            self._columns[stage + 1].pop(index, None)
        for later, (z_after, outputs) in enumerate(trial.further, stage + 1):
            z_mine = z_after[mine]
            self._z[later].index_copy_(0, rows, z_mine)
            self._z_of[later].index_copy_(1, rows, z_mine.transpose(0, 1))
            self._inputs[later + 1].index_copy_(1, rows, outputs[mine].transpose(0, 1))
            self._columns[later + 1].clear()
        if trial.further:
            self._outputs.index_copy_(0, rows, trial.further[-1][1][mine])
        else:
            self._outputs[:, first:last].index_copy_(0, rows, inner)
        self.losses.index_copy_(0, rows, trial.losses[mine])
        self.total += trial.falls[chosen]

    def _column(self, stage: int, place: Place) -> tuple[Tensor | None, Tensor]:
        """The examples that a weight works on (None: all), and what it is multiplied with there, (M, …)."""
        z = self._z_of[stage][0]
        if place is None:
            return None, torch.ones_like(z)
        layer = self._chain.stages[stage].layer
        if isinstance(layer, nn.Conv2d):
            channel, row, column = place
            (down, right), (high, wide) = layer.stride, layer.dilation
            top, left = row * high, column * wide
            rows = slice(top, top + down * (z.shape[1] - 1) + 1, down)
            columns = slice(left, left + right * (z.shape[2] - 1) + 1, right)
            return None, self._padded[stage][channel][:, rows, columns]
        (index,) = place
        known = self._columns[stage]
        if index not in known:
            known[index] = _nonzeros(self._inputs[stage][index])
        return known[index]

    def _losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Of outputs that stay as they are, whatever the loss does to its own; in float32 at least."""
        wide = outputs.float() if outputs.element_size() < 4 else outputs
        if self.temperature != 1:
            wide = wide / self.temperature
        elif wide is outputs and self._loss is not cross_entropy:
            wide = wide.clone()
        return self._loss(wide, y)


def check_examples(x: Tensor, y: Tensor) -> None:
    """Raise ``InputError`` unless these are inputs and targets, as many of both."""
    for what, part in (("inputs", x), ("targets", y)):
        if not isinstance(part, Tensor) or not part.ndim:
            seen = f"a tensor of shape {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
            raise InputError(f"{what} must be a torch.Tensor with a row for each example, got {seen}")
    if len(x) != len(y) or not len(x):
        raise InputError(f"there are {len(x)} examples and {len(y)} targets; give as many of both, and some")


def _sum(losses: Tensor) -> float:
    return float(losses.sum(dtype=torch.float64))


def _nonzeros(column: Tensor) -> tuple[Tensor, Tensor]:
    rows = column.nonzero()[:, 0]
    return rows, column.index_select(0, rows)


def _padded(stage: Stage, x: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's input by channel, with its padding; and the part of that without the padding, in the same memory."""
    wanted = "examples, features" if isinstance(stage.layer, nn.Linear) else "examples, channels, height, width"
    if x.ndim != wanted.count(",") + 1:
        raise InputError(f"{stage.name!r} gets an input of shape {tuple(x.shape)}; CoNNTrA needs ({wanted})")
    by_channel = x.transpose(0, 1)
    if isinstance(stage.layer, nn.Linear):
        inner = by_channel.contiguous()
        return inner, inner
    padding = stage.layer.padding
    assert not isinstance(padding, str)
    vertical, horizontal = padding
    padded = nn.functional.pad(by_channel, (horizontal, horizontal, vertical, vertical))
    height, width = x.shape[2:]
    return padded, padded[:, :, vertical : vertical + height, horizontal : horizontal + width]

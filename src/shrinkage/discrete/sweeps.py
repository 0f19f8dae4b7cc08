"""A sweep: every weight is looked at once, and takes a value that lowers the loss if there is one.

Three procedures, none of which ever lets the loss of the given examples rise, as it is when computed afresh:

*exhaustive*
    in random order, each weight takes the value of the set with the least loss; a tie keeps the present one.
*gradient*
    the gradient says which neighbouring value would lower the loss, and by how much to first order; only these are
    tried, the largest first. The gradient is computed afresh several times in a sweep.
*together*
    k of the steps against a running mean of gradients, drawn at random, are taken at once if the loss falls; else k
    shrinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shrinkage.discrete.cache import Cache, Trial
from shrinkage.discrete.sites import Sites

_SHARE, _FIRST = 0.01, 16  # together to begin with: this share of all weights, but not fewer than this
_SMALLEST = 4  # fewer weights are better tried one by one
_ROUNDS = 32  # gradients in a sweep, and how often what single trials have come to is checked
_ROWS = 1 << 18  # examples times values in work at a time: what memory a trial takes
_FEWEST = 64  # weights that are worth a check
_TRIES = 40  # loss evaluations of steps taken together, at most


@dataclass
class Count:
    """What a sweep has done.

    Attributes:
        trials: values that were tried on a single weight.
        together: loss evaluations of the whole network for steps taken together.
        gradients: gradients of the whole network.
        moved: weights that were given another value, counted each time, and even if that was taken back.
    """

    trials: int = 0
    together: int = 0
    gradients: int = 0
    moved: int = 0


class _Verified:
    """The weights at the last check, and their total loss, computed afresh.

    What comes of single trials is added up, and so are its rounding errors; with large activations they can be more
    than what a trial gains. Where they made the loss rise since the last check, it goes back to there.
    """

    def __init__(self, cache: Cache, sites: Sites) -> None:
        self._cache, self._parameters = cache, sites.parameters()
        self._keep()

    @torch.no_grad()
    def check(self) -> None:
        self._cache.refresh()
        if self._cache.total <= self._total:
            self._keep()
            return
        for parameter, value in zip(self._parameters, self._values, strict=True):
            parameter.copy_(value)
        self._cache.refresh()

    def _keep(self) -> None:
        self._total = self._cache.total
        self._values = [parameter.detach().clone() for parameter in self._parameters]


def exhaustive(cache: Cache, sites: Sites, generator: torch.Generator) -> Count:
    """Give each weight in turn, in random order, the value with the least loss.

    Without a move, and rounding apart, the weights are at a coordinate-wise optimum.
    """
    count, verified = Count(), _Verified(cache, sites)
    numbers = sites.free()
    numbers = numbers[torch.randperm(len(numbers), generator=generator).numpy()]
    at_once = max(1, _ROWS // cache.examples)
    for share in np.array_split(numbers, min(_ROUNDS, -(-len(numbers) // _FEWEST) or 1)):
        for number in share.tolist():
            weight, table = sites.coordinate(number)
            value = weight.value
            others = [other for other in table if other != value]
            parameter = weight.site.parameter
            deltas = torch.tensor([other - value for other in others], dtype=parameter.dtype, device=parameter.device)
            best: tuple[float, int, Trial] | None = None
            for first in range(0, len(others), at_once):
                part = deltas[first : first + at_once]
                trial = cache.trial(weight.site.stage, weight.channel, weight.place, part)
                if trial is None:
                    break
                count.trials += len(part)
                place = min(range(len(part)), key=trial.falls.__getitem__)
                if best is None or trial.falls[place] < best[0]:
                    best = trial.falls[place], first, trial
            if best is not None and best[0] < -cache.margin:
                fall, first, trial = best
                place = trial.falls.index(fall)
                cache.accept(trial, place)
                weight.set(others[first + place])
                count.moved += 1
        verified.check()
    return count


def ranked(cache: Cache, sites: Sites, rounds: int = _ROUNDS) -> Count:
    """Try the steps that the gradient proposes, the most promising first, each weight at most once.

    Args:
        cache: of the examples.
        sites: the weights.
        rounds: how often the gradient is computed, at least 1: each time as many of the weights that were not tried
            yet are tried as makes it come out even.
    """
    count, verified = Count(), _Verified(cache, sites)
    fresh = np.zeros(len(sites), dtype=bool)
    fresh[sites.free()] = True
    for left in range(rounds, 0, -1):
        numbers, falls, targets = sites.steps(cache.gradients(sites.parameters()))
        count.gradients += 1
        order = np.argsort(-falls, kind="stable")  # between equals, by their numbers
        order = order[fresh[numbers[order]]]
        numbers, targets = numbers[order], targets[order]
        many = -(-len(numbers) // left)
        for number, target in zip(numbers[:many].tolist(), targets[:many].tolist(), strict=True):
            weight, _ = sites.coordinate(number)
            parameter = weight.site.parameter
            deltas = torch.tensor([target - weight.value], dtype=parameter.dtype, device=parameter.device)
            trial = cache.trial(weight.site.stage, weight.channel, weight.place, deltas)
            if trial is None:
                continue
            count.trials += 1
            if trial.falls[0] < -cache.margin:
                cache.accept(trial, 0)
                weight.set(target)
                count.moved += 1
        fresh[numbers[:many]] = False
        verified.check()
        if not len(numbers):
            break
    return count


class Memory:
    """What steps that are taken together know from the steps and sweeps before.

    The sign of a single gradient says little about a weight that it hardly moves, and less about other examples; the
    sign of a running mean is steadier (``benchmarks/conntra_memory.py``).

    Args:
        weight: of the gradients before in the mean; 0: only the last one counts.

    Attributes:
        slopes: running mean of the gradients of the mean loss, one tensor a site; None before the first.
        weight: as above.
        many: how many steps to take at once; None before the first.
        gradients: how many are in the mean.
    """

    def __init__(self, weight: float = 0.9) -> None:
        self.weight = weight
        self.many: int | None = None
        self.forget()

    def forget(self) -> None:
        """Begin a new mean."""
        self.slopes: list[Tensor] | None = None
        self.gradients = 0

    def learn(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Take gradients into the mean, and return it. What is not finite counts as zero."""
        clean = [gradient.nan_to_num(0.0, 0.0, 0.0) for gradient in gradients]
        if self.slopes is None:
            self.slopes = clean
        else:
            pairs = zip(self.slopes, clean, strict=True)
            self.slopes = [slope.to(gradient).lerp_(gradient, 1 - self.weight) for slope, gradient in pairs]
        self.gradients += 1
        return self.slopes


def together(
    cache: Cache, sites: Sites, generator: torch.Generator, memory: Memory | None = None, tries: int = _TRIES
) -> Count:
    """Take many steps at once, against the running mean of the gradients, as long as that lowers the loss.

    A line search over how many: the number grows by 30 % when the loss falls, and shrinks by as much when it does not.
    Which ones are taken is drawn evenly from all that are proposed. (Those with the largest fall lie in few neurons and
    hinder each other: on 4,000 MNIST images the mean loss came from 2.34 to 1.74, and to 1.28 by drawing.) Where not
    even a few help, the mean is begun anew; where that does not help either, it ends.

    Args:
        cache: of the examples.
        sites: the weights.
        generator: to draw by.
        memory: of the sweeps before, to be added to.
        tries: loss evaluations at most.
    """
    count, total = Count(), cache.total
    memory = memory or Memory()
    many = memory.many or max(_FIRST, int(_SHARE * len(sites)))
    proposal = None
    while count.together < tries:
        if proposal is None:
            gradients = cache.gradients(sites.parameters())
            proposal = sites.steps(memory.learn([gradient / cache.examples for gradient in gradients]))
            count.gradients += 1
        numbers, _, targets = proposal
        if many < _SMALLEST or not len(numbers):
            many = _FIRST
            if memory.gradients == 1:  # it was the gradient of these very weights
                break
            memory.forget()
            proposal = None
            continue
        chosen = torch.randperm(len(numbers), generator=generator)[:many].numpy()
        before = sites.write(numbers[chosen], targets[chosen])
        count.together += 1
        loss = cache.evaluate()
        if loss < total - cache.margin:
            total, proposal = loss, None
            count.moved += len(chosen)
            many = int(1.3 * many)
        else:
            sites.write(numbers[chosen], before)
            many = int(many / 1.3)
    memory.many = max(many, _FIRST)
    cache.refresh()
    return count

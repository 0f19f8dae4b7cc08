"""One network in a finite set: its scales, its first weights, and a sweep over them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from shrinkage.core.errors import InputError, StateError
from shrinkage.discrete.cache import Cache, Loss
from shrinkage.discrete.chain import Chain, Stage, chain
from shrinkage.discrete.result import Sweep
from shrinkage.discrete.sites import Site, Sites
from shrinkage.discrete.sweeps import Memory, exhaustive, ranked, together
from shrinkage.discrete.values import ValueSet

Variant = Literal["gradient", "exhaustive", "together"]
Scale = Literal["layer"] | None
Start = Literal["random", "round"]

_LLOYD = 20  # steps from a first scale to one that fits given weights
_BEGINNINGS = (0.5, 0.75, 1.0, 1.5, 2.0)  # first scales, over that with the weights' mean square


@dataclass(frozen=True)
class Settings:
    """How a network is trained; see :class:`~shrinkage.discrete.conntra.CoNNTrA` for what they mean.

    Raises:
        InputError: if one is out of its range.
    """

    values: ValueSet
    variant: Variant
    scale: Scale
    temperature: float | None
    biases: bool
    start: Start
    loss: Loss

    def __post_init__(self) -> None:
        check_variant(self.variant)
        if self.scale not in ("layer", None):
            raise InputError(f"scale must be 'layer', for a factor a layer, or None, got {self.scale!r}")
        if self.start not in get_args(Start):
            raise InputError(f"start must be one of {', '.join(get_args(Start))}, got {self.start!r}")
        heat = self.temperature
        number = isinstance(heat, int | float) and not isinstance(heat, bool)
        if heat is not None and not (number and 0 < heat < math.inf):
            raise InputError(f"temperature must be a number greater than 0, or None to have it chosen, got {heat!r}")


class Trainer:
    """A network, and its weights in the set.

    Args:
        model: a chain of layers; its parameters are changed in place.
        settings: see there.

    Attributes:
        scales: by the layers' paths.
        temperature: what outputs are divided by before the loss.

    Raises:
        InputError: if the model cannot be trained so.
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.model = model
        self.settings = settings
        self.chain: Chain = chain(model)
        self.scales: dict[str, float] = {}
        self.temperature = 1.0 if settings.temperature is None else float(settings.temperature)
        for stage in self.chain.stages:
            for kind, parameter in stage.layer.named_parameters():
                if not parameter.requires_grad and (kind == "weight" or settings.biases):
                    raise InputError(
                        f"{kind!r} of {stage.name!r} is frozen (requires_grad=False), and CoNNTrA would give it values "
                        "of the set: unfreeze it, or give CoNNTrA the layers to train as a model of their own"
                    )
                if not parameter.is_floating_point():
                    raise InputError(f"{kind!r} of {stage.name!r} must be of floating-point numbers")
                if not parameter.is_contiguous():
                    raise InputError(
                        f"{kind!r} of {stage.name!r} must lie in memory in its own order: call "
                        "model.to(memory_format=torch.contiguous_format) first"
                    )
                if not settings.values.apart(parameter.dtype):
                    raise InputError(
                        f"some of the {len(settings.values.values)} values are too near to each other for "
                        f"{parameter.dtype}, of which {kind!r} of {stage.name!r} is; take fewer, or call model.float()"
                    )

    @torch.no_grad()
    def begin(self, generator: torch.Generator, values: ValueSet | None = None) -> None:
        """Give all weights first values.

        Args:
            generator: to draw them by.
            values: the set to take weights from, if not the whole one; biases are from the whole one.
        """
        values, whole = values or self.settings.values, self.settings.values
        stages = self.chain.stages
        usual = {
            stage.name: values.scale_for(stage.fan_in, 1.0 if stage is stages[-1] else 2.0) for stage in stages
        }  # fmt: skip
        if self.settings.scale is None and self.settings.temperature is None:
            self.temperature = 1 / math.prod(usual.values())
        for stage in stages:
            weight = stage.layer.weight
            if self.settings.scale is None:
                scale = 1.0
            elif self.settings.start == "random":
                scale = usual[stage.name]
            else:
                exact = values.scale_of(self._discrete(stage))
                scale = exact or fitting_scale(weight, values) or usual[stage.name]
            self.scales[stage.name] = scale
            if self.settings.start == "random":
                weight.copy_(values.draw(weight, scale, generator))
            else:
                weight.copy_(values.decode(values.codes(weight, scale), scale, weight))
            if stage.layer.bias is not None and self.settings.biases:
                bias = stage.layer.bias
                if self.settings.start == "random":
                    bias.fill_(whole.nearest_zero() * scale)
                else:
                    bias.copy_(whole.decode(whole.codes(bias, scale), scale, bias))

    def _discrete(self, stage: Stage) -> list[Tensor]:
        """The weights of a layer that are from the set, with the same scale."""
        layer = stage.layer
        return [layer.weight, *([layer.bias] if layer.bias is not None and self.settings.biases else [])]

    def follow(self) -> None:
        """Let the scales be those of the weights, which somebody may have loaded from an earlier moment.

        Raises:
            StateError: if some weights are not from the set.
        """
        for stage in self.chain.stages:
            scale = self.settings.values.scale_of(self._discrete(stage), self.scales[stage.name])
            if scale is None or (self.settings.scale is None and scale != 1):
                raise StateError(
                    f"the weights of {stage.name!r} are no longer from the set: load weights that CoNNTrA has trained, "
                    'or begin with the nearest ones by CoNNTrA(model, start="round")'
                )
            self.scales[stage.name] = scale

    def sites(self, values: ValueSet | None = None, frozen: Mapping[str, Tensor] | None = None) -> Sites:
        """The tensors that a sweep works on.

        Args:
            values: the set of weights, if not the whole one; biases are from the whole one.
            frozen: entries of weights that stay as they are, by the parameters' names.
        """
        found = []
        for index, stage in enumerate(self.chain.stages):
            for kind, parameter in stage.layer.named_parameters():
                if kind == "weight" or self.settings.biases:
                    name = f"{stage.name}.{kind}" if stage.name else kind
                    scale, whole = self.scales[stage.name], self.settings.values
                    mine = values or whole if kind == "weight" else whole
                    found.append(Site(name, index, parameter, scale, mine, (frozen or {}).get(name)))
        return Sites(found)

    def cache(self, x: Tensor, y: Tensor) -> Cache:
        """The activations of the network for some examples."""
        like = self.chain.stages[0].layer.weight
        x, y = (part.clone() if part.is_inference() else part for part in (x, y))  # autograd refuses such tensors
        return Cache(self.chain, x.to(like), y.to(like.device), self.settings.loss, self.temperature)

    def sweep(
        self,
        x: Tensor,
        y: Tensor,
        generator: torch.Generator,
        variant: Variant | None = None,
        values: ValueSet | None = None,
        frozen: Mapping[str, Tensor] | None = None,
        memory: Memory | None = None,
    ) -> Sweep:
        """Look at every weight once.

        Args:
            x: inputs, as the network takes them.
            y: targets.
            generator: of all that is random.
            variant: another one than that of the settings.
            values: see :meth:`sites`.
            frozen: see :meth:`sites`.
            memory: of the sweeps before.
        """
        if torch.is_inference_mode_enabled():
            raise StateError("CoNNTrA trains by gradients: call it outside torch.inference_mode")
        self.follow()
        with self._plain():
            return self._sweep(x, y, generator, variant or self.settings.variant, values, frozen, memory)

    def _sweep(
        self,
        x: Tensor,
        y: Tensor,
        generator: torch.Generator,
        variant: Variant,
        values: ValueSet | None,
        frozen: Mapping[str, Tensor] | None,
        memory: Memory | None,
    ) -> Sweep:
        begin = time.perf_counter()
        cache = self.cache(x, y)
        before = cache.total / len(y)
        self.temper(cache)
        sites = self.sites(values, frozen)
        counts = []
        if variant != "exhaustive":
            counts.append(together(cache, sites, generator, memory))
        if variant == "gradient":
            counts.append(ranked(cache, sites))
        if variant == "exhaustive":
            counts.append(exhaustive(cache, sites, generator))
        self.temper(cache)
        return Sweep(
            variant=variant,
            examples=len(y),
            before=before,
            loss=cache.total / len(y),
            trials=sum(count.trials for count in counts),
            naive=sites.alternatives,
            evaluations=sum(count.together + count.gradients for count in counts),
            moved=sum(count.moved for count in counts),
            seconds=time.perf_counter() - begin,
        )

    def _plain(self) -> AbstractContextManager[object]:
        """No autocast: what a trial computes must have the type of what is kept."""
        return torch.autocast(self.chain.stages[0].layer.weight.device.type, enabled=False)

    @torch.no_grad()
    def accuracy(self, x: Tensor, y: Tensor, block: int = 8192) -> float:
        """Share of examples whose greatest output is that of their class, in percent.

        Raises:
            InputError: if ``y`` are no classes.
        """
        if y.ndim != 1 or y.is_floating_point():
            raise InputError(
                f"accuracy is of classes, whole numbers of shape (N,); these targets are {y.dtype} of shape "
                f"{tuple(y.shape)}: leave out validation="
            )
        like = self.chain.stages[0].layer.weight
        hits = 0
        for first in range(0, len(x), block):
            part = x[first : first + block].to(like)
            with self._plain():
                outputs = self.chain.forward(self.chain.first(part))
            hits += int((outputs.argmax(1).cpu() == y[first : first + block].cpu()).sum())
        return 100 * hits / len(x)

    @torch.no_grad()
    def temper(self, cache: Cache) -> None:
        """Give the outputs the temperature with the least loss, unless one was asked for.

        With a scale a layer it goes into the last layer's.
        """
        if self.settings.temperature is not None:
            return
        found, total = cache.best_temperature(), cache.total
        if found == cache.temperature:
            return
        last = self.chain.stages[-1]
        if self.settings.scale is None or last.after or (last.layer.bias is not None and not self.settings.biases):
            self.temperature = cache.temperature = found
            cache.refresh()
            return
        scale = self.scales[last.name]
        self.rescale(last, scale * cache.temperature / found)
        cache.refresh()
        if not cache.total <= total:  # the new scale is rounded otherwise
            self.rescale(last, scale)
            cache.refresh()

    def rescale(self, stage: Stage, scale: float) -> None:
        """Give a layer another scale; its codes stay."""
        values, before = self.settings.values, self.scales[stage.name]
        for kind, parameter in stage.layer.named_parameters():
            if kind == "weight" or self.settings.biases:
                parameter.data.copy_(values.decode(values.codes(parameter, before), scale, parameter))
        self.scales[stage.name] = scale


def check_variant(variant: str) -> None:
    """Raise ``InputError`` unless there is such a variant."""
    if variant not in get_args(Variant):
        raise InputError(f"variant must be one of {', '.join(get_args(Variant))}, got {variant!r}")


def fitting_scale(weight: Tensor, values: ValueSet) -> float | None:
    """The scale at which the nearest values come closest to given weights in the mean square, or nearly.

    By turns the nearest values at a scale, and the best scale for these, from several beginnings. None if no such scale
    is above zero.

    >>> round(fitting_scale(torch.tensor([0.5, -0.5, 0.0, 0.5]), ValueSet((-1.0, 0.0, 1.0))), 6)
    0.5
    """
    weight = weight.detach().double()
    usual = float(weight.square().mean().sqrt()) / math.sqrt(values.mean_square)
    if not usual > 0:
        return None
    found = []
    for beginning in _BEGINNINGS:
        scale, error = usual * beginning, math.inf
        for _ in range(_LLOYD):
            nearest = values.decode(values.codes(weight, scale), 1.0, weight)
            norm = float(nearest.square().sum())
            better = float((weight * nearest).sum()) / norm if norm else 0.0
            if not better > 0:
                break
            scale, error = better, float((weight - better * nearest).square().sum())
        found.append((error, scale))
    return min(found)[1]

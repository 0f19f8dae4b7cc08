r"""Outputs that are asked to predict noise, beside the model and for training only.

Each step draws fresh targets :math:`t`. A linear output :math:`V h + c` cannot know them, and the best it can do
under the squared error is the constant :math:`\mathbb{E}[t]`. While :math:`V` is not zero, that asks the units
:math:`h` to depend on each other linearly, which is what raises their correlations.

The noise loss is :math:`\frac{s}{|t|} \sum (V h + c - t)^2`, the mean over outputs and examples times the strength
:math:`s`. What the paper draws its noise from is not known here; the defaults below are choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from shrinkage.core.errors import InputError
from shrinkage.core.hooks import owners
from shrinkage.deploy.surgery import cut_to
from shrinkage.noiseout.removal import follow, forget


class Noise(Protocol):
    """Where targets come from."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Fresh targets of this shape, float32, on the generator's device."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """Normal numbers.

    Args:
        mean: of them.
        std: their standard deviation, at least 0.

    >>> Gaussian().draw((2, 3), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3])
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 <= self.std < math.inf):
            raise InputError(f"Gaussian noise needs a finite mean and std of at least 0, got {self}")

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Fresh targets."""
        return self.mean + self.std * torch.randn(shape, generator=generator, device=generator.device)


@dataclass(frozen=True)
class Binomial:
    """How many of some trials succeed.

    Args:
        trials: at least 1.
        p: the chance of each, in [0, 1].

    >>> Binomial(trials=1, p=1.0).draw((3,), torch.Generator()).tolist()
    [1.0, 1.0, 1.0]
    """

    trials: int = 1
    p: float = 0.5

    def __post_init__(self) -> None:
        if self.trials < 1 or not 0 <= self.p <= 1:
            raise InputError(f"binomial noise needs trials of at least 1 and p in [0, 1], got {self}")

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Fresh targets."""
        luck = torch.rand((self.trials, *shape), generator=generator, device=generator.device)
        return (luck < self.p).float().sum(0)


@dataclass(frozen=True)
class Constant:
    """Always one number.

    Args:
        value: that number.

    >>> Constant(2.0).draw((2,), torch.Generator()).tolist()
    [2.0, 2.0]
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise InputError(f"constant noise needs a finite value, got {self}")

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Targets."""
        return torch.full(shape, float(self.value), device=generator.device)


class NoiseOutputs:
    """Linear outputs beside a model's head, which read what the head reads.

    The user's loss and the model's outputs do not know of them: their gradient joins where the head's input passes.

    Args:
        path: of the head in the model.
        head: the layer.
        noise: where the targets come from.
        count: how many outputs.
        strength: of the noise loss beside the user's.
        seed: of the first weights and of the targets.

    Attributes:
        weight: of the outputs, shape (count, features).
        bias: shape (count,).
        loss: the last noise loss, a scalar without gradient; NaN before the first.
    """

    def __init__(self, path: str, head: nn.Linear, noise: Noise, count: int, strength: float, seed: int) -> None:
        self.path = path
        self._noise, self._strength = noise, strength
        device = head.weight.device
        self.generator = torch.Generator(device).manual_seed(seed)
        first = torch.rand(count, head.in_features, generator=self.generator, device=device)
        self.weight = nn.Parameter(((2 * first - 1) * head.in_features**-0.5).to(head.weight.dtype))
        self.bias = nn.Parameter(torch.zeros_like(self.weight[:, 0]))
        self.loss = torch.tensor(math.nan, device=device)
        self._scaler: Any = None
        self._group: list[nn.Parameter] | None = None
        self._handle: RemovableHandle | None = None

    def begin(self, head: nn.Linear, optimizers: list[Optimizer], scaler: Any) -> None:
        """Live beside the head, in the optimiser and the parameter group that train it, with all its options."""
        owner = owners(optimizers)
        if id(head.weight) not in owner:
            raise InputError(
                f"the weight of the head {self.path!r} is in none of the optimisers given to attach(); build the "
                "optimiser from this model's parameters"
            )
        optimizer, index = owner[id(head.weight)]
        self._group = optimizer.param_groups[index]["params"]
        self._group += [self.weight, self.bias]
        self._scaler = scaler
        self._handle = head.register_forward_pre_hook(_Hook(self))

    def end(self, optimizers: list[Optimizer]) -> None:
        """Leave nothing behind."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self._group is not None:
            self._group[:] = [each for each in self._group if each is not self.weight and each is not self.bias]
            self._group = None
        for optimizer in optimizers:
            for mine in (self.weight, self.bias):
                optimizer.state.pop(mine, None)

    def penalty(self, h: Tensor) -> Tensor:
        """The noise loss of a batch of what the head reads, shape (…, features)."""
        with torch.autocast(h.device.type, enabled=False):
            found = functional.linear(h.to(self.weight.dtype), self.weight, self.bias)
            target = self._noise.draw(tuple(found.shape), self.generator).to(found)
            loss = self._strength * functional.mse_loss(found, target)
        self.loss = loss.detach()
        return loss

    def shrink(self, change: Tensor, constant: Tensor, places: Tensor | None, optimizers: list[Optimizer]) -> None:
        """Take over what the head's inputs that go have said, and lose their columns, as the head does."""
        size = self.weight.shape
        forget(self.weight)
        self.weight.data = cut_to((self.weight.data + change.to(self.weight)), (None, places))
        self.bias.data = self.bias.data + constant.to(self.bias)
        follow(optimizers, self.weight, size, (None, places))

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, and where the generator stands."""
        return {
            "weight": self.weight.detach().clone(),
            "bias": self.bias.detach().clone(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises:
            InputError: for other sizes.
        """
        if state["weight"].shape != self.weight.shape:
            raise InputError(
                f"this state has noise outputs of shape {tuple(state['weight'].shape)}, not {tuple(self.weight.shape)}"
            )
        self.restore(state)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The same for a state of this training, of whatever size."""
        forget(self.weight)
        self.weight.data = state["weight"].to(self.weight).clone()
        self.bias.data = state["bias"].to(self.bias).clone()
        self.generator.set_state(state["generator"].cpu())

    @property
    def scale(self) -> float:
        """What the user's loss is multiplied by before its gradient is taken."""
        return float(self._scaler.get_scale()) if self._scaler is not None else 1.0


class _Beside(torch.autograd.Function):
    """Passes a tensor on; on the way back a loss that nobody has added up gets its gradient too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, scale: float) -> Tensor:
        ctx.like, ctx.scale = loss.detach(), scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, torch.full_like(ctx.like, ctx.scale), None


class _Silent:
    """What is left of the hook in a copy of the model."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        return None


class _Hook:
    """Adds the noise loss while the model trains."""

    def __init__(self, outputs: NoiseOutputs) -> None:
        self._outputs = outputs

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not module.training or not torch.is_grad_enabled() or not args:
            return None
        loss = self._outputs.penalty(args[0])
        return (_Beside.apply(args[0], loss, self._outputs.scale), *args[1:])  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: object) -> _Silent:
        return _Silent()

    def __reduce__(self) -> tuple[type[_Silent], tuple[()]]:
        return _Silent, ()

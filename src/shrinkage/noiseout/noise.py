r"""Outputs that are asked to predict noise, beside the model and for training only.

Each step draws fresh targets :math:`t`. A linear output :math:`V h + c` cannot know them, and the best it can do
under the squared error is the constant :math:`\mathbb{E}[t]`. While :math:`V` is not zero, that asks the units
:math:`h` to depend on each other linearly. In the paper this raises their correlations; measured here, mean
:math:`|\rho|` rose behind sigmoids in one of two layers, and fell behind ReLUs.

The noise loss is :math:`\frac{s}{|t|} \sum (V h + c - t)^2`, the mean over outputs and examples times the strength
:math:`s`. What the paper draws its noise from is not known here; the defaults below are choices.

Its gradient joins where the head's input passes, once for each forward pass. A gradient that is itself to be
differentiated (``create_graph=True``, ``torch.func``) is the user's own, and does not contain it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from shrinkage.core.errors import InputError, StateError
from shrinkage.core.hooks import OptimizerHooks, owners
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
        if not isinstance(self.trials, int) or self.trials < 1 or not 0 <= self.p <= 1:
            raise InputError(f"binomial noise needs a whole number of trials, at least 1, and p in [0, 1], got {self}")

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
        heard: whether there has been one.
    """

    def __init__(self, path: str, head: nn.Linear, noise: Noise, count: int, strength: float, seed: int) -> None:
        self.path = path
        self._noise, self._strength = noise, strength
        device = head.weight.device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.weight = nn.Parameter(self._first((count, head.in_features)).to(head.weight.dtype))
        self.bias = nn.Parameter(torch.zeros_like(self.weight[:, 0]))
        self.loss = torch.tensor(math.nan, device=device)
        self.heard = False
        self._scaler: Any = None
        self._group: list[nn.Parameter] | None = None
        self._handle: RemovableHandle | None = None
        self._hooks: OptimizerHooks | None = None

    def _first(self, shape: tuple[int, int]) -> Tensor:
        drawn = torch.rand(shape, generator=self.generator, device=self.generator.device)
        return (2 * drawn - 1) * math.sqrt(1 / shape[1])

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
        self._handle = head.register_forward_pre_hook(_Hook(self), with_kwargs=True)
        self._hooks = OptimizerHooks(_Guard(self), "NoiseOut", [optimizer])
        _forget_compiled()

    def end(self, optimizers: list[Optimizer]) -> None:
        """Leave nothing behind."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            _forget_compiled()
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None
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
        self.loss, self.heard = loss.detach(), True
        return loss

    def shrink(self, change: Tensor, constant: Tensor, places: Tensor | None, optimizers: Sequence[Optimizer]) -> None:
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
        """The inverse of :meth:`state_dict`; of a state that is a generator alone, first weights are drawn from it.

        Raises:
            InputError: for other sizes.
        """
        if "weight" not in state:
            self.generator.set_state(state["generator"].cpu())
            self.weight.data = self._first((len(self.weight), self.weight.shape[1])).to(self.weight)
            return
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


def _forget_compiled() -> None:
    """Have all that was compiled so far compiled anew: it does not see that a hook comes or goes."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


class _Guard:
    """Sees at the first step that there is a noise loss."""

    def __init__(self, outputs: NoiseOutputs) -> None:
        self._outputs = outputs

    def before_step(self, optimizer: Optimizer, scale: Tensor | None, once: bool) -> None:
        """Raise if the training goes past the head."""
        if not self._outputs.heard:
            raise StateError(
                f"no training batch has passed the head {self._outputs.path!r} since attach(), so that no noise is "
                "learned: call model.train() before the batch, let the model call the layer itself and not "
                "F.linear with its weight, or use noise=None"
            )

    def after_step(self, optimizer: Optimizer) -> None:
        """Nothing."""

    def closure_value(self, optimizer: Optimizer, loss: Any) -> Any:
        """The user's own."""
        return loss

    def state_loaded(self, optimizer: Optimizer) -> None:
        """Nothing."""


class _Beside(torch.autograd.Function):
    """Passes a tensor on; on the way back a loss that nobody has added up gets its gradient too, once."""

    @staticmethod
    def forward(x: Tensor, loss: Tensor, scale: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        _, loss, ctx.scale = inputs
        ctx.dtype, ctx.device = loss.dtype, loss.device
        ctx.done = False

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        if ctx.done or torch.is_grad_enabled():  # the gradient is to be differentiated again: it is not a step's
            return gradient, None, None
        ctx.done = True
        return gradient, torch.full((), ctx.scale, dtype=ctx.dtype, device=ctx.device), None


class _Silent:
    """What is left of the hook in a copy of the model."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        return None


class _Hook:
    """Adds the noise loss while the model trains."""

    def __init__(self, outputs: NoiseOutputs) -> None:
        self._outputs = outputs

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not module.training or not torch.is_grad_enabled() or not (args or "input" in kwargs):
            return None
        x = args[0] if args else kwargs["input"]
        x = _Beside.apply(x, self._outputs.penalty(x), self._outputs.scale)  # type: ignore[no-untyped-call]
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "input": x})

    def __deepcopy__(self, memo: object) -> _Silent:
        return _Silent()

    def __reduce__(self) -> tuple[type[_Silent], tuple[()]]:
        return _Silent, ()

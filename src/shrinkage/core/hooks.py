"""Living inside an optimiser's ``step`` without the training loop noticing.

What the hooks have to get right:

- ``step(closure)`` runs pre-hook → forward and backward → post-hook, so what is added to gradients in the
  pre-hook would be lost; the closure is wrapped instead and the work is done after the user's own.
- Under ``GradScaler`` a fused optimiser sees scaled gradients, and its hooks run even when the step
  is skipped because of an overflow.
- Wrappers (Lightning, accelerate) hide the optimiser that really steps.
- An optimiser whose ``step`` calls that of its base class runs its hooks twice, since torch hooks both.
- A copied optimiser has lost its hooks and must say so rather than train on without the method.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from shrinkage.core.errors import InputError, StateError

P = ParamSpec("P")
R = TypeVar("R")


class Listener(Protocol):
    """What a method does around a step."""

    def before_step(self, optimizer: Optimizer, scale: Tensor | None, once: bool) -> None:
        """Gradients are there (times ``scale`` if given), the step is not yet taken.

        A closure may be evaluated, and this called, several times before it is; unless ``once``.
        """
        ...

    def after_step(self, optimizer: Optimizer) -> None:
        """The step was taken."""
        ...

    def closure_value(self, optimizer: Optimizer, loss: Any) -> Any:
        """What a wrapped closure returns in place of the user's ``loss``."""
        ...

    def state_loaded(self, optimizer: Optimizer) -> None:
        """The optimiser's state was replaced by ``load_state_dict``."""
        ...


class _Marked(dict[str, Any]):
    """An optimiser's ``defaults``, which a copy takes along though it loses the hooks."""

    shrinkage_owner: str = ""


def _eager(function: Callable[P, R]) -> Callable[P, R]:
    """Keep ``torch.compile`` out, so that a moving method never makes a compiled step recompile."""
    return cast(Callable[P, R], torch.compiler.disable(function))  # type: ignore[no-untyped-call]


_attached: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()  # how many methods each one carries
_guard: RemovableHandle | None = None


class OptimizerHooks:
    """The tie between one listener and its optimisers.

    Args:
        listener: is called around every step that is really taken.
        owner: the method's name, for messages.
        optimizers: those that update the method's weights, already out of their wrappers.
    """

    def __init__(self, listener: Listener, owner: str, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = tuple(optimizers)
        self._listener = listener
        self._handles: list[RemovableHandle] = []
        _watch_for_copies()
        for optimizer in self.optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before))
            self._handles.append(optimizer.register_step_post_hook(self._after))
            self._handles.append(optimizer.register_load_state_dict_post_hook(listener.state_loaded))
            marked = _Marked(optimizer.defaults)
            marked.shrinkage_owner = owner
            optimizer.defaults = marked
            _attached[optimizer] = _attached.get(optimizer, 0) + 1

    def remove(self) -> None:
        """Take the hooks out again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for optimizer in self.optimizers:
            _attached[optimizer] -= 1
            if not _attached[optimizer]:  # from now on a copy of it is as good as the original
                del _attached[optimizer]
                optimizer.defaults = dict(optimizer.defaults)

    @_eager
    def _before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if _within_another(optimizer):
            return None
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            if not _skipped(optimizer):
                self._listener.before_step(optimizer, getattr(optimizer, "grad_scale", None), True)
            return None

        def wrapped() -> Any:
            with torch.enable_grad():
                loss = closure()
            self._listener.before_step(optimizer, None, False)
            return self._listener.closure_value(optimizer, loss)

        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    @_eager
    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not _skipped(optimizer) and not _within_another(optimizer):
            self._listener.after_step(optimizer)


def unwrap_optimizer(optimizer: object, owner: str) -> Optimizer:
    """The optimiser that really steps, inside Lightning's and accelerate's wrappers."""
    inner: Any = optimizer
    while isinstance(getattr(inner, "optimizer", None), Optimizer):
        inner = inner.optimizer
    if not isinstance(inner, Optimizer):
        raise InputError(
            f"{owner}.attach() takes torch optimisers, got {type(optimizer).__name__}; "
            "pass the object whose step() updates the model's weights"
        )
    return inner


_hooked_step = Optimizer.profile_hook_step(lambda optimizer: None).__code__  # every hooked step runs this code


def _within_another(optimizer: Optimizer) -> bool:
    """Whether this step is a part of another of the same optimiser, whose class extends its base's ``step``.

    The stack is asked, since a step that raises has no end that a flag could be taken down at.
    """
    if sum("step" in vars(kind) for kind in type(optimizer).__mro__ if kind is not Optimizer) < 2:
        return False
    frame, depth = sys._getframe(1), 0
    while frame.f_back is not None:
        frame = frame.f_back
        depth += frame.f_code is _hooked_step and frame.f_locals.get("self") is optimizer
    return depth > 1


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimiser is about to skip, or has skipped, a step because of an overflow.

    ``found_inf`` is only there when ``GradScaler`` drives a fused optimiser; reading it is then
    the one place where a step waits for the device.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def _watch_for_copies() -> None:
    global _guard  # one guard serves every optimiser of the process
    if _guard is None:
        _guard = register_optimizer_step_pre_hook(_refuse_copies)


@_eager
def _refuse_copies(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    defaults = optimizer.defaults
    if isinstance(defaults, _Marked) and optimizer not in _attached:
        raise StateError(
            f"this {type(optimizer).__name__} is a copy of one that {defaults.shrinkage_owner} was "
            "attached to; copying an optimiser drops its hooks, so it would train on without the "
            "method. Attach a method to the copy, or build a new optimiser for it."
        )


def owners(optimizers: Sequence[Optimizer]) -> dict[int, tuple[Optimizer, int]]:
    """Which optimiser, and which of its parameter groups, updates each tensor, by the tensor's id.

    Raises:
        InputError: if two of the optimisers update the same tensor.
    """
    found: dict[int, tuple[Optimizer, int]] = {}
    for optimizer in optimizers:
        for index, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                first, _ = found.setdefault(id(parameter), (optimizer, index))
                if first is not optimizer:
                    raise InputError(
                        f"a parameter of shape {tuple(parameter.shape)} is in two of the optimisers, "
                        f"{type(first).__name__} and {type(optimizer).__name__}: attach to one of them, and where the "
                        "other takes over, detach() and attach to that one"
                    )
    return found

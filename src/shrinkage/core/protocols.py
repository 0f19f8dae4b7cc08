"""What the parts of a sparsifier must offer each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor
from torch.optim import SGD, Optimizer

if TYPE_CHECKING:
    from shrinkage.core.dial import Dial
    from shrinkage.core.slots import Slot

Shape = tuple[int, ...]


class Prior(Protocol):
    """A penalty on the sizes of units (|w|, or ‖w_g‖₂), perhaps with trained scales λ.

    A pure object: no state of the training, no optimiser. ``sizes`` lists one non-negative tensor a
    selected parameter; ``scales`` lists the λ tensors, however many the penalty has.
    """

    def scale_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Shapes of the λ tensors for units of these shapes; empty if there are none."""
        ...

    @property
    def xi(self) -> float:
        """The strength on the sizes."""
        ...

    @property
    def initial_scale(self) -> float:
        """The value every λ starts from."""
        ...

    def value(self, sizes: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
        """The penalty, a differentiable scalar."""
        ...

    def grad_size(self, index: int, size: Tensor, scales: Sequence[Tensor]) -> Tensor:
        """∂value/∂size of one parameter's units; broadcasts against ``size``."""
        ...

    def grad_scales(self, sizes: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor]:
        """∂value/∂λ, one tensor a scale."""
        ...

    def prox(self, index: int, size: Tensor, scales: Sequence[Tensor], step: float | Tensor) -> Tensor:
        """The sizes after a proximal step of length ``step`` (≥ 0, exact zeros)."""
        ...


@runtime_checkable
class PerWeight(Protocol):
    """What a prior may offer beside: both gradients of single weights, each with a λ of its own, in few passes."""

    @property
    def separable(self) -> bool:
        """Whether no term of the penalty ties several λ together; only then ``add_gradients`` may be called."""
        ...

    def add_gradients(self, weight: Tensor, scale: Tensor, to: Tensor) -> Tensor:
        """Add ∂value/∂w of any part of the weights to a tensor of its shape, and return ∂value/∂λ of that part."""
        ...


class AdaptivePull(Protocol):
    """The scale-free form of a penalty, for training towards a target.

    The target decides how strong the penalty is; what remains of it is *whom it pulls more*: a
    slope per unit, up to one common factor, from the unit's size or a memory of it.
    """

    @property
    def remembers(self) -> bool:
        """Whether there is a memory, or the present size serves as one."""
        ...

    @property
    def bias(self) -> float:
        """How much of the threshold a surviving size loses in a proximal step: 1 for a lasso, 0 for none."""
        ...

    def remember(self, memory: Tensor, size: Tensor) -> None:
        """Move the memory towards the present size, in place."""
        ...

    def pull(self, memory: Tensor, reference: float) -> Tensor:
        """The relative slope of the penalty, > 0; ``reference`` is the model's root mean square size."""
        ...

    def scale(self, memory: Tensor, reference: float) -> Tensor | None:
        """The λ that the memory stands for, to look at; ``None`` if the penalty has none per unit."""
        ...


class Solver(Protocol):
    """What acts on the weights while they are shrinking, at every optimiser step."""

    def start(self, slots: list[Slot], dial: Dial | None) -> None:
        """Take over the tensors, and leave them as they are."""
        ...

    def begin(self) -> None:
        """Make of the weights what they must be from the start; called where no saved state is at hand.

        One may still be loaded later, over weights that belong to it: those must come through unharmed.
        """
        ...

    def value(self) -> Tensor:
        """The penalty, differentiable."""
        ...

    def before_step(self, optimizer: Optimizer, scale: Tensor | None, clock: bool, once: bool) -> None:
        """Gradients are there, times ``scale`` if given; ``clock`` marks the optimiser that counts steps.

        ``once``: the step follows for certain. Otherwise a closure may be evaluated again, and this called again.
        """
        ...

    def stepped(self, optimizer: Optimizer) -> None:
        """One of the optimisers has taken its step."""
        ...

    def after_step(self, step: int, share: float) -> None:
        """The clock's ``step``-th step was taken and ``share`` of the target is wanted."""
        ...

    def closure_value(self, optimizer: Optimizer, loss: Any) -> Any:
        """What a wrapped closure returns in place of the user's ``loss``."""
        ...

    def state_loaded(self, optimizer: Optimizer) -> None:
        """The optimiser's state was replaced by ``load_state_dict``."""
        ...

    def ranking(self) -> tuple[list[Tensor], list[Tensor]]:
        """What decides, per unit, which ones stay when the pattern is fixed: scores, and second keys between equals.

        Asked for right after the last ``after_step``; both ≥ 0, the second finite.
        """
        ...

    @property
    def strength(self) -> float:
        """ξ as it is now."""
        ...

    @property
    def lam_optimizer(self) -> SGD | None:
        """The optimiser of λ, if λ is trained."""
        ...

    def lam(self) -> dict[str, Tensor]:
        """λ per unit, by parameter name."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        ...

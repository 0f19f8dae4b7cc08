"""The ledger: parameters, non-zeros, bytes, multiply–accumulates and energy of a model, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from shrinkage.core.costs import Cost, KeepsPacked, Packed, cost, has_formula, own_forward
from shrinkage.core.errors import InputError
from shrinkage.core.evaluation import evaluating
from shrinkage.core.selection import unwrap
from shrinkage.core.tables import render

PICOJOULE_PER_MAC = 4.6
"""Energy of a 32-bit floating-point multiply (3.7 pJ) and add (0.9 pJ) at 45 nm and 0.9 V: M. Horowitz,
"Computing's energy problem (and what we can do about it)", ISSCC 2014. Moving data is not included."""

PICOJOULE_PER_ADDITION = 0.9
"""Energy of a 32-bit floating-point add alone, from the same table."""

_VALUE_BYTES = 4  # float32
_NOTHING = Packed(parameters=0, nonzeros=0, bytes=0, bits=0)


@dataclass(frozen=True)
class Layer:
    """One module of a model, or the sum of all.

    Attributes:
        name: the module's path in the model; empty for the model itself.
        kind: the name of its class.
        parameters: entries of its own parameters (not of its submodules'), biases included; a parameter
            shared with an earlier module counts there only.
        nonzeros: how many of them are not zero.
        dense_bytes: bytes of all of them as float32.
        sparse_bytes: bytes in the smallest of three forms, tensor by tensor, see :func:`sparse_bytes`; of packed
            weights, as they are.
        macs: multiply–accumulates of the forward pass.
        effective_macs: those whose weight is not zero.
        counted: False where parameters are there but no formula tells their MACs.
        additions: those that no multiplication goes with: what packed weights of −1, 0 and 1 need.
        bits: of a packed weight; None where weights are not packed, or not all by as many bits.
    """

    name: str
    kind: str
    parameters: int
    nonzeros: int
    dense_bytes: int
    sparse_bytes: int
    macs: int
    effective_macs: int
    counted: bool = True
    additions: int = 0
    bits: int | None = None

    @property
    def sparsity(self) -> float:
        """Share of the parameters that are zero, in [0, 1]; 0 without parameters."""
        return 1 - self.nonzeros / self.parameters if self.parameters else 0.0

    @property
    def energy_uj(self) -> float:
        """Energy of effective MACs and additions in microjoule, by :data:`PICOJOULE_PER_MAC` and
        :data:`PICOJOULE_PER_ADDITION`."""
        return (self.effective_macs * PICOJOULE_PER_MAC + self.additions * PICOJOULE_PER_ADDITION) * 1e-6

    @property
    def dense_energy_uj(self) -> float:
        """The same with all MACs."""
        return (self.macs * PICOJOULE_PER_MAC + self.additions * PICOJOULE_PER_ADDITION) * 1e-6

    def to_dict(self) -> dict[str, Any]:
        """All of the above under the same names; numbers, texts and booleans only."""
        return {**vars(self), "sparsity": self.sparsity, "energy_uj": self.energy_uj,
                "dense_energy_uj": self.dense_energy_uj}  # fmt: skip


@dataclass(frozen=True)
class Footprint:
    """What :func:`footprint` found; prints as a table.

    Attributes:
        model: the name of the model's class.
        example: shapes of the tensors that the MACs and the energy are for.
        layers: modules that have parameters of their own or multiply, in the model's order.
    """

    model: str
    example: tuple[tuple[int, ...], ...]
    layers: tuple[Layer, ...]

    @property
    def total(self) -> Layer:
        """The sum over all layers; ``counted`` is True if it is for each of them."""

        def total(field: str) -> int:
            return sum(getattr(layer, field) for layer in self.layers)

        bits = {layer.bits for layer in self.layers if layer.parameters}
        return Layer(
            "total",
            self.model,
            parameters=total("parameters"),
            nonzeros=total("nonzeros"),
            dense_bytes=total("dense_bytes"),
            sparse_bytes=total("sparse_bytes"),
            macs=total("macs"),
            effective_macs=total("effective_macs"),
            counted=not self.not_counted,
            additions=total("additions"),
            bits=bits.pop() if len(bits) == 1 else None,
        )

    @property
    def not_counted(self) -> tuple[str, ...]:
        """Paths of the modules whose MACs are not in the sums, for want of a formula."""
        return tuple(layer.name for layer in self.layers if not layer.counted)

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers, texts, lists and dicts, ready for JSON."""
        return {
            "model": self.model,
            "example": [list(shape) for shape in self.example],
            "layers": [layer.to_dict() for layer in self.layers],
            "total": self.total.to_dict(),
            "macs_not_counted": list(self.not_counted),
            "picojoule_per_mac": PICOJOULE_PER_MAC,
            "picojoule_per_addition": PICOJOULE_PER_ADDITION,
        }

    def __str__(self) -> str:
        packed = any(layer.bits for layer in self.layers)

        def row(layer: Layer) -> list[object]:
            macs = [layer.macs, layer.effective_macs, *([layer.additions] if packed else []), layer.energy_uj]
            return [
                layer.name or "(model)", layer.kind, layer.parameters, layer.nonzeros,
                f"{100 * layer.sparsity:.2f} %" if layer.parameters else None, layer.dense_bytes, layer.sparse_bytes,
                *([layer.bits] if packed else []),
                *(macs if layer.counted or layer.macs else [None] * len(macs)),
            ]  # fmt: skip

        header = ["layer", "kind", "parameters", "non-zeros", "sparsity", "bytes", "sparse bytes",
                  *(["bits"] if packed else []), "MACs", "effective MACs", *(["additions"] if packed else []),
                  "energy µJ"]  # fmt: skip
        shapes = ", ".join(str(shape) for shape in self.example)
        table = render(
            header,
            [*map(row, self.layers), [], row(self.total)],
            title=f"{self.model} on an input of {shapes}",
        )
        if not self.not_counted:
            return table
        missing = ", ".join(f"{x.name or '(model)'} ({x.kind})" for x in self.layers if not x.counted)
        return f"{table}\nMACs not counted, for want of a formula (see register_cost) or a call: {missing}"


def footprint(model: nn.Module, example: Any) -> Footprint:
    """Count what a model stores and computes, with its zeros and without.

    The model runs once on ``example``, in evaluation mode and without gradients; its training flags,
    BatchNorm statistics and the random state are left as they were. MACs of layers come from the
    formulas of :mod:`shrinkage.core.costs`; matrix products, convolutions and attention that a module
    computes by functions count too, for the innermost module, as if nothing in them were zero. A
    module with parameters and neither is listed as not counted.

    Parameters are counted as float32, whatever their type; buffers are not counted, but for packed weights.

    Args:
        model: any module; wrappers of ``torch.compile`` and DDP are looked through.
        example: an input on the model's device: a tuple or list of positional arguments, a mapping of keyword
            arguments, or anything else as the only argument. MACs and energy are for all of it: give
            one example, not a batch, to have the cost of one.

    Raises:
        InputError: if the model cannot run on the example, or has parameters without a shape yet.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))
    >>> with torch.no_grad():
    ...     _ = net[1].weight[:, 78:].zero_()
    >>> ledger = footprint(net, torch.zeros(1, 1, 28, 28))
    >>> ledger.total.parameters, ledger.total.macs, ledger.total.effective_macs
    (238510, 238200, 26400)
    """
    model = unwrap(model)
    return Footprint(type(model).__name__, tuple(_shapes(example)), tuple(_layers(model, trace(model, example))))


def trace(model: nn.Module, example: Any) -> Trace:
    """Run the model once and take notes.

    Raises:
        InputError: as :func:`footprint` does.
    """
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise InputError(f"{name!r} has no shape yet: run the model on one batch first")
    notes = Trace()
    with _undisturbed(model), notes.watch(model):
        try:
            _call(model, example)
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} cannot run on an example of {_describe(example)}: "
                f"{type(error).__name__}: {error}"
            ) from error
    return notes


def sparse_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor in the smallest of the forms a sparse file may use.

    With n entries of which z are not zero, values as float32 and no headers:

    - dense: 4·n;
    - bit mask and values: ⌈n/8⌉ + 4·z;
    - index deltas of k = 8 or 16 bits and values: (z + Σ ⌊d/2ᵏ⌋)·(k/8 + 4), where d is the number
      of zeros before each non-zero (in row-major order, since the last one); a longer run than a delta
      can say is broken by entries with the value zero, 2ᵏ positions each.

    >>> sparse_bytes(torch.zeros(1000)), sparse_bytes(torch.ones(1000))
    (0, 4000)
    >>> sparse_bytes(torch.eye(32))                  # 32 deltas of a byte, 32 values
    160
    """
    n, z = tensor.numel(), int(torch.count_nonzero(tensor))
    best = min(_VALUE_BYTES * n, -(-n // 8) + _VALUE_BYTES * z)
    if z >= n / 8:  # a delta costs at least a byte per non-zero, the mask n/8 bytes
        return best
    places = tensor.detach().flatten().nonzero().flatten()
    skipped = places.diff(prepend=places.new_tensor([-1])) - 1
    for bits in (8, 16):
        entries = z + int((skipped >> bits).sum())
        best = min(best, entries * (bits // 8 + _VALUE_BYTES))
    return best


class Trace:
    """What ran in one forward pass: by module, the uses of its weights and MACs without a weight."""

    def __init__(self) -> None:
        self.uses: dict[nn.Module, dict[str, int | Tensor]] = defaultdict(dict)
        self.others: dict[nn.Module, int] = defaultdict(int)
        self.additions: dict[nn.Module, int] = defaultdict(int)
        self.products: dict[nn.Module, int] = defaultdict(int)  # of classes that may compute more than their formula
        self.formulas: dict[nn.Module, int] = defaultdict(int)  # what theirs says
        self.costed: set[nn.Module] = set()
        self.running: list[nn.Module] = []

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Take notes of what the model runs inside."""
        with ExitStack() as stack:
            for module in model.modules():
                # always_call (with no output) keeps `running` right when a module raises and its caller
                # catches that.
                for handle in (
                    module.register_forward_pre_hook(self._enter),
                    module.register_forward_hook(self._leave, with_kwargs=True, always_call=True),
                ):
                    stack.callback(handle.remove)
            stack.enter_context(_Products(self))
            yield
        for module, products in self.products.items():
            self.others[module] += max(products - self.formulas[module], 0)

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.running.append(module)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.running.pop()
        found: Cost | None = None if output is None else cost(module, args, kwargs, output)
        if found is None:
            return
        self.costed.add(module)
        self.others[module] += found.others
        self.additions[module] += found.additions
        self.formulas[module] += found.others
        for name, uses in found.uses.items():
            path, _, parameter = name.rpartition(".")
            owner = module.get_submodule(path)
            self.formulas[module] += macs_with(getattr(owner, parameter), uses)
            self.costed.add(owner)
            self.uses[owner][parameter] = self.uses[owner].get(parameter, 0) + uses


def macs_with(weight: Tensor, uses: int | Tensor) -> int:
    """Multiply–accumulates of a weight whose entries take part in so many each."""
    return uses * weight.numel() if isinstance(uses, int) else int(uses.expand_as(weight).sum())


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts products that modules without a formula compute by functions, such as attention.

    Also those of a class that derives from one with a formula and computes in a way of its own, such as an adapter.
    """

    supports_higher_order_operators = True

    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        flops = flop_registry.get(getattr(func, "overloadpacket", func))
        module = self.trace.running[-1] if self.trace.running else None
        if flops is not None and module is not None:
            macs = flops(*args, **(kwargs or {}), out_val=out) // 2
            if not has_formula(module):
                self.trace.others[module] += macs
            elif own_forward(module):
                self.trace.products[module] += macs
        return out


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; flags, random state and switches come back as they were."""
    devices = list({parameter.device for parameter in model.parameters() if parameter.is_cuda})
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # it computes layers without calling them
        # Attention by plain products: the fused kernels of the CPU have no entry in PyTorch's flop registry.
        with evaluating(model), torch.random.fork_rng(devices), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _call(model: nn.Module, example: Any) -> None:
    if isinstance(example, Mapping):
        model(**example)
    elif type(example) in (tuple, list):  # not a named tuple, such as PackedSequence: that is one argument
        model(*example)
    else:
        model(example)


def _layers(model: nn.Module, trace: Trace) -> Iterator[Layer]:
    seen: set[Tensor] = set()
    for name, module in model.named_modules():
        own = [parameter for parameter in module.parameters(recurse=False) if parameter not in seen]
        seen.update(own)
        macs = effective = trace.others[module]
        for weight_name, uses in trace.uses[module].items():
            weight = getattr(module, weight_name)
            macs += macs_with(weight, uses)
            if isinstance(uses, int):
                effective += uses * int(torch.count_nonzero(weight))
            else:
                effective += int(((weight != 0) * uses).sum())
        form = module.packed_form() if isinstance(module, KeepsPacked) else _NOTHING
        has_parameters = form.parameters or next(module.parameters(recurse=False), None) is not None
        if not has_parameters and not macs:
            continue
        yield Layer(
            name,
            type(module).__name__,
            parameters=(count := form.parameters + sum(p.numel() for p in own)),
            nonzeros=form.nonzeros + sum(int(torch.count_nonzero(p)) for p in own),
            dense_bytes=_VALUE_BYTES * count,
            sparse_bytes=form.bytes + sum(map(sparse_bytes, own)),
            macs=macs,
            effective_macs=effective,
            counted=module in trace.costed or bool(macs),
            additions=trace.additions[module],
            bits=form.bits or None,
        )


def _shapes(example: Any) -> Iterator[tuple[int, ...]]:
    if isinstance(example, Tensor):
        yield tuple(example.shape)
    elif isinstance(example, Mapping):
        yield from _shapes(tuple(example.values()))
    elif isinstance(example, tuple | list):
        for item in example:
            yield from _shapes(item)


def _describe(example: Any) -> str:
    shapes = ", ".join(map(str, _shapes(example)))
    return f"shape {shapes}" if shapes else type(example).__name__

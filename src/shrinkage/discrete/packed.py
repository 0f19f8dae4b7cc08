"""Layers whose weights lie packed at ⌈log₂|S|⌉ bits, and compute from there.

A byte holds several codes: four of a ternary set. For each group of as many inputs a table is made of what every byte
would sum up to; a product with a row of weights is then a sum of table entries, one a byte. No weight is unpacked, and
if the values are −1, 0 and 1 there are additions only, before the layer's scale.
"""

from __future__ import annotations

import copy
import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from shrinkage.core.costs import Cost, Packed, register_cost
from shrinkage.core.errors import InputError
from shrinkage.core.selection import unwrap
from shrinkage.discrete.chain import Layer, chain
from shrinkage.discrete.values import ValueSet
from shrinkage.formats.kbits import pack_codes, row_bytes, unpack_codes

_ROWS = 32  # rows of weights in work at a time
_ENTRIES = 1 << 22  # of a table at a time

_L = TypeVar("_L", nn.Linear, nn.Conv2d)


class PackedLayer(nn.Module):
    """What packed layers share: rows of codes, a scale, and a bias in the same set or of free numbers.

    Its ``state_dict`` is the packed form: ``codes`` (uint8, a row an output, each filled up to a byte), ``scale``, and
    ``bias_codes`` or ``bias``; and to be compared when it is loaded, ``values`` (float64) and ``columns`` (int64).
    These two are what the architecture says, like a shape, and are not counted as bytes of the weights.

    Args:
        values: the set.
        rows: outputs.
        columns: weights of an output.
        bias: ``"codes"``, ``"free"`` or None.
    """

    codes: Tensor
    scale: Tensor
    bias_codes: Tensor | None
    bias: Tensor | None

    def __init__(self, values: ValueSet, rows: int, columns: int, bias: str | None) -> None:
        super().__init__()
        self.values, self.rows, self.columns = values, rows, columns
        bits = values.bits
        self.register_buffer("codes", torch.zeros(rows, row_bytes(columns, bits), dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(()))
        coded = torch.zeros(1, row_bytes(rows, bits), dtype=torch.uint8) if bias == "codes" else None
        self.register_buffer("bias_codes", coded)
        self.register_buffer("bias", torch.zeros(rows) if bias == "free" else None)

    def fill(self, layer: Layer, scale: float, coded_bias: bool) -> None:
        """Take over the weights of a layer, which must be from the set times ``scale``."""
        bits = self.values.bits
        self.scale = torch.tensor(scale, dtype=layer.weight.dtype)
        self.codes = pack_codes(self.values.codes(layer.weight, scale).flatten(1), bits)
        if layer.bias is not None and coded_bias:
            self.bias_codes = pack_codes(self.values.codes(layer.bias, scale)[None], bits)
        elif layer.bias is not None:
            self.bias = layer.bias.detach().cpu().clone()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update(self._described(prefix))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str], *rest: Any
    ) -> None:
        """Load, if that stands for weights of this layer.

        Raises:
            InputError: if it is of another set or size, or holds what is no packed weight.
        """
        layer = repr(prefix[:-1] or "the model")
        for name, ours in self._described(prefix).items():
            theirs = state_dict.pop(name, None)
            if theirs is None:
                missing.append(name)
            elif not torch.equal(theirs.cpu(), ours):
                what = name.removeprefix(prefix)
                raise InputError(f"{layer} has {what} {ours.tolist()}, and {theirs.tolist()} were saved")
        self._check(layer, self.columns, state_dict.get(f"{prefix}codes"))
        self._check(layer, self.rows, state_dict.get(f"{prefix}bias_codes"))
        scale = state_dict.get(f"{prefix}scale")
        if scale is not None and not 0 < float(scale) < math.inf:
            raise InputError(f"the scale of {layer} must be a finite number greater than 0, it is {float(scale)}")
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)

    def _described(self, prefix: str) -> dict[str, Tensor]:
        values = torch.tensor(self.values.values, dtype=torch.float64)
        return {f"{prefix}values": values, f"{prefix}columns": torch.tensor(self.columns)}

    def _check(self, layer: str, columns: int, packed: Tensor | None) -> None:
        """Raise ``InputError`` if there is a code beyond the set or something behind the last one of a row."""
        count, bits = len(self.values.values), self.values.bits
        if packed is None or packed.shape[1:] != (row_bytes(columns, bits),):
            return  # PyTorch says what is missing or of another shape
        for first in range(0, len(packed), _ROWS):
            part = packed[first : first + _ROWS].cpu()
            codes = unpack_codes(part, columns, bits)
            if int(codes.max()) >= count:
                raise InputError(f"{layer} holds the code {int(codes.max())}, but the set has {count} values")
            if not torch.equal(pack_codes(codes, bits), part):
                raise InputError(f"the rows of {layer} hold more than {columns} codes: they are damaged")

    def weight_rows(self, first: int, last: int) -> Tensor:
        """Some rows of the weights as numbers, shape (last − first, columns), with the scale."""
        codes = unpack_codes(self.codes[first:last], self.columns, self.values.bits)
        return self.values.tensor(self.scale)[codes.long()] * self.scale

    def bias_vector(self) -> Tensor | None:
        """The bias as numbers, shape (rows,)."""
        if self.bias_codes is None:
            return self.bias
        codes = unpack_codes(self.bias_codes, self.rows, self.values.bits)[0]
        return self.values.tensor(self.scale)[codes.long()] * self.scale

    @property
    def nonzeros(self) -> int:
        """Weights that are not zero."""
        if 0.0 not in self.values.values:
            return self.rows * self.columns
        zero = self.values.values.index(0.0)
        parts = [self.codes[first : first + _ROWS] for first in range(0, self.rows, _ROWS)]
        return sum(int((unpack_codes(part, self.columns, self.values.bits) != zero).sum()) for part in parts)

    def packed_form(self) -> Packed:
        """What codes, scale and bias stand for, and take."""
        bias = self.bias_vector()
        count, nonzeros = (0, 0) if bias is None else (bias.numel(), int(bias.count_nonzero()))
        return Packed(
            parameters=self.rows * self.columns + count,
            nonzeros=self.nonzeros + nonzeros,
            bytes=sum(buffer.nbytes for buffer in self.buffers()),
            bits=self.values.bits,
        )

    def extra_repr(self) -> str:
        """What is printed of it."""
        return f"{self.rows} × {self.columns} of {len(self.values.values)} values, {self.values.bits} bits each"

    def product(self, x: Tensor) -> Tensor:
        """The weights times inputs, without the bias: from shape (M, columns) to (M, rows)."""
        bits = self.values.bits
        if not len(x):
            return x.new_zeros(0, self.rows)
        if 8 % bits:
            parts = [
                functional.linear(x, self.weight_rows(first, min(first + _ROWS, self.rows)))
                for first in range(0, self.rows, _ROWS)
            ]
            return torch.cat(parts, 1)
        groups = self.codes.shape[1]
        step = max(1, _ENTRIES // (groups << 8))
        return torch.cat([self._by_table(x[first : first + step]) for first in range(0, len(x), step)])

    def _by_table(self, x: Tensor) -> Tensor:
        """The product by sums of table entries; the table has one for each group of inputs and each byte."""
        bits, groups = self.values.bits, self.codes.shape[1]
        per = 8 // bits
        x = functional.pad(x, (0, groups * per - self.columns)).t().reshape(groups, per, len(x))
        table = x.new_zeros(groups, 1, x.shape[2])
        for place in range(per):
            part = x[:, place : place + 1]
            table = torch.cat([self._plus(table, part, code) for code in range(1 << bits)], 1)
        flat = table.reshape(groups << 8, -1)
        begin = torch.arange(groups, device=x.device) << 8
        sums = [
            functional.embedding_bag(self.codes[first : first + _ROWS].long() + begin, flat, mode="sum")
            for first in range(0, self.rows, _ROWS)
        ]
        return torch.cat(sums).t() * self.scale

    def _plus(self, table: Tensor, x: Tensor, code: int) -> Tensor:
        """The table with one more input, times the value of a code; codes beyond the set do not occur."""
        value = self.values.values[code] if code < len(self.values.values) else 0.0
        if value == 0:
            return table
        if value in (1, -1):
            return table + x if value == 1 else table - x
        return table + value * x


class PackedLinear(PackedLayer):
    """A linear layer with packed weights.

    >>> from shrinkage.discrete.values import value_set
    >>> layer = nn.Linear(5, 2)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0, -1, 1, 0], [0, 0, 1, 1, -1]]))
    >>> packed = PackedLinear(value_set((-1, 0, 1)), layer, bias="free")
    >>> packed.fill(layer, 1.0, coded_bias=False)
    >>> x = torch.randn(3, 5)
    >>> torch.allclose(packed(x), layer(x), atol=1e-6), packed.codes.shape
    (True, torch.Size([2, 2]))
    """

    def __init__(self, values: ValueSet, layer: nn.Linear, bias: str | None) -> None:
        super().__init__(values, layer.out_features, layer.in_features, bias)

    def forward(self, x: Tensor) -> Tensor:
        """From shape (…, columns) to (…, rows)."""
        out = self.product(x.reshape(-1, self.columns))
        bias = self.bias_vector()
        return (out if bias is None else out + bias).reshape(*x.shape[:-1], self.rows)

    def unpacked(self) -> nn.Linear:
        """An ordinary layer with the same weights."""
        layer = nn.Linear(self.columns, self.rows, self.bias_vector() is not None)
        return _filled(layer, self)


class PackedConv2d(PackedLayer):
    """A convolution with packed weights, by sums over its patches."""

    def __init__(self, values: ValueSet, layer: nn.Conv2d, bias: str | None) -> None:
        channels, *kernel = layer.weight.shape[1:]
        super().__init__(values, layer.out_channels, layer.weight[0].numel(), bias)
        height, width = kernel
        self.channels, self.kernel = channels, (height, width)
        self.options: dict[str, Any] = {
            "stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation,
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """From shape (N, channels, height, width) to (N, rows, height', width'); or the same without N."""
        if x.ndim == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        patches = functional.unfold(x, self.kernel, **self.options)
        out = self.product(patches.transpose(1, 2).reshape(-1, self.columns))
        sides = zip(x.shape[2:], self.kernel, *self.options.values(), strict=True)
        height, width = ((n + 2 * pad - wide * (k - 1) - 1) // step + 1 for n, k, step, pad, wide in sides)
        out = out.view(len(x), height * width, self.rows).transpose(1, 2).reshape(len(x), self.rows, height, width)
        bias = self.bias_vector()
        return out if bias is None else out + bias.view(-1, 1, 1)

    def unpacked(self) -> nn.Conv2d:
        """An ordinary layer with the same weights."""
        layer = nn.Conv2d(
            self.channels, self.rows, self.kernel, bias=self.bias_vector() is not None, **self.options
        )  # fmt: skip
        return _filled(layer, self)


def packed(model: nn.Module, values: ValueSet, scales: dict[str, float], coded_biases: bool) -> nn.Module:
    """A copy of a model with packed layers in place of those whose weights are from the set.

    Args:
        model: a chain of layers.
        values: the set.
        scales: by the layers' paths.
        coded_biases: whether biases are from the set, times the layer's scale, too.
    """
    twin = copy.deepcopy(unwrap(model))
    for stage in chain(twin).stages:
        layer = stage.layer
        bias = None if layer.bias is None else "codes" if coded_biases else "free"
        small = PackedLinear(values, layer, bias) if isinstance(layer, nn.Linear) else PackedConv2d(values, layer, bias)
        small.fill(layer, scales[stage.name], coded_biases)
        small.to(layer.weight.device)
        twin = _replaced(twin, stage.name, small)
    return twin


def unpacked(model: nn.Module) -> nn.Module:
    """A copy of a model with ordinary layers in place of packed ones."""
    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules()):
        if isinstance(module, PackedLinear | PackedConv2d):
            twin = _replaced(twin, name, module.unpacked())
    return twin


def _replaced(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    if not name:
        return module
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, module)
    return model


def _filled(layer: _L, source: PackedLayer) -> _L:
    layer.to(source.scale)
    with torch.no_grad():
        layer.weight.copy_(source.weight_rows(0, source.rows).view_as(layer.weight))
        bias = source.bias_vector()
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(bias)
    return layer


@register_cost(PackedLayer)
def _packed(module: PackedLayer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Cost:
    """One multiplication by the scale for each output, and for each weight that is not zero an addition, or with other
    values than −1, 0 and 1 a multiplication as well; the tables that are summed up here are not counted."""
    products = module.nonzeros * (output.numel() // module.rows)
    if module.values.signs:
        return Cost(others=output.numel(), additions=products)
    return Cost(others=products + output.numel())

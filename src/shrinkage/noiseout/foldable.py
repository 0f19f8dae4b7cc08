"""Which units of a model can be folded into others, and where they are read.

A unit is a neuron or channel with everything that goes with it: its rows in the layers that write it (several, where
a residual path adds them up), its entries in norms between, its columns in the layers that read it. Units are
alternatives to each other if the same layers read them, in the same number of places. The analysis is that of
:func:`~shrinkage.compact`; here a unit need not be dead to go.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.conv import _ConvNd

from shrinkage.core.errors import InputError
from shrinkage.core.evaluation import evaluating
from shrinkage.core.selection import is_hf_conv1d
from shrinkage.deploy.compact import RULES
from shrinkage.deploy.dataflow import Bias, Call, Flow, Product, Rule, Value
from shrinkage.deploy.dead import Choice, Plan
from shrinkage.deploy.products import SUMS
from shrinkage.deploy.rework import Arguments, agree, largest, run
from shrinkage.deploy.slices import STAYS
from shrinkage.deploy.surgery import apply
from shrinkage.deploy.tracing import stored, tensors, trace
from shrinkage.noiseout.watch import watching


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads the units.

    Attributes:
        path: of the module.
        channel: the dimension of its input that counts channels, from the end.
        channels: where the units are in that dimension, shape (units, places).
        weight: the name of its weight.
        dim: the dimension of the weight that counts inputs.
        columns: where the units are in that one, shape (units, places).
        home: the bias or running mean that a constant can be added to, and its sign; None: there is none.
    """

    path: str
    channel: int
    channels: Tensor
    weight: str
    dim: int
    columns: Tensor
    home: tuple[str, int] | None


@dataclass(frozen=True, eq=False)
class Group:
    """Units that the same layers read.

    Attributes:
        name: of the layers that write them, all together.
        layers: these.
        sets: the number of each unit, shape (units,).
        readers: the layers that read them.
    """

    name: str
    layers: tuple[str, ...]
    sets: Tensor
    readers: tuple[Reader, ...]


@dataclass(frozen=True, eq=False)
class _Note:
    """A sum over slices that the trace has met.

    Attributes:
        product: the sum.
        call: its operation.
        plain: whether it sums over what the module with its weight was called with, once: what a hook sees.
    """

    product: Product
    call: Call
    plain: bool


class Foldable:
    """What of a model can be folded.

    Args:
        model: out of its wrappers; it is looked at and left as it was.
        inputs: an example.

    Attributes:
        groups: units by what reads them.
        fixed: layers between inputs and outputs of the model that cannot lose a unit, by path.

    Raises:
        InputError: if the model cannot be traced.
    """

    def __init__(self, model: nn.Module, inputs: Arguments) -> None:
        self._notes: list[_Note] = []
        self._operands = _operands(model, inputs)
        rules = {**RULES, **{name: self._noted(rule) for name, rule in SUMS.items()}}
        with evaluating(model):
            traced = trace(model, *inputs)
            self.epsilon = traced.epsilon
            self._flow = flow = Flow(traced, rules)
        self._operands.clear()
        _fix_attention(model, flow)
        read = [(note.product, note.call, self._reader(model, note)) for note in self._notes]
        self._wrote = [
            (product.outputs, _layer(call)) for product, call, _ in read if (_weight(call)[0] or "").endswith(".weight")
        ]
        self._tie_groups(read)
        for product, _, path in read:
            if path is None:
                flow.slices.fix(product.inputs)
        self._roots = flow.slices.roots()
        self.groups = list(self._grouped([(p, c, path) for p, c, path in read if path is not None]))
        self.fixed = self._fixed()
        flow.products.clear()  # what is to be added is said by the folds; the choice only cuts
        self._choice = Choice(flow)
        self._dimensions = [
            (name, dim, self._roots[slices])
            for name, value in flow.sources.items()
            for dim, slices in enumerate(value.slices)
        ]

    @property
    def count(self) -> int:
        """How many numbers of sets there are."""
        return len(self._roots)

    def dimensions(self) -> list[Tensor]:
        """Of every dimension of every parameter, the sets that it consists of; one of them must stay."""
        found = {tuple(sorted(set(roots.tolist()))) for _, _, roots in self._dimensions}
        return [torch.tensor(sets) for sets in sorted(found) if sets and STAYS not in sets]

    def fits(self, kept: Tensor, shapes: Mapping[str, torch.Size]) -> bool:
        """Whether a model of which these sets stay (bool, by number) can be told from its shapes and those at first.

        Else :func:`~shrinkage.reshape_like` would take outputs lost by each group of a convolution for groups lost.
        """
        for conv in self._flow.grouped:
            inputs, outputs = (
                kept[self._roots[slices]].view(conv.groups, -1) for slices in (conv.inputs, conv.outputs)
            )
            left, (first, read, *_) = int(outputs[0].sum()), shapes[conv.weight]
            size = first // conv.groups
            if int(inputs[0].sum()) == read > 1 and left < size and conv.groups * left % size == 0:
                return False
        return True

    def plan(self, gone: Iterable[int], shifts: Mapping[str, Tensor]) -> Plan:
        """What has to be done so that these sets go, after ``shifts`` are added."""
        kept = torch.ones(len(self._roots), dtype=torch.bool)
        kept[list(gone)] = False
        plan = self._choice.plan(kept[self._roots])
        return Plan(shifts, plan.cuts, plan.groups)

    def parameters_left(self, model: nn.Module) -> Callable[[Tensor], int]:
        """How many parameters are left, as a function of which sets stay (bool, by number)."""
        own = dict(model.named_parameters())
        shapes: dict[str, list[Tensor | int]] = {name: list(own[name].shape) for name in own}
        grouped = {conv.weight: conv for conv in self._flow.grouped}
        for name, dim, roots in self._dimensions:
            if name in own:
                shapes[name][dim] = roots
        fixed = {name: [len(s) if isinstance(s, Tensor) else s for s in sizes] for name, sizes in shapes.items()}

        def count(kept: Tensor) -> int:
            total = 0
            for name, sizes in shapes.items():
                product = 1
                for place, size in enumerate(sizes):
                    product *= int(kept[size].sum()) if isinstance(size, Tensor) else fixed[name][place]
                if name in grouped:  # the second dimension counts within a group
                    conv = grouped[name]
                    inputs = kept[self._roots[conv.inputs]].view(conv.groups, -1)
                    product = product // max(fixed[name][1], 1) * int(inputs.sum(1).max())
                total += product
            return total

        return count

    # ---- parts ----------------------------------------------------------------------------------

    def _noted(self, rule: Rule) -> Rule:
        def noted(flow: Flow, call: Call) -> Any:
            before = len(flow.products)
            seen = self._operands.get(_layer(call), [])
            x = next(call.bound[name].data for name in ("mat1", "input", "self", "query") if name in call.bound)
            plain = len(seen) == 1 and seen[0].numel() == x.numel()
            plain = plain and agree([seen[0].reshape(x.shape)], [x], self.epsilon)
            result = rule(flow, call)
            self._notes += [_Note(product, call, plain) for product in flow.products[before:]]
            return result

        return noted

    def _reader(self, model: nn.Module, note: _Note) -> str | None:
        """The path of the module whose input this sums over, if it is a layer that is known and runs once."""
        name, value = _weight(note.call)
        if name is None or value is None or not self._flow.alone(value) or not note.plain:
            return None
        path = _layer(note.call)
        return path if getattr(model.get_submodule(path), "weight", None) is value.data else None

    def _fixed(self) -> list[str]:
        """Layers that write nothing that can go, but for those that write what the model returns."""
        by_node = {note.call.node: note for note in self._notes if _layer(note.call)}
        graph = self._flow.trace.graph.graph
        returned = set[Node]()
        ahead = list(graph.output_node().all_input_nodes)
        while ahead:  # back to the layers, through what keeps units apart
            node = ahead.pop()
            if node not in returned:
                returned.add(node)
                ahead += [] if node in by_node else [each for each in node.all_input_nodes if _alike(each, node)]
        loses = {number for group in self.groups for number in group.sets.tolist()}
        stay = [
            _layer(note.call)
            for node, note in by_node.items()
            if node not in returned and loses.isdisjoint(self._roots[note.product.outputs].tolist())
        ]
        return list(dict.fromkeys(stay))

    def _tie_groups(self, read: list[tuple[Product, Call, str | None]]) -> None:
        """Of a convolution in groups all groups lose alike; one with an input a group is no place to be read."""
        slices = self._flow.slices
        for conv in self._flow.grouped:
            size = len(conv.inputs) // conv.groups
            if size == 1:
                slices.join(conv.inputs.repeat_interleave(len(conv.outputs) // conv.groups), conv.outputs)
                read[:] = [each for each in read if _weight(each[1])[0] != conv.weight]
                continue
            for one in (conv.inputs, conv.outputs):
                first, *others = one.view(conv.groups, -1)
                for other in others:
                    slices.join(first, other)

    def _grouped(self, read: list[tuple[Product, Call, str]]) -> Iterable[Group]:
        places = [self._places(product) for product, _, _ in read]
        readers: dict[int, list[tuple[int, int]]] = {}
        for index, found in enumerate(places):
            for root, where in found.items():
                readers.setdefault(root, []).append((index, len(where)))
        alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for root, signature in readers.items():
            alike.setdefault(tuple(signature), []).append(root)
        used: dict[str, int] = {}
        for key, roots in alike.items():
            sets = sorted(roots)
            made = tuple(self._made(*read[index], [places[index][root] for root in sets]) for index, _ in key)
            if layers := self._writers(set(sets)):
                name = " + ".join(layers)
                used[name] = used.get(name, 0) + 1
                yield Group(name if used[name] == 1 else f"{name} ({used[name]})", layers, torch.tensor(sets), made)

    def _places(self, product: Product) -> dict[int, list[int]]:
        """Where each set that can go is among the inputs."""
        found: dict[int, list[int]] = {}
        for place, root in enumerate(self._roots[product.inputs].tolist()):
            if root != STAYS:
                found.setdefault(root, []).append(place)
        return found

    def _made(self, product: Product, call: Call, path: str, where: list[list[int]]) -> Reader:
        name, value = _weight(call)
        assert name is not None
        assert value is not None
        channels = torch.tensor(where)
        dims = max(value.data.ndim - 2, 0)
        columns = channels
        for conv in self._flow.grouped:
            if conv.weight == name:  # of each group the same column
                columns = channels[:, :1] % (len(conv.inputs) // conv.groups)
        home = product.home
        place = (home.name, home.sign) if isinstance(home, Bias) else None
        return Reader(path, -1 - dims, channels, name, _input_dim(call), columns, place)

    def _writers(self, sets: set[int]) -> tuple[str, ...]:
        """The names of the layers that write units."""
        names = [path for outputs, path in self._wrote if sets & set(self._roots[outputs].tolist())]
        return tuple(dict.fromkeys(names))


def _input_dim(call: Call) -> int:
    """The dimension of the weight that counts inputs."""
    return 1 if "weight" in call.bound and "transpose" not in str(call.node.target) else 0


def _weight(call: Call) -> tuple[str | None, Value | None]:
    for name in ("weight", "mat2", "other"):
        if isinstance(value := call.bound.get(name), Value):
            return value.name, value
    return None, None


def _layer(call: Call) -> str:
    """The path of the module whose weight this multiplies by; empty if there is none."""
    name = _weight(call)[0]
    if name is not None:
        return name.rpartition(".")[0] or name
    if "weight" not in call.bound:
        return ""
    *_, (path, _) = call.node.meta["nn_module_stack"].values()  # the weight is computed from others
    return str(path).removeprefix("model").removeprefix(".")


def _alike(node: Node, result: Node) -> bool:
    """Whether a result has all the numbers of an argument, or their mean over positions."""
    sizes = [tuple(each.shape) for each in (*tensors(node.meta.get("val")), *tensors(result.meta.get("val")))]
    return len(sizes) == 2 and (math.prod(sizes[0]) == math.prod(sizes[1]) or sizes[0][:2] == sizes[1][:2])


def _operands(model: nn.Module, inputs: Arguments) -> dict[str, list[Tensor]]:
    """What flows into each layer of a known kind on the example, a tensor a call."""
    found: dict[str, list[Tensor]] = {
        path: []
        for path, module in model.named_modules()
        if path and (isinstance(module, nn.Linear | _ConvNd) or is_hf_conv1d(module))
    }
    with watching(model, {path: lambda x, seen=seen: seen.append(x.clone()) for path, seen in found.items()}):  # type: ignore[misc]
        run(model, inputs)
    return found


def _fix_attention(model: nn.Module, flow: Flow) -> None:
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):  # it counts on its sizes in many ways
            mine = {id(parameter) for parameter in module.parameters()}
            flow.fix(*(value for value in flow.sources.values() if id(value.data) in mine))


def removable(model: nn.Module, inputs: Arguments) -> tuple[Foldable, list[str]]:
    """What can be folded, and names of the groups of units that can really be cut out.

    Tried on a copy: without a unit that nobody reads the model must run, and give the same.

    Raises:
        InputError: if the model cannot be copied, traced or run on the example.
    """
    try:
        work = copy.deepcopy(model).eval()
        run(work, inputs)
    except Exception as error:
        kind = type(model).__name__
        raise InputError(f"{kind} cannot be copied or run on the example: {type(error).__name__}: {error}") from error
    found = Foldable(model, inputs)
    held = stored(work)
    victims = {group.name: int(group.sets[0]) for group in found.groups if len(group.sets) > 1}
    with torch.no_grad():
        for group in found.groups:
            for reader in group.readers:
                weight = held[reader.weight]
                weight.index_fill_(reader.dim, reader.columns[0].to(weight.device), 0)
    expected = run(work, inputs)

    def works(names: Sequence[str]) -> bool:
        candidate = copy.deepcopy(work)
        try:
            apply(candidate, found.plan([victims[name] for name in names], {}))
            return agree(run(candidate, inputs), expected, max(found.epsilon, 1e-6))
        except Exception:  # such as sizes that the model's own code counts on
            return False

    return found, largest(list(victims), works)[0]


def head_of(model: nn.Module, inputs: Arguments, path: str | None) -> str:
    """The path of the linear layer beside which outputs can be added: the one named, or the last that runs.

    Raises:
        InputError: if it is no linear layer.
    """
    ran: list[str] = []
    names = {module: name for name, module in model.named_modules() if name}
    with ExitStack() as stack:
        for module, name in names.items():
            if next(module.parameters(recurse=False), None) is not None:
                handle = module.register_forward_hook(lambda module, args, out, name=name: ran.append(name))
                stack.callback(handle.remove)
        stack.enter_context(watching(model, {}))
        run(model, inputs)
    if path is not None and path not in ran:
        raise InputError(f"head={path!r} is no layer that runs on the example; the last that do are {ran[-3:]}")
    if path is None and not ran:
        raise InputError("the model is one layer: it has no hidden neurons")
    head = model.get_submodule(path or ran[-1])
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"the head {path or ran[-1]!r} is {type(head).__name__}, which cannot be widened by noise outputs: name "
            "a linear layer with head=, or use noise=None"
        )
    return path or ran[-1]

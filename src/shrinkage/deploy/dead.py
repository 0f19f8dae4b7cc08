"""Which slices can go: those that change no output, or by a constant that a bias can take in.

The largest such choice is sought: everything goes at first that is not tied to an input or an output of the model,
and comes back as long as something that stays needs it. A unit is needed by what reads it with a weight that is not
zero, unless nothing depends on the reader, or the unit is a constant. Constants go into the reader's bias. Where that
is not exact (beside the zero padding of a convolution) or there is none, all but one go into the weights of that one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from shrinkage.deploy.dataflow import Bias, Flow, Grouped, Product, Weight
from shrinkage.deploy.slices import STAYS, Slices

Cut = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Plan:
    """What to do to a model.

    Attributes:
        shifts: what to add to a parameter or buffer before anything is cut.
        cuts: the indices that stay of each dimension (None: all), by parameter or buffer. For a convolution in
            groups the second are places within the group, a row of them for each output that stays.
        groups: how many groups are left, by the name of the weight.
    """

    shifts: Mapping[str, Tensor]
    cuts: Mapping[str, Cut]
    groups: Mapping[str, int]


@dataclass(frozen=True)
class Family:
    """Sets of slices that go from the same layers.

    Attributes:
        sets: their numbers.
        names: the parameters and buffers that lose slices.
    """

    sets: frozenset[int]
    names: tuple[str, ...]


class Choice:
    """What can go in a model.

    Args:
        flow: its analysis.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._roots = flow.slices.roots()
        self._dimensions = [
            (name, dim, self._roots[slices])
            for name, value in flow.sources.items()
            for dim, slices in enumerate(value.slices)
        ]
        kept = torch.zeros(len(self._roots), dtype=torch.bool)
        kept[STAYS] = True
        self._needed(kept)
        self._by_group = [self._loses_groups(conv, kept) for conv in flow.grouped]
        self._smallest = self._settled(kept)

    def kept(self, spared: Collection[int]) -> Tensor:
        """For each slice whether it stays if these sets stay as well."""
        kept = self._smallest.clone()
        kept[list(spared)] = True
        return self._settled(kept)[self._roots]

    def families(self) -> list[Family]:
        """The sets that can go, those together that share a dimension of a parameter."""
        kept = self._smallest
        ties = Slices()
        ties.new(len(kept))
        for _, _, roots in self._dimensions:
            ties.together(roots[~kept[roots]])
        names = ties.roots()
        sets: dict[int, set[int]] = {}
        tensors: dict[int, dict[str, None]] = {}
        for name, _, roots in self._dimensions:
            for root in set(roots[~kept[roots]].tolist()):
                sets.setdefault(int(names[root]), set()).add(root)
                tensors.setdefault(int(names[root]), {})[name] = None
        return [Family(frozenset(sets[key]), tuple(tensors[key])) for key in sets]

    def plan(self, kept: Tensor) -> Plan:
        """What has to be done so that only these stay."""
        shifts: dict[str, Tensor] = {}
        for product in self._flow.products:
            for name, shift in self._folded(product, kept):
                shifts[name] = shifts.get(name, 0) + shift
        cuts: dict[str, list[Tensor | None]] = {}
        for name, dim, roots in self._dimensions:
            places = cuts.setdefault(name, [])
            assert len(places) == dim
            places.append(None if bool(kept[roots].all()) else kept[roots].nonzero().flatten())
        groups: dict[str, int] = {}
        for conv in self._flow.grouped:
            inputs, outputs = (kept[s].view(conv.groups, -1) for s in (conv.inputs, conv.outputs))
            left = inputs.any(1)
            if not bool(inputs.all()):
                per_output = inputs[left].nonzero()[:, 1].view(int(left.sum()), -1)
                cuts[conv.weight][1] = per_output.repeat_interleave(int(outputs[left][0].sum()), 0)
                groups[conv.weight] = int(left.sum())
        shrunk = {name: tuple(cut) for name, cut in cuts.items() if any(place is not None for place in cut)}
        return Plan(shifts, shrunk, groups)

    def _settled(self, kept: Tensor) -> Tensor:
        """These sets, and what has to stay for their sake; a dimension keeps one slice at least, its first."""
        while True:
            before = int(kept.sum())
            for conv, by_group in zip(self._flow.grouped, self._by_group, strict=True):
                (self._whole if by_group else self._even)(conv, kept)
            for _, _, roots in self._dimensions:
                if len(roots) and not bool(kept[roots].any()):
                    kept[roots[0]] = True
            self._needed(kept)
            if int(kept.sum()) == before:
                return kept

    def _needed(self, kept: Tensor) -> None:
        """Bring back what is read by something that stays, and changes it."""
        changed = True
        while changed:
            changed = False
            for product in reversed(self._flow.products):
                needed, folded = self._read(product, kept[self._roots])
                if bool(folded.any()) and not bool(kept[self._roots[product.inputs[folded]]].any()):
                    needed[_largest(product.constant, folded)] = True  # one is enough for all of them
                sets = self._roots[product.inputs[needed]]
                changed |= not bool(kept[sets].all())
                kept[sets] = True

    def _read(self, product: Product, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs that a kept result needs as they are, and others that are constants which a weight can take in."""
        read = (product.matters & kept[product.outputs].to(product.matters.device)).any(1).cpu()
        if not isinstance(product.home, Weight):
            return read, torch.zeros_like(read)
        constant = ~product.constant.isnan().cpu()
        return read & ~constant, read & constant

    def _folded(self, product: Product, kept: Tensor) -> Iterator[tuple[str, Tensor]]:
        """What the constants that go leave behind."""
        home, constant = product.home, product.constant
        if isinstance(home, Bias):
            gone = ~kept[product.inputs] & ~constant.isnan().cpu()
            if bool(gone.any()):
                yield home.name, home.sign * (home.matrix()[:, gone] @ constant[gone])
        elif isinstance(home, Weight):
            _, folded = self._read(product, kept)
            gone = folded & ~kept[product.inputs]
            if bool(gone.any()):
                heir = _largest(constant, folded & kept[product.inputs])
                shift = torch.zeros_like(home.data)
                inherited = home.data.movedim(home.dim, -1)[..., gone] @ (constant[gone] / constant[heir])
                shift.select(home.dim, heir).copy_(inherited)
                yield home.name, shift

    def _groups(self, conv: Grouped) -> tuple[Tensor, Tensor]:
        """Sets of a convolution's inputs and outputs, one row a group."""
        inputs, outputs = (self._roots[slices].view(conv.groups, -1) for slices in (conv.inputs, conv.outputs))
        return inputs, outputs

    def _loses_groups(self, conv: Grouped, kept: Tensor) -> bool:
        """Whether a group has nothing left that is needed."""
        return not bool(torch.cat([kept[sets] for sets in self._groups(conv)], 1).any(1).all())

    def _whole(self, conv: Grouped, kept: Tensor) -> None:
        """A group of which anything stays, stays."""
        both = torch.cat(self._groups(conv), 1)
        kept[both[kept[both].any(1)]] = True

    def _even(self, conv: Grouped, kept: Tensor) -> None:
        """All groups keep as many inputs and as many outputs as the one that keeps the most."""
        inputs, outputs = self._groups(conv)
        _even_out(inputs, kept, int(kept[inputs].sum(1).max()))
        size = outputs.shape[1]
        most = int(kept[outputs].sum(1).max())
        if bool(kept[inputs].all()):
            # Shapes must tell groups that went from outputs that went in each group; see reshape_like.
            while most < size and conv.groups * most % size == 0:
                most += 1
        _even_out(outputs, kept, most)


def _even_out(sets: Tensor, kept: Tensor, count: int) -> None:
    for row in sets:
        away = row[~kept[row]]
        kept[away[: max(count - (len(row) - len(away)), 0)]] = True


def _largest(constant: Tensor, among: Tensor) -> int:
    return int(constant.cpu().abs().masked_fill(~among, -1).argmax())

"""A region's program for a number of items at a time.

Small maps want many images side by side, so that a vector is full and the weights are read once for all of them; large
maps want one image, whose values stay in the cache. So a program for N items goes through *levels*: the first nodes run
for each image, the next for groups of 16, the last for all N, as measured; between levels values are transposed or
put side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shrinkage.runtime.dense import dense_work
from shrinkage.runtime.graph import Node
from shrinkage.runtime.jit import Machine
from shrinkage.runtime.layout import NO_FRAME, Bytes, Frame, Layout, address, allocate
from shrinkage.runtime.moves import Pack, Widen
from shrinkage.runtime.partition import SPARSE, Region
from shrinkage.runtime.sparse import SCRATCH, SparseLayer, Way, Work, fitting
from shrinkage.runtime.steps import At, Program, Step

Floats = npt.NDArray[np.float32]


def layouts(region: Region, images: int, host: Machine) -> dict[str, Layout]:
    """Where each value of the region lies when so many items are side by side."""
    frames = _frames(region, images, host) if images > 1 else {}
    found = {
        name: Layout(images, *shape, host.lanes, frames.get(name, NO_FRAME)) for name, shape in region.shapes.items()
    }
    for node in region.nodes:  # a flattened image is the image
        if node.op == "flatten":
            found[node.name] = found[node.inputs[0]]
    return found


def _frames(region: Region, images: int, host: Machine) -> dict[str, Frame]:
    """Zeros around each value: as wide as the padding of the convolutions that read it."""
    frames = dict.fromkeys(region.shapes, NO_FRAME)

    def widen(name: str, frame: Frame) -> None:
        top, bottom, left, right = map(max, frames[name], frame)
        frames[name] = top, bottom, left, right

    for node in region.nodes:
        # where the whole map fits the registers no zeros are read
        _, height, width = region.shapes[node.name]
        if node.op == "conv" and height * width * images // host.lanes > host.registers - 4:
            widen(node.inputs[0], node.attrs["padding"])
    for _ in region.nodes:  # a sum that is formed in the registers lies as its terms do
        for node in region.nodes:
            if node.op in SPARSE and len(node.inputs) == 2:
                widen(node.name, frames[node.inputs[1]])
                widen(node.inputs[1], frames[node.name])
    return frames


@dataclass(frozen=True)
class Plan:
    """Where and how each node of a region runs.

    Attributes:
        sizes: items side by side at each level, rising.
        level: of each node, by name; never lower than that of a node before it.
        way: of each node with weights.
    """

    sizes: tuple[int, ...]
    level: Mapping[str, int]
    way: Mapping[str, Way]


def node_work(
    node: Node, way: Way | None, places: Mapping[str, At], where: Mapping[str, Layout], host: Machine
) -> Work:
    """The steps of a node; ``way`` for one with weights, ``places`` of its inputs and itself."""
    target = where[node.name]
    if node.op in SPARSE:
        assert way is not None
        layer = SparseLayer(node, where[node.inputs[0]], target, host)
        residual = places[node.inputs[1]] if len(node.inputs) == 2 else None
        return layer.work(way, places[node.inputs[0]], places[node.name], residual)
    if node.op == "flatten":
        return Work(())
    return dense_work(node, [(places[name], where[name]) for name in node.inputs], (places[node.name], target), host)


Works = dict[tuple[str, int], Work]
"""Steps of a node by its name and by how many items lie side by side."""


def add_works(works: Works, region: Region, plan: Plan, host: Machine) -> None:
    """Make the steps that a plan needs and that are not there; programs share them, and so the weights."""
    roots = _roots(region)
    for level, size in enumerate(plan.sizes):
        where = layouts(region, size, host)
        places = {name: At(f"{size}:{roots[name]}") for name in region.shapes}
        for node in region.nodes:
            if plan.level[node.name] == level and (node.name, size) not in works:
                works[node.name, size] = node_work(node, plan.way.get(node.name), places, where, host)


def _roots(region: Region) -> dict[str, str]:
    """For each value the one whose memory it shares: a flattened image is the image."""
    roots = {name: name for name in region.shapes}
    for node in region.nodes:
        if node.op == "flatten":
            roots[node.name] = roots[node.inputs[0]]
    return roots


class Chunk:
    """A program and its memory.

    Args:
        region: what is computed.
        items: how many items at a time: a multiple of the plan's last size.
        plan: where and how each node runs.
        works: of the plan, at least.
        host: the machine.
    """

    def __init__(self, region: Region, items: int, plan: Plan, works: Works, host: Machine) -> None:
        self.items = items
        self._region, self._plan, self._works, self._host = region, plan, works, host
        self._roots = _roots(region)
        self._where = [layouts(region, size, host) for size in plan.sizes]
        self._keep: list[Bytes] = []
        self._steps: list[tuple[Step, Mapping[str, int]]] = []
        self._reads: list[tuple[str, int, int]] = []  # input, number of the step that reads it, first item
        self._writes: list[tuple[str, int, int]] = []

        level_of = {node.name: plan.level[node.name] for node in region.nodes}
        self._born = {name: level_of[name] for name in level_of if self._roots[name] == name}
        self._needed: dict[str, int] = {}
        for node in region.nodes:
            for name in node.inputs:
                root = self._roots[name]
                self._needed[root] = max(self._needed.get(root, 0), level_of[node.name])
        self._outputs = {name: self._roots[name] for name in region.outputs}
        self._memory()
        top = len(plan.sizes) - 1
        for group in range(items // plan.sizes[top]):
            self._run(top, group)
        self._program = Program(self._steps, host)
        # views made once: a call of a small network takes a few microseconds
        self._given = [(name, self._slot_view(name)) for name in region.inputs if name in self._slots]
        self._found = [(name, self._slot_view(root)) for name, root in self._outputs.items() if root in self._slots]

    # ------------------------------------------------------------------ memory

    def _memory(self) -> None:
        """Buffers: of values at their levels, of slots for single images, and one for scratch."""
        plan, region = self._plan, self._region
        scratch = allocate(max(self._work(node).scratch for node in region.nodes))
        self._static = {SCRATCH: self._new(scratch)}
        self._slots: dict[str, tuple[int, int]] = {}  # address and step of values of single images
        self._slot_arrays: dict[str, Bytes] = {}
        singles = plan.sizes[0] == 1
        finals = set(self._outputs.values())
        users = self._users()
        if singles:
            for name in region.inputs:
                if any(plan.level[user] == 0 for user in users[name]):
                    self._slot(name, self.items)
        for level in range(len(plan.sizes)):
            free: list[tuple[Layout, Bytes]] = []
            busy: dict[str, tuple[Layout, Bytes]] = {}
            if level or not singles:
                for name in self._arriving(level):
                    self._static[self._at(name, level)] = self._new(allocate(self._where[level][name].size))
            mine = [node for node in region.nodes if plan.level[node.name] == level]
            for i, node in enumerate(mine):
                if node.op != "flatten":
                    layout = self._where[level][node.name]
                    if level == 0 and singles and (node.name in finals or self._needed.get(node.name, 0) > 0):
                        self._slot(node.name, self.items if node.name in finals else plan.sizes[1])
                    else:
                        buffer = _take(free, layout)
                        if buffer is None:
                            buffer = allocate(layout.size)
                            self._new(buffer)
                        busy[node.name] = (layout, buffer)
                        self._static[self._at(node.name, level)] = address(buffer)
                later = {self._roots[name] for other in mine[i + 1 :] for name in other.inputs}
                over = [
                    name
                    for name in busy
                    if name not in later | finals | {node.name} and self._needed.get(name, level) <= level
                ]
                free.extend(busy.pop(name) for name in over)

    def _work(self, node: Node) -> Work:
        return self._works[node.name, self._plan.sizes[self._plan.level[node.name]]]

    def _at(self, name: str, level: int) -> str:
        """Name of the buffer for a value at a level."""
        return f"{self._plan.sizes[level]}:{name}"

    def _new(self, buffer: Bytes) -> int:
        self._keep.append(buffer)
        return address(buffer)

    def _slot(self, name: str, count: int) -> None:
        pitch = -(-self._where[0][name].size // 64) * 64
        array = allocate(pitch * count)
        self._slot_arrays[name] = array
        self._slots[name] = self._new(array), pitch

    def _users(self) -> dict[str, list[str]]:
        users: dict[str, list[str]] = {name: [] for name in self._region.shapes}
        for node in self._region.nodes:
            for name in node.inputs:
                users[self._roots[name]].append(node.name)
        return users

    def _arriving(self, level: int) -> list[str]:
        """Values that a level has from outside or from the level below."""
        users = self._users()
        outside = [name for name in self._region.inputs if any(self._plan.level[user] == level for user in users[name])]
        return outside + [name for name, born in self._born.items() if born < level <= self._needed.get(name, 0)]

    # ------------------------------------------------------------------- steps

    def _run(self, level: int, group: int) -> None:
        """Append the steps of one group of a level, those of the levels below first."""
        plan = self._plan
        size = plan.sizes[level]
        places = dict(self._static)
        if level:
            inner = plan.sizes[level - 1]
            crossing = [name for name in self._arriving(level) if name not in self._region.inputs]
            for j in range(size // inner):
                self._run(level - 1, group * (size // inner) + j)
                if inner > 1:
                    for name in crossing:
                        self._widen(name, level, j)
            for name in crossing:
                if inner == 1:
                    self._gather(name, level)
        if size > 1:
            for name in self._region.inputs:
                if self._at(name, level) in places:
                    self._read(name, level, group)
        if size == 1:
            for name, (start, pitch) in self._slots.items():
                count = len(self._slot_arrays[name]) // pitch
                places[self._at(name, 0)] = start + group % count * pitch
        for node in self._region.nodes:
            if plan.level[node.name] == level:
                self._steps += [(step, places) for step in self._work(node).steps]
        if size > 1:
            for name, root in self._outputs.items():
                if self._born.get(root) == level:
                    self._write(name, root, level, group)

    def _gather(self, name: str, level: int) -> None:
        """Put single images side by side."""
        one, many = self._where[0][name], self._where[level][name]
        start, pitch = self._slots[name]
        self._steps.append((self._pack(one, many, start, pitch, self._at(name, level)), self._static))

    def _pack(self, one: Layout, many: Layout, start: int, pitch: int, buffer: str) -> Step:
        if many.pixels == 1 and one.plane == 4:  # features: one row of them
            run, rows, channels = many.channels, 1, 1
        elif many.frame == NO_FRAME and one.plane == 4 * one.pixels:
            run, rows, channels = many.channels * many.pixels, 1, 1
        elif many.frame == NO_FRAME:
            run, rows, channels = many.pixels, 1, many.channels
        else:
            run, rows, channels = many.width, many.height, many.channels
        return Step(
            Pack(fitting(run, self._host.lanes), many.images).text(),
            (
                start, pitch, At(buffer, many.place(0, 0)), channels, one.plane, many.plane, rows, one.row, many.row,
                run,
            ),
        )  # fmt: skip

    def _widen(self, name: str, level: int, part: int) -> None:
        few, many = self._where[level - 1][name], self._where[level][name]
        source = At(self._at(name, level - 1), few.place(0, 0))
        target = At(self._at(name, level), many.place(0, 0) + 4 * few.images * part)
        step = Step(
            Widen(few.images, many.images, self._host.lanes).text(),
            (source, target, few.channels, few.plane, many.plane, few.height, few.row, many.row, few.width),
        )
        self._steps.append((step, self._static))

    def _read(self, name: str, level: int, group: int) -> None:
        many = self._where[level][name]
        pitch = 4 * many.channels * many.pixels
        step = self._pack(self._unpadded(many), many, 0, pitch, self._at(name, level))
        self._reads.append((name, len(self._steps), group * many.images * pitch))
        self._steps.append((step, self._static))

    def _write(self, name: str, root: str, level: int, group: int) -> None:
        many = self._where[level][root]
        pitch = 4 * many.channels * many.pixels
        step = self._pack(self._unpadded(many), many, 0, pitch, self._at(root, level))
        back = Step(Pack(fitting(int(step.args[-1]), self._host.lanes), many.images, back=True).text(), step.args)  # type: ignore[arg-type]
        self._writes.append((name, len(self._steps), group * many.images * pitch))
        self._steps.append((back, self._static))

    @staticmethod
    def _unpadded(many: Layout) -> Layout:
        """An item as PyTorch keeps it."""
        return Layout(1, many.channels, many.height, many.width, 1)

    # --------------------------------------------------------------------- run

    def __call__(self, inputs: Mapping[str, Floats], outputs: Mapping[str, Floats]) -> None:
        """Compute.

        Args:
            inputs: at most ``items`` items each, C-contiguous.
            outputs: as many, C-contiguous; overwritten.
        """
        count = len(next(iter(inputs.values())))
        for name, slots in self._given:
            slots[:count] = inputs[name].reshape(count, *slots.shape[1:])
        staged: dict[str, Floats] = {}
        for name, step, offset in self._reads:
            array = inputs[name]
            if count < self.items:
                if name not in staged:
                    staged[name] = np.zeros((self.items, array[0].size), np.float32)
                    staged[name][:count] = array.reshape(count, -1)
                array = staged[name]
            self._program.redirect(step, 0, address(array) + offset)
        results: dict[str, Floats] = {}
        for name, step, offset in self._writes:
            array = outputs[name]
            if count < self.items:
                array = results.setdefault(name, np.empty((self.items, array[0].size), np.float32))
            self._program.redirect(step, 0, address(array) + offset)
        self._program()
        for name, array in results.items():
            outputs[name].reshape(count, -1)[:] = array[:count]
        for name, slots in self._found:
            outputs[name].reshape(count, *slots.shape[1:])[:] = slots[:count]

    def direct(self, given: tuple[int, ...], found: tuple[int, ...]) -> Callable[[Floats], Floats] | None:
        """The shortest way from one full input of shape ``given`` to one output of shape ``found``.

        Small networks take less time than the bookkeeping of a call. None where there is no such way.
        """
        if len(self._given) + len({name for name, *_ in self._reads}) != 1 or len(self._outputs) != 1:
            return None
        program = self._program
        if self._given and self._found:
            start, end = self._given[0][1].reshape(given), self._found[0][1].reshape(found)
            if not (np.shares_memory(start, self._given[0][1]) and np.shares_memory(end, self._found[0][1])):
                return None

            def through_slots(array: Floats) -> Floats:
                start[...] = array
                program()
                return end.copy()

            return through_slots
        if self._given or self._found:
            return None
        reads = [(step, offset) for _, step, offset in self._reads]
        writes = [(step, offset) for _, step, offset in self._writes]

        def in_place(array: Floats) -> Floats:
            if not array.flags.c_contiguous:
                array = np.ascontiguousarray(array)
            result = np.empty(found, np.float32)
            place = address(array)
            for step, offset in reads:
                program.redirect(step, 0, place + offset)
            place = address(result)
            for step, offset in writes:
                program.redirect(step, 0, place + offset)
            program()
            return result

        return in_place

    def _slot_view(self, name: str) -> Floats:
        """Slots as (item, channel, pixel)."""
        layout = self._where[0][name]
        pitch = self._slots[name][1]
        floats = self._slot_arrays[name].view(np.float32).reshape(-1, pitch // 4)
        planes = floats[:, : layout.size // 4].reshape(-1, layout.channels, layout.plane // 4)
        return planes[:, :, : layout.pixels]


def _take(free: list[tuple[Layout, Bytes]], layout: Layout) -> Bytes | None:
    """A free buffer: with a frame of zeros only one of the same layout, else the smallest that is large enough."""
    fits = [
        (len(buffer), i)
        for i, (other, buffer) in enumerate(free)
        if other == layout or (other.frame == layout.frame == NO_FRAME and len(buffer) >= layout.size)
    ]
    if not fits:
        return None
    return free.pop(min(fits)[1])[1]

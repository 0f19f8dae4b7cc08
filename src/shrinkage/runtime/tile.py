"""The kernel that does the work: a tile of outputs in registers, and a walk over the non-zeros of one output channel.

An output channel is a sparse row: a list of (weight, place of its input). The kernel holds a tile of that
channel's outputs in vector registers; each non-zero is one broadcast and one fused multiply–add a register, whose
operand comes straight from the first-level cache. Any layer that is a sum over shifted inputs has this form: a tile
only says how far apart its vectors lie in the input and in the output.

Inputs are cut into blocks of channels that stay in the first-level cache while all output channels walk over them;
an output is then loaded, added to, and stored once a block. Rows of a block without a non-zero are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from shrinkage.runtime.activations import activate
from shrinkage.runtime.emit import F32, I16, I32, I64, Emit, Value, whole

FIRST, LAST = 1, 2  # a row's flags: its channel begins with it, ends with it


@dataclass(frozen=True)
class Tile:
    """Shape of a tile.

    Attributes:
        lanes: floats in a vector.
        reads: for each tap the pairs (register, distance in bytes of its operand from the non-zero's place). Most
            kernels have one tap that feeds all registers; where a whole padded map lies in the registers, each
            position of the filter feeds those that do not read padding.
        writes: distance in bytes of each register's place in the output from the tile's.
        shift: places of non-zeros are unsigned 16-bit numbers, shifted left by this; None: 32 bits, in bytes.
        unroll: non-zeros a turn; runs of non-zeros are a multiple of it long.
        chains: sets of accumulators, where one set is too few to hide the latency of an addition.
        aligned: whether operands lie at multiples of a vector.
        activation: applied last, or None.
        turns: for each tap which lane of the operand each lane of the register takes (−1: none, zero); empty: its own.
            Where a whole map lies in one vector, that shifts it.
        residual: whether a tensor of the output's layout is added before the activation.
    """

    lanes: int
    reads: tuple[tuple[tuple[int, int], ...], ...]
    writes: tuple[int, ...]
    shift: int | None = None
    unroll: int = 1
    chains: int = 1
    aligned: bool = True
    activation: str | None = None
    turns: tuple[tuple[int, ...], ...] = ()
    residual: bool = False


#: Names of the kernel's arguments, in order: addresses but for the two counts and the stride.
ARGUMENTS = (
    "input",
    "output",
    "tiles_in",
    "tiles_out",
    "tiles",
    "rows",
    "ends",
    "row_count",
    "weights",
    "offsets",
    "bias",
    "residual",
)


def tile_kernel(tile: Tile, name: str = "kernel") -> str:
    """The kernel's text.

    Arguments, see ``ARGUMENTS``: ``tiles_in`` and ``tiles_out`` hold the tiles' places (int64, bytes from ``input`` and
    ``output``); ``rows`` holds for each row its output channel's place (int64: bytes in the output, with the
    flags in the low two bits); ``ends`` for each row and tap where its non-zeros end (int32); ``weights`` and
    ``offsets`` are the non-zeros in order; ``bias`` has a float a row; ``residual`` is laid out as the output is.
    """
    e = Emit(name, tile.lanes)
    arg = {key: e.argument(i) for i, key in enumerate(ARGUMENTS)}
    size = 4 * tile.lanes
    taps = len(tile.reads)

    with e.loop(0, arg["tiles"]) as turn:
        source = e.add(arg["input"], e.load(e.add(arg["tiles_in"], e.times(turn.index, 8)), I64))
        place = e.load(e.add(arg["tiles_out"], e.times(turn.index, 8)), I64)
        target = e.add(arg["output"], place)
        other = e.add(arg["residual"], place) if tile.residual else None
        with e.loop(0, arg["row_count"], carried=[whole(0)]) as row:
            (start,) = row.values
            packed = e.load(e.add(arg["rows"], e.times(row.index, 8)), I64)
            channel = e.b.and_(packed, whole(~3))
            out = e.add(target, channel)
            first = e.b.icmp_signed("!=", e.b.and_(packed, whole(FIRST)), whole(0))
            last = e.b.icmp_signed("!=", e.b.and_(packed, whole(LAST)), whole(0))

            def fresh() -> list[Value]:
                bias = e.splat(e.load(e.add(arg["bias"], e.times(row.index, 4)), F32))
                return [bias] * len(tile.writes)

            def again() -> list[Value]:
                return [e.load(e.at(out, w), e.vector, size) for w in tile.writes]

            sums = e.choose(first, fresh, again)
            extra = [e.constant(0.0)] * (len(sums) * (tile.chains - 1))
            sums = [*sums, *extra]
            for tap in range(taps):
                at = e.add(e.times(row.index, 4 * taps), 4 * tap)
                stop = e.widen(e.load(e.add(arg["ends"], at), I32))
                start, sums = _walk(e, tile, tap, arg, source, start, stop, sums)
            registers = len(tile.writes)
            for k in range(1, tile.chains):
                for r in range(registers):
                    sums[r] = e.b.fadd(sums[r], sums[k * registers + r])
            sums = sums[:registers]

            def done() -> list[Value]:
                values = sums
                if other is not None:
                    base = e.add(other, channel)
                    values = [
                        e.b.fadd(v, e.load(e.at(base, w), e.vector, size))
                        for v, w in zip(values, tile.writes, strict=True)
                    ]
                return [activate(e, tile.activation, v) for v in values]

            if tile.activation or tile.residual:
                sums = e.choose(last, done, lambda: sums)
            for value, w in zip(sums, tile.writes, strict=True):
                e.store(value, e.at(out, w), size)
            row.values = [start]
    return e.finish()


def _walk(
    e: Emit, tile: Tile, tap: int, arg: dict[str, Value], source: Value, start: Value, stop: Value, sums: list[Value]
) -> tuple[Value, list[Value]]:
    """Add the non-zeros ``start`` … ``stop`` to the accumulators."""
    registers = len(tile.writes)

    def group(p: Value, n: int) -> tuple[list[Value], list[Value]]:
        """Weights and distances of ``n`` non-zeros; the latter are loaded as many at a time as fit eight bytes."""
        weights = [e.splat(e.load(e.add(arg["weights"], e.times(p, 4), 4 * k), F32)) for k in range(n)]
        size = 4 if tile.shift is None else 2
        at = e.add(arg["offsets"], e.times(p, size))
        several = max(m for m in (1, 2, 4) if n % m == 0 and m * size <= 8)
        kind = {2: I16, 4: I32, 8: I64}[several * size]
        distances = []
        for k in range(0, n, several):
            packed = e.widen(e.load(e.at(at, size * k), kind, size), signed=tile.shift is None)
            for m in range(several):
                if tile.shift is not None:
                    part = e.b.and_(e.b.lshr(packed, whole(16 * m)), whole(0xFFFF))
                    distances.append(e.b.shl(part, whole(tile.shift)))
                elif several == 1 or m == 1:  # the upper half keeps its sign
                    distances.append(e.b.ashr(packed, whole(32 * m)))
                else:
                    distances.append(e.widen(e.b.trunc(packed, I32), signed=True))
        return weights, distances

    def one(weight: Value, far: Value, k: int, sums: list[Value]) -> list[Value]:
        x = e.add(source, far)
        sums = list(sums)
        chain = (k % tile.chains) * registers
        for register, distance in tile.reads[tap]:
            value = e.load(e.at(x, distance), e.vector, 4 * tile.lanes if tile.aligned else 4)
            if tile.turns:
                value = e.pick(value, tile.turns[tap])
            sums[chain + register] = e.fma(value, weight, sums[chain + register])
        return sums

    with e.loop(start, stop, tile.unroll, carried=sums) as turn:
        values = turn.values
        weights, distances = group(turn.index, tile.unroll)
        for k in range(tile.unroll):
            values = one(weights[k], distances[k], k, values)
        turn.values = values
    return stop, turn.values

"""A little language for kernels: loops, vectors and addresses on top of llvmlite's builder.

Addresses and counts are 64-bit integers, addresses in bytes; data is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

Value = Any  # llvmlite's values carry no types

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
POINTER = ir.PointerType()


def whole(number: int) -> Value:
    """A 64-bit constant."""
    return ir.Constant(I64, number)


def integers(kind: Any, like: Any) -> Any:
    """The type of as many integers as ``like`` has entries."""
    return ir.VectorType(kind, like.count) if isinstance(like, ir.VectorType) else kind


class Emit:
    """Writes one kernel ``void name(int64* arguments)``.

    Args:
        name: of the function.
        lanes: floats in a vector.
    """

    def __init__(self, name: str, lanes: int) -> None:
        self.lanes = lanes
        self.vector = ir.VectorType(F32, lanes)
        self.module = ir.Module(name=name)
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [POINTER]), name=name)
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))

    def finish(self) -> str:
        """The text of the module."""
        self.b.ret_void()
        return str(self.module)

    def argument(self, index: int) -> Value:
        """Number ``index`` of the row of arguments."""
        return self.load(self.b.add(self.b.ptrtoint(self.function.args[0], I64), whole(8 * index)), I64)

    def load(self, address: Value, kind: Any, align: int | None = None) -> Value:
        """What lies at an address."""
        return self.b.load(self.b.inttoptr(address, POINTER), align=align, typ=kind)

    def store(self, value: Value, address: Value, align: int | None = None) -> None:
        """Put it there."""
        self.b.store(value, self.b.inttoptr(address, POINTER), align=align)

    def at(self, base: Value, offset: int) -> Value:
        """``base + offset`` bytes."""
        return self.b.add(base, whole(offset)) if offset else base

    def add(self, *terms: Value) -> Value:
        """Sum of integers; a Python number is a constant."""
        total = None
        for term in terms:
            value = whole(term) if isinstance(term, int) else term
            total = value if total is None else self.b.add(total, value)
        return total

    def times(self, value: Value, factor: int | Value) -> Value:
        """Product of integers."""
        return self.b.mul(value, whole(factor) if isinstance(factor, int) else factor)

    def widen(self, value: Value, signed: bool = False) -> Value:
        """To 64 bits."""
        return self.b.sext(value, I64) if signed else self.b.zext(value, I64)

    def splat(self, scalar: Value, lanes: int | None = None) -> Value:
        """A vector of equal entries."""
        n = lanes or self.lanes
        kind = ir.VectorType(scalar.type, n)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(I32, n), [0] * n))

    def pick(self, value: Value, lanes: Sequence[int], otherwise: float = 0.0) -> Value:
        """A vector of these lanes of another; ``otherwise`` where −1 is asked for."""
        n = value.type.count
        order = ir.Constant(ir.VectorType(I32, len(lanes)), [n if lane < 0 else lane for lane in lanes])
        return self.b.shuffle_vector(value, self.constant(otherwise, value.type), order)

    def lane(self, value: Value, number: int) -> Value:
        """One entry of a vector."""
        return self.b.extract_element(value, ir.Constant(I32, number))

    def constant(self, number: float, like: Any = None) -> Value:
        """A vector of this number; a scalar if ``like`` is float32."""
        kind = like or self.vector
        return (
            ir.Constant(kind, [number] * kind.count) if isinstance(kind, ir.VectorType) else ir.Constant(kind, number)
        )

    def constant_integer(self, number: int, like: Any) -> Value:
        """The same for integers."""
        return (
            ir.Constant(like, [number] * like.count) if isinstance(like, ir.VectorType) else ir.Constant(like, number)
        )

    def absolute(self, x: Value) -> Value:
        """|x|."""
        return self.intrinsic("fabs", x)

    def intrinsic(self, name: str, *args: Value) -> Value:
        """One of LLVM's, for the type of its first argument."""
        kind = args[0].type
        suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
        full = f"llvm.{name}.{suffix}"
        function = self.module.globals.get(full) or ir.Function(
            self.module, ir.FunctionType(kind, [arg.type for arg in args]), name=full
        )
        return self.b.call(function, args)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """``a·b + c``."""
        return self.intrinsic("fma", a, b, c)

    def maximum(self, a: Value, b: Value) -> Value:
        """The larger of two; a NaN in ``a`` stays one, as in PyTorch's relu and pooling."""
        keep = self.b.fcmp_unordered(">", a, b)
        return self.b.select(keep, a, b)

    def minimum(self, a: Value, b: Value) -> Value:
        """The smaller of two; a NaN in ``a`` stays one."""
        keep = self.b.fcmp_unordered("<", a, b)
        return self.b.select(keep, a, b)

    @contextmanager
    def loop(
        self, start: Value | int, stop: Value | int, step: int = 1, carried: Sequence[Value] = ()
    ) -> Iterator[_Loop]:
        """``for i in range(start, stop, step)`` around the block; ``carried`` values go from turn to turn."""
        start = whole(start) if isinstance(start, int) else start
        stop = whole(stop) if isinstance(stop, int) else stop
        before = self.b.block
        head, body, after = (self.function.append_basic_block(name) for name in ("head", "body", "after"))
        self.b.branch(head)
        self.b.position_at_end(head)
        index = self.b.phi(I64)
        index.add_incoming(start, before)
        phis = []
        for value in carried:
            phi = self.b.phi(value.type)
            phi.add_incoming(value, before)
            phis.append(phi)
        self.b.cbranch(self.b.icmp_signed("<", index, stop), body, after)
        self.b.position_at_end(body)
        state = _Loop(index, list(phis))
        yield state
        end = self.b.block
        index.add_incoming(self.b.add(index, whole(step)), end)
        for phi, value in zip(phis, state.values, strict=True):
            phi.add_incoming(value, end)
        self.b.branch(head)
        self.b.position_at_end(after)
        state.values = list(phis)

    def choose(
        self, condition: Value, yes: Callable[[], Sequence[Value]], no: Callable[[], Sequence[Value]]
    ) -> list[Value]:
        """The values of one of two blocks."""
        then, other, after = (self.function.append_basic_block(name) for name in ("then", "else", "after"))
        self.b.cbranch(condition, then, other)
        results = []
        for block, branch in ((then, yes), (other, no)):
            self.b.position_at_end(block)
            values = list(branch())
            results.append((values, self.b.block))
            self.b.branch(after)
        self.b.position_at_end(after)
        phis = []
        for first, second in zip(results[0][0], results[1][0], strict=True):
            phi = self.b.phi(first.type)
            phi.add_incoming(first, results[0][1])
            phi.add_incoming(second, results[1][1])
            phis.append(phi)
        return phis


class _Loop:
    """A turn of a loop: its counter, and the values carried; set ``values`` before the block ends."""

    def __init__(self, index: Value, values: list[Value]) -> None:
        self.index = index
        self.values = values

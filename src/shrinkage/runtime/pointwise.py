"""Kernels that treat entry by entry: sums, products, scales, activations, copies."""

from __future__ import annotations

from dataclasses import dataclass

from shrinkage.runtime.activations import activate
from shrinkage.runtime.emit import F32, Emit, Value


@dataclass(frozen=True)
class Pointwise:
    """One pass over one or two values of the same shape.

    Attributes:
        op: ``"copy"``, ``"add"``, ``"mul"`` (of two values), or ``"affine"``: times a number a channel, plus another.
        vector: floats at a time.
        activation: applied last.
    """

    op: str
    vector: int
    activation: str | None = None

    #: ``run``: floats from the start of a row to its end, a multiple of ``vector``
    ARGUMENTS = (
        "first", "second", "target", "channels", "first_plane", "second_plane", "target_plane",
        "rows", "first_row", "second_row", "target_row", "run", "scale", "shift",
    )  # fmt: skip

    def text(self) -> str:
        """The kernel."""
        e = Emit("kernel", self.vector)
        kind = e.vector if self.vector > 1 else F32
        arg = {key: e.argument(i) for i, key in enumerate(self.ARGUMENTS)}

        def row(name: str, c: Value, y: Value) -> Value:
            return e.add(arg[name], e.times(c, arg[f"{name}_plane"]), e.times(y, arg[f"{name}_row"]))

        with e.loop(0, arg["channels"]) as c:
            numbers = []
            if self.op == "affine":
                for name in ("scale", "shift"):
                    number = e.load(e.add(arg[name], e.times(c.index, 4)), F32, 4)
                    numbers.append(e.splat(number) if self.vector > 1 else number)
            with e.loop(0, arg["rows"]) as y:
                first, target = (row(name, c.index, y.index) for name in ("first", "target"))
                second = row("second", c.index, y.index) if self.op in ("add", "mul") else None
                with e.loop(0, arg["run"], self.vector) as x:
                    at = e.times(x.index, 4)
                    value = e.load(e.add(first, at), kind, 4)
                    if second is not None:
                        other = e.load(e.add(second, at), kind, 4)
                        value = e.b.fadd(value, other) if self.op == "add" else e.b.fmul(value, other)
                    elif numbers:
                        value = e.fma(value, *numbers)
                    e.store(activate(e, self.activation, value), e.add(target, at), 4)
        return e.finish()

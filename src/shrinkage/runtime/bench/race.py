"""Time several ways of doing the same thing, taking turns, so that all meet the same machine."""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Call = Callable[[int], object]
"""Runs on the item of that number in the pool of inputs."""

TURN = 0.02
"""Seconds that the fastest contestant's turn should last, so that the clock's own time does not matter."""

_LONGEST_TURN = 0.5  # of the slowest one; turns then hold fewer calls
_MOST_CALLS = 1000


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one quantity.

    Attributes:
        median: of all repeats.
        low: lower quartile.
        high: upper quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum the repeats up.

        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(median=2.0, low=1.5, high=2.5)
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Times:
    """Milliseconds a call, one figure a round.

    Attributes:
        processor: time that the process computed, on all its threads together.
        wall: time that passed.
    """

    processor: tuple[float, ...]
    wall: tuple[float, ...]


def race(contestants: Mapping[str, Call], items: int, rounds: int, seed: int = 0) -> dict[str, Times]:
    """Let all contestants run on the same inputs in every round.

    In a round every contestant has one turn; who begins moves on by one. A turn begins with a call that is not timed,
    so that nobody pays for the caches another one has emptied, and goes on with as many as fill some
    milliseconds, on inputs drawn from the pool afresh in every round.

    Args:
        contestants: by name; each has run before, so that it is warm.
        items: how many inputs the pool holds.
        rounds: repeats, at least one.
        seed: of the draws.

    Returns:
        Times by name.

    >>> times = race({"a": lambda item: sum(range(100)), "b": lambda item: None}, items=4, rounds=3)
    >>> len(times["a"].wall), min(times["a"].wall) > 0
    (3, True)
    """
    calls = _calls(contestants)
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in contestants}
    names = list(contestants)
    dice = random.Random(seed)
    with _no_collection():
        for number in range(rounds):
            drawn = list(itertools.islice(itertools.cycle(dice.sample(range(items), items)), calls + 1))
            first = number % len(names) if names else 0
            for name in names[first:] + names[:first]:
                processor, wall = _turn(contestants[name], drawn)
                found[name][0].append(processor)
                found[name][1].append(wall)
            gc.collect()
    return {name: Times(tuple(processor), tuple(wall)) for name, (processor, wall) in found.items()}


def _turn(call: Call, items: Sequence[int]) -> tuple[float, float]:
    """Milliseconds a call on all items but the first."""
    call(items[0])
    wall, processor = time.perf_counter(), time.process_time()
    for item in items[1:]:
        call(item)
    spent = time.process_time() - processor, time.perf_counter() - wall
    return 1e3 * spent[0] / (len(items) - 1), 1e3 * spent[1] / (len(items) - 1)


def _calls(contestants: Mapping[str, Call]) -> int:
    """How many calls a turn holds: the same for all, since all are to meet the same inputs."""
    lengths = [min(_turn(call, (0, 0))[1] for _ in range(3)) / 1e3 for call in contestants.values()]
    if not lengths:
        return 1
    fastest, slowest = max(min(lengths), 1e-7), max(max(lengths), 1e-7)
    return max(1, min(_MOST_CALLS, int(TURN / fastest), int(_LONGEST_TURN / slowest)))


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage is collected between rounds, not inside somebody's turn."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkage import InputError
from shrinkage.core.schedules import INTERVAL, RAMPS, Ramp, full, interval


@settings(deadline=None)
@given(st.sampled_from(sorted(RAMPS)), st.integers(2, 5000), st.floats(0, 0.4), st.floats(0.6, 1.0))
def test_a_ramp_starts_at_0_never_falls_and_ends_at_1(shape, steps, start, end):
    ramp = Ramp(shape, start, end, steps)
    values = [ramp(step) for step in range(0, steps + 1, max(1, steps // 50))]
    assert values == sorted(values)
    assert ramp(0) == ramp(ramp.first_step) == 0
    assert ramp(ramp.last_step) == ramp(steps) == ramp(10 * steps) == 1
    assert 0 <= ramp.first_step < ramp.last_step <= steps


def test_shapes():
    assert Ramp("linear", 0.1, 0.5, 100)(30) == pytest.approx(0.5)
    assert Ramp("cubic", 0.1, 0.5, 100)(30) == pytest.approx(1 - 0.5**3)
    assert [Ramp("one-shot", 0.0, 0.5, 100)(step) for step in (49, 50)] == [0, 1]
    assert Ramp(lambda x: x * x, 0.0, 1.0, 10)(5) == pytest.approx(0.25)


@pytest.mark.parametrize(("end", "steps", "last"), [(0.55, 100, 55), (0.7, 10, 7), (0.75, 1, 1), (0.29, 100, 29)])
def test_the_last_step_is_not_lost_to_rounding(end, steps, last):
    assert Ramp("linear", 0.0, end, steps).last_step == last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sqare", 0.0, 1.0, 10), "cubic, linear, one-shot or a callable, got 'sqare'"),
        (("cubic", 0.5, 0.5, 10), "start=0.5, end=0.5"),
        (("cubic", -0.1, 0.5, 10), "start=-0.1"),
        (("cubic", 0.0, 1.5, 10), "end=1.5"),
        (("cubic", 0.0, float("nan"), 10), "end=nan"),
        (("cubic", 0.0, 1.0, 0), "positive whole number of optimiser steps, got 0"),
        (("cubic", 0.0, 1.0, 10.0), "got 10.0"),
        (("cubic", 0.0, 1.0, True), "got True"),
        ((lambda x: x / 2, 0.0, 1.0, 10), "reach 1 at its end, but its value at 1 is 0.5"),
    ],
)
def test_bad_ramps_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Ramp(*arguments)


def test_a_callable_that_leaves_the_range_is_refused_when_it_does():
    ramp = Ramp(lambda x: 1 - 8 * x * (1 - x), 0.0, 1.0, 10)
    with pytest.raises(InputError, match=r"gave -1\.0 at step 5"):
        ramp(5)


def test_a_ramp_may_want_everything_from_its_first_step():
    ramp = Ramp(full, 0.0, 0.75, 40)
    assert {ramp(step) for step in range(41)} == {1.0}
    late = Ramp(full, 0.5, 1.0, 40)
    assert [late(step) for step in (19, 20)] == [0, 1]
    assert Ramp(lambda x: (1 + x) / 2, 0.25, 0.75, 40)(10) == 0.5


def test_short_trainings_change_their_zeros_a_hundred_times():
    assert [interval(steps) for steps in (1, 199, 200, 1199, 1200, 10**6)] == [1, 1, 2, 11, INTERVAL, INTERVAL]
    assert interval(10**6, most=100) == 100
    assert interval(50, asked=7) == 7
    for wrong in (0, -1, 1.5, True, "3"):
        with pytest.raises(InputError, match=f"interval must be a positive whole number .* got {wrong!r}"):
            interval(1000, asked=wrong)

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkage.formats.values import narrow, widen

FLOATS = st.floats(-60_000, 60_000, width=32)


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=6, max_size=6), st.sampled_from([torch.float32, torch.float64]))
def test_errors_keep_within_what_is_promised(numbers, dtype):
    tensor = torch.tensor(numbers, dtype=dtype).reshape(2, 3)
    for values, relative, absolute in (("fp16", 2**-11, 2.0**-25), ("bf16", 2**-8, 2.0**-134)):
        codes, scales = narrow(tensor, values)
        restored = widen(codes, scales, dtype)
        assert scales is None
        assert restored.dtype == dtype
        assert bool(((restored - tensor).abs() <= (relative * tensor.abs()).clamp(min=absolute)).all())
    codes, scales = narrow(tensor, "int8")
    restored = widen(codes, scales, dtype)
    bound = tensor.abs().amax(1, keepdim=True) / 254
    assert codes.dtype == torch.int8
    assert bool(((restored - tensor).abs() <= bound * (1 + 1e-4) + 1e-43).all())


def test_int8_is_nearest_within_each_row_and_keeps_the_largest():
    tensor = torch.tensor([[[127.0, -63.5, 0.49]], [[0.0, 0.0, 0.0]], [[-2.54, 0.02, 0.011]]])
    codes, scales = narrow(tensor, "int8")
    assert codes.tolist() == [[[127, -64, 0]], [[0, 0, 0]], [[-127, 1, 1]]]
    assert torch.allclose(scales, torch.tensor([1.0, 0.0, 0.02]))
    assert widen(codes, scales, torch.float32)[0].tolist() == [[127.0, -64.0, 0.0]]


@pytest.mark.parametrize(
    ("values", "bad", "good"),
    [
        ("fp16", [65520.0, -1e30], [65519.0, math.inf, math.nan]),
        ("bf16", [3.4e38], [3.3e38, math.inf, math.nan]),
        ("int8", [math.inf, math.nan, 2.0**127], [2.0**126, -(2.0**126), 1e-45]),
    ],
)
def test_what_is_out_of_range_is_left_alone(values, bad, good):
    assert all(narrow(torch.tensor([[1.0, x]]), values) is None for x in bad)
    for x in good:
        codes, scales = narrow(torch.tensor([[1.0, x]]), values)
        restored = widen(codes, scales, torch.float32)
        assert restored.isinf().tolist() == [[False, math.isinf(x)]]
        assert restored.isnan().tolist() == [[False, math.isnan(x)]]


def test_half_precision_and_double_can_be_int8():
    half = torch.tensor([[65504.0, -3.0], [1e-7, 0.0]], dtype=torch.float16)
    codes, scales = narrow(half, "int8")
    assert widen(codes, scales, torch.float16)[0, 0] == 65504
    assert narrow(torch.tensor([[1e300]], dtype=torch.float64), "int8") is None
    codes, scales = narrow(torch.tensor([[1e-300, 0.0]], dtype=torch.float64), "int8")
    assert codes.tolist() == [[0, 0]]

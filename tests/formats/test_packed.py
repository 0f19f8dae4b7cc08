import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shrinkage.formats.container import DTYPES, Entry
from shrinkage.formats.malformed import Malformed
from shrinkage.formats.packed import NAMES, pack, unpack
from shrinkage.formats.record import record_from

SPARSE = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def without_sign_of_zero(tensor):
    return torch.where(tensor == 0, torch.zeros((), dtype=tensor.dtype), tensor) if tensor.dtype in SPARSE else tensor


def joined(data):
    return np.concatenate([np.zeros(0, np.uint8), *data])


def entry_of(record):
    dtype, shape = ("U8", (record.bytes,)) if record.streams else (record.values, record.shape)
    return Entry(dtype, shape, 0, record.bytes)


def random_bits(dtype, shape, density, seed):
    """Any bits at all, NaN with payloads and infinities among them; zeros of both signs where floats can have them."""
    rng = np.random.default_rng(seed)
    size = math.prod(shape)
    data = rng.integers(256, size=size * dtype.itemsize, dtype=np.uint8)
    if dtype == torch.bool:
        data &= 1
    tensor = torch.from_numpy(data).view(dtype) if size else torch.empty(0, dtype=dtype)
    if dtype in SPARSE:
        zero = torch.from_numpy(rng.random(size) >= density)
        tensor[zero] = torch.where(torch.from_numpy(rng.random(size) < 0.5), -0.0, 0.0).to(dtype)[zero]
    return tensor.reshape(shape)


SHAPES = st.sampled_from([(), (0,), (3, 0), (1,), (7,), (40, 30), (5, 4, 3, 3), (3000,), (2, 1001)])


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([*DTYPES.values()]),
    SHAPES,
    st.sampled_from([0, 0.003, 0.05, 0.3, 0.6, 0.95, 1]),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_every_tensor_comes_back_to_the_bit(dtype, shape, density, seed, zstd):
    tensor = random_bits(dtype, shape, density, seed)
    before = bits(tensor).clone()
    record, data = pack(tensor, zstd=zstd)
    assert record.bytes == sum(map(len, data)) <= tensor.nbytes
    assert record_from(record.to_json(), entry_of(record)) == record
    restored = unpack(record, joined(data))
    assert (restored.dtype, restored.shape) == (dtype, shape)
    assert torch.equal(bits(restored), bits(without_sign_of_zero(tensor)))
    assert torch.equal(bits(tensor), before)
    restored.zero_()  # is the caller's own, and can be written to


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(SPARSE),
    SHAPES,
    st.sampled_from([0, 0.05, 0.6, 1]),
    st.sampled_from(["fp16", "bf16", "int8"]),
    st.booleans(),
)
def test_rounded_values_come_back_in_their_own_type(dtype, shape, density, values, zstd):
    generator = torch.Generator().manual_seed(len(shape))
    tensor = torch.randn(shape, generator=generator).to(dtype) * (torch.rand(shape, generator=generator) < density)
    record, data = pack(tensor, values=values, zstd=zstd)
    restored = unpack(record, joined(data))
    assert record_from(record.to_json(), entry_of(record)) == record
    assert restored.dtype == dtype
    assert not bool((restored.signbit() & (restored == 0)).any())
    if len(shape) < 2 or not tensor.numel() or record.values == NAMES[dtype]:
        assert torch.equal(restored, tensor)
    elif values == "int8":
        error, bound = (restored - tensor).double().abs().flatten(1), tensor.double().abs().flatten(1)
        own = torch.finfo(dtype).eps  # the result is rounded to the tensor's type, and so is the difference
        assert bool((error <= bound.amax(1, keepdim=True) * (1 / 254 + 1e-6 + 2 * own)).all())
    else:
        narrower = torch.float16 if values == "fp16" else torch.bfloat16
        assert torch.equal(restored, tensor.to(narrower).to(dtype))


def sparse(density, *shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)).to(dtype)


def test_each_form_is_the_smallest_somewhere():
    assert pack(sparse(0.05, 100, 100))[0].index == "rice4"
    assert pack(sparse(0.3, 100, 100))[0].index == "rice1"
    assert pack(sparse(0.5, 100, 100))[0].index == "mask"
    assert pack(sparse(0.99, 100, 100))[0].index is None
    one_of_eight = nn.functional.one_hot(torch.randint(8, (1000,), generator=torch.Generator().manual_seed(0)))
    assert pack(one_of_eight.float(), zstd=True)[0].index == "mask"
    assert pack(torch.eye(300), zstd=True)[0].index == "gaps"
    assert pack(torch.zeros(100, 100))[0].bytes == 0


def test_sizes_are_what_they_should_be():
    tensor = sparse(0.05, 400, 400)
    count = int(tensor.count_nonzero())
    (record, _), (narrow, _), (tiny, _) = (pack(tensor, values=values) for values in ("fp32", "fp16", "int8"))
    index = record.streams[0][0]
    assert 5.6 * count < 8 * index < 6 * count
    assert record.bytes == index + 4 * count
    assert narrow.bytes == index + 2 * count
    assert tiny.streams[1] == (1600, 1600)
    assert tiny.bytes < index + count + 1600


@pytest.mark.parametrize("values", ["fp16", "int8"])
def test_what_would_not_become_smaller_or_is_out_of_range_stays_exact(values):
    for tensor in (
        torch.full((40, 40), 1e30) if values == "fp16" else torch.full((40, 40), math.nan),
        torch.randn(100, dtype=torch.float16)[:, None],
        torch.randn(1000),
        torch.arange(100).reshape(10, 10),
    ):
        record, data = pack(tensor, values=values)
        assert record.values == record.dtype
        assert torch.equal(bits(unpack(record, joined(data))), bits(tensor))


def test_a_dense_tensor_is_not_copied():
    tensor = torch.randn(10, 10)
    record, (data,) = pack(tensor)
    assert record.streams == ()
    assert data.ctypes.data == tensor.data_ptr()


def test_views_and_conjugates_are_stored_as_they_look():
    base = sparse(0.1, 60, 80)
    for tensor in (
        base.T,
        base[::2, 5:70],
        base.expand(2, 60, 80),
        base[3],
        base.to(memory_format=torch.contiguous_format),
    ):
        record, data = pack(tensor)
        assert torch.equal(unpack(record, joined(data)), tensor)
    numbers = torch.randn(8, dtype=torch.complex64).conj()
    record, data = pack(numbers)
    assert torch.equal(unpack(record, joined(data)), numbers)
    record, data = pack(numbers.imag)  # a lazily negated view
    assert torch.equal(unpack(record, joined(data)), numbers.imag)


@pytest.mark.parametrize("zstd", [False, True])
def test_any_changed_byte_is_noticed(zstd):
    record, data = pack(sparse(0.1, 20, 20), zstd=zstd)
    whole = joined(data)
    for i in range(len(whole)):
        whole[i] ^= 1 << i % 8
        with pytest.raises(Malformed, match="checksum"):
            unpack(record, whole)
        whole[i] ^= 1 << i % 8


GOOD = {"dtype": "F32", "shape": [20, 50], "values": "F32", "nonzeros": 100, "index": "gaps",
        "streams": [[101, 101], [400, 400]], "crc32": 1}  # fmt: skip
PLAIN = {"nonzeros": 3, "crc32": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more": 1}, "is described by crc32, dtype"),
        ({"dtype": "F16"}, "values of F32, which cannot make F16"),
        ({"dtype": "I32", "values": "I32"}, "has an index, which a tensor of I32 cannot have"),
        ({"values": "I32"}, "values of I32, which cannot make F32"),
        ({"values": "BF16"}, "has a stream of 400 bytes"),
        ({"values": "I8"}, "has 2 streams"),
        ({"values": "I8", "streams": [[101, 101], [300, 300], [100, 100]]}, "a stream of 300 bytes, .* where 80 to 80"),
        ({"shape": [20, 4]}, "has 100 non-zeros of 80 values"),
        ({"shape": [-1]}, "where a size is expected"),
        ({"nonzeros": 99}, "has a stream of 400 bytes, stored in 400, where 396 to 396"),
        ({"nonzeros": 1e2}, "where a size is expected"),
        ({"index": "lz4"}, "an index of a form that is not known"),
        ({"index": ["gaps"]}, "an index of a form that is not known"),
        ({"index": "rice17"}, "an index of a form that is not known"),
        ({"index": "mask"}, "where 125 to 125 are possible"),
        ({"index": "rice16"}, "where 213 to 213 are possible"),
        ({"streams": []}, "has an empty list of streams"),
        ({"streams": [[501, 501]]}, "has 1 streams"),
        ({"streams": [[101, 101], [200, 200], [200, 200]]}, "has 3 streams"),
        (
            {"streams": [[101, 101], [100, 100], [100, 100], [100, 100], [100, 101]]},
            "has streams of 502 bytes|stored in",
        ),
        ({"streams": [[100, 101], [400, 400]]}, "has a stream of 100 bytes, stored in 101"),
        ({"streams": [[104, 101], [400, 400]]}, "has a stream of 104 bytes, stored in 101, where 100 to 103"),
        ({"streams": [[99, 101], [400, 400]]}, "where 100 to 103 are possible"),
        ({"streams": [[101, 101], [2**50, 400]]}, "where 400 to 400 are possible"),
        ({"streams": [101, 400]}, "streams without two sizes each"),
        ({"streams": {}}, "streams without two sizes each"),
        ({"crc32": 2**32}, "a checksum of more than 32 bits"),
        ({"crc32": "1"}, "where a size is expected"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(changes, message):
    assert record_from(GOOD, Entry("U8", (501,), 0, 501)).nonzeros == 100
    with pytest.raises(Malformed, match=message):
        record_from(GOOD | changes, Entry("U8", (501,), 0, 501))


@pytest.mark.parametrize(
    ("fields", "entry", "message"),
    [
        (GOOD, ("U8", (500,)), r"streams of 501 bytes in a tensor of U8 and shape \(500,\)"),
        (GOOD, ("I8", (501,)), "in a tensor of I8"),
        (GOOD | {"shape": []}, ("U8", (501,)), "has 100 non-zeros of 1 values"),
        (7, ("U8", (4,)), "is not described"),
        ({}, ("U8", (4,)), "is described by"),
        (PLAIN, ("U8", (2,)), "has 3 non-zeros of 2 values"),
        (PLAIN | {"dtype": "F32"}, ("I8", (4,)), "has no scales"),
        (PLAIN | {"dtype": "F32"}, ("F64", (4,)), "values of F64, which cannot make F32"),
        (PLAIN | {"dtype": "I32"}, ("I8", (4,)), "values of I8, which cannot make I32"),
        (PLAIN | {"shape": [4]}, ("I8", (4,)), "is described by crc32, nonzeros, shape"),
        (
            {"dtype": "F32", "shape": [], "values": "I8", "nonzeros": 1, "streams": [[4, 4], [1, 1]], "crc32": 1},
            ("U8", (5,)),
            "has scales, but no dimension",
        ),
    ],
)
def test_descriptions_that_do_not_fit_their_tensor_are_refused(fields, entry, message):
    dtype, shape = entry
    with pytest.raises(Malformed, match=message):
        record_from(fields, Entry(dtype, shape, 0, math.prod(shape) * DTYPES[dtype].itemsize))

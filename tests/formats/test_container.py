import contextlib
import json

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkage.formats import container
from shrinkage.formats.container import DTYPES, entries_of, parse_json, read_header, size_of, write_header
from shrinkage.formats.malformed import Malformed

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_of(content, payload=8):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return memoryview(len(text).to_bytes(8, "little") + text + bytes(payload))


def entries(content, payload=8):
    return entries_of(read_header(file_of(content, payload)), payload)


SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.tuples(st.sampled_from([*DTYPES]), SHAPES)),
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.text(st.characters(codec="utf-8"))),
)
def test_headers_are_read_by_safetensors_and_by_us(tensors, metadata):
    tensors.pop("__metadata__", None)
    aligned = dict(sorted(tensors.items(), key=lambda item: -DTYPES[item[1][0]].itemsize))
    payload = sum(size_of(*tensor) for tensor in tensors.values())
    data = write_header(aligned, metadata) + bytes(payload)
    assert (len(data) - payload) % 8 == 0
    header = read_header(memoryview(data))
    assert header.intact
    assert {key: header.metadata[key] for key in metadata} == metadata
    ours = entries_of(header, payload)
    assert {name: (entry.dtype, entry.shape) for name, entry in ours.items()} == tensors
    theirs = safetensors.torch.load(data)
    assert {name: (DTYPES[dtype], shape) for name, (dtype, shape) in tensors.items()} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in theirs.items()
    }


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_types_have_the_names_of_safetensors(name, tmp_path):
    tensor = torch.zeros(3, dtype=torch.uint8).to(DTYPES[name])
    safetensors.torch.save_file({"a": tensor}, tmp_path / "file")
    data = memoryview((tmp_path / "file").read_bytes())
    header = read_header(data)
    assert entries_of(header, len(data) - header.size)["a"].dtype == name
    assert not header.intact


def test_any_changed_bit_of_the_header_is_noticed():
    data = bytearray(write_header({"a": ("F32", (2,))}, {"by": "me"}) + bytes(8))
    for i in range(8 * 8, 8 * (len(data) - 8)):
        data[i // 8] ^= 1 << i % 8
        with contextlib.suppress(Malformed):
            assert not read_header(memoryview(data)).intact
        data[i // 8] ^= 1 << i % 8
    assert read_header(memoryview(data)).intact


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"[]", "not a JSON object"),
        (b"{]", "is not JSON"),
        (b"\xff\xff", "is not JSON"),
        (b"[" * 100_000, "nested too deeply|is not JSON"),
        (b'{"a":' * 100_000, "nested too deeply|is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"a": NaN}', "holds NaN"),
        (b'{"a": -Infinity}', "holds -Infinity"),
        (b'{"a": 1, "a": 1}', "a name occurs twice"),
        ({"__metadata__": []}, "not texts by name"),
        ({"__metadata__": {"a": 1}}, "not texts by name"),
        ({"a": 1}, "does not give type, shape and offsets of 'a'"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "does not give type, shape and offsets"),
        ({"a": ENTRY | {"more": 1}}, "does not give type, shape and offsets"),
        ({"a": ENTRY | {"dtype": "F33"}}, "the type 'F33'; known are BOOL"),
        ({"a": ENTRY | {"dtype": 7}}, "the type '7'"),
        ({"a": ENTRY | {"dtype": [[[]]]}}, "the type list"),
        ({"a": ENTRY | {"shape": 2}}, "'2' where a shape is expected"),
        ({"a": ENTRY | {"shape": [0] * 65}}, "list where a shape is expected"),
        ({"a": ENTRY | {"shape": [-2]}}, "'-2' where a size is expected"),
        ({"a": ENTRY | {"shape": [2.0]}}, "'2.0' where a size is expected"),
        ({"a": ENTRY | {"shape": [True, 2]}}, "'True' where a size is expected"),
        ({"a": ENTRY | {"shape": [2**54]}}, "where a size is expected"),
        ({"a": ENTRY | {"shape": [2**30, 2**30]}}, "where a size is expected"),
        ({"a": ENTRY | {"shape": [0, 2**53, 2**53]}}, "where a size is expected"),
        ({"a": ENTRY | {"shape": [3]}}, r"of type F32 and shape \(3,\) does not have 8 bytes"),
        ({"a": ENTRY | {"data_offsets": [0, 8, 9]}}, "does not give two offsets"),
        ({"a": ENTRY | {"data_offsets": [8, 0]}}, "does not have -8 bytes"),
        ({"a": ENTRY | {"data_offsets": [1, 9]}}, "begin at 1, where the ones before end at 0"),
        ({"a": ENTRY, "b": ENTRY}, "the bytes of 'b' begin at 0, where the ones before end at 8"),
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [8, 16]}}, "have 16 bytes, 8 are there"),
        ({}, "have 0 bytes, 8 are there"),
    ],
)
def test_headers_that_are_not_ones_are_refused(content, message):
    with pytest.raises(Malformed, match=message):
        entries(content)


def test_a_length_beyond_the_file_is_refused():
    for data in (b"", b"1234567", (100).to_bytes(8, "little") + b"{}", (2**63).to_bytes(8, "little") + b"{}"):
        with pytest.raises(Malformed, match="not a safetensors file, or cut off"):
            read_header(memoryview(data))


def test_a_header_that_safetensors_would_not_read_is_not_written(monkeypatch):
    assert container.LARGEST_HEADER == 100_000_000
    monkeypatch.setattr(container, "LARGEST_HEADER", 1000)
    with pytest.raises(ValueError, match=r"a header of 1,\d+ bytes is more than safetensors reads \(1,000\)"):
        write_header({}, {"a": "x" * 1000})


def test_json_is_read_like_any_other():
    assert parse_json('{"a": [1, 2.5, "b", null, true]}') == {"a": [1, 2.5, "b", None, True]}

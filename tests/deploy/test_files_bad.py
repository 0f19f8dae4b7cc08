"""Files that are damaged, or made to deceive, are refused before they cost anything."""

import json
import tracemalloc
import zlib

import pytest
import safetensors.torch
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shrinkage.core.errors import FileError, InputError
from shrinkage.deploy.files import describe, load, save

TENSORS = "shrinkage.tensors"


def state():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 40, generator=generator) * (torch.rand(30, 40, generator=generator) < 0.1) + 0.0
    return {
        "weight": weight,
        "tied": weight,
        "halves": weight.T.contiguous().half(),
        "masked": (torch.arange(1200.0) % 2).reshape(30, 40),
        "bias": torch.arange(30.0),
        "count": torch.tensor(3),
        "zero": torch.zeros(200),
    }


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        for name, tensor in state().items():
            self.register_buffer(name, torch.full_like(tensor, 5))
        self.tied = self.weight


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """Bytes of a file in each mode, and what they hold."""
    path, found = tmp_path_factory.mktemp("valid") / "a", {}
    for mode in (("fp32", False), ("fp32", True), ("int8", True)):
        save(state(), path, values=mode[0], compress=mode[1], metadata={"by": "me"})
        found[mode] = path.read_bytes(), load(path)
    return found


def refused(path, message="", **options):
    """The error for a file, which leaves a model as it was."""
    with pytest.raises(FileError, match=message) as caught:
        load(path, **options)
    assert str(path) in str(caught.value)
    model = Net()
    with pytest.raises(InputError):
        load(path, model)
    assert all(bool((tensor == 5).all()) for tensor in model.state_dict().values())


# ---------------------------------------------------------------------------------------------- chance


def read_or_refused(path, data, expected):
    path.write_bytes(data)
    try:
        found = load(path)
    except FileError:
        return
    assert list(found) == list(expected)
    assert all(found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in expected.items())


@pytest.mark.parametrize("mode", [("fp32", False), ("fp32", True), ("int8", True)])
@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=3))
def test_changed_bytes(valid, tmp_path_factory, mode, changes):
    data, expected = valid[mode]
    changed = bytearray(data)
    for where, bits in changes:
        changed[int(where * len(data))] ^= bits
    read_or_refused(tmp_path_factory.getbasetemp() / "changed", changed, expected)


@pytest.mark.parametrize("mode", [("fp32", False), ("fp32", True)])
@settings(deadline=None, max_examples=60)
@given(
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0, 1, 4, 8, 100]),
    st.sampled_from([0, 1, 4, 8, 100]),
)
def test_spliced_bytes(valid, tmp_path_factory, mode, source, target, taken, put):
    data, expected = valid[mode]
    source, target = int(source * len(data)), int(target * len(data))
    spliced = data[:target] + data[source : source + put] + data[target + taken :]
    read_or_refused(tmp_path_factory.getbasetemp() / "spliced", spliced, expected)


def test_every_length_that_is_cut_off_is_refused(valid, tmp_path):
    data, _ = valid["fp32", True]
    for length in (*range(200), *range(200, len(data), 37), len(data) - 1):
        (tmp_path / "a").write_bytes(data[:length])
        with pytest.raises(FileError):
            load(tmp_path / "a")
    (tmp_path / "a").write_bytes(data + b"\0")
    refused(tmp_path / "a", "cut off, or something added")


def test_a_damaged_tensor_is_named_and_a_damaged_header_is_told_apart(valid, tmp_path):
    data, _ = valid["fp32", False]
    path = tmp_path / "a"
    path.write_bytes(data[:-3] + b"\1" + data[-2:])
    refused(path, "a is damaged: '[a-z]+': its bytes do not have the checksum")
    assert len(describe(path).tensors) == 7  # the header is whole
    path.write_bytes(data.replace(b'"by":"me"', b'"by":"us"'))
    refused(path, "its header does not have the checksum")


# ---------------------------------------------------------------------------------------------- intent


def forge(data, path, change, *, sign=True):
    """Let ``change(content, described, payload)`` alter a valid file, and put its checksums right again."""
    end = 8 + int.from_bytes(data[:8], "little")
    content, payload = json.loads(data[8:end]), bytearray(data[end:])
    described = json.loads(content["__metadata__"][TENSORS])
    change(content, described, payload)
    for name, entry in content.items():
        if name != "__metadata__" and isinstance(described.get(name), dict):
            described[name]["crc32"] = zlib.crc32(payload[slice(*entry["data_offsets"])])
    content["__metadata__"][TENSORS] = json.dumps(described)
    text = json.dumps(content, separators=(",", ":")).encode()
    start = len(b'{"__metadata__":{"shrinkage.crc32":"')
    if sign:
        text = text[:start] + f"{zlib.crc32(text[start + 8 :]):08x}".encode() + text[start + 8 :]
    path.write_bytes(len(text).to_bytes(8, "little") + text + payload)


def of(name, **changes):
    def change(content, described, payload):
        described[name] |= changes

    return change


def stream(name, number, new):
    """Replace a stream, and put sizes and offsets right."""

    def change(content, described, payload):
        sizes = described[name]["streams"]
        entries = {key: entry for key, entry in content.items() if key != "__metadata__"}
        pieces = {key: payload[slice(*entry["data_offsets"])] for key, entry in entries.items()}
        begin = sum(packed for _, packed in sizes[:number])
        pieces[name][begin : begin + sizes[number][1]] = new
        sizes[number] = [len(new), len(new)]
        content[name]["shape"] = [len(pieces[name])]
        payload.clear()
        for key in sorted(entries, key=lambda key: entries[key]["data_offsets"]):
            content[key]["data_offsets"] = [len(payload), len(payload) + len(pieces[key])]
            payload.extend(pieces[key])

    return change


def test_a_forged_file_that_fits_is_read(valid, tmp_path):
    """Else the tests below would show nothing."""
    data, _ = valid["fp32", False]
    end = 8 + int.from_bytes(data[:8], "little")
    described = json.loads(json.loads(data[8:end])["__metadata__"][TENSORS])
    assert described["zero"]["streams"] == [[0, 0], [0, 0]]
    forge(data, tmp_path / "a", lambda content, described, payload: None)
    assert torch.equal(load(tmp_path / "a")["weight"], state()["weight"])

    def one(content, described, payload):
        stream("zero", 1, b"\0\0\x80\x3f")(content, described, payload)
        stream("zero", 0, bytes([199]))(content, described, payload)
        described["zero"] |= {"nonzeros": 1, "index": "gaps"}

    forge(data, tmp_path / "a", one)
    assert load(tmp_path / "a")["zero"].nonzero().tolist() == [[199]]
    assert torch.equal(load(tmp_path / "a")["masked"], state()["masked"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of("zero", shape=[100], nonzeros=101), "'zero' has 101 non-zeros of 100 values"),
        (of("weight", shape=[30, 3]), "'weight' has"),
        (of("weight", index="mask"), "'weight' has a stream of"),
        (of("weight", dtype="F16"), "'weight' has values of F32, which cannot make F16"),
        (of("weight", dtype="I32", values="I32"), "'weight' has an index, which a tensor of I32 cannot have"),
        (of("bias", dtype="F64", more=1), "'bias' is described by"),
        (of("tied", same="bias2"), "'tied' is the same as a tensor that is not there"),
        (of("tied", same="tied"), "'tied' is the same as a tensor that is not there"),
        (of("tied", same=["weight"]), "'tied' is the same as a tensor that is not there"),
        (lambda content, described, payload: described.pop("weight"), "is the same as|describes other tensors"),
        (lambda content, described, payload: described.pop("bias"), "it describes other tensors than it holds"),
        (lambda content, described, payload: content.pop("zero"), "it describes other tensors than it holds"),
        (lambda content, described, payload: content.pop("bias"), "begin at|describes other tensors"),
        (lambda content, described, payload: described.update(bias=7), "'bias' is not described"),
        (lambda content, described, payload: payload.extend(b"123"), "cut off, or something added"),
        (
            lambda content, described, payload: content["bias"].update(data_offsets=content["masked"]["data_offsets"]),
            "'bias' of type F32 and shape",
        ),
        (stream("masked", 0, b"\xff" * 150), "'masked': its mask has 1200 bits set, expected"),
        (stream("masked", 0, b"\0" * 150), "'masked': its mask has 0 bits set, expected"),
        (stream("zero", 1, b"\xff"), "has a stream of 1 bytes, stored in 1, where 0 to 0 are possible"),
    ],
)
def test_what_does_not_fit_together_is_refused(valid, tmp_path, change, message):
    data, _ = valid["fp32", False]
    forge(data, tmp_path / "a", change)
    refused(tmp_path / "a", message)


@pytest.mark.parametrize(
    ("index", "places", "message"),
    [
        ("gaps", [200], "its last index is 200, of 200 places"),
        ("gaps", [255, 0], "a stream of 2 bytes, stored in 2, where 1 to 1 are possible"),
        ("rice3", [0, 0, 0, 0, 2], "its last index is 200, of 200 places"),
        ("rice3", [0, 0, 0, 0, 0], "bytes of gaps hold 0, expected 1"),
        ("rice3", [0, 3], "bytes of gaps hold 2, expected 1"),
        ("rice3", [8, 1], "fill up the last byte of its gaps"),
        ("rice16", [200, 0, 1], "its last index is 200, of 200 places"),
        ("rice16", [7, 0, 2], "its last index is 65543, of 200 places"),
    ],
)
def test_an_index_beyond_the_tensor_is_refused(valid, tmp_path, index, places, message):
    data, _ = valid["fp32", False]

    def change(content, described, payload):
        stream("zero", 1, b"\0\0\x80\x3f")(content, described, payload)
        stream("zero", 0, bytes(places))(content, described, payload)
        described["zero"] |= {"nonzeros": 1, "index": index}

    forge(data, tmp_path / "a", change)
    refused(tmp_path / "a", f"'zero'.*{message}")


@pytest.mark.parametrize(
    ("size", "raw", "message"),
    [
        (20_000, 80_000, "'zero': a zstd frame says it holds 268435456 bytes, expected 80000"),
        (20_000, 1 << 28, "a stream of 268435456 bytes, .* where 80000 to 80000 are possible"),
        (1 << 29, 1 << 31, "would take 2,147,.* in memory"),
    ],
)
def test_a_bomb_is_refused_before_memory_is_taken(valid, tmp_path, size, raw, message):
    data, _ = valid["fp32", False]
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))

    def change(content, described, payload):
        stream("zero", 1, bomb)(content, described, payload)
        del described["zero"]["index"]
        described["zero"] |= {"shape": [size], "streams": [[raw, len(bomb)]]}

    forge(data, tmp_path / "a", change)
    tracemalloc.start()
    refused(tmp_path / "a", message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("shape", [[1 << 40], [1 << 20, 1 << 20], [1 << 52]])
def test_a_huge_tensor_of_zeros_is_refused_without_a_word_from_the_user(valid, tmp_path, shape):
    data, _ = valid["fp32", False]
    forge(data, tmp_path / "a", of("zero", shape=shape))
    with pytest.raises(FileError, match=r"would take|where a size is expected"):
        load(tmp_path / "a")
    with (
        pytest.raises(FileError, match="where a size is expected")
        if shape[0] >> 51
        else pytest.raises(InputError, match="size mismatch for zero")
    ):
        load(tmp_path / "a", Net())


def test_the_user_decides_how_much_a_file_may_take(valid, tmp_path):
    data, _ = valid["fp32", False]
    forge(data, tmp_path / "a", of("zero", shape=[1 << 19, 1 << 9]))
    with pytest.raises(
        FileError, match=r"would take 1,073,7\d\d,\d{3} in memory, more than 1,073,741,824; if you trust"
    ):
        load(tmp_path / "a")
    forge(data, tmp_path / "a", of("zero", shape=[5, 100]))
    total = describe(tmp_path / "a").to_dict()
    needed = sum(t["dense_bytes"] for t in total["tensors"]) - 2 * 1200  # float16 is counted as four bytes
    assert load(tmp_path / "a", max_bytes=needed)["zero"].shape == (5, 100)
    with pytest.raises(FileError, match=f"load it with max_bytes={needed}"):
        load(tmp_path / "a", max_bytes=needed - 1)


@pytest.mark.parametrize(
    "text", [b"[" * 50_000, b'{"a":' * 50_000, b'{"a":1,"a":1}', b'{"a":[],"a":[]}', b"7", b"\xff"]
)
def test_json_that_is_made_to_hurt_is_refused(tmp_path, text):
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text)
    refused(tmp_path / "a", "is damaged, or not a sparse file")


@pytest.mark.parametrize("inner", ["[" * 50_000, '{"a":' * 50_000 + "1" + "}" * 50_000, '{"bias":1,"bias":1}', "", "7"])
def test_descriptions_that_are_made_to_hurt_are_refused(valid, tmp_path, inner):
    data, _ = valid["fp32", False]
    end = 8 + int.from_bytes(data[:8], "little")
    content = json.loads(data[8:end])
    content["__metadata__"][TENSORS] = inner
    text = json.dumps(content, separators=(",", ":")).encode()
    start = len(b'{"__metadata__":{"shrinkage.crc32":"')
    text = text[:start] + f"{zlib.crc32(text[start + 8 :]):08x}".encode() + text[start + 8 :]
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    refused(tmp_path / "a", "is damaged, or not a sparse file")


# -------------------------------------------------------------------------------------- other files


@pytest.mark.parametrize(("version", "message"), [
    ("2", r"written by a newer version of shrinkage: its format is 2, this version reads up to 1; update"),
    ("123456789", "written by a newer version"),
    ("0", "there is no version '0' of the format"),
    ("1.5", "there is no version '1.5'"),
    ("9" * 5000, "there is no version"),
    ("²", "there is no version '²'"),
])  # fmt: skip
def test_other_versions_are_refused(valid, tmp_path, version, message):
    data, _ = valid["fp32", False]

    def change(content, described, payload):
        content["__metadata__"]["shrinkage.version"] = version

    forge(data, tmp_path / "a", change)
    refused(tmp_path / "a", message)


def test_a_newer_file_may_have_another_checksum_and_unknown_types(valid, tmp_path):
    data, _ = valid["fp32", False]

    def change(content, described, payload):
        content["__metadata__"]["shrinkage.version"] = "7"
        content["bias"]["dtype"] = "F4"

    forge(data, tmp_path / "a", change, sign=False)
    refused(tmp_path / "a", "written by a newer version")


def test_files_of_others_are_told_apart(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(FileError, match="a cannot be read: no such file or directory"):
        load(path)
    safetensors.torch.save_file({"weight": torch.ones(3)}, path)
    refused(path, r"that shrinkage.save has not written; safetensors.torch.load_file reads it")
    torch.save({"weight": torch.ones(3)}, path)
    refused(path, "is damaged, or not a sparse file: it is not a safetensors file")
    path.write_bytes(b"")
    refused(path, "a is empty")
    with pytest.raises(FileError, match="cannot be read: is a directory"):
        describe(tmp_path)


def test_a_file_that_was_written_anew_by_another_tool_is_refused(valid, tmp_path):
    data, _ = valid["fp32", False]
    (tmp_path / "a").write_bytes(data)
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(safetensors.torch.load_file(tmp_path / "a"), tmp_path / "b", metadata)
    refused(tmp_path / "b", "its header does not have the checksum it was written with")

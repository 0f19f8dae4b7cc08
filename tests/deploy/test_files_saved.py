"""Saving and loading: what a user gets back, from us, from a second reader, and from other tools."""

import copy
import errno
import json
import math
import os
import tracemalloc

import files_reader
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import shrinkage
from nets import CNN, Transformer
from shrinkage.core import errors
from shrinkage.core.errors import FileError, InputError, MissingExtra, StateError
from shrinkage.deploy import files, opened
from shrinkage.deploy.files import describe, load, save

MODES = [(values, compress) for values in ("fp32", "fp16", "bf16", "int8") for compress in (False, True)]


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def thin(model, density=0.1):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= torch.rand_like(parameter) < density
                parameter += 0.0  # no zero with a sign
    return model


def wide():
    return thin(nn.Sequential(nn.Linear(300, 200), nn.BatchNorm1d(200), nn.Linear(200, 10)))


TENSORS = st.builds(
    lambda dtype, shape, density, seed: (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        * (torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) < density)
        + 0.0
    ).to(dtype),
    st.sampled_from(
        [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]
    ),
    st.lists(st.integers(0, 12), max_size=4),
    st.sampled_from([0, 0.02, 0.1, 0.5, 1]),
    st.integers(0, 2**31),
)
STATES = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), TENSORS, max_size=4)


@settings(deadline=None, max_examples=40)
@given(STATES.filter(lambda state: "__metadata__" not in state), st.sampled_from(MODES), st.randoms())
def test_any_state_comes_back_by_us_and_by_a_second_reader(tmp_path_factory, state, mode, random):
    values, compress = mode
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    if state and random.random() < 0.5:
        state["tied"] = random.choice(list(state.values()))
    result = save(state, path, values=values, compress=compress, metadata={"by": "me"})
    restored = load(path)
    assert list(restored) == list(state)
    second = files_reader.read(path)
    for name, tensor in state.items():
        assert same(restored[name], second[name])
        assert restored[name].dtype == tensor.dtype
        if values == "fp32" or tensor.ndim < 2 or not tensor.is_floating_point():
            assert same(restored[name], tensor)
    assert describe(path) == result
    assert result.bytes == path.stat().st_size
    assert safetensors.torch.load_file(path).keys() == set(state) - {
        t.name for t in result.tensors if t.codec.startswith("same as")
    }


@pytest.mark.parametrize("network", [CNN, Transformer, wide])
@pytest.mark.parametrize(("values", "compress"), MODES)
def test_a_model_is_loaded_in_place(tmp_path, network, values, compress):
    model, path = thin(network(), 0.2), tmp_path / "model.safetensors"
    before = copy.deepcopy(model.state_dict())
    save(model, path, values=values, compress=compress)
    assert all(same(tensor, before[name]) for name, tensor in model.state_dict().items())
    other = network()
    parameters = list(other.parameters())
    assert load(path, other) is other
    assert all(a is b for a, b in zip(parameters, other.parameters(), strict=True))
    read = load(path)
    assert all(same(tensor, read[name]) for name, tensor in other.state_dict().items())
    if values == "fp32":
        assert all(same(tensor, before[name]) for name, tensor in other.state_dict().items())
    model.load_state_dict(read)  # a state_dict like any other


def test_exact_files_keep_every_bit_but_the_sign_of_zero(tmp_path):
    patterns = torch.tensor([0x7FC00001, -0x3FFFFF, 0x7F800001, 0x7F800000, -0x800000, 1, -0x7FFFFFFF, 0x3F800000])
    special = patterns.to(torch.int32).view(torch.float32)
    sparse = torch.zeros(1000)
    sparse[::125] = special
    for compress in (False, True):
        save({"dense": special, "sparse": sparse}, tmp_path / "a", compress=compress)
        assert all(same(x, y) for x, y in zip(load(tmp_path / "a").values(), (special, sparse), strict=True))
    minus = torch.tensor([-0.0, 1.0, -1.0])
    save({"dense": minus, "sparse": -sparse.abs().nan_to_num(1.0)}, tmp_path / "a")
    restored = load(tmp_path / "a")
    assert restored["dense"].signbit().tolist() == [False, False, True]
    assert not restored["sparse"][1:125].signbit().any()
    assert minus.signbit().tolist() == [True, False, True]  # what was saved is left as it was


def test_other_tools_read_it(tmp_path):
    model, path = wide(), tmp_path / "model.safetensors"
    save(model, path, values="fp16", metadata={"author": "ich", "note": "95 %"})
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["author"] == "ich"
        assert file.metadata()["format"] == "pt"
        assert torch.equal(file.get_tensor("1.running_var"), model[1].running_var)
        assert file.get_tensor("0.weight").dtype == torch.uint8
    with safetensors.safe_open(path, "np") as file:
        assert np.array_equal(file.get_tensor("2.bias"), model[2].bias.detach().numpy())
    assert describe(path).metadata == {"author": "ich", "note": "95 %"}


def test_dense_tensors_are_aligned_whatever_their_sizes(tmp_path):
    state = {
        str(i): torch.ones(size, dtype=dtype)
        for i, (size, dtype) in enumerate(
            (size, dtype) for dtype in (torch.bool, torch.float16, torch.int64, torch.float32) for size in (1, 3)
        )
    }
    state["sparse"] = torch.eye(33)[:, :31]
    save(state, tmp_path / "a")
    assert safetensors.torch.load_file(tmp_path / "a")["5"].tolist() == [1, 1, 1]
    for name, entry in opened.opened(tmp_path / "a").entries.items():
        assert entry.begin % state[name].element_size() == 0 or entry.dtype == "U8"


@pytest.mark.parametrize("compress", [False, True])
def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path, compress):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(100, 30), nn.Linear(30, 100, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("view", self.embed.weight.detach().view(30, 100))

    model, path = thin(Tied()), tmp_path / "a"
    result = save(model, path, compress=compress)
    codecs = {t.name: t.codec for t in result.tensors}
    assert codecs["head.weight"] == "same as embed.weight"
    assert "same" not in codecs["view"]  # of another shape: no twin
    restored = load(path)
    assert restored["head.weight"] is restored["embed.weight"]
    assert list(restored) == list(model.state_dict())
    other = Tied()
    load(path, other)
    assert other.head.weight is other.embed.weight
    assert torch.equal(other.head.weight, model.head.weight)
    assert result.dense_bytes == 2 * 4 * 3000
    assert result.density == describe(path).density == int(restored["view"].count_nonzero()) / 3000


def test_a_twin_counts_once(tmp_path):
    eye = torch.eye(100)
    result = save({"a": eye, "b": eye, "c": torch.ones(100, 100)}, tmp_path / "a")
    assert result.density == 10_100 / 20_000
    assert result.dense_bytes == 80_000


def test_files_are_as_readable_as_any_other(tmp_path):
    save({"a": torch.ones(1)}, tmp_path / "ours")
    (tmp_path / "theirs").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_wrappers_are_looked_through(tmp_path):
    model = wide()
    save(nn.DataParallel(model), tmp_path / "a")
    assert list(load(tmp_path / "a")) == list(model.state_dict())
    other = torch.compile(wide(), backend="eager")
    assert load(tmp_path / "a", other) is other
    assert torch.equal(other._orig_mod[0].weight, model[0].weight)


def test_a_model_of_another_type_takes_the_values_as_it_would_from_torch(tmp_path):
    model = wide()
    save(model, tmp_path / "a")
    other = load(tmp_path / "a", wide().bfloat16())
    assert torch.equal(other[0].weight, model[0].weight.bfloat16())


def test_half_precision_and_double_models_keep_their_type(tmp_path):
    for dtype, name in ((torch.float16, "F16"), (torch.bfloat16, "BF16"), (torch.float64, "F64")):
        model = wide().to(dtype)
        result = save(model, tmp_path / "a")
        restored = load(tmp_path / "a")
        assert all(same(tensor, restored[key]) for key, tensor in model.state_dict().items())
        assert result.tensors[0].dtype == name
        assert result.tensors[0].codec == f"rice3 {name}"
        assert result.dense_bytes == sum(4 * p.numel() for p in [*model.parameters(), *model.buffers()]) + 4


def test_values_out_of_range_are_kept_exactly_and_the_table_says_so(tmp_path):
    big = torch.zeros(100, 100)
    big[::7, ::3] = 1e20
    masked = torch.full((40, 40), -math.inf).triu(1)
    result = save({"big": big, "masked": masked}, tmp_path / "a", values="fp16")
    assert [t.codec.split()[1] for t in result.tensors] == ["F32", "F16"]
    assert torch.equal(load(tmp_path / "a")["big"], big)
    assert torch.equal(load(tmp_path / "a")["masked"], masked)
    result = save({"big": big, "masked": masked}, tmp_path / "a", values="int8")
    assert [t.codec.split()[1] for t in result.tensors] == ["I8", "F32"]


def test_the_table_and_its_export(tmp_path):
    model, path = wide(), tmp_path / "model.safetensors"
    result = save(model, path, values="int8", compress=True)
    exported = json.loads(json.dumps(result.to_dict()))
    assert exported == result.to_dict()
    assert exported["bytes"] == path.stat().st_size
    assert exported["dense_bytes"] == 4 * sum(t.numel() for t in model.state_dict().values() if t.dim()) + 8
    assert exported["ratio"] == exported["dense_bytes"] / exported["bytes"]
    weight = exported["tensors"][0]
    assert weight["density"] == pytest.approx((load(path)["0.weight"] != 0).float().mean().item())
    assert weight["ratio"] == 240_000 / weight["bytes"]
    lines = str(result).splitlines()
    assert lines[0] == str(path)
    assert lines[1].split() == ["tensor", "shape", "density", "stored", "as", "bytes", "ratio"]
    assert lines[3].split()[:6] == ["0.weight", "200×300", f"{100 * weight['density']:.2f}", "%", "rice3", "I8"]
    assert any(line.split()[:5] == ["1.num_batches_tracked", "scalar", "–", "dense", "I64"] for line in lines)
    assert lines[-1].split()[0] == "total"
    assert f"{result.bytes:,}" in lines[-1]
    assert sum(t.bytes for t in result.tensors) < result.bytes
    assert str(describe(path)) == str(result)


def test_nothing_to_store_is_stored(tmp_path):
    result = save(nn.ReLU(), tmp_path / "a")
    assert (result.tensors, result.density, result.dense_bytes) == ((), None, 0)
    assert load(tmp_path / "a") == {}
    assert isinstance(load(tmp_path / "a", nn.ReLU()), nn.ReLU)


def test_large_files_pass_through_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_SPOOL", 100)
    model = wide()
    save(model, tmp_path / "a", compress=True)
    assert all(same(tensor, model.state_dict()[name]) for name, tensor in load(tmp_path / "a").items())
    assert os.listdir(tmp_path) == ["a"]


def test_memory_is_taken_for_a_tensor_at_a_time(tmp_path):
    size = 1 << 18
    state = {str(i): torch.ones(size) for i in range(16)}  # 16 MiB
    state |= {f"s{i}": torch.eye(512) for i in range(16)}
    path = tmp_path / "a"

    def peak(run):
        tracemalloc.start()  # NumPy's arrays and Python's bytes; torch's own memory is not seen
        run()
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(lambda: save(state, path)) < 4 * 4 * size
    into = nn.ParameterDict({name: torch.empty_like(tensor) for name, tensor in state.items()})
    assert peak(lambda: load(path, into)) < 3 * 4 * size
    assert all(torch.equal(into[name], tensor) for name, tensor in state.items())


# ------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": 1}, "'a' is int; only tensors can be stored"),
        ({7: torch.ones(1)}, "a tensor cannot be named 7"),
        ({"__metadata__": torch.ones(1)}, "a tensor cannot be named '__metadata__'"),
        ({"a\ud800": torch.ones(1)}, "could not be written: .*surrogates"),
        ({"a": torch.ones(1, device="meta")}, "'a' is on the meta device and has no values"),
        ({"a": torch.ones(2, 2).to_sparse()}, "'a' is a Tensor of torch.float32 in layout torch.sparse_coo"),
        ({"a": torch.ones(1, dtype=torch.complex128)}, "'a' is a Tensor of torch.complex128"),
        (nn.LazyLinear(3), "'weight' has no shape yet"),
        ([torch.ones(1)], "a torch.nn.Module or a state_dict is saved, got list"),
    ],
)
def test_what_cannot_be_stored_is_named_and_nothing_is_written(tmp_path, state, message):
    (tmp_path / "a").write_text("before")
    with pytest.raises(InputError, match=message):
        save(state, tmp_path / "a")
    assert (tmp_path / "a").read_text() == "before"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": "fp8"}, "values='fp8' is not known; known are 'fp32', 'fp16', 'bf16', 'int8'"),
        ({"metadata": {"a": 1}}, "metadata are texts by name, got 'a': 1"),
        ({"metadata": {"shrinkage.version": "2"}}, "'shrinkage.version': the name is taken"),
        ({"metadata": {"format": "tf"}}, "'format': the name is taken"),
    ],
)
def test_options_that_cannot_work_are_named(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        save({"a": torch.ones(1)}, tmp_path / "a", **options)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_and_a_full_disk_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="could not be written: no such file or directory"):
        save({"a": torch.ones(1)}, tmp_path / "none" / "a")
    with pytest.raises(InputError, match="could not be written: is a directory"):
        save({"a": torch.ones(1)}, tmp_path)
    save({"a": torch.ones(1)}, tmp_path / "a")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match=r"a could not be written: no space left.*Nothing that was saved .* lost"):
        save({"a": torch.zeros(1)}, tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
    assert load(tmp_path / "a")["a"].item() == 1


def test_keys_and_shapes_that_do_not_fit_are_all_named_and_nothing_is_loaded(tmp_path):
    save({"weight": torch.ones(3, 4), "extra": torch.ones(1)}, tmp_path / "a")
    model = nn.Linear(5, 3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError) as caught:
        load(tmp_path / "a", model)
    assert str(caught.value).splitlines() == [
        f"{tmp_path / 'a'} does not fit Linear:",
        "\tMissing key(s): 'bias'.",
        "\tUnexpected key(s): 'extra'.",
        "\tsize mismatch for weight: (3, 4) in the file, (3, 5) in the model.",
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_on_the_meta_device_is_told_what_to_do(tmp_path):
    model = wide()
    save(model, tmp_path / "a")
    with torch.device("meta"):
        other = nn.Sequential(nn.Linear(300, 200), nn.BatchNorm1d(200), nn.Linear(200, 10))
    with pytest.raises(InputError, match=r"'0.weight' is on the meta device: call model.to_empty\(device=…\) before"):
        load(tmp_path / "a", other)
    other.load_state_dict(load(tmp_path / "a"), assign=True)
    assert torch.equal(other[0].weight, model[0].weight)
    assert torch.equal(load(tmp_path / "a", other.to("meta").to_empty(device="cpu"))[0].weight, model[0].weight)


def test_what_cannot_be_loaded_into_is_named(tmp_path):
    save(nn.Linear(3, 2), tmp_path / "a")
    with pytest.raises(InputError, match=r"a file is loaded into a torch.nn.Module, got dict"):
        load(tmp_path / "a", {})
    with pytest.raises(InputError, match="'weight' of the model has no shape yet: run the model on one batch"):
        load(tmp_path / "a", nn.LazyLinear(2))


def test_extra_state_that_is_a_tensor_is_loaded_by_the_model_itself(tmp_path):
    class Counts(nn.Linear):
        seen = 0

        def get_extra_state(self):
            return torch.tensor(self.seen)

        def set_extra_state(self, state):
            self.seen = int(state)

    model, other = Counts(3, 2), Counts(3, 2)
    model.seen = 7
    save(model, tmp_path / "a")
    load(tmp_path / "a", other)
    assert other.seen == 7
    assert torch.equal(model.weight, other.weight)


def test_a_model_that_hands_out_copies_is_loaded_by_its_own_means(tmp_path):
    class Copies(nn.Linear):
        def state_dict(self, *args, **kwargs):
            return {name: tensor.clone() for name, tensor in super().state_dict(*args, **kwargs).items()}

    model, other = Copies(3, 2), Copies(3, 2)
    save(model, tmp_path / "a")
    load(tmp_path / "a", other)
    assert torch.equal(model.weight, other.weight)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_models_on_a_gpu(tmp_path):
    model = wide().cuda()
    save(model, tmp_path / "a", values="int8")
    assert all(tensor.device.type == "cpu" for tensor in load(tmp_path / "a").values())
    other = load(tmp_path / "a", wide().cuda())
    assert other[0].weight.is_cuda
    assert torch.equal(other[1].weight, model[1].weight)


def test_without_zstandard_the_extra_is_named(tmp_path, monkeypatch):
    save(wide(), tmp_path / "plain")
    save(wide(), tmp_path / "compressed", compress=True)

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(errors.importlib, "import_module", missing)
    assert len(load(tmp_path / "plain")) == 9
    assert len(describe(tmp_path / "compressed").tensors) == 9
    for attempt in (lambda: load(tmp_path / "compressed"), lambda: save(wide(), tmp_path / "b", compress=True)):
        with pytest.raises(MissingExtra, match=r"zstandard is needed.*shrinkage\[zstd\]"):
            attempt()


def test_a_sparsified_model_is_small_and_comes_back(tmp_path):
    model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 10))
    shrinkage.Magnitude(sparsity=0.95).prune(model)
    result = save(model, tmp_path / "a")
    other = load(tmp_path / "a", nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 10)))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert result.ratio > 12
    ledger = shrinkage.footprint(model, torch.zeros(1, 300)).total
    assert sum(tensor.bytes for tensor in result.tensors) < ledger.sparse_bytes


def test_a_file_error_is_an_input_error():
    assert issubclass(FileError, InputError)

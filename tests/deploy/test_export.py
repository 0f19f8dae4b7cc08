import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

import shrinkage
from nets import CNN, MLP, Transformer
from shrinkage.deploy.export import export
from shrinkage.deploy.export_formats import FORMATS
from shrinkage.deploy.export_inputs import as_inputs, difference, input_names, outputs, random_inputs

IMAGE = torch.zeros(1, 1, 8, 8)


def cnn():
    """Sparse, with statistics in its BatchNorm as after a training."""
    model = CNN()
    shrinkage.Random(0.8).prune(model)
    for _ in range(3):
        model(torch.randn(16, 1, 8, 8))
    return model


def written(tmp_path, to):
    return tmp_path / f"net{FORMATS[to].suffix}"


# -------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("to", FORMATS)
def test_the_file_is_alone_small_and_gives_what_the_model_gives(tmp_path, capfd, to):
    model, path = cnn(), written(tmp_path, to)
    result = export(model, IMAGE, path, to)
    expected = [path] if to != "openvino" else [path, path.with_suffix(".bin")]
    assert sorted(tmp_path.iterdir()) == sorted(expected)
    assert result.files == tuple(expected)
    assert result.bytes == tuple(file.stat().st_size for file in expected)
    assert result.dense_bytes == 4 * sum(p.numel() for p in model.parameters())
    assert result.difference <= 1e-5
    assert result.batches == (1, 3)
    assert capfd.readouterr() == ("", "")
    assert not any(__file__.rpartition("tests")[0].encode() in file.read_bytes() for file in expected)

    x = torch.randn(5, 1, 8, 8)
    model.eval()
    found = FORMATS[to].load(path, model)((x,))
    torch.testing.assert_close(found[0], model(x), rtol=1e-4, atol=1e-5)


def test_onnx_as_its_users_load_it(tmp_path):
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    model, path = cnn(), tmp_path / "net.onnx"
    export(model, torch.zeros(2, 1, 8, 8), path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (got,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("x", ["batch", 1, 8, 8])
    assert (got.name, got.shape) == ("output", ["batch", 4])
    x = np.random.default_rng(0).standard_normal((7, 1, 8, 8)).astype(np.float32)
    found = session.run(["output"], {"x": x})[0]
    np.testing.assert_allclose(found, model.eval()(torch.from_numpy(x)).detach(), rtol=1e-4, atol=1e-5)


def test_zeros_are_left_out_of_the_small_file_alone(tmp_path):
    model = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 10))
    shrinkage.Magnitude(0.95).prune(model)
    small = export(model, torch.zeros(1, 100), tmp_path / "net.safetensors", "safetensors")
    whole = export(model, torch.zeros(1, 100), tmp_path / "net.pt2", "torch-export")
    assert small.ratio > 5
    assert 0.7 < whole.ratio < 1
    assert "Zeros alone do not make this runtime faster" in str(whole)
    assert "Zeros alone" not in str(small)


def test_several_inputs_and_outputs_keep_their_names(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.linear = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, tokens, scale):
            hidden = self.embed(tokens).mean(1) * scale
            return {"logits": self.linear(hidden), "hidden": hidden}

    tokens = torch.tensor([[0, 8, 3], [1, 2, 4]])
    export(Two(), (tokens, torch.ones(2, 1)), tmp_path / "net.onnx")
    session = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "net.onnx")
    assert [each.name for each in session.get_inputs()] == ["tokens", "scale"]
    assert [each.name for each in session.get_outputs()] == ["logits", "hidden"]


def test_a_transformer_on_whole_numbers(tmp_path):
    result = export(Transformer(), torch.arange(6)[None] + 4, tmp_path / "net.pt2", "torch-export")
    assert result.difference <= 1e-5


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_a_compiled_model_is_looked_through(tmp_path):
    result = export(torch.compile(MLP()), torch.zeros(1, 12), tmp_path / "net.pt2", "torch-export")
    assert result.model == "MLP"


def test_the_model_is_left_as_it_was(tmp_path):
    model = cnn()
    model.norm1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags, dice = [module.training for module in model.modules()], torch.get_rng_state()
    export(model, IMAGE, tmp_path / "net.pt2", "torch-export")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), dice)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_prints_and_exports(tmp_path):
    result = export(MLP(), torch.zeros(1, 12), tmp_path / "net.pt2", "torch-export")
    assert json.loads(json.dumps(result.to_dict()))["ratio"] == result.ratio
    lines = str(result).splitlines()
    assert lines[0] == "MLP as torch.export, for batches of any size; tried at 1 and 3"
    assert lines[3].startswith(f"{tmp_path / 'net.pt2'}  {result.bytes[0]:,}")
    two = replace(result, files=(tmp_path / "a.xml", tmp_path / "a.bin"), bytes=(1000, 24))
    assert str(two).splitlines()[-3].startswith("total")
    assert "1,024" in str(two)


# --------------------------------------------------------------------------------- a batch of any size


class Fixed(nn.Module):
    """Cannot do without the batch size it was written for."""

    def forward(self, x):
        return x.reshape(2, 3, 4).sum(1)


def test_a_model_for_one_batch_size_has_to_be_told_of(tmp_path):
    with pytest.raises(shrinkage.InputError, match=r"Fixed cannot be written as torch.export.*dynamic=False"):
        export(Fixed(), torch.zeros(2, 12), tmp_path / "net.pt2", "torch-export")
    assert list(tmp_path.iterdir()) == []
    result = export(Fixed(), torch.zeros(2, 12), tmp_path / "net.pt2", "torch-export", dynamic=False)
    assert result.batches == (2,)
    assert "for batches of 2" in str(result)


# ---------------------------------------------------------------------------------- files that are wrong


def other(kind, answer):
    """The same kind of file, in a runtime that gives something else."""
    return replace(kind, load=lambda path, model: answer)


def test_a_file_that_gives_something_else_is_removed_and_what_was_there_stays(tmp_path, monkeypatch):
    path, model = tmp_path / "net.pt2", MLP()
    path.write_text("before")

    def off(inputs):
        right = model(*inputs)
        return [right + 2e-3 * right.abs().max()]

    monkeypatch.setitem(FORMATS, "torch-export", other(FORMATS["torch-export"], off))
    with pytest.raises(shrinkage.StateError, match=r"differ by 2\.0e-03 of the largest output.*tolerance 0\.0001"):
        export(model, torch.zeros(1, 12), path, "torch-export")
    assert [path] == list(tmp_path.iterdir())
    assert path.read_text() == "before"
    assert export(model, torch.zeros(1, 12), path, "torch-export", tolerance=1e-2).difference == pytest.approx(
        2e-3, rel=1e-3
    )
    assert path.read_bytes() != b"before"


def test_only_a_batch_of_another_size_shows_it(tmp_path, monkeypatch):
    model = MLP()

    def frozen(inputs):
        if len(inputs[0]) != 1:
            raise RuntimeError("batch must be 1\nand more")
        return [model(*inputs)]

    monkeypatch.setitem(FORMATS, "torch-export", other(FORMATS["torch-export"], frozen))
    with pytest.raises(shrinkage.StateError, match=r"MLP on a batch of 3.*RuntimeError: batch must be 1$"):
        export(model, torch.zeros(1, 12), tmp_path / "net.pt2", "torch-export")
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_not_finite_cannot_be_compared(tmp_path):
    class Log(nn.Module):
        def forward(self, x):
            return x.log()

    with pytest.raises(shrinkage.InputError, match="Log gives values that are not finite"):
        export(Log(), torch.ones(1, 3), tmp_path / "net.pt2", "torch-export")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "tflite"}, "to must be one of onnx, safetensors, torch-export, openvino, got 'tflite'"),
        ({"path": "net.pb"}, r"the name of a file for ONNX ends in \.onnx, got .*net\.pb"),
        ({"path": "nowhere/net.onnx"}, "there is no folder .*nowhere"),
        ({"example": "text"}, "the example must be a tensor, or a tuple of tensors .*, got str"),
        ({"example": {"x": torch.zeros(1, 12)}}, "got dict"),
        ({"example": torch.tensor(1.0)}, "the first dimension of an example counts examples"),
        ({"example": torch.zeros(0, 12)}, r"at least one and as many in each: \(0, 12\)"),
        ({"example": (torch.zeros(1, 12), torch.zeros(2, 12))}, r"\(1, 12\), \(2, 12\)"),
        ({"example": torch.zeros(1, 13)}, "MLP cannot be written as ONNX"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path, arguments, message):
    path = tmp_path / arguments.pop("path", "net.onnx")
    with pytest.raises(shrinkage.InputError, match=message):
        export(MLP(), arguments.pop("example", torch.zeros(1, 12)), path, **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("module", "to", "extra"), [("onnxscript", "onnx", "export"), ("openvino",) * 3])
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, module, to, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(shrinkage.MissingExtra, match=rf"{module} is needed.*shrinkage\[{extra}\]"):
        export(MLP(), torch.zeros(1, 12), written(tmp_path, to), to)


def test_too_much_for_one_onnx_file(tmp_path):
    with torch.device("meta"):
        model = nn.Linear(2**15, 2**15, bias=False)
    with pytest.raises(shrinkage.InputError, match="at most 2 GiB, the weights of Linear take 4,294,967,296 bytes"):
        FORMATS["onnx"].write(model, (), tmp_path / "net.onnx", True)


# ------------------------------------------------------------------------------------ inputs and outputs


FLOATS = arrays.arrays(np.float64, arrays.array_shapes(max_dims=2, max_side=4), elements=st.floats(-9, 9, width=16))


@settings(deadline=None, max_examples=60)
@given(FLOATS, st.data())
def test_the_difference_is_relative_to_the_largest_output(right, data):
    found = data.draw(arrays.arrays(np.float64, right.shape, elements=st.floats(-9, 9, width=16)))
    worst = np.abs(found - right).max()
    expected = worst / max(np.abs(right).max(), np.finfo(np.float32).tiny)  # 0 where they are equal
    assert difference([torch.from_numpy(found)], [torch.from_numpy(right)]) == pytest.approx(expected)


def test_differences_that_no_number_tells():
    one = torch.ones(2)
    assert difference([one], [one, one]) == math.inf
    assert difference([torch.ones(3)], [one]) == math.inf
    assert difference([torch.tensor([1.0, math.nan])], [one]) == math.inf
    assert difference([torch.zeros(0)], [torch.zeros(0)]) == 0


@settings(deadline=None, max_examples=30)
@given(st.integers(-5, 5), st.integers(0, 5), st.integers(1, 9))
def test_random_whole_numbers_stay_where_the_example_is(low, span, batch):
    dice = torch.Generator().manual_seed(0)
    like = torch.tensor([[low, low + span, low]], dtype=torch.int32)
    (drawn,) = random_inputs((like,), batch, dice)
    assert (drawn.shape, drawn.dtype) == ((batch, 3), torch.int32)
    assert low <= int(drawn.min()) <= int(drawn.max()) <= low + span


def test_random_inputs_of_other_types():
    dice = torch.Generator().manual_seed(0)
    half, switch, wave = random_inputs(
        (torch.zeros(1, 3).half(), torch.tensor([[True, False]]), torch.zeros(1, 2, dtype=torch.complex64)), 400, dice
    )
    assert half.dtype == torch.float16
    assert 0.9 < half.float().std() < 1.1
    assert switch.float().mean() == pytest.approx(0.5, abs=0.1)
    assert wave.is_complex()


def test_names_of_inputs():
    class Many(nn.Module):
        def forward(self, *parts):
            return sum(parts)

    assert input_names(MLP(), 1) == ["input"]
    assert input_names(CNN(), 1) == ["x"]
    assert input_names(Many(), 2) == ["input_0", "input_1"]


def test_outputs_have_to_be_tensors():
    a, b = torch.zeros(1), torch.ones(1)
    assert outputs({"a": a, "b": (b, None)}) == [a, b]
    with pytest.raises(shrinkage.InputError, match="it gave Tensor, int"):
        outputs((a, 3))
    with pytest.raises(shrinkage.InputError, match="it gave nothing"):
        outputs(None)


def test_examples_lose_their_gradient():
    (x,) = as_inputs([torch.zeros(1, 2, requires_grad=True)])
    assert not x.requires_grad

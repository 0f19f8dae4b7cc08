"""Compiled networks against the networks themselves."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import nets
from shrinkage import InputError, runtime
from shrinkage.core.errors import FileError
from shrinkage.models.registry import MODELS
from shrinkage.runtime import handover, jit, remember
from shrinkage.runtime.engine import Engine
from shrinkage.runtime.levels import Levels
from shrinkage.runtime.partition import fuse_sums, partition
from shrinkage.runtime.simplify import simplify
from shrinkage.runtime.trace import trace


def thin(model, density=0.1):
    """Zeros in most weights, statistics in every BatchNorm; outputs of a sensible size."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.Conv1d):
                module.weight.mul_(torch.rand_like(module.weight) < density).mul_(density**-0.5)
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
                module.bias.normal_(0, 0.1)
    return model.eval()


def same(engine, model, *inputs):
    with torch.no_grad():
        want = model(*inputs)
    got = engine(*inputs)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def shape_of(name):
    return (1, 28, 28) if name in ("mlp", "lenet-300-100", "lenet-5") else (3, 32, 32)


@pytest.mark.parametrize("name", ["lenet-300-100", "lenet-5", "resnet-8", "vit-micro"])
def test_a_model_at_any_batch_size(name):
    model = thin(MODELS[name](shape_of(name), 10))
    engine = runtime.compile(model, torch.randn(1, *shape_of(name)))
    for batch in (1, 2, 19, 70):
        same(engine, model, torch.randn(batch, *shape_of(name)))


@pytest.mark.parametrize("name", ["vgg-16", "resnet-20", "resnet-50", "vit-tiny"])
def test_a_large_model(name):
    model = thin(MODELS[name](shape_of(name), 10), 0.05)
    x = torch.randn(1, *shape_of(name))
    engine = runtime.compile(model, x)
    same(engine, model, x)
    if name != "vit-tiny":
        assert {layer.kernel for layer in engine.plan.layers}.isdisjoint({"PyTorch"})


class Odds(nn.Module):
    """What the models of the library do not have."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 5, stride=2, padding=(2, 1), bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding="same", groups=16)
        self.grouped = nn.Conv2d(16, 32, 3, padding=2, dilation=2, groups=4)
        self.point = nn.Conv2d(48, 24, 1)
        self.late = nn.BatchNorm2d(24)
        self.head = nn.Linear(24 * 9, 7)

    def forward(self, x):
        x = functional.hardswish(self.norm(self.stem(x)))
        y = functional.silu(self.depthwise(x)) * x
        z = functional.relu6(self.grouped(functional.max_pool2d(y, 3, 1, 1)))
        x = torch.cat([y, z], 1)
        x = functional.gelu(self.point(x))
        x = functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)
        x = self.late(functional.max_pool2d(x, 2, ceil_mode=True)) + 0.5 * functional.avg_pool2d(
            x, 2, 2, ceil_mode=True
        )
        return self.head(functional.adaptive_avg_pool2d(x, 3).flatten(1))


@pytest.mark.parametrize("batch", [1, 16, 23])
def test_every_operation_has_its_kernel(batch):
    torch.manual_seed(1)
    model = thin(Odds(), 0.3)
    x = torch.randn(batch, 3, 27, 22)
    same(runtime.compile(model, x), model, x)


def test_a_maximum_of_what_is_not_finite():
    """A convolution that skips zeros does not turn infinity times zero into a NaN; a pool has nothing to skip."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2))
    nn.init.ones_(model[0].weight)
    x = torch.randn(16, 1, 8, 8)
    x[0, 0, 1, 1], x[1, 0, 2, 3], x[2, 0, 4, 4] = torch.nan, torch.inf, -torch.inf
    for batch in (1, 16):
        engine = runtime.compile(model, x[:batch])
        torch.testing.assert_close(engine(x), model(x), equal_nan=True)


POOLS = [
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d((2, 3), (1, 2), dilation=2),
    nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.AvgPool2d(3, 2, 1),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d((2, 3), count_include_pad=False, padding=(1, 1)),
    nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveAvgPool2d((2, 5)),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("batch", [1, 16])
def test_pools(pool, batch):
    model = thin(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), pool, nn.Conv2d(4, 3, 1)), 0.5)
    x = torch.randn(batch, 2, 18, 20)
    same(runtime.compile(model, x), model, x)


def with_levels(model, x, levels, monkeypatch):
    """An engine whose nodes run one, 16, or 64 items at a time as told."""
    graph = fuse_sums(simplify(trace(model, x)))

    def steered(region, items, sizes, timings, works, host):
        nodes = region.nodes
        wanted = [levels[i * len(levels) // len(nodes)] for i in range(len(nodes))]
        return Levels({node.name: min(size, items) for node, size in zip(nodes, wanted, strict=True)}, 1e-6)

    monkeypatch.setattr(remember, "choose_levels", steered)
    monkeypatch.setenv("SHRINKAGE_CACHE", str(os.devnull))
    return Engine(graph, 1, jit.machine())


@pytest.mark.parametrize("levels", [(1,), (16,), (64,), (1, 16), (1, 64), (16, 64), (1, 16, 64)])
def test_wherever_the_levels_lie(levels, monkeypatch):
    model = thin(nets.CNN(), 0.3)
    x = torch.randn(64, 1, 8, 8)
    engine = with_levels(model, x, levels, monkeypatch)
    same(engine, model, x)
    same(engine, model, torch.randn(150, 1, 8, 8))
    assert {layer.side_by_side for layer in engine.plan.layers} == set(levels)


def test_arrays_in_arrays_out():
    model = thin(nets.MLP())
    x = torch.randn(3, 12)
    engine = runtime.compile(model, x)
    assert isinstance(engine(x.numpy()), np.ndarray)
    np.testing.assert_allclose(engine(x.numpy()), engine(x).numpy())
    strided = torch.randn(12, 3).t()
    same(engine, model, strided)
    assert not engine(x.clone().requires_grad_()).requires_grad


def test_results_are_not_overwritten_by_the_next_call():
    model = thin(nets.MLP())
    engine = runtime.compile(model, torch.randn(2, 12))
    x = torch.randn(2, 12)
    first = engine(x)
    kept = first.clone()
    engine(torch.randn(2, 12))
    assert torch.equal(first, kept)


def test_threads_share_the_batch():
    model = thin(MODELS["lenet-5"]((1, 28, 28), 10))
    x = torch.randn(70, 1, 28, 28)
    engine = runtime.compile(model, x, threads=3)
    before = threading.active_count()
    for batch in (70, 1, 2, 64):
        same(engine, model, torch.randn(batch, 1, 28, 28))
    assert threading.active_count() <= before + 3


def test_the_model_is_left_as_it_was():
    model = thin(nets.CNN()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    runtime.compile(model, torch.randn(2, 1, 8, 8))
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_hugging_face_models():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=20,
    )
    model = thin(transformers.BertModel(config))
    ids = torch.randint(0, 50, (3, 9))
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    engine = runtime.compile(model, example)
    with torch.no_grad():
        want = model(**example)
    got = engine(**example)
    assert type(got) is type(want)
    torch.testing.assert_close(got.last_hidden_state, want.last_hidden_state, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.pooler_output, want.pooler_output, rtol=1e-4, atol=1e-4)
    sparse = [layer for layer in engine.plan.layers if layer.operation.startswith("linear")]
    assert len(sparse) == 2 * 6 + 1
    assert all(layer.kernel != "PyTorch" for layer in sparse)


def test_the_plan_is_a_table():
    model = thin(nets.CNN(), 0.2)
    plan = runtime.compile(model, torch.randn(1, 1, 8, 8)).plan
    text = str(plan)
    for word in ("stem", "conv + relu", "conv + sum + relu", "GFLOP/s", "global_avg_pool", "head", "total"):
        assert word in text
    layer = plan.layers[0]
    assert layer.density == pytest.approx(float((model.stem.weight != 0).float().mean()))
    flops = 2 * int((model.stem.weight != 0).sum()) * 64
    assert layer.gflops == pytest.approx(flops / layer.seconds / 1e9)
    assert plan.to_dict()["layers"][0]["shape"] == (8, 8, 8)


def test_layers_with_few_zeros_may_be_left_to_pytorch(monkeypatch):
    from shrinkage.runtime import choose

    model = thin(nets.MLP(), 0.1)
    nn.init.normal_(model[2].weight)
    monkeypatch.setattr(choose, "_HANDING_OVER", 0.0)
    engine = runtime.compile(model, torch.randn(4, 12), dense=False)
    assert [layer.kernel == "PyTorch" for layer in engine.plan.layers] == [False, True, False]
    same(engine, model, torch.randn(4, 12))
    monkeypatch.setattr(choose, "_HANDING_OVER", 1e9)
    engine = runtime.compile(model, torch.randn(4, 12), dense=False)
    assert all(layer.kernel != "PyTorch" for layer in engine.plan.layers)


@pytest.mark.parametrize("package", ["openvino", "onnxruntime"])
def test_a_dense_model_is_handed_over(package, monkeypatch):
    pytest.importorskip(package)
    other = {"openvino": "onnxruntime", "onnxruntime": "openvino"}[package]
    real = handover.importlib.util.find_spec
    monkeypatch.setattr(handover.importlib.util, "find_spec", lambda name: None if name == other else real(name))
    seconds = iter([1.0, 0.5])
    monkeypatch.setattr(handover, "_seconds", lambda run: (run(), next(seconds))[1])
    model = thin(nets.CNN(), 1.0)
    engine = runtime.compile(model, torch.randn(4, 1, 8, 8))
    assert engine.plan.handed_to == {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}[package]
    assert "which is faster" in str(engine.plan)
    for batch in (4, 1, 9):
        same(engine, model, torch.randn(batch, 1, 8, 8))
    with pytest.raises(InputError, match="shape"):
        engine(torch.randn(4, 1, 9, 8))


def test_saved_and_loaded(tmp_path):
    model = thin(nets.CNN(), 0.2)
    x = torch.randn(20, 1, 8, 8)
    engine = runtime.compile(model, x)
    engine.save(tmp_path / "engine")
    loaded = runtime.load(tmp_path / "engine")
    assert torch.equal(loaded(x), engine(x))
    assert str(loaded.plan) == str(engine.plan)
    assert (tmp_path / "engine").stat().st_size < 20_000


def test_saved_with_parts_that_run_through_pytorch(tmp_path):
    model = thin(MODELS["vit-micro"]((3, 32, 32), 10))
    x = torch.randn(3, 3, 32, 32)
    engine = runtime.compile(model, x)
    engine.save(tmp_path / "engine")
    same(runtime.load(tmp_path / "engine"), model, torch.randn(5, 3, 32, 32))


def test_a_file_that_is_no_engine(tmp_path):
    import shrinkage

    path = tmp_path / "file"
    shrinkage.save(nets.MLP(), path)
    with pytest.raises(FileError, match="not of an engine"):
        runtime.load(path)
    engine = runtime.compile(thin(nets.MLP()), torch.randn(1, 12))
    engine.save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FileError):
        runtime.load(path)


def test_loading_and_compiling_again_measures_nothing(tmp_path, monkeypatch):
    model = thin(nets.CNN(), 0.2)
    x = torch.randn(1, 1, 8, 8)
    engine = runtime.compile(model, x)
    engine.save(tmp_path / "engine")

    def fail(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(remember, "measure", fail)
    assert str(runtime.compile(model, x).plan) == str(engine.plan)
    monkeypatch.setenv("SHRINKAGE_CACHE", str(tmp_path / "empty"))
    runtime.load(tmp_path / "engine")(x)


@pytest.mark.parametrize("cache", ["readonly", "damaged"])
def test_a_cache_that_is_of_no_use(cache, tmp_path):
    """In a process of its own, where nothing is in memory."""
    folder = tmp_path / "cache"
    code = (
        "import torch, shrinkage.runtime as r; m = torch.nn.Linear(40, 3); x = torch.randn(2, 40);"
        "assert torch.allclose(r.compile(m, x, dense=False)(x), m(x), atol=1e-5); print('fine')"
    )
    env = {**os.environ, "SHRINKAGE_CACHE": str(folder)}
    if cache == "readonly":
        folder.write_text("a file where a folder should be")
    else:
        subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files
        for path in files:
            path.write_bytes(path.read_bytes()[:40] + b"damage")
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "fine"


def test_bad_input():
    model = thin(nets.MLP())
    engine = runtime.compile(model, torch.randn(2, 12))
    for wrong, why in [
        (torch.randn(2, 13), "shape"),
        (torch.randn(12), "shape"),
        (torch.randn(2, 12, dtype=torch.float64), "float64"),
        (np.zeros((2, 12)), "float64"),
    ]:
        with pytest.raises(InputError, match=why):
            engine(wrong)
    with pytest.raises(InputError):
        engine(torch.randn(2, 12), torch.randn(2, 12))
    with pytest.raises(InputError, match="threads"):
        runtime.compile(model, torch.randn(2, 12), threads=0)
    nn.init.constant_(model[0].weight, float("nan"))
    with pytest.raises(InputError, match=r"0\.weight"):
        runtime.compile(model, torch.randn(2, 12))


def test_processors_without_the_instructions(monkeypatch):
    jit.machine.cache_clear()
    try:
        with pytest.raises(InputError, match="vectors of"):
            jit.machine(5)
        monkeypatch.setattr(jit.llvm, "get_host_cpu_features", lambda: {"sse2": True})
        if jit.platform.machine() in ("x86_64", "AMD64"):
            with pytest.raises(InputError, match="AVX2"):
                jit.machine()
        monkeypatch.setattr(jit.platform, "machine", lambda: "riscv64")
        with pytest.raises(InputError, match="riscv64"):
            jit.machine()
    finally:
        jit.machine.cache_clear()


@pytest.mark.skipif(jit.machine().lanes < 8, reason="has no vectors of 8 floats")
def test_a_processor_with_shorter_vectors():
    code = (
        "import torch, shrinkage.runtime as r; from nets import CNN; torch.manual_seed(0); m = CNN().eval();"
        "e = r.compile(m, torch.randn(1, 1, 8, 8)); assert e._host.lanes == 8\n"
        "for b in (1, 16, 70):\n    x = torch.randn(b, 1, 8, 8); assert torch.allclose(e(x), m(x), atol=1e-5)"
    )
    env = {**os.environ, "SHRINKAGE_LANES": "8", "PYTHONPATH": os.path.dirname(nets.__file__)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_kernels_compile_for_arm():
    """There is no such processor here: the machine code is made and looked at, not run."""
    from shrinkage.runtime.tile import Tile, tile_kernel

    jit.llvm.initialize_all_targets()
    jit.llvm.initialize_all_asmprinters()
    host = jit.Machine("aarch64-unknown-linux-gnu", "neoverse-n1", "+neon", 4, 32)
    tile = Tile(4, (tuple((i, 16 * i) for i in range(16)),), tuple(range(0, 256, 16)), activation="relu")
    text = jit.assembly(tile_kernel(tile), host)
    assert text.count("fmla\tv") == 16
    assert jit.compile_object(tile_kernel(tile), host)


def test_regions_hold_what_can_run_together():
    model = thin(MODELS["resnet-8"]((3, 32, 32), 10))
    graph = fuse_sums(simplify(trace(model, torch.randn(1, 3, 32, 32))))
    (region,) = partition(graph)
    assert [node.op for node in region.nodes].count("add") == 0
    assert sum(len(node.inputs) == 2 for node in region.nodes) == 3


class Rows(nn.Module):
    """Two linear layers on tensors of two axes whose first is the batch in one and not in the other."""

    def __init__(self):
        super().__init__()
        self.tokens, self.pooled = nn.Linear(24, 16), nn.Linear(24, 16)

    def forward(self, x):
        return self.tokens(x.reshape(-1, 24)).relu(), self.pooled(x.sum(1)).relu()


def test_items_of_different_number_are_kept_apart():
    model = thin(Rows(), 0.2)
    engine = runtime.compile(model, torch.randn(2, 4, 24), dense=False)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 4, 24)
        with torch.no_grad():
            for got, want in zip(engine(x), model(x), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_pytorchs_own_attention():
    model = thin(nn.TransformerEncoderLayer(32, 4, 64), 0.2)
    engine = runtime.compile(model, torch.randn(5, 2, 32), dense=False)
    for tokens in (5, 1, 3):
        same(engine, model, torch.randn(tokens, 2, 32))


class Heads(nn.Module):
    """A flattened image that is the model's output, and what two layers read, of which one is dense."""

    def __init__(self):
        super().__init__()
        self.sparse, self.dense = nn.Linear(32, 16), nn.Linear(32, 400)

    def forward(self, x):
        x = x.flatten(1)
        return x, self.sparse(x).relu(), self.dense(x)


def test_a_flattened_input_is_also_needed_elsewhere(monkeypatch):
    from shrinkage.runtime import choose

    monkeypatch.setattr(choose, "_HANDING_OVER", 0.0)
    model = Heads().eval()
    thin(model.sparse, 0.2)
    model.sparse.weight.data *= torch.rand_like(model.sparse.weight) < 0.2
    engine = runtime.compile(model, torch.randn(2, 2, 4, 4), dense=False)
    assert [layer.kernel for layer in engine.plan.layers].count("PyTorch") >= 1
    for batch in (1, 16, 70):
        x = torch.randn(batch, 2, 4, 4)
        with torch.no_grad():
            for got, want in zip(engine(x), model(x), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_without_llvmlite_the_extra_is_named():
    code = (
        "import sys; sys.modules['llvmlite'] = None\n"
        "import shrinkage\n"
        "try:\n    shrinkage.runtime\n"
        "except shrinkage.MissingExtra as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 'pip install "shrinkage[runtime]"' in done.stdout

import copy
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from shrinkage.core.errors import InputError
from shrinkage.models.registry import MODELS
from shrinkage.runtime.evaluate import bind, evaluate, walk
from shrinkage.runtime.graph import Graph
from shrinkage.runtime.simplify import simplify
from shrinkage.runtime.trace import trace

BATCHES = (1, 5, 64)


def lively(model, seed=0):
    """Random BatchNorm statistics and scales, some negative, and half of the other weights zero."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor):
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(draw(module.running_mean))
                module.running_var.copy_(draw(module.running_var).abs() + 0.5)
                if module.affine:
                    module.weight.copy_(draw(module.weight))
                    module.bias.copy_(draw(module.bias))
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.mul_(torch.rand(module.weight.shape, generator=generator) < 0.5).add_(0.0)
    return model.eval()


def agree(model, graph, args=(), kwargs=None, tolerance=1e-5):
    kwargs = kwargs or {}
    with torch.no_grad():
        wanted = model(*copy.deepcopy(args), **kwargs)  # which may change its inputs
    got = evaluate(graph, *args, **kwargs)
    assert type(got) is type(wanted)
    for a, b in zip(leaves(wanted), leaves(got), strict=True):
        if not isinstance(a, torch.Tensor):
            assert a == b
            continue
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a = a.detach()
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance * float(a.abs().max()) if a.numel() else 0)


def leaves(value):
    return torch.utils._pytree.tree_leaves(value)


def check(model, *shape, batches=BATCHES, tolerance=1e-5):
    """Trace on a batch of one, compare on several, plain and simplified; gives the simplified graph."""
    model.eval()
    graph = trace(model, torch.randn(1, *shape))
    assert not graph.static_batch
    assert graph.batch_range == (1, None)
    simple = simplify(graph)
    for batch in batches:
        x = torch.randn(batch, *shape)
        agree(model, graph, (x,), tolerance=tolerance)
        agree(model, simple, (x,), tolerance=tolerance)
    return simple


def ops(graph):
    """How often each operation occurs, those for PyTorch by their names; inputs are left out."""
    nodes = [node for node in graph.nodes.values() if node.op != "input"]
    return Counter(
        getattr(node.attrs["target"], "_opname", "python") if node.op == "torch" else node.op for node in nodes
    )


def activations(graph):
    return [(node.op, node.activation) for node in graph.nodes.values() if node.activation]


class Apply(nn.Module):
    """A function as a module; the modules it uses are given by name."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


# ------------------------------------------------------------------ whole models

AT_ONCE = ("mlp", "lenet-5", "vgg-16", "resnet-8", "vit-micro")  # the others repeat their blocks


@pytest.mark.parametrize(
    "name", [name if name in AT_ONCE else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_every_model_of_the_registry(name):
    shape = (3, 32, 32) if name.startswith(("vgg", "resnet")) else (1, 28, 28)
    model = lively(MODELS[name](shape, 10))
    found = ops(check(model, *shape, batches=(1, 5) if name == "vgg-16" else BATCHES))
    if not name.startswith("vit"):  # not one operation is left to PyTorch, no BatchNorm and no activation by itself
        assert set(found) <= {"conv", "linear", "add", "max_pool", "global_avg_pool", "flatten"}
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert found["conv"] == convolutions
    assert found["add"] == sum(type(module).__name__ == "BasicBlock" for module in model.modules()) or "vit" in name
    if name == "vgg-16":
        assert found == {"conv": 13, "max_pool": 4, "global_avg_pool": 1, "flatten": 1, "linear": 1}
    if name == "vit-micro":
        attention = {"reshape": 9, "transpose": 6, "unsqueeze": 1, "squeeze": 1, "select": 3, "permute": 1}
        assert found["scaled_dot_product_attention"] == 3
        assert found["linear"] == 4 * 3 + 1
        assert found["reshape"] == 3 * attention["reshape"] + 1
        assert found["python"] == found["sym_size"] == 0


def test_bert_with_a_mask_in_and_a_model_output_out():
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    model = BertForSequenceClassification(config).eval()

    def tokens(batch):
        mask = torch.rand(batch, 8) > 0.3
        mask[:, 0] = True
        return {"attention_mask": mask.long(), "input_ids": torch.randint(50, (batch, 8))}

    graph = simplify(trace(model, tokens(1)))
    assert graph.inputs == ("attention_mask", "input_ids")
    for batch in BATCHES:
        agree(model, graph, kwargs=tokens(batch))
    found = ops(graph)
    assert found["linear"] == 6 + 2  # six in the layer, the pooler, the classifier
    assert found["layer_norm"] == 3
    assert isinstance(evaluate(graph, **dict(reversed(tokens(2).items()))), SequenceClassifierOutput)
    assert [node.label for node in graph.nodes.values() if node.activation == "gelu"] == [
        "bert.encoder.layer.0.intermediate.dense"
    ]


def test_vit_of_hugging_face():
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
    )
    model = ViTForImageClassification(config).eval()
    graph = simplify(trace(model, {"pixel_values": torch.randn(1, 3, 16, 16)}))
    for batch in BATCHES:
        agree(model, graph, kwargs={"pixel_values": torch.randn(batch, 3, 16, 16)})
    found = ops(graph)
    assert (found["conv"], found["concat"], found["linear"], found["layer_norm"]) == (1, 1, 7, 3)


@pytest.mark.slow
def test_the_asymmetric_padding_of_mobilenet_goes_into_its_convolutions():
    config = MobileNetV2Config(image_size=16, depth_multiplier=0.1, tf_padding=True, finegrained_output=False)
    model = lively(MobileNetV2ForImageClassification(config))
    graph = simplify(trace(model, {"pixel_values": torch.randn(1, 3, 16, 16)}))
    agree(model, graph, kwargs={"pixel_values": torch.randn(3, 3, 16, 16)})
    assert set(ops(graph)) == {"conv", "add", "global_avg_pool", "flatten", "linear"}
    assert (0, 1, 0, 1) in [node.attrs["padding"] for node in graph.nodes.values() if node.op == "conv"]


def test_dense_connections():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 2 * i) for i in range(3))
            self.convs = nn.ModuleList(nn.Conv2d(4 + 2 * i, 2, 3, padding=1, bias=False) for i in range(3))
            self.last = nn.BatchNorm2d(10)

        def forward(self, x):
            for norm, conv in zip(self.norms, self.convs, strict=True):
                x = torch.cat([x, conv(functional.relu(norm(x)))], 1)
            return functional.relu(self.last(x), inplace=True).mean([-1, -2])

    graph = check(lively(Dense()), 4, 6, 6)
    assert ops(graph) == {"affine": 4, "conv": 3, "concat": 3, "global_avg_pool": 1}
    assert activations(graph) == [("affine", "relu")] * 4
    assert all(node.attrs["axis"] == 1 for node in graph.nodes.values() if node.op in ("affine", "concat"))


# ------------------------------------------------------------------ layers


CONVOLUTIONS = st.builds(
    dict,
    groups=st.sampled_from([1, 2, 4]),
    kernel_size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)) | st.sampled_from(["same", "valid"]),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    bias=st.booleans(),
)


@settings(deadline=None, max_examples=2)
@given(st.lists(CONVOLUTIONS, min_size=6, max_size=6))
def test_convolutions_with_batchnorm_after_and_before(options):
    """Many in one model, each behind a BatchNorm and before another one."""
    for each in options:
        each["stride"] = (1, 1) if each["padding"] == "same" else each["stride"]
    branches = [
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 8, **each), nn.BatchNorm2d(8), nn.Hardswish()) for each in options
    ]
    model = Apply(lambda m, x: [branch(x) for branch in m.branches], branches=nn.ModuleList(branches))
    graph = check(lively(model), 4, 7, 8, batches=(3,))
    convolutions = [graph.nodes[name] for name in graph.outputs]
    assert len(convolutions) == len(options)
    for i, (node, each) in enumerate(zip(convolutions, options, strict=True)):
        assert (node.op, node.activation, node.label) == ("conv", "hardswish", f"branches.{i}.1")
        assert (node.attrs["groups"], node.attrs["stride"]) == (each["groups"], each["stride"])
        assert node.attrs["dilation"] == each["dilation"]
        if not isinstance(each["padding"], str):
            assert node.attrs["padding"] == tuple(np.repeat(each["padding"], 2))
        # A shift cannot go past padding, whose zeros it would not shift.
        assert graph.nodes[node.inputs[0]].op == ("affine" if any(node.attrs["padding"]) else "input")


def test_padding_before_a_convolution_goes_into_it():
    def forward(m, x):
        return (
            m.conv(functional.pad(x, (0, 1, 2, 0))),
            m.padded(nn.ZeroPad2d((1, 0, 0, 2))(x)),
            m.conv(functional.pad(x, (1, 2))),
            m.conv(functional.pad(x, (1, 1, 1, 1), value=1.0)),
            m.conv(functional.pad(x, (1, 1, 1, 1), mode="reflect")),
            m.conv(functional.pad(x, (0, -1, 0, 0))),
            m.conv(y := functional.pad(x, (1, 1))),
            y,
        )

    graph = check(Apply(forward, conv=nn.Conv2d(2, 3, 2), padded=nn.Conv2d(2, 3, 2, padding=1)), 2, 5, 6)
    assert ops(graph) == {"conv": 7, "pad": 4}
    paddings = [graph.nodes[name].attrs["padding"] for name in graph.outputs[:3]]
    assert paddings == [(2, 0, 0, 1), (1, 3, 2, 1), (0, 0, 1, 2)]


def test_folding_keeps_zeros_and_is_done_in_double_precision():
    conv, norm = nn.Conv2d(3, 8, 3, bias=True), nn.BatchNorm2d(8)
    model = lively(nn.Sequential(conv, norm))
    graph = simplify(trace(model, torch.randn(1, 3, 8, 8)))
    (node,) = (node for node in graph.nodes.values() if node.op == "conv")
    zero = conv.weight.detach().numpy() == 0
    assert zero.any()
    np.testing.assert_array_equal(node.weight == 0, zero)
    assert not np.signbit(node.weight[zero]).any()  # though some scales are negative
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    exact = conv.weight.double() * scale[:, None, None, None]
    shift = norm.bias + (conv.bias - norm.running_mean.double()) * scale
    np.testing.assert_array_equal(node.weight, exact.detach().numpy().astype(np.float32))
    np.testing.assert_allclose(node.bias, shift.detach().numpy(), rtol=2e-7)
    assert node.weight.dtype == node.bias.dtype == np.float32
    assert node.weight.flags.c_contiguous


def test_batchnorm_between_linear_layers():
    model = lively(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU6(), nn.BatchNorm1d(5), nn.Linear(5, 3)))
    graph = check(model, 6)
    assert ops(graph) == {"linear": 2}
    assert activations(graph) == [("linear", "relu6")]
    # Over tokens (B, T, F) BatchNorm works on axis 1, which is not the features': there it stays.
    tokens = lively(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(4)))
    graph = check(tokens, 4, 6)
    assert [(node.op, node.attrs.get("axis")) for node in graph.nodes.values()][1:] == [("linear", None), ("affine", 1)]


def test_batchnorm_stays_where_its_input_is_used_twice_or_given_out():
    twice = lively(Apply(lambda m, x: (y := m.conv(x)) + m.norm(y), conv=nn.Conv2d(2, 2, 1), norm=nn.BatchNorm2d(2)))
    assert ops(check(twice, 2, 4, 4)) == {"conv": 1, "affine": 1, "add": 1}
    out = lively(Apply(lambda m, x: (y := m.conv(x), m.norm(y)), conv=nn.Conv2d(2, 2, 1), norm=nn.BatchNorm2d(2)))
    assert ops(check(out, 2, 4, 4)) == {"conv": 1, "affine": 1}


def test_batchnorm_without_statistics_or_weights():
    model = lively(nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4, affine=False)))
    assert ops(check(model, 2, 4, 4)) == {"conv": 1}
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert "conv" in ops(check(model, 2, 4, 4))  # statistics of the batch: PyTorch's


def test_scales_and_normalisation_by_constants_are_folded():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.randn(1, 3, 1, 1))
            self.register_buffer("std", torch.rand(3, 1, 1) + 0.5)
            self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 6)
            self.scale = nn.Parameter(torch.randn(6))

        def forward(self, x):
            x = self.conv((x - self.mean) / self.std).mean((2, 3))
            return 0.5 - self.linear(x) * self.scale / 3 + 1

    assert ops(check(lively(Scaled()), 3, 5, 5)) == {"conv": 1, "global_avg_pool": 1, "linear": 1}


def test_a_scale_that_overflows_is_not_folded():
    model = Apply(lambda m, x: m.linear(x) * 1e30, linear=nn.Linear(3, 3))
    with torch.no_grad():
        model.linear.weight.fill_(1e10)
    assert ops(simplify(trace(model, torch.randn(2, 3)))) == {"linear": 1, "affine": 1}


def test_pools():
    def pools(m, x):
        return (
            functional.max_pool2d(x, 3, 2, 1, ceil_mode=True),
            functional.max_pool2d(x, (2, 3), dilation=2),
            functional.avg_pool2d(x, 2, ceil_mode=True),
            functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
            functional.avg_pool2d(x, 2, divisor_override=3),
            functional.avg_pool2d(x, 8),
            functional.adaptive_avg_pool2d(x, 1),
            functional.adaptive_avg_pool2d(x, (4, 2)),
            functional.adaptive_avg_pool2d(x, 3),
            x.mean((2, 3)),
            x.mean((-1, 2), keepdim=True),
        )

    graph = check(Apply(pools), 3, 8, 8)
    assert ops(graph) == {
        "max_pool": 2,
        "avg_pool": 3,
        "global_avg_pool": 4,
        "avg_pool2d": 1,
        "adaptive_avg_pool2d": 1,
    }


def test_activations_by_module_by_function_and_in_place():
    functions = [
        ("relu", nn.ReLU()),
        ("relu", nn.ReLU(inplace=True)),
        ("relu", lambda x: x.relu_()),
        ("relu", lambda x: x.clamp(min=0)),
        ("relu", lambda x: torch.clamp_min(x, 0)),
        ("relu6", nn.ReLU6(inplace=True)),
        ("relu6", lambda x: functional.hardtanh(x, 0, 6)),
        ("gelu", nn.GELU()),
        ("gelu_tanh", nn.GELU("tanh")),
        ("silu", nn.SiLU(inplace=True)),
        ("silu", functional.silu),
        ("hardswish", nn.Hardswish()),
    ]

    def forward(m, x):
        return [function(m.layer(x)) for _, function in functions]

    graph = check(Apply(forward, layer=nn.Linear(5, 5)), 5)
    assert activations(graph) == [("linear", name) for name, _ in functions]
    assert ops(graph) == {"linear": len(functions)}


def test_an_activation_stays_alone_where_it_cannot_be_fused():
    model = Apply(
        lambda m, x: (functional.relu(x), functional.silu(functional.relu(m.linear(x))), torch.tanh(m.linear(x))),
        linear=nn.Linear(4, 4),
    )
    graph = check(model, 4)
    assert activations(graph) == [("activation", "relu"), ("linear", "relu"), ("activation", "silu")]
    assert ops(graph) == {"linear": 2, "activation": 2, "tanh": 1}


def test_relu_after_a_maximum_pool_and_after_relu():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Dropout2d(), nn.ReLU(), nn.Flatten())
    graph = check(model, 1, 8, 8)
    assert ops(graph) == {"conv": 1, "max_pool": 1, "flatten": 1}
    assert activations(graph) == [("conv", "relu")]
    graph = check(nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.SiLU()), 1, 8, 8)  # not monotone
    assert activations(graph) == [("activation", "silu")]


def test_in_place_changes_are_seen_by_who_sees_them_in_the_model():
    class Tangled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x):
            x.mul_(2)  # the caller's tensor
            y = self.conv(x)
            part = y[:, :2]
            part.relu_()  # changes y
            y += x
            z = functional.relu(self.norm(y), inplace=True)
            z.add_(y)
            view = z.flatten(1)
            z[:, 0] = 1.0
            return view, y

    check(lively(Tangled()), 4, 4, 4)
    graph = trace(Tangled(), x := torch.ones(2, 4, 4, 4))
    assert bool((x == 1).all())  # the example is as it was
    evaluate(graph, x)
    assert bool((x == 1).all())


def test_a_residual_block_with_in_place_relu():
    def forward(m, x):
        x = m.relu(m.norm1(m.conv1(x)))
        y = m.norm2(m.conv2(x))
        y += x
        return m.relu(y)

    model = lively(
        Apply(
            forward,
            conv1=nn.Conv2d(2, 4, 3, padding=1, bias=False),
            norm1=nn.BatchNorm2d(4),
            conv2=nn.Conv2d(4, 4, 3, padding=1, bias=False),
            norm2=nn.BatchNorm2d(4),
            relu=nn.ReLU(inplace=True),
        )
    )
    graph = check(model, 2, 5, 5)
    assert [(node.op, node.label, node.activation) for node in graph.nodes.values()][1:] == [
        ("conv", "conv1", "relu"),
        ("conv", "conv2", None),
        (*("add", list(graph.nodes)[-1]), "relu"),
    ]


def test_reshapes_that_flatten():
    def forward(m, x):
        y = m.pool(x)
        return (
            m.linear(x.flatten(1)),
            x.view(x.size(0), -1),
            x.reshape(-1, 2 * 3 * 3),
            x.reshape(x.shape[0], 2, 9).flatten(1),
            y.squeeze(-1).squeeze(-1),
            y[:, :, 0, 0],
            x.transpose(1, 2).reshape(x.size(0), -1),
        )

    graph = check(Apply(forward, pool=nn.AdaptiveAvgPool2d(1), linear=nn.Linear(18, 2)), 2, 3, 3)
    assert ops(graph) == {"flatten": 6, "linear": 1, "global_avg_pool": 1, "select": 2, "transpose": 1}


def test_sizes_taken_from_the_batch_follow_it():
    def forward(m, x):
        n, t, f = x.shape
        ones = x.new_ones(n, 1, f)
        y = torch.cat([ones, x, m.token.expand(n, -1, -1)], 1)
        y = y.reshape(n * (t + 2), f)
        rows = torch.arange(n * 2).reshape(n, 2).float()
        return y.reshape(n, t + 2, 2, f // 2).transpose(1, 2) / n, y, rows, n

    model = Apply(forward, token=nn.Parameter(torch.randn(1, 1, 4)))
    graph = check(model, 3, 4)
    assert ops(graph)["sym_size"] == 1
    axes = {node.attrs["target"]: node.batch_axis for node in graph.nodes.values() if node.op == "torch"}
    assert axes[torch.ops.aten.transpose.int] == 0


def test_where_the_batch_is():
    model = Apply(lambda m, x: m.attention(x, x, x, need_weights=False)[0], attention=nn.MultiheadAttention(4, 2))
    graph = trace(Apply(lambda m, x: m.inner(x.transpose(0, 1)), inner=model), torch.randn(1, 3, 4))
    nodes = [node for node in graph.nodes.values() if node.op in ("input", "linear")]
    assert [(node.batch_axis, node.shape) for node in nodes] == [
        (0, (1, 3, 4)),
        (1, (3, 1, 12)),  # tokens come first
        (None, (3, 4)),  # tokens and batch in one axis
    ]


def test_modules_called_twice_and_shared_weights():
    shared = nn.Linear(4, 4)
    other = nn.Linear(4, 4, bias=False)
    other.weight = shared.weight
    model = Apply(lambda m, x: m.other(m.shared(m.shared(x).relu()).relu()), shared=shared, other=other)
    graph = check(model, 4)
    assert ops(graph) == {"linear": 3}
    linears = [node for node in graph.nodes.values() if node.op == "linear"]
    assert [node.label for node in linears] == ["shared", "shared", "other"]
    assert all(np.shares_memory(linears[0].weight, node.weight) for node in linears)


def test_weights_computed_from_parameters_are_constants():
    linear = parametrizations.weight_norm(nn.Linear(6, 4))
    conv = prune.l1_unstructured(nn.Conv2d(1, 2, 3), "weight", 0.5)
    model = Apply(lambda m, x: m.linear(m.conv(x).flatten(1) @ m.matrix), linear=linear, conv=conv)
    model.matrix = nn.Parameter(torch.randn(8, 6))
    graph = check(model, 1, 4, 4)
    assert ops(graph) == {"conv": 1, "flatten": 1, "linear": 2}
    (node,) = (node for node in graph.nodes.values() if node.op == "conv")
    assert np.count_nonzero(node.weight) == 9


def test_dropout_identity_and_copies_leave_no_node():
    model = nn.Sequential(
        nn.Identity(),
        nn.Linear(4, 4),
        nn.Dropout(),
        nn.AlphaDropout(),
        Apply(lambda m, x: x.contiguous().clone().float().to(torch.float32).detach().view(x.shape)[:, :].expand(-1, 4)),
        nn.ReLU(),
    )
    graph = check(model, 4)
    assert ops(graph) == {"linear": 1}
    assert activations(graph) == [("linear", "relu")]


def test_layer_norm_and_softmax():
    model = nn.Sequential(
        nn.LayerNorm(4), nn.LayerNorm(4, elementwise_affine=False), nn.LayerNorm((3, 4)), nn.Softmax(1)
    )
    graph = check(model, 3, 4)
    assert ops(graph) == {"layer_norm": 3, "softmax": 1}


def test_addition_of_other_shapes_is_left_to_pytorch():
    model = Apply(
        lambda m, x: (x + x.mean(1, keepdim=True), x * x, x + x, x.add(x, alpha=2), x * x.mean((2, 3), keepdim=True))
    )
    assert ops(check(model, 3, 4, 4)) == {"add": 3, "mul": 2, "mean": 1, "global_avg_pool": 1}


def test_the_encoder_of_torch_keeps_its_layers():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.TransformerEncoder(layer, 2).eval()
    found = ops(check(model, 5, 8))
    assert (found["linear"], found["layer_norm"], found["scaled_dot_product_attention"]) == (8, 4, 2)


def test_recurrent_networks_run_by_pytorch():
    model = Apply(
        lambda m, x: m.linear(m.lstm(x)[0][:, -1]), lstm=nn.LSTM(3, 5, batch_first=True), linear=nn.Linear(5, 2)
    )
    assert ops(check(model, 4, 3))["linear"] >= 1


# ------------------------------------------------------------------ calls


def test_the_output_has_the_structure_of_the_models():
    def forward(m, x, scale=1.0, *, other=None):
        return {"a": x * scale, "b": (m.linear(x), [None, 3, x.shape[0]]), "c": m.linear.weight, "d": other}

    model = Apply(forward, linear=nn.Linear(3, 2))
    other = torch.randn(7)
    graph = simplify(trace(model, {"x": torch.randn(1, 3), "other": other, "scale": 2.0}))
    for batch in BATCHES:
        agree(model, graph, kwargs={"x": torch.randn(batch, 3), "scale": 2.0, "other": other})
    with pytest.raises(InputError, match=r"3\.0 where the example had 2\.0"):
        evaluate(graph, x=torch.randn(2, 3), scale=3.0, other=other)


def test_several_inputs():
    model = Apply(lambda m, x, y, z: (x + y[0] * y[1].mean(1, keepdim=True)) @ z)
    graph = trace(model, (torch.randn(1, 4), [torch.randn(1, 4), torch.randn(1, 2)], torch.randn(4, 3)))
    for batch in BATCHES:
        agree(model, graph, (torch.randn(batch, 4), [torch.randn(batch, 4), torch.randn(batch, 2)], torch.randn(4, 3)))
    with pytest.raises(InputError, match="different batch sizes: 2, 3"):
        evaluate(graph, torch.randn(2, 4), [torch.randn(3, 4), torch.randn(2, 2)], torch.randn(4, 3))
    with pytest.raises(InputError, match=r"called with \(·, ·, ·\), but the example was \(·, \[·, ·\], ·\)"):
        evaluate(graph, *torch.randn(3, 2, 4))


def test_a_call_that_does_not_fit():
    graph = trace(nn.Linear(4, 2), torch.randn(1, 4))
    with pytest.raises(InputError, match=r"input has shape \(3, 5\), expected \(batch, 4\)"):
        evaluate(graph, torch.randn(3, 5))
    with pytest.raises(InputError, match=r"input is of torch\.int64, the example's was of torch\.float32"):
        evaluate(graph, torch.ones(3, 4, dtype=torch.long))
    with pytest.raises(InputError, match="input is of type ndarray"):
        evaluate(graph, np.zeros((3, 4), np.float32))
    with pytest.raises(InputError, match="called with"):
        evaluate(graph, input=torch.randn(3, 4))


def test_a_batch_size_that_is_a_constant_of_the_model():
    model = Apply(lambda m, x: x.reshape(2, 12) @ m.matrix, matrix=nn.Parameter(torch.randn(12, 2)))
    graph = trace(model, torch.randn(4, 6))
    assert graph.static_batch
    agree(model, graph, (torch.randn(4, 6),))
    with pytest.raises(InputError, match=r"expected \(4, 6\)"):
        evaluate(graph, torch.randn(8, 6))
    assert all(node.batch_axis == 0 for node in graph.nodes.values())


def test_branches_on_the_batch_size():
    limited = Apply(lambda m, x: x + 1 if x.shape[0] > 3 else x)
    graph = trace(limited, torch.zeros(8, 2))
    assert graph.batch_range == (4, None)
    agree(limited, graph, (torch.zeros(5, 2),))
    with pytest.raises(InputError, match=r"a batch of 3: .* for 4 or more"):
        evaluate(graph, torch.zeros(3, 2))
    assert trace(limited, torch.zeros(2, 2)).batch_range == (1, 3)

    alone = Apply(lambda m, x: x + 1 if x.shape[0] > 1 else x)
    assert trace(alone, torch.zeros(4, 2)).batch_range == (2, None)
    graph = trace(alone, torch.zeros(1, 2))
    assert graph.static_batch
    agree(alone, graph, (torch.zeros(1, 2),))

    even = Apply(lambda m, x: x + 1 if x.shape[0] % 2 == 0 else x)
    for batch in (2, 3):
        graph = trace(even, torch.zeros(batch, 2))
        assert graph.static_batch
        agree(even, graph, (torch.zeros(batch, 2),))


# ------------------------------------------------------------------ what is left as it was, and errors


def test_the_model_is_left_as_it_was_and_its_weights_are_copied():
    model = MODELS["resnet-8"]((3, 8, 8), 4).train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = trace(model, x)
    assert model.training
    assert model[3].training
    assert not model[1].training
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    wanted = evaluate(graph, x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(evaluate(graph, x), wanted)


def test_simplify_leaves_its_argument_as_it_was_and_has_no_more_to_do():
    model = lively(MODELS["resnet-8"]((3, 8, 8), 4))
    graph = trace(model, torch.randn(1, 3, 8, 8))
    shown, x = str(graph), torch.randn(2, 3, 8, 8)
    wanted = evaluate(graph, x)
    simple = simplify(graph)
    assert str(graph) == shown
    assert torch.equal(evaluate(graph, x), wanted)
    assert str(simplify(simple)) == str(simple)


def test_nodes_run_one_by_one_and_say_what_they_give():
    model = lively(MODELS["resnet-8"]((3, 8, 8), 4))
    graph = simplify(trace(model, x := torch.randn(3, 3, 8, 8)))
    values = {}
    for node, value in walk(graph, [x]):
        if node.op != "input":
            assert torch.equal(bind(node)(values), value)
        assert (node.shape, node.dtype, node.batch_axis) == (tuple(value.shape), value.dtype, 0)
        assert all(name in values for name in node.inputs)
        values[node.name] = value


def test_nodes_for_pytorch_say_what_they_give():
    def forward(m, x):
        top, places = torch.topk(x, 2)
        return top.transpose(0, 1), places, x.exp(), x.shape[0] * 2

    graph = trace(Apply(forward), torch.randn(3, 4))
    got = {str(node.attrs["target"]): node.attrs for node in graph.nodes.values() if node.op == "torch"}
    assert got["aten.topk.default"]["returns"] == "other"
    assert got["aten.transpose.int"]["returns"] == "tensor"
    assert got["aten.transpose.int"]["alias"]
    assert not got["aten.exp.default"]["alias"]
    assert got["aten.sym_size.int"]["returns"] == "scalar"


def test_it_prints_as_a_table():
    text = str(simplify(trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(1, 4))))
    assert text.splitlines()[-1].split() == ["linear", "0", "linear", "relu", "1×3", "12", "12"]


def test_unusable_weights_and_examples():
    x = torch.randn(1, 4)
    with pytest.raises(InputError, match=r"'weight' is of torch\.float64, expected torch\.float32: call model\.float"):
        trace(nn.Linear(4, 2).double(), x)
    with pytest.raises(InputError, match=r"the example is of torch\.float16"):
        trace(nn.Linear(4, 2), x.half())
    with pytest.raises(InputError, match=r"'weight' is on meta"):
        trace(nn.Linear(4, 2, device="meta"), x)
    with pytest.raises(InputError, match="'weight' has no shape yet"):
        trace(nn.LazyLinear(2), x)
    with pytest.raises(InputError, match="no tensor"):
        trace(nn.Linear(4, 2), {})
    for value in (torch.nan, torch.inf):
        broken = nn.Sequential(nn.Linear(4, 2))
        with torch.no_grad():
            broken[0].weight[1, 1] = value
        with pytest.raises(InputError, match=r"'0\.weight' has entries that are NaN or infinite"):
            trace(broken, x)
    masked = Apply(lambda m, x: x + m.mask)
    masked.register_buffer("mask", torch.tensor([0, 0, -torch.inf, 0]))
    agree(masked, trace(masked, x), (x,))
    masked.mask[0] = torch.nan
    with pytest.raises(InputError, match="'mask' has entries that are NaN"):
        trace(masked, x)
    norm = nn.BatchNorm1d(4)
    norm.running_var.fill_(-1)
    with pytest.raises(InputError, match="smallest running_var is -1"):
        trace(nn.Sequential(norm), x)


def test_models_that_cannot_be_traced():
    with pytest.raises(InputError, match=r"Linear cannot run on an example of shape \(1, 5\): RuntimeError: mat1"):
        trace(nn.Linear(4, 2), torch.randn(1, 5))
    with pytest.raises(InputError, match=r"Apply cannot be traced: .*`if x\.sum\(\) > 0`") as caught:
        trace(Apply(lambda m, x: x + 1 if x.sum() > 0 else x), torch.randn(1, 5))
    assert "\n" not in str(caught.value)
    counter = Apply(lambda m, x: x + m.count.add_(1))
    counter.register_buffer("count", torch.zeros(()))
    with pytest.raises(InputError, match="changes its tensor 'count' as it runs"):
        trace(counter, torch.randn(1, 5))


def test_nothing_is_printed_or_warned_of(capfd):
    with pytest.raises(InputError):
        trace(Apply(lambda m, x: x + 1 if x.sum() > 0 else x), torch.randn(1, 5))
    assert isinstance(trace(nn.Linear(2, 2), torch.randn(1, 2)), Graph)
    assert capfd.readouterr() == ("", "")

import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

from shrinkage import data
from shrinkage.core.errors import InputError
from shrinkage.core.footprint import footprint, sparse_bytes
from shrinkage.models import MODELS, build


def thin(model, share=0.7, seed=0):
    """Zero a share of every parameter; gives the model back."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[torch.rand(parameter.shape, generator=generator) < share] = 0
    return model


def macs(model, example):
    total = footprint(model, example).total
    return total.macs, total.effective_macs


def used(weight):
    """1 where the weight is not zero."""
    return (weight != 0).double()


# ------------------------------------------------------------------ layers, by hand and by brute force


def test_a_small_network_by_hand():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model[0].weight[0] = 0  # 18 of 54 weights
        model[3].weight[:, :4] = 0  # 20 of 60
        model[3].bias[0] = 0
    result = footprint(model, torch.zeros(2, 2, 4, 4))
    conv, linear = result.layers
    assert (conv.name, conv.kind, linear.name, linear.kind) == ("0", "Conv2d", "3", "Linear")
    assert (conv.parameters, conv.nonzeros) == (54 + 3, 36 + 3)
    assert (linear.parameters, linear.nonzeros) == (60 + 5, 40 + 4)
    assert (conv.macs, conv.effective_macs) == (2 * 4 * 54, 2 * 4 * 36)
    assert (linear.macs, linear.effective_macs) == (2 * 60, 2 * 40)
    assert conv.sparsity == pytest.approx(18 / 57)
    assert conv.energy_uj == pytest.approx(2 * 4 * 36 * 4.6e-6)
    assert conv.dense_energy_uj == pytest.approx(2 * 4 * 54 * 4.6e-6)
    assert conv.dense_bytes == 57 * 4
    # The weight: a mask of ⌈54/8⌉ bytes and 36 values; the bias: dense, three values.
    assert conv.sparse_bytes == (7 + 36 * 4) + 12
    # The bias: a mask of one byte and four values cost less than nothing but the five values.
    assert linear.sparse_bytes == (8 + 40 * 4) + min(20, 1 + 16)
    total = result.total
    assert (total.parameters, total.nonzeros, total.macs) == (122, 83, 432 + 120)
    assert total.sparse_bytes == conv.sparse_bytes + linear.sparse_bytes
    assert total.counted
    assert result.not_counted == ()


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"padding": 1}, {"dilation": 2}, {"groups": 2}, {"padding": 2, "stride": 3}],
    ids=str,
)
def test_a_convolution_does_what_ones_convolved_with_its_mask_sum_to(dimensions, options):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    model = thin(kind(4, 6, 3, **options))
    x = torch.zeros(2, 4, *(7, 8, 9)[:dimensions])
    padded = functional.pad(x.double(), (model.padding[0],) * 2 * dimensions) + 1
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[dimensions - 1]

    def count(weight):
        return convolve(padded, weight, None, model.stride, 0, model.dilation, model.groups).sum().item()

    assert macs(model, x) == (count(torch.ones_like(model.weight).double()), count(used(model.weight)))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 2}, {"dilation": 2}], ids=str)
def test_a_transposed_convolution_likewise(dimensions, options):
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dimensions - 1]
    model = thin(kind(4, 6, 3, **options))
    x = torch.zeros(2, 4, *(3, 4, 5)[:dimensions])
    ones = copy.deepcopy(model).double()
    nn.init.zeros_(ones.bias)

    def count(weight):
        ones.weight.data = weight
        return ones(torch.ones_like(x).double()).sum().item()

    expected = count(torch.ones_like(model.weight).double()), count(used(model.weight))
    assert macs(model, x) == expected


def test_a_linear_layer_on_more_than_two_dimensions():
    model = thin(nn.Linear(6, 5))
    x = torch.ones(2, 3, 6)
    effective = functional.linear(x.double(), used(model.weight)).sum().item()
    assert macs(model, x) == (2 * 3 * 30, effective)


RECURRENT = pytest.mark.parametrize(
    ("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)], ids=["RNN", "GRU", "LSTM"]
)


@RECURRENT
def test_a_recurrent_layer_uses_each_matrix_once_a_step(kind, gates):
    model = thin(kind(5, 4, num_layers=2, bidirectional=True, batch_first=True))
    weights = [p for name, p in model.named_parameters() if name.startswith("weight")]
    dense = 2 * gates * 4 * (5 + 4) + 2 * gates * 4 * (8 + 4)  # both directions of both layers
    nonzero = sum(int(weight.count_nonzero()) for weight in weights)
    assert macs(model, torch.zeros(3, 7, 5)) == (21 * dense, 21 * nonzero)
    assert macs(model, torch.zeros(7, 5)) == (7 * dense, 7 * nonzero)
    packed = pack_padded_sequence(torch.zeros(3, 7, 5), [7, 4, 2], batch_first=True)
    assert macs(model, packed) == (13 * dense, 13 * nonzero)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_an_lstm_with_a_projection():
    model = nn.LSTM(5, 4, proj_size=2)
    assert macs(model, torch.zeros(7, 3, 5))[0] == 21 * (16 * 5 + 16 * 2 + 2 * 4)


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNNCell, 1), (nn.GRUCell, 3), (nn.LSTMCell, 4)])
def test_a_recurrent_cell(kind, gates):
    model = thin(kind(5, 4))
    nonzero = int(model.weight_ih.count_nonzero() + model.weight_hh.count_nonzero())
    assert macs(model, torch.zeros(3, 5)) == (3 * gates * 4 * 9, 3 * nonzero)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 10}, {"add_bias_kv": True, "add_zero_attn": True}])
def test_attention_by_hand(options, batched, batch_first):
    model = thin(nn.MultiheadAttention(8, 2, batch_first=batch_first, **options))
    batch, queries, keys, k, v = 3, 5, 7, options.get("kdim", 8), options.get("vdim", 8)

    def tokens(length, size):
        if not batched:
            return torch.zeros(length, size)
        return torch.zeros(batch, length, size) if batch_first else torch.zeros(length, batch, size)

    times = batch if batched else 1
    if options.get("kdim"):
        q_weight, k_weight, v_weight = model.q_proj_weight, model.k_proj_weight, model.v_proj_weight
    else:
        q_weight, k_weight, v_weight = model.in_proj_weight.chunk(3)
    extra = 2 if "add_bias_kv" in options else 0
    products = times * 2 * queries * (keys + extra) * 8
    out = model.out_proj.weight

    def projected(count):
        return times * (queries * (count(q_weight) + count(out)) + keys * (count(k_weight) + count(v_weight)))

    expected = tuple(products + projected(count) for count in (torch.numel, lambda w: int(torch.count_nonzero(w))))
    assert projected(torch.numel) == times * (queries * 2 * 64 + keys * 8 * (k + v))
    args = tokens(queries, 8), tokens(keys, k), tokens(keys, v)
    assert macs(model, args) == expected
    assert macs(model, dict(zip(("query", "key", "value"), args, strict=True))) == expected
    layers = {layer.name: layer for layer in footprint(model, args).layers}
    assert layers["out_proj"].macs == times * queries * 64
    assert all(layer.counted for layer in layers.values())


@pytest.mark.parametrize(
    ("model", "shape", "weights"),
    [
        (nn.BatchNorm1d(4), (3, 4, 5), 4),
        (nn.BatchNorm2d(4), (3, 4, 5, 6), 4),
        (nn.InstanceNorm2d(4, affine=True), (3, 4, 5, 6), 4),
        (nn.GroupNorm(2, 4), (3, 4, 5), 4),
        (nn.LayerNorm((4, 5)), (3, 4, 5), 20),
        (nn.RMSNorm(5), (3, 4, 5), 5),
        (nn.PReLU(4), (3, 4, 5), 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_norm_scales_each_element_once(model, shape, weights):
    with torch.no_grad():
        model.weight.fill_(1)
        model.weight.view(-1)[0] = 0
    elements = math.prod(shape)
    assert macs(model, torch.zeros(shape)) == (elements, elements - elements // weights)


def test_norms_without_a_scale_and_look_ups_multiply_nothing():
    model = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4, elementwise_affine=False))
    result = footprint(model, torch.tensor([[1, 2]]))
    assert [(layer.kind, layer.macs, layer.counted) for layer in result.layers] == [("Embedding", 0, True)]


def test_hugging_faces_conv1d_is_a_linear_layer():
    class Conv1D(nn.Module):
        def __init__(self, nf, nx):
            super().__init__()
            self.nf = nf
            self.weight = nn.Parameter(torch.ones(nx, nf))
            self.bias = nn.Parameter(torch.zeros(nf))

        def forward(self, x):
            return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)

    model = thin(Conv1D(6, 4))
    nonzero = int(model.weight.count_nonzero())
    assert macs(model, torch.zeros(2, 3, 4)) == (6 * 24, 6 * nonzero)


# ------------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("name", MODELS)
def test_our_models_agree_with_pytorchs_own_counter(name):
    class Task:
        input_shape = (3, 32, 32)
        num_classes = 10

    model = build(name, Task).eval()
    x = torch.zeros(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(x)
    result = footprint(model, x)
    assert result.not_counted == ()
    norms = sum(layer.macs for layer in result.layers if "Norm" in layer.kind)
    assert result.total.macs - norms == counter.get_total_flops() // 2
    assert result.total.parameters == sum(p.numel() for p in model.parameters())
    attention = sum(
        2 * len(model.position) ** 2 * layer.embed_dim
        for layer in model.modules()
        if isinstance(layer, nn.MultiheadAttention)
    )
    assert footprint(thin(model, 1.0), x).total.effective_macs == attention  # what has no weights remains


def test_lenet_300_100_at_95_percent():
    model = build("lenet-300-100", data.Data("", None, None, None, 10, (1, 28, 28), None))
    result = footprint(model, torch.zeros(1, 1, 28, 28))
    assert (result.total.parameters, result.total.macs) == (266_610, 266_200)
    assert result.total.dense_bytes == 4 * 266_610
    assert result.total.effective_macs == 266_200


def test_hugging_face_gpt2_is_counted_whole():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=12, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0
    )
    model = thin(transformers.GPT2LMHeadModel(config))
    tokens = torch.randint(50, (2, 6), generator=torch.Generator().manual_seed(0))
    result = footprint(model, {"input_ids": tokens})
    assert result.not_counted == ()
    linear = 2 * (12 * 36 + 12 * 12 + 12 * 48 + 48 * 12) + 12 * 50
    attention = 2 * 2 * 2 * 6 * 6 * 12  # layers · (QK and AV) · batch · tokens² · width
    norms = 5 * 2 * 6 * 12
    assert result.total.macs == 12 * linear + attention + norms
    assert 0 < result.total.effective_macs < result.total.macs
    assert result.total.parameters == sum(p.numel() for p in model.parameters())  # the tied head counts once
    layers = {layer.name: layer for layer in result.layers}
    assert (layers["lm_head"].parameters, layers["lm_head"].macs) == (0, 12 * 12 * 50)


def test_a_transformer_encoder_is_counted_although_pytorch_has_a_fast_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    tokens = 3 * 5
    one = tokens * (4 * 64 + 2 * 8 * 16) + 2 * tokens * 5 * 8 + 2 * tokens * 8
    assert macs(model, torch.zeros(3, 5, 8))[0] == 2 * one
    padding = torch.tensor([[False] * 3 + [True] * 2] * 3)  # by the fast path a nested tensor
    assert macs(model, {"src": torch.zeros(3, 5, 8), "src_key_padding_mask": padding})[0] == 2 * one
    assert torch.backends.mha.get_fastpath_enabled()


# ------------------------------------------------------------------------- sharing, inputs, honesty


def test_a_shared_module_is_counted_once_and_its_calls_each():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer, layer)
    result = footprint(model, torch.zeros(1, 4))
    assert [(row.name, row.parameters, row.macs) for row in result.layers] == [("0", 20, 48)]


def test_a_shared_parameter_is_counted_once_and_its_products_each():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    result = footprint(model, torch.zeros(1, 4))
    assert [(row.parameters, row.sparse_bytes, row.macs) for row in result.layers] == [(16, 64, 16), (0, 0, 16)]


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, a, *, b):
        return self.linear(a) * self.gain + b


def test_what_has_no_formula_is_named_and_never_silently_nothing():
    result = footprint(Custom(), {"a": torch.zeros(1, 4), "b": torch.zeros(4)})
    assert result.not_counted == ("",)
    assert not result.total.counted
    assert [(x.name, x.parameters, x.counted) for x in result.layers] == [("", 4, False), ("linear", 20, True)]
    assert "MACs not counted, for want of a formula (see register_cost) or a call: (model) (Custom)" in str(result)
    assert result.to_dict()["macs_not_counted"] == [""]


def test_a_layer_that_is_never_called_is_named():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    assert footprint(Unused(), torch.zeros(1, 2)).not_counted == ("spare",)


def test_products_by_functions_count_for_the_module_that_computes_them():
    class Attention(nn.Module):
        def forward(self, q, k):
            return functional.scaled_dot_product_attention(q, k, k)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.zeros(4, 4))
            self.inner = Attention()

        def forward(self, x):
            y = functional.linear(x, self.matrix)
            return self.inner(y, x)

    result = footprint(Outer(), torch.zeros(1, 2, 5, 4))
    assert [(x.name, x.macs, x.effective_macs) for x in result.layers] == [
        ("", 10 * 16, 10 * 16),
        ("inner", 2 * 2 * 25 * 4, 2 * 2 * 25 * 4),
    ]
    assert result.not_counted == ()


def test_a_module_that_fails_and_is_caught_does_not_disturb_the_count():
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError

    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.fails, self.linear = Fails(), nn.Linear(2, 3)

        def forward(self, x):
            try:
                self.fails(x)
            except ValueError:
                return self.linear(x @ x.T)

    result = footprint(Tries(), torch.ones(2, 2))
    assert [(layer.name, layer.macs) for layer in result.layers] == [("", 8), ("linear", 12)]


@pytest.mark.parametrize("form", [tuple, list])
def test_several_inputs(form):
    result = footprint(nn.Bilinear(2, 3, 4), form([torch.zeros(5, 2), torch.zeros(5, 3)]))
    assert result.example == ((5, 2), (5, 3))
    assert "on an input of (5, 2), (5, 3)" in str(result)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()

    class Random(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    footprint(nn.Sequential(Random(), model), torch.ones(3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_a_model_that_cannot_run_on_the_example_is_an_error_and_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(InputError, match=r"Sequential cannot run on an example of shape \(1, 5\): RuntimeError"):
        footprint(model, torch.zeros(1, 5))
    with pytest.raises(InputError, match="cannot run on an example of str"):
        footprint(model, "text")
    assert model.training
    assert not model[0]._forward_hooks


def test_a_lazy_layer_has_no_shape_yet():
    with pytest.raises(InputError, match=r"'weight' has no shape yet: run the model on one batch first"):
        footprint(nn.LazyLinear(3), torch.zeros(1, 4))


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_wrappers_are_looked_through():
    model = nn.Sequential(nn.Linear(4, 3))
    x = torch.zeros(1, 4)
    assert footprint(torch.compile(model), x) == footprint(nn.DataParallel(model), x) == footprint(model, x)


def test_a_weight_under_pytorchs_prune_counts_as_it_acts():
    model = nn.Linear(4, 4, bias=False)
    prune.l1_unstructured(model, "weight", 12)
    assert macs(model, torch.zeros(1, 4)) == (16, 4)


def test_exports():
    model = thin(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    result = footprint(model, torch.zeros(1, 4))
    exported = json.loads(json.dumps(result.to_dict()))
    assert exported == result.to_dict()
    assert exported["total"]["parameters"] == 15
    assert exported["layers"][0]["sparsity"] == result.layers[0].sparsity
    assert exported["example"] == [[1, 4]]
    lines = str(result).splitlines()
    assert lines[0] == "Sequential on an input of (1, 4)"
    assert lines[-1].startswith("total  Sequential          15")


def test_a_model_without_parameters():
    result = footprint(nn.ReLU(), torch.zeros(1))
    assert result.layers == ()
    assert (result.total.parameters, result.total.sparsity, result.total.macs) == (0, 0.0, 0)


# ---------------------------------------------------------------------------------------------- bytes


def slow_bytes(values, bits):
    """Write the deltas down one after the other and count."""
    while values and values[-1] == 0:  # zeros at the end need no entry
        values = values[:-1]
    entries, run = 0, 0
    for value in values:
        run += 1
        if value != 0 or run == 2**bits:  # the longest run a delta can say ends in an entry of value zero
            entries, run = entries + 1, 0
    return entries * (bits // 8 + 4)


GAPS = st.integers(0, 1500) | st.integers(8, 40) | st.sampled_from([254, 255, 256, 257, 511, 512])


@given(st.lists(GAPS, max_size=6), st.integers(0, 3))
def test_the_sparse_form_is_the_smallest_of_the_three(gaps, tail):
    values = [x for gap in gaps for x in [0] * gap + [1]] + [0] * tail
    n, z = len(values), len(gaps)
    expected = min(4 * n, -(-n // 8) + 4 * z, slow_bytes(values, 8), slow_bytes(values, 16))
    assert sparse_bytes(torch.tensor(values, dtype=torch.float32)) == expected


def test_each_form_is_the_smallest_somewhere():
    dense, masked, short, long = torch.ones(64), torch.ones(64), torch.zeros(6400), torch.zeros(640_000)
    masked[::2] = 0
    short[::64] = 1
    long[6399::6400] = 1
    assert sparse_bytes(dense) == 64 * 4
    assert sparse_bytes(masked) == 8 + 32 * 4
    assert sparse_bytes(short) == 100 * 5
    assert sparse_bytes(long) == 100 * 6
    assert sparse_bytes(torch.zeros(0)) == 0
    assert sparse_bytes(torch.zeros(5, 5)) == 0
    assert sparse_bytes(torch.tensor(3.0)) == 4
    assert sparse_bytes(torch.full((2,), math.nan)) == 8


def test_a_layer_that_computes_more_than_its_base_is_counted_whole():
    class Adapted(nn.Linear):
        def __init__(self):
            super().__init__(100, 100)
            self.down, self.up = nn.Parameter(torch.ones(5, 100)), nn.Parameter(torch.ones(100, 5))

        def forward(self, x):
            return super().forward(x) + x @ self.down.T @ self.up.T

    class Named(nn.Linear):
        """Nothing but a name of its own."""

    x = torch.zeros(1, 100)
    assert footprint(Adapted(), x).total.macs == 10_000 + 1_000
    assert footprint(Named(100, 100), x).total.macs == 10_000

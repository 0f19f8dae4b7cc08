"""Packed layers against ordinary ones."""

import copy

import pytest
import torch
from torch import nn

import shrinkage
from discrete_nets import cnn, examples, layers, mlp, trainer
from shrinkage.core.errors import InputError
from shrinkage.core.footprint import footprint
from shrinkage.discrete.packed import PackedConv2d, PackedLayer, PackedLinear, packed, unpacked
from shrinkage.discrete.values import value_set

SETS = [(-1, 1), (-1, 0, 1), (0, 1), (-3, -1, 0, 1, 3), tuple(range(-8, 8)), tuple(range(-50, 50))]


def pack(net, values=(-1, 0, 1), biases=True):
    method = trainer(net, values, biases=biases)
    return packed(net, method.settings.values, method.scales, biases)


@pytest.mark.parametrize("values", SETS, ids=len)
@pytest.mark.parametrize("build", [mlp, cnn])
@pytest.mark.parametrize("biases", [True, False])
def test_a_packed_network_computes_the_same(build, values, biases):
    net = build()
    small = pack(net, values, biases)
    x, _ = examples(net, 7)
    assert torch.allclose(small.eval()(x), net.eval()(x), atol=1e-9)
    back = unpacked(small)
    assert [type(module) for module in back.modules()] == [type(module) for module in net.modules()]
    for name, tensor in net.state_dict().items():
        assert torch.allclose(back.state_dict()[name], tensor, atol=1e-12)


def test_large_batches_are_done_in_parts(monkeypatch):
    net = mlp()
    small = pack(net)
    x, _ = examples(net, 100)
    whole = small(x)
    monkeypatch.setattr("shrinkage.discrete.packed._ENTRIES", 2000)
    monkeypatch.setattr("shrinkage.discrete.packed._ROWS", 3)
    assert torch.allclose(small(x), whole, atol=1e-12)
    assert small(x.view(4, 25, 5)).shape == (4, 25, 3)


def test_weights_take_two_bits():
    net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))
    small = pack(net)
    assert small[0].codes.nbytes == 784 * 300 * 2 // 8
    parts = [module for module in small.modules() if isinstance(module, PackedLayer)]
    found = footprint(small, torch.randn(1, 784)).total
    assert len(parts) == 2
    assert found.sparse_bytes == sum(buffer.nbytes for buffer in small.buffers())
    assert (found.parameters, found.bits) == (sum(weight.numel() for weight in net.parameters()), 2)
    assert found.nonzeros == sum(int(weight.count_nonzero()) for weight in net.parameters())
    assert 15.5 < found.dense_bytes / found.sparse_bytes < 16


def test_ternary_layers_add_only():
    net = cnn()
    small = pack(net)
    x, _ = examples(net, 1)
    found = footprint(small, x)
    ours = [layer for layer in found.layers if layer.kind.startswith("Packed")]
    whole = [layer for layer in footprint(net, x).layers if layer.kind in ("Linear", "Conv2d")]
    assert [layer.nonzeros for layer in ours] == [layer.nonzeros for layer in whole]
    assert [layer.parameters for layer in ours] == [layer.parameters for layer in whole]
    assert [layer.additions for layer in ours] == [layer.effective_macs for layer in whole]
    assert [layer.bits for layer in ours] == [2] * 4
    # What is multiplied is each output, once, by the layer's scale.
    assert [layer.macs for layer in ours] == [3 * 16, 4 * 4, 6, 3]
    assert found.not_counted == ()
    assert found.total.additions == sum(layer.effective_macs for layer in whole)
    first = ours[0]
    assert first.energy_uj == pytest.approx((first.macs * 4.6 + first.additions * 0.9) * 1e-6)
    assert first.energy_uj < whole[0].energy_uj
    header, row = (str(found).splitlines()[place].split() for place in (1, 3))
    assert (header[-5:], header[-7:-5]) == (["effective", "MACs", "additions", "energy", "µJ"], ["bits", "MACs"])
    assert row[-3].replace(",", "") == str(first.macs)
    assert row[-2].replace(",", "") == str(first.additions)
    assert "additions" not in str(footprint(net, x))
    assert found.to_dict()["layers"][0]["bits"] == 2


def test_other_sets_multiply():
    net = mlp()
    small = pack(net, (-2, 0, 2))
    x, _ = examples(net, 1)
    found = [layer for layer in footprint(small, x).layers if layer.kind.startswith("Packed")]
    for layer, plain in zip(found, layers(net), strict=True):
        count = int(plain.weight.count_nonzero())
        assert (layer.additions, layer.macs) == (0, count + plain.out_features)


def test_ternary_products_need_no_multiplication():
    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        found: list[str] = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.found.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    layer = nn.Linear(10, 6, bias=False)
    small = pack(layer)
    x = torch.randn(3, 10)
    with Count() as count:
        small(x)
    assert not {"mm", "addmm", "bmm", "dot", "matmul"} & set(count.found)
    assert count.found.count("mul") == 1  # by the scale


def test_the_packed_form_is_saved_and_loaded_packed(tmp_path):
    net = mlp(torch.float32)
    small = pack(net)
    path = tmp_path / "small.safetensors"
    contents = shrinkage.save(small, path)
    assert {tensor.dtype for tensor in contents.tensors if tensor.name.endswith("codes")} == {"U8"}
    torch.manual_seed(1)
    other = pack(mlp(torch.float32))
    other[0].codes.zero_()
    shrinkage.load(path, other)
    x, _ = examples(net)
    assert torch.equal(other(x), small(x))
    twin = copy.deepcopy(small)
    assert torch.equal(twin(x), small(x))
    twin.load_state_dict(other.state_dict())


def test_a_file_of_another_set_or_size_is_refused_by_the_layers_name(tmp_path):
    path = tmp_path / "small.safetensors"
    shrinkage.save(pack(nn.Sequential(nn.Linear(6, 3))), path)
    for columns, values, words in (
        (5, (-1, 0, 1), "'0' has columns 5, and 6 were saved"),
        (8, (-1, 0, 1), "'0' has columns 8, and 6 were saved"),
        (6, (0, 1, 2), r"'0' has values \[0.0, 1.0, 2.0\], and \[-1.0, 0.0, 1.0\] were saved"),
        (6, (-3, -1, 1, 3), "0.values"),
    ):
        other = pack(nn.Sequential(nn.Linear(columns, 3)), values)
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(InputError, match=words):
            shrinkage.load(path, other)
        assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_the_set_is_compared_whatever_the_type_of_the_layer():
    small = pack(nn.Linear(6, 3), (-1 / 3, 0, 1 / 3))
    copy.deepcopy(small).bfloat16().load_state_dict(small.state_dict())
    state = small.state_dict()
    del state["columns"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"columns"'):
        small.load_state_dict(state)
    small.load_state_dict(state, strict=False)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("0.codes", torch.tensor([[0, 0], [255, 0], [0, 0]]), "'0' holds the code 3, but the set has 3 values"),
        ("0.codes", torch.tensor([[0, 0], [0, 16], [0, 0]]), "rows of '0' hold more than 6 codes"),
        ("0.bias_codes", torch.tensor([[3]]), "'0' holds the code 3"),
        ("0.bias_codes", torch.tensor([[64]]), "hold more than 3 codes"),
        ("0.scale", torch.tensor(torch.inf), "scale of '0' must be a finite number greater than 0, it is inf"),
        ("0.scale", torch.tensor(0.0), "it is 0.0"),
        ("0.scale", torch.tensor(torch.nan), "it is nan"),
    ],
)
def test_what_is_no_packed_weight_is_not_loaded(name, value, words):
    small = pack(nn.Sequential(nn.Linear(6, 3)))
    state = small.state_dict()
    small.load_state_dict(state)
    state[name] = value.to(state[name].dtype)
    with pytest.raises(InputError, match=words):
        small.load_state_dict(state)


@pytest.mark.parametrize("values", [(-1, 0, 1), (-3, -1, 0, 1, 3)], ids=len)
def test_no_example_and_one_without_a_batch(values):
    conv, linear = nn.Conv2d(2, 5, 3, padding=1, stride=2), nn.Linear(7, 3)
    for layer, shape in ((conv, (2, 8, 9)), (linear, (7,))):
        small, x = pack(layer, values), torch.randn(4, *shape)
        assert small(x[:0]).shape == layer(x[:0]).shape
        assert small(x[0]).shape == layer(x[0]).shape
        assert torch.allclose(small(x[0]), layer(x[0]), atol=1e-5)


def test_no_weight_is_zero_in_a_full_set_without_it():
    layer = nn.Linear(40, 30)
    small = pack(layer, [value for value in range(-128, 129) if value])
    assert int(small.codes.max()) == 255
    assert small.nonzeros == 40 * 30


def test_a_single_layer_and_its_repr():
    small = pack(nn.Conv2d(2, 3, 3))
    assert isinstance(small, PackedConv2d)
    assert repr(small) == "PackedConv2d(3 × 18 of 3 values, 2 bits each)"
    assert isinstance(pack(nn.Linear(3, 2)), PackedLinear)
    assert value_set((-1, 0, 1)).bits == 2

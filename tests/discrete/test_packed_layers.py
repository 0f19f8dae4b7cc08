"""Packed layers against ordinary ones."""

import copy

import pytest
import torch
from torch import nn

import shrinkage
from discrete_nets import cnn, examples, layers, mlp, trainer
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


def test_a_single_layer_and_its_repr():
    small = pack(nn.Conv2d(2, 3, 3))
    assert isinstance(small, PackedConv2d)
    assert repr(small) == "PackedConv2d(3 × 18 of 3 values, 2 bits each)"
    assert isinstance(pack(nn.Linear(3, 2)), PackedLinear)
    assert value_set((-1, 0, 1)).bits == 2

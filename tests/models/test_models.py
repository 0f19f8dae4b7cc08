from types import SimpleNamespace

import pytest
import torch
from torch import nn

from shrinkage.core.errors import InputError
from shrinkage.models import MODELS, build
from shrinkage.models.lenet import lenet_5, lenet_300_100
from shrinkage.models.resnet import resnet
from shrinkage.models.vgg import vgg_16
from shrinkage.models.vit import VisionTransformer, vit_tiny


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def conv_weights(model):
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_fits_or_says_why_not_and_learns_in_every_weight(name, shape):
    task = SimpleNamespace(input_shape=shape, num_classes=7)
    if shape[1] < {"lenet-5": 16, "vgg-16": 32}.get(name, 0):
        with pytest.raises(InputError, match=rf"{name} needs images .* got input_shape=\(1, {shape[1]}, "):
            build(name, task)
        return
    model = build(name, task)
    assert model.training
    out = model(torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)))
    assert out.shape == (3, 7)
    nn.functional.cross_entropy(out, torch.tensor([0, 3, 6])).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_the_papers_parameter_counts():
    assert count(lenet_300_100((1, 28, 28), 10)) == 266_610
    assert count(lenet_5((1, 28, 28), 10)) == 431_080
    assert count(lenet_300_100((1, 8, 8), 10)) == 64 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
    assert conv_weights(resnet(50, (3, 32, 32), 100)) == 754_096


def test_no_other_depth_has_the_papers_conv_weights():
    depths = [depth for depth in range(8, 111, 6) if conv_weights(resnet(depth, (3, 32, 32), 10)) == 754_096]
    assert depths == [50]


@pytest.mark.parametrize("depth", [20, 32, 56])
def test_a_resnet_has_as_many_weighted_layers_as_it_says(depth):
    model = resnet(depth, (3, 32, 32), 10)
    shortcuts = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(shortcuts) == 2
    assert len(layers) - len(shortcuts) == depth
    assert all(m.bias is None for m in layers if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("depth", [2, 19, 21, -4])
def test_a_depth_without_a_whole_number_of_blocks_is_an_error(depth):
    with pytest.raises(InputError, match=f"6n \\+ 2 layers .* got depth={depth}"):
        resnet(depth, (3, 32, 32), 10)


def test_vgg_16_is_configuration_d_with_the_papers_start():
    torch.manual_seed(0)
    model = vgg_16((3, 32, 32), 100)
    convs = [m for m in model if isinstance(m, nn.Conv2d)]
    linears = [m for m in model if isinstance(m, nn.Linear)]
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert [conv.out_channels for conv in convs] == widths
    assert [(linear.in_features, linear.out_features) for linear in linears] == [(512, 100)]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model) == 13
    for conv in convs[1:]:
        assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.in_channels)) ** 0.5, rel=0.02)
    assert linears[0].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert all(not layer.bias.any() for layer in (*convs, *linears))


def test_vgg_16_takes_larger_images():
    assert vgg_16((1, 48, 64), 5).eval()(torch.zeros(1, 1, 48, 64)).shape == (1, 5)


def test_the_vision_transformer_sees_where_a_patch_lies():
    torch.manual_seed(0)
    model = vit_tiny((1, 28, 28), 10).eval()
    assert model.position.shape == (49, 96)
    x = torch.rand(1, 1, 28, 28)
    moved = x.roll(4, dims=3)  # the same patches in other places
    assert not torch.allclose(model(x), model(moved), atol=1e-4)
    with torch.no_grad():
        model.position.zero_()
    assert torch.allclose(model(x), model(moved), atol=1e-5)


def test_patches_must_fill_the_image():
    with pytest.raises(InputError, match="30×28 cannot be cut into patches of 4×4"):
        VisionTransformer((1, 30, 28), 10, patch=4, width=8, depth=1, heads=2)


def test_images_must_have_three_dimensions():
    with pytest.raises(InputError, match=r"resnet-20 needs images .* got input_shape=\(64,\)"):
        resnet(20, (64,), 10)
    with pytest.raises(InputError, match="needs images"):
        vit_tiny((), 10)
    assert lenet_300_100((64,), 3)(torch.zeros(2, 64)).shape == (2, 3)

"""Eigenvalues of layers' outputs, against PyTorch's own covariance."""

import pytest
import torch
from torch import Tensor, nn

from shrinkage.report.spectrum import directions, spectra


def _expected(rows: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(torch.cov(rows.double().T)).flip(0)
    return values / values[0]


@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_pieces_add_up_to_the_covariance_of_the_whole(size: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(100, 6) * torch.logspace(0, 2, 6) + 1000  # the mean is large: a sum of squares would lose digits
    found = spectra(net, ["0.weight", "2.weight"], torch.split(x, size))
    assert list(found) == ["0", "2"]
    with torch.no_grad():
        for name, module in (("0", net[:1]), ("2", net)):
            torch.testing.assert_close(torch.tensor(found[name]), _expected(module(x)).float(), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_a_convolution_has_one_sample_a_place(kind: int) -> None:
    torch.manual_seed(0)
    layer: nn.Module = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[kind](2, 4, 3)
    x = torch.randn(10, 2, *[5] * kind)
    with torch.no_grad():
        rows = layer(x).transpose(0, 1).flatten(1).T
    found = spectra(nn.Sequential(layer), ["0.weight", "0.bias"], torch.split(x, 4))
    torch.testing.assert_close(torch.tensor(found["0"]), _expected(rows).float(), rtol=2e-3, atol=1e-6)


def test_a_linear_layer_on_sequences_has_one_sample_a_position() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), torch.randn(5, 7, 4)
    with torch.no_grad():
        rows = layer(x).flatten(0, 1)
    found = spectra(nn.Sequential(layer), ["0.weight"], [x])
    torch.testing.assert_close(torch.tensor(found["0"]), _expected(rows).float(), rtol=2e-3, atol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5).eval(), nn.Linear(4, 2))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    first = spectra(net, ["0.weight", "3.weight"], x := [torch.randn(50, 4)])
    assert first == spectra(net, ["0.weight", "3.weight"], x)  # no dropout
    assert [module.training for module in net] == [True, True, False, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_hooks_go_even_if_the_model_fails() -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RuntimeError):
        spectra(net, ["0.weight"], [torch.randn(5, 3)])
    assert not net[0]._forward_hooks


def test_outputs_that_do_not_vary_and_layers_that_are_not_looked_at() -> None:
    net = nn.ModuleDict({"dead": nn.Linear(3, 2), "norm": nn.LayerNorm(3), "unused": nn.Linear(3, 2)})
    nn.init.zeros_(net["dead"].weight)  # type: ignore[arg-type]
    net.forward = lambda x: net["dead"](net["norm"](x))  # type: ignore[method-assign]
    assert spectra(net, ["dead.weight", "norm.weight", "unused.weight"], [torch.randn(8, 3)]) == {"dead": []}
    net["dead"].weight.data.fill_(float("nan"))  # type: ignore[union-attr,operator]
    assert spectra(net, ["dead.weight"], [torch.randn(8, 3)]) == {"dead": []}


def test_directions_that_hold_a_share() -> None:
    assert directions([1.0, 1.0, 1.0, 1.0], 0.5) == 2
    assert directions([1.0, 1e-9], 0.99) == 1
    assert directions([], 0.99) == 0

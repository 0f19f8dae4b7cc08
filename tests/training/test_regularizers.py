import pytest
import torch
from torch import nn

from shrinkage import InputError, dropfilter
from shrinkage.training.regularizers import REGULARIZERS, regularize


@pytest.mark.parametrize("name", REGULARIZERS)
def test_a_network_is_regularised_by_name(name):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    keys = list(model.state_dict())
    regularize(model, name, 0.2)
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(model(x), model(x)) == (name == "none")
    assert list(model.state_dict()) == keys
    forms = {"none": [], "dropfilter": ["DropFilter"], "dropfilter-plus": ["DropFilter-PLUS"]}
    assert [layer.form for layer in dropfilter.dropping(model).layers] == forms[name]


def test_networks_and_rates_that_cannot_be_are_refused():
    with pytest.raises(InputError, match=r"'dropfilter' is for convolutions, and Linear has none: .* lenet-5"):
        regularize(nn.Linear(2, 2), "dropfilter", 0.1)
    with pytest.raises(InputError, match=r"in \[0, 1\).*got 1.5"):
        regularize(nn.Conv1d(1, 1, 1), "dropfilter-plus", 1.5)
    regularize(nn.Linear(2, 2), "none", 0.1)

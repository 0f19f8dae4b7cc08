import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from shrinkage import data
from shrinkage.core.errors import InputError
from shrinkage.models import MODELS, build, default_model

TASK = SimpleNamespace(input_shape=(1, 4, 4), num_classes=3)

SOURCE = """
import torch
from torch import nn

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

def fitted(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], num_classes))

def keywords(**kwargs):
    return fitted(**kwargs)

def half_fitted(num_classes=10, width=5):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.Linear(width, num_classes))

def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

def noisy():
    frozen = nn.BatchNorm2d(1).eval()
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)
    return nn.Sequential(frozen, nn.BatchNorm2d(1), Noise(), nn.Flatten(), nn.Linear(16, 3))

class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(16, num_classes))

def a_class():
    return Net

def not_a_module():
    return 5

def needs_more(width):
    return nn.Linear(width, 3)

def broken():
    raise KeyError("deep inside")

def other_input():
    return nn.Sequential(nn.Flatten(), nn.Linear(99, 3))

def other_output():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4))

def tuple_output():
    return nn.LSTM(4, 3)

number = 5
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's module on the import path; gives its name."""
    (tmp_path / "users_nets.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "users_nets"
    sys.modules.pop("users_nets", None)


@pytest.mark.parametrize("factory", ["plain", "fitted", "keywords", "half_fitted", "lazy", "Net"])
def test_a_factory_is_given_what_it_takes(module, factory):
    model = build(f"{module}:{factory}", TASK)
    assert model.training
    assert model(torch.zeros(5, 1, 4, 4)).shape == (5, 3)


def test_trying_the_model_leaves_no_trace(module):
    before = torch.random.get_rng_state()
    torch.random.set_rng_state(before)
    model = build(f"{module}:noisy", TASK)
    after = torch.random.get_rng_state()
    torch.random.set_rng_state(before)
    nn.Linear(16, 3)  # the only thing that should have drawn
    assert torch.equal(torch.random.get_rng_state(), after)
    assert [model[0].training, model[1].training] == [False, True]
    assert model[1].num_batches_tracked == 0


def test_a_module_in_the_working_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "nets_at_hand.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert isinstance(build("nets_at_hand:plain", TASK), nn.Sequential)
    sys.modules.pop("nets_at_hand")


def test_the_import_path_is_as_it_was_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = [entry for entry in sys.path if entry]
    monkeypatch.setattr(sys, "path", before.copy())
    with pytest.raises(InputError, match="No module named 'no_such_nets'"):
        build("no_such_nets:net", TASK)
    assert sys.path == before


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("a_class", "gave the class Net; the factory must return an instance"),
        ("not_a_module", r"gave int, expected a torch\.nn\.Module"),
        ("needs_more", r"users_nets:needs_more\(\) failed: TypeError: .*width"),
        ("broken", "failed: KeyError: 'deep inside'"),
        ("other_input", r"does not accept a batch of shape \(2, 1, 4, 4\): RuntimeError"),
        ("other_output", r"to shape \(2, 4\), expected logits of shape \(2, 3\)"),
        ("tuple_output", "does not accept|to tuple, expected logits"),
        ("number", "has no callable 'number'"),
        ("fited", "has no callable 'fited'; did you mean 'fitted'"),
        ("", "has no callable ''"),
    ],
)
def test_a_factory_that_does_not_serve_is_named_with_its_fault(module, factory, message):
    with pytest.raises(InputError, match=message) as caught:
        build(f"{module}:{factory}", TASK)
    assert f"{module}:{factory}" in str(caught.value)


def test_a_module_that_breaks_on_import_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_nets.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"'broken_nets' cannot be imported .ZeroDivisionError: division by zero"):
        build("broken_nets:net", TASK)


def test_an_import_that_is_missing_inside_the_module_is_named(tmp_path, monkeypatch):
    (tmp_path / "needy_nets.py").write_text("import no_such_package_of_mine")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="No module named 'no_such_package_of_mine'"):
        build("needy_nets:net", TASK)


def test_an_unknown_name_meets_the_nearest_one():
    with pytest.raises(InputError, match=r"no model 'lenet300100'; did you mean 'lenet-300-100'\?"):
        build("lenet300100", TASK)


def test_every_data_set_has_a_model():
    assert {default_model(name) for name in data.NAMES} <= set(MODELS)
    assert build(default_model("digits"), data.load("digits"))(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    with pytest.raises(InputError, match="no model is set for the data set 'iris'"):
        default_model("iris")

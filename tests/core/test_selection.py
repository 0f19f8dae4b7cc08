import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from nets import CNN, MLP, Transformer
from shrinkage import HALO, InputError
from shrinkage.core.selection import match_names, resolve, select


def names(*arguments, **options):
    return [item.name for item in select(*arguments, **options)]


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.conv = nn.Conv1d(8, 8, 3)
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, add_bias_kv=True)
        self.rnn = nn.GRU(8, 5, num_layers=2)
        self.lstm = nn.LSTM(8, 5, proj_size=3)
        self.hf = Conv1D(6, 8)
        self.free = nn.Parameter(torch.ones(3, 3))
        self.head = nn.Linear(8, 10)


def test_the_default_takes_the_weights_that_multiply():
    chosen = names(Everything())
    assert [name for name in chosen if not name.startswith(("rnn", "lstm"))] == [
        "conv.weight", "up.weight",
        "attention.q_proj_weight", "attention.k_proj_weight", "attention.v_proj_weight", "attention.out_proj.weight",
        "hf.weight", "head.weight",
    ]  # fmt: skip
    assert {name for name in chosen if name.startswith("rnn")} == {
        f"rnn.weight_{kind}_l{layer}" for kind in ("ih", "hh") for layer in (0, 1)
    }
    assert "lstm.weight_hr_l0" in chosen
    assert names(Transformer()) == [
        "attention.in_proj_weight", "attention.out_proj.weight", "up.weight", "down.weight", "head.weight",
    ]  # fmt: skip


def test_outputs_lie_in_dimension_1_of_transposed_weights():
    assert {item.name: item.out_dim for item in select(Everything(), ["conv.*", "up.*", "hf.*", "head.*"])} == {
        "conv.weight": 0, "conv.bias": 0, "up.weight": 1, "up.bias": 1,
        "hf.weight": 1, "hf.bias": 1, "head.weight": 0, "head.bias": 0,
    }  # fmt: skip


def test_rules():
    model = CNN()
    assert names(model, include=nn.Linear) == ["head.weight"]
    assert names(model, include=nn.Linear, biases=True) == ["head.weight", "head.bias"]
    assert names(model, include=["norm?.weight", nn.Linear]) == [
        "norm1.weight", "norm2.weight", "norm3.weight", "head.weight",
    ]  # fmt: skip
    assert names(model, include=lambda name, weight: weight.ndim == 4 and "stem" not in name) == [
        "inner.weight", "down.weight",
    ]  # fmt: skip
    assert names(model, exclude=["stem.*", nn.Linear]) == ["inner.weight", "down.weight"]
    assert names(model, exclude=lambda name, weight: weight.numel() < 100) == ["inner.weight", "down.weight"]


def test_frozen_weights_are_left_alone():
    model = MLP()
    model[0].requires_grad_(False)
    assert names(model) == ["2.weight", "4.weight"]
    assert names(model, include="*.weight") == ["2.weight", "4.weight"]


def test_a_shared_weight_counts_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert names(model) == ["0.weight"]
    assert HALO(model, 0.5, 10).units == 16


@pytest.mark.parametrize("head_first", [False, True])
def test_what_an_embedding_shares_is_an_embedding(head_first):
    parts = {"embed": nn.Embedding(10, 4), "inner": nn.Linear(4, 4), "head": nn.Linear(4, 10)}
    parts["head"].weight = parts["embed"].weight
    order = ["head", "inner", "embed"] if head_first else ["embed", "inner", "head"]
    model = nn.ModuleDict({name: parts[name] for name in order})
    assert names(model) == ["inner.weight"]
    assert len(names(model, include=["*.weight"])) == 2  # unless asked for


def test_wrappers_are_looked_through():
    model = MLP()
    plain = names(model)
    for wrapped in (
        torch.compile(model, backend="eager"),
        nn.DataParallel(model),
        torch.optim.swa_utils.AveragedModel(model),
    ):
        assert names(wrapped) == plain
        assert list(resolve(wrapped, plain)) == plain


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.BatchNorm1d(3), {}, "nothing to select in BatchNorm1d.*include="),
        (MLP().requires_grad_(False), {}, "nothing to select in MLP: no trainable weight"),
        (MLP(), {"exclude": nn.Linear}, "nothing to select in MLP"),
        (MLP(), {"include": "0.weigth"}, "the pattern '0.weigth' matches no parameter; the nearest name is '0.weight'"),
        (MLP(), {"exclude": "conv*"}, r"the pattern 'conv\*' matches no parameter"),
        (MLP(), {"include": nn.Conv2d}, "the type Conv2d matches no parameter"),
        (MLP(), {"exclude": [nn.Linear, nn.LSTM]}, "the type LSTM matches no parameter"),
        (MLP(), {"include": lambda name, weight: False}, "the predicate .* matches no parameter"),
        (MLP().parameters(), {}, "the model must be a torch.nn.Module, got generator"),
        (nn.LazyLinear(3), {}, "'weight' has no shape yet: run the model on one batch"),
    ],
)
def test_selections_that_cannot_be_are_refused(model, options, message):
    with pytest.raises(InputError, match=message):
        select(model, **options)


def test_the_first_pattern_that_fits_a_name_wins():
    assert match_names(["a.*", "*.w"], ["a.w", "b.w", "b.v"]) == {"a.w": "a.*", "b.w": "*.w"}
    with pytest.raises(InputError, match=r"'c\.w' matches no selected weight; the nearest name is 'a\.w'"):
        match_names(["c.w"], ["a.w", "long.name"])


def test_a_name_the_model_has_not():
    with pytest.raises(InputError, match=r"no parameter 'nowhere\.weight'"):
        resolve(MLP(), ["nowhere.weight"])


@pytest.mark.parametrize(
    "wrap", [torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm], ids=["old", "parametrization"]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_that_is_computed_from_others_is_refused_by_name(wrap):
    model = nn.Sequential(wrap(nn.Linear(4, 3)), nn.Linear(3, 3))
    with pytest.raises(InputError, match=r"weight of '0' is computed from other parameters.*exclude='0\.\*'"):
        select(model)
    assert names(model, exclude="0.*") == ["1.weight"]
    assert names(model, include="1.weight") == ["1.weight"]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_tensors_without_entries_are_passed_over():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 0), nn.Linear(0, 5), nn.Linear(5, 5))
    assert names(model) == ["0.weight", "3.weight"]


def test_sparse_gradients_are_refused():
    with pytest.raises(InputError, match=r"'weight' has sparse gradients: build the embedding with sparse=False"):
        select(nn.Embedding(10, 4, sparse=True), include="weight")


def test_a_sharded_parameter_is_refused():
    model = nn.Linear(4, 3)
    model.weight.device_mesh = object()  # what a DTensor has
    with pytest.raises(InputError, match="'weight' is spread over devices"):
        select(model)

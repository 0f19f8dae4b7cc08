"""What comes out of compaction, and what it makes of models and examples that are not plain."""

import copy
import json
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import shrinkage
from compactable import assert_same, drawn, units, zero
from shrinkage.core.errors import InputError
from shrinkage.deploy import compact as compaction
from shrinkage.deploy.compact import compact


def small():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 2))
    zero(model[0].weight, slice(0, 3))
    return drawn(model)


def test_the_original_is_untouched_and_the_copy_is_as_it_was():
    model = small()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model(torch.randn(3, 4)).sum().backward()
    before, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    x, state = torch.randn(3, 4), torch.random.get_rng_state()
    result = compact(model, x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert [module.training for module in result.model.modules()] == flags
    assert list(result.model.state_dict()) == list(before)
    assert [type(module) for module in result.model.modules()] == [type(module) for module in model.modules()]
    assert [p.requires_grad for p in result.model.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(parameter.grad is None for parameter in result.model.parameters())
    assert model[0].weight.grad is not None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in result.model.modules())
    assert result.model(torch.randn(3, 4)).shape == (3, 2)  # and it can train
    result.model(torch.randn(3, 4)).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_types_stay_and_the_function_within_them(dtype):
    model = small().to(dtype).eval()
    x = torch.randn(5, 4).to(dtype)
    result = compact(model, x)
    assert units(result) == {"0": 3, "4": 2}
    assert {parameter.dtype for parameter in result.model.parameters()} == {dtype}
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(result.model(x), model(x), rtol=tolerance, atol=tolerance)


def test_a_model_that_insists_on_its_type():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small()

        def forward(self, x):
            return self.body(x.float())

    model = Net().eval()
    x = torch.randn(3, 4)
    result = compact(model, x)
    assert units(result) == {"body.0": 3, "body.4": 2}
    torch.testing.assert_close(result.model(x), model(x))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.other = nn.Embedding(9, 6), nn.Linear(4, 6)
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, tokens, x, scale=1.0):
        return self.head(self.hidden(self.table(tokens) + scale * self.other(x)).relu())


@pytest.mark.parametrize("form", [tuple, list, dict])
def test_examples_of_several_inputs(form):
    model = TwoInputs()
    zero(model.hidden.weight, slice(0, 4))
    zero(model.hidden.weight, slice(None), 2)
    tokens, x = torch.tensor([1, 2, 8]), torch.randn(3, 4)
    example = {"x": x, "tokens": tokens, "scale": 2.0} if form is dict else form([tokens, x])
    result = compact(model, example)
    assert units(result) == {"other": 5, "hidden": 4, "head": 2}
    assert result.model.table.embedding_dim == 5
    torch.testing.assert_close(result.model(tokens, x), model(tokens, x))


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_wrappers_are_looked_through_and_the_result_compiles_exports_and_pickles(tmp_path):
    model = small().eval()
    x = torch.randn(3, 4)
    result = compact(torch.compile(model), x)
    assert isinstance(result.model, nn.Sequential)
    expected = model(x)
    torch.testing.assert_close(torch.compile(result.model, backend="eager")(x), expected)
    torch.testing.assert_close(torch.export.export(result.model, (x,)).module()(x), expected)
    torch.save(result.model, tmp_path / "model.pt")
    torch.testing.assert_close(torch.load(tmp_path / "model.pt", weights_only=False)(x), expected)


def test_rows_of_a_sparsifier_go_and_zeros_are_kept_anew():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    halo = shrinkage.HALO(model, 0.5, 20, granularity=shrinkage.Row(), exclude="4.*").attach(optimizer)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
    halo.finalize()
    zeros = [int((layer.weight == 0).all(1).sum()) for layer in (model[0], model[2])]
    assert sum(zeros) == 30
    with torch.no_grad():
        model[4].weight[:, :5] = 0
    result = compact(model, torch.randn(1, 8))
    assert units(result)["0"] == 40 - zeros[0]
    assert units(result)["2"] <= 20 - zeros[1]
    weight = result.model[4].weight
    zero(weight, 0, 0)
    new = torch.optim.SGD(result.model.parameters(), lr=0.1)
    shrinkage.keep_zeros(result.model).attach(new)
    result.model(torch.randn(16, 8)).square().mean().backward()
    new.step()
    assert weight[0, 0] == 0


def test_the_result_prints_and_exports():
    result = compact(small(), torch.randn(1, 4))
    exported = json.loads(json.dumps(result.to_dict()))
    assert exported == result.to_dict()
    assert exported["layers"]["0"]["before"] == {"units": 6, "parameters": 30, "macs": 24}
    assert exported["layers"]["0"]["after"] == {"units": 3, "parameters": 15, "macs": 12}
    assert exported["total"]["after"]["parameters"] == sum(p.numel() for p in result.model.parameters()) == 15 + 6 + 8
    assert result.shapes["0.weight"] == (3, 4)
    assert str(result).splitlines() == [
        "Sequential, compacted",
        "layer  kind         units  left  parameters  left  MACs  left",
        "─────  ───────────  ─────  ────  ──────────  ────  ────  ────",
        "0      Linear           6     3          30    15    24    12",
        "1      BatchNorm1d      –     –          12     6     6     3",
        "4      Linear           2     2          14     8    12     6",
        "─────  ───────────  ─────  ────  ──────────  ────  ────  ────",
        "total  Sequential       8     5          56    29    42    21",
    ]


# --------------------------------------------------------------------------------- honesty, bad input


def test_a_wrong_rule_never_changes_the_function(monkeypatch):
    rules = {**compaction.RULES, "layer_norm": compaction.RULES["pointwise"]}
    monkeypatch.setattr(compaction, "RULES", rules)
    model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    zero(model[2].weight, slice(None), 5)
    zero(model[2].weight, 0)
    result = compact(model, torch.randn(2, 3).double())
    assert units(result) == {"0": 8, "2": 5, "4": 2}
    assert "0.weight" in result.left
    assert "stayed, because the model's code relies on their size: 0.weight" in str(result)
    assert_same(result, model, torch.randn(4, 3).double())


def test_a_buffer_that_no_file_holds_stays():
    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
            self.register_buffer("mask", torch.ones(5), persistent=False)

        def forward(self, x):
            return self[2](self[1](self[0](x)) * self.mask)

    model = Net()
    zero(model[0].weight, 1)
    assert units(compact(model, torch.randn(1, 3))) == {"0": 5, "2": 2}


def test_what_cannot_be_traced_says_why():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(InputError, match=r"Branches cannot be traced by torch.export .* must not branch on the values"):
        compact(Branches(), torch.ones(1, 3))
    with pytest.raises(InputError, match="cannot run on an example of shape"):
        compact(nn.Linear(3, 3), torch.ones(1, 4))
    with pytest.raises(InputError, match="the example holds no tensor"):
        compact(Constant(), ())
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Module, got str"):
        compact("model", torch.ones(1, 3))
    with pytest.raises(InputError, match="Silent returns no tensor"):
        compact(Silent(), torch.ones(1, 3))
    with pytest.raises(InputError, match="'weight' has no shape yet"):
        compact(nn.LazyLinear(3), torch.ones(1, 3))


class Silent(nn.Module):
    def forward(self, x):
        return "nothing"


class Constant(nn.Module):
    def forward(self):
        return torch.ones(1)


def test_what_cannot_be_copied_says_why():
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].lock = threading.Lock()
    with pytest.raises(InputError, match=r"Sequential cannot be copied by copy.deepcopy \(TypeError: .*lock"):
        compact(model, torch.ones(1, 3))


def test_masks_of_pytorchs_prune_are_cut_with_their_weights():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    prune.ln_structured(model[0], "weight", 0.5, n=2, dim=0)
    result = compact(model, torch.ones(1, 3).double())
    assert units(result) == {"0": 3, "2": 2}
    assert result.model[0].weight_mask.shape == (3, 3)
    assert result.model[0].out_features == 3
    assert_same(result, model, torch.randn(4, 3).double())


def test_a_model_that_answers_differently_each_time_is_an_error():
    class Counts(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            Counts.calls += 1
            return self.layer(x) * Counts.calls

    with pytest.raises(InputError, match="two different outputs for one input"):
        compact(Counts(), torch.ones(1, 3))


def test_parametrized_layers_are_left_as_they_are():
    norms = nn.utils.parametrizations
    model = nn.Sequential(norms.weight_norm(nn.Linear(4, 6)), nn.ReLU(), norms.spectral_norm(nn.Linear(6, 6)))
    model = nn.Sequential(*model, nn.Tanh(), nn.Linear(6, 2)).eval()
    zero(model[4].weight, slice(None), 0)
    x = torch.randn(2, 4)
    result = compact(model, x)
    assert result.model[0].weight.shape[1] == 4
    torch.testing.assert_close(result.model(x), model(x))

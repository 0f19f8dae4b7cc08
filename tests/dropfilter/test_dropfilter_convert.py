"""Converting a model: what stays as it was, what travels with copies, and what is refused."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import shrinkage
from nets import CNN, fit, images
from shrinkage import InputError, StateError, dropfilter
from shrinkage.dropfilter import (
    DropFilterConv2d,
    DropFilterPlusConv2d,
    Growing,
    convert,
    dropping,
    revert,
    set_rate,
)

FORMS = pytest.mark.parametrize("plus", [False, True], ids=["filter", "plus"])


def small():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(128, 3)
    )


def varies(model, x):
    """Whether two calls give something else; the model's BatchNorm statistics are left out of it."""
    model = copy.deepcopy(model)
    return not torch.equal(model(x), model(x))


X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------ what stays


@FORMS
def test_a_model_keeps_classes_parameters_and_state(plus):
    model = small()
    kinds, parameters = [type(module) for module in model.modules()], dict(model.named_parameters())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = convert(model, 0.3, plus=plus)
    assert [layer.name for layer in found.layers] == ["0", "3"]
    assert [type(module) for module in model.modules()] == kinds
    assert all(value is parameters[name] for name, value in model.named_parameters())
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert varies(model, X)
    small().load_state_dict(model.state_dict())
    plain = small()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(X), plain.eval()(X))
    assert revert(model.train()) == 2
    assert not varies(model, X)
    assert not model[0]._forward_pre_hooks
    assert not model[0]._forward_hooks
    assert not model[0]._forward_hooks_always_called
    assert revert(model) == 0


@FORMS
def test_the_footprint_is_the_plain_ones(plus):
    model = small()
    before = shrinkage.footprint(model, X[:1]).to_dict()
    convert(model, 0.3, plus=plus)
    assert shrinkage.footprint(model, X[:1]).to_dict() == before


@FORMS
def test_a_method_lives_beside_it(plus):
    model = CNN()
    convert(model, 0.1, plus=plus)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    halo = shrinkage.HALO(model, sparsity=0.5, steps=60).attach(optimizer)
    first = fit(model, optimizer, range(10), images)
    last = fit(model, optimizer, range(10, 60), images)
    assert last < first
    assert halo.finalize().sparsity == pytest.approx(0.5, abs=1e-3)


# ------------------------------------------------------------------ what travels


@FORMS
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_drop_by_rules_of_their_own(plus, how):
    model = small()
    convert(model, 0.3, plus=plus)
    if how == "deepcopy":
        other = copy.deepcopy(model)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    assert dropping(other) == dropping(model)
    assert varies(other, X)
    set_rate(other, 0.5)
    assert {layer.p for layer in dropping(model).layers} == {0.3}
    assert revert(other) == 2
    assert not varies(other, X)
    assert varies(model, X)


@FORMS
def test_layers_made_so_survive_copies_and_reverting(plus):
    kind = DropFilterPlusConv2d if plus else DropFilterConv2d
    model = pickle.loads(pickle.dumps(copy.deepcopy(nn.Sequential(kind(1, 2, 3, p=0.4)))))
    assert varies(model, X)
    assert revert(model) == 0
    assert varies(model, X)
    set_rate(model, 0.0)
    assert model[0].p == 0
    assert not varies(model, X)


# ------------------------------------------------------------------ compilation, precision, layout


@FORMS
def test_compiled_it_is_one_graph_that_follows_the_rate(plus):
    model = small().double()
    convert(model, 0.5, plus=plus)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    x = X.double()
    for p in (0.5, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 0.25):
        set_rate(compiled, p)
        compiled.zero_grad()
        compiled(x).sum().backward()
        dropped = (model[3].weight.grad == 0).double().mean().item()
        assert dropped == pytest.approx(0 if plus else p, abs=5 * (0.25 / 288) ** 0.5)
    assert counter.frame_count <= 3
    assert isinstance(model[0].weight, nn.Parameter)
    compiled.eval()
    assert torch.equal(compiled(x), model(x))
    compiled.train()
    revert(compiled)
    plain = small().double()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(compiled(x), plain(x))


@FORMS
def test_autocast_keeps_gradients_in_single_precision(plus):
    model = small()
    convert(model, 0.3, plus=plus)
    with torch.autocast("cpu", torch.bfloat16):
        out = model[0](X)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert model[0].weight.grad.dtype == torch.float32
    assert model[0].weight.grad.isfinite().all()


@FORMS
def test_channels_last_stays_so(plus):
    model = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    convert(model, 0.3, plus=plus)
    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    seen = {}
    model.register_forward_pre_hook(lambda module, args: seen.update(weight=module.weight))
    out = model(x)
    assert seen["weight"] is not dict(model.named_parameters())["weight"]
    assert seen["weight"].is_contiguous(memory_format=torch.channels_last)
    assert out.is_contiguous(memory_format=torch.channels_last)


@FORMS
def test_checkpointing_draws_the_same_again(plus):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3))
    convert(model, 0.3, plus=plus)
    found = []
    for forward in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        torch.manual_seed(7)
        model.zero_grad()
        forward(X).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(found[0], found[1])


@FORMS
def test_parameters_given_from_outside_are_the_ones_that_are_used(plus):
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    convert(model, 0.3, plus=plus)
    given = {name: torch.zeros_like(value).requires_grad_() for name, value in model.named_parameters()}
    out = torch.func.functional_call(model, given, X)
    assert not out.any()
    out.sum().backward()
    assert given["0.bias"].grad is not None
    assert model[0].bias.grad is None


# ------------------------------------------------------------------ which layers


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (None, ["0", "3"]),
        ("0", ["0"]),
        ("*", ["0", "3", "5"]),
        (nn.Linear, ["5"]),
        (["3", nn.Linear], ["3", "5"]),
        (lambda name, module: getattr(module, "in_channels", 0) == 4, ["3"]),
    ],
)
def test_layers_are_chosen_by_path_type_or_predicate(layers, names):
    model = small()
    found = convert(model, 0.2, layers)
    assert [layer.name for layer in found.layers] == names
    assert found == dropping(model)
    assert list(found.to_dict()) == names
    assert found.to_dict()[names[0]]["p"] == 0.2


@pytest.mark.parametrize(
    ("layers", "plus", "message"),
    [
        ("convs.*", False, r"'convs\.\*' matches no layer; the nearest is"),
        (nn.Conv1d, False, "layers=Conv1d matches no layer"),
        (
            "1",
            False,
            r"'1' \(BatchNorm2d\) cannot drop parts of its filter \(able are Conv1d, Conv2d, Conv3d, Linear\)",
        ),
        (nn.Linear, True, r"'5' \(Linear\) has one position only.*plus=False"),
        ([nn.Conv2d, "2"], False, r"'2' \(ReLU\) cannot"),
    ],
)
def test_choices_that_cannot_be_are_named(layers, plus, message):
    model = small()
    with pytest.raises(InputError, match=message):
        convert(model, 0.2, layers, plus=plus)
    assert dropping(model).layers == ()


def test_layers_that_cannot_drop_are_named():
    cases = [
        (nn.Linear(2, 2), "Linear has no convolution: say which layers you mean"),
        (nn.Sequential(prune.random_unstructured(nn.Conv1d(1, 1, 3), "weight", 0.5)), "'0' .Conv1d. is computed"),
        (nn.Sequential(parametrizations.weight_norm(nn.Conv1d(1, 1, 3))), "is computed from others"),
        (nn.Sequential(nn.LazyConv2d(3, 3)), r"'0' \(LazyConv2d\) has no shape yet"),
        (torch.compile(small(), backend="eager"), "convert the model first, then compile"),
        ("a model", "must be a torch.nn.Module, got str"),
    ]
    for model, message in cases:
        with pytest.raises(InputError, match=message):
            convert(model, 0.1)
    with pytest.raises(InputError, match=r"'0' \(ConvTranspose2d\) cannot drop"):
        convert(nn.Sequential(nn.ConvTranspose2d(1, 1, 3)), 0.1, "*")
    attention = nn.MultiheadAttention(4, 2)
    with pytest.raises(InputError, match="out_proj"):
        convert(attention, 0.1, "out_proj")
    with pytest.raises(InputError, match=r"in \[0, 1\).*got 1"):
        convert(small(), 1)
    compiled = small()
    compiled.compile(backend="eager")
    with pytest.raises(InputError, match="convert the model first"):
        convert(compiled, 0.1)


def test_twice_is_once_too_often():
    model = small()
    convert(model, 0.2, "0")
    with pytest.raises(InputError, match=r"'0' \(Conv2d\) drops parts of its filter already \(p=0\.2\)"):
        convert(model, 0.3)
    assert [layer.name for layer in dropping(model).layers] == ["0"]


def test_a_weight_that_is_taken_away_later_is_missed_aloud():
    model = small()
    convert(model, 0.2)
    prune.random_unstructured(model[0], "weight", 0.5)
    with pytest.raises(StateError, match=r"weight of a Conv2d .* is no longer a Parameter"):
        model(X)
    model.eval()(X)
    assert model[0].weight.shape == (4, 1, 3, 3)


# ------------------------------------------------------------------ rates over time


def test_rates_grow_to_their_limit():
    rate = Growing()
    assert [rate(n) for n in (0, 1, 10)] == pytest.approx([0.06, 0.06 * 1.01, 0.06 * 1.01**10])
    assert rate(161) < 0.3 == rate(162) == rate(10**6)
    assert Growing(0.1, 10.0, 0.5)(10**6) == 0.5
    model = small()
    convert(model, rate(0))
    set_rate(model, rate(100))
    assert {layer.p for layer in dropping(model).layers} == {rate(100)}
    assert "0.1623" in str(dropping(model))


def test_rates_that_cannot_be_are_refused():
    for arguments in ((0.4, 1.01, 0.3), (0.0, 1.01, 0.3), (0.1, 1.01, 1.0), (-0.1,)):
        with pytest.raises(InputError, match="rate"):
            Growing(*arguments)
    for factor in (0.9, float("inf"), float("nan"), "1.01"):
        with pytest.raises(InputError, match="at least 1"):
            Growing(factor=factor)
    with pytest.raises(InputError, match="counted from 0, got -1"):
        Growing()(-1)
    with pytest.raises(InputError, match="no layer of Linear drops"):
        set_rate(nn.Linear(1, 1), 0.1)
    with pytest.raises(InputError, match="got 1"):
        set_rate(small(), 1.0)


def test_every_public_name_has_a_docstring():
    for name in dir(dropfilter):
        thing = getattr(dropfilter, name)
        if isinstance(thing, type) or callable(thing):
            assert len(thing.__doc__ or "") > 20, name


def test_code_compiled_for_a_plain_model_is_not_taken_for_a_converted_one():
    x = torch.randn(2, 1, 8, 8)
    torch.compiler.reset()
    torch.compile(small(), backend="eager")(x)
    model = small()
    convert(model, 0.5)
    compiled = torch.compile(model, backend="eager")
    assert not torch.equal(compiled(x), compiled(x))
    plain = torch.compile(small(), backend="eager")
    plain.train()
    assert torch.equal(plain(x), plain(x))
    revert(model)
    convert(model, 0.5)  # the compiled code has seen other hooks
    assert not torch.equal(compiled(x), compiled(x))


def test_a_model_with_a_compiled_part_is_refused():
    model = nn.Sequential(torch.compile(small(), backend="eager"), nn.Flatten())
    with pytest.raises(InputError, match="convert the model first, then compile"):
        convert(model, 0.1)
    assert dropping(model).layers == ()


@pytest.mark.parametrize("layers", [[], 0, [1], ()])
def test_choices_that_are_none_are_refused(layers):
    with pytest.raises(InputError, match="layers must be a pattern, a type, a function"):
        convert(small(), 0.1, layers)


@FORMS
def test_an_interrupted_call_leaves_no_mask_behind(plus):
    def interrupt(module, args):
        raise KeyboardInterrupt

    torch.manual_seed(0)
    model, x = small(), torch.randn(5, 1, 8, 8)
    plain = copy.deepcopy(model).eval()(x)
    for heal in (lambda: model.eval(), lambda: revert(model.eval())):
        convert(model.train(), 0.5, plus=plus)
        handle = model[3].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(x)
        handle.remove()
        heal()
        model[1].reset_running_stats()
        assert torch.equal(model(x), plain)
        assert isinstance(model[3].weight, nn.Parameter)
        revert(model)


@pytest.mark.parametrize("plus", [False, True], ids=["filter", "plus"])
def test_each_element_of_a_vmap_draws_its_own_masks(plus):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    convert(model, 0.3, plus=plus)
    x = torch.randn(2, 1, 5, 5)

    def call(parameters):
        return torch.func.functional_call(model, parameters, (x,))

    many = {name: torch.stack([value.detach()] * 8) for name, value in model.named_parameters()}
    out = torch.func.vmap(call, randomness="different")(many)
    assert len({tuple(each.flatten().tolist()) for each in out}) == 8
    whole = dict(model.named_parameters())
    gradients = torch.func.vmap(
        torch.func.grad(lambda parameters, one: torch.func.functional_call(model, parameters, (one[None],)).sum()),
        (None, 0), randomness="different",
    )(whole, torch.ones(6, 1, 5, 5))  # fmt: skip
    assert len({tuple(each.flatten().tolist()) for each in gradients["0.weight"]}) > 1


def test_masks_are_drawn_where_the_layer_is_whatever_the_default_device():
    model, x = nn.Conv2d(1, 2, 3), torch.randn(2, 1, 5, 5)
    convert(model, 0.3)
    with torch.device("meta"):
        assert model(x).device.type == "cpu"


@FORMS
def test_inputs_by_any_keyword(plus):
    class Own(nn.Conv2d):
        def forward(self, x):
            return super().forward(x)

    model = Own(1, 2, 3)
    convert(model, 0.3, plus=plus)
    assert model(x=torch.randn(2, 1, 5, 5)).shape == (2, 2, 3, 3)

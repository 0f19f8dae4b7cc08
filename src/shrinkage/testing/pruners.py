"""Checks that every pruner passes: the promises a user relies on when a method is called on a model once."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from shrinkage.core.errors import InputError, StateError
from shrinkage.core.footprint import footprint
from shrinkage.core.granularity import NM, Block, Granularity, Row, Weight
from shrinkage.core.hold import keep_zeros
from shrinkage.core.options import Options
from shrinkage.core.pruner import Pruner
from shrinkage.core.result import Sparsified
from shrinkage.testing import toy
from shrinkage.testing.expect import copies, differ, expect, refused

PrunerFactory = Callable[[float], Pruner]
"""Builds the method for a sparsity; every other argument is the factory's own affair."""


def pruner_checks() -> list[Callable[[PrunerFactory], None]]:
    """All checks, each a function of a factory that raises ``AssertionError`` where a promise is broken.

    >>> from shrinkage.pruning import Magnitude
    >>> for check in pruner_checks():
    ...     check(Magnitude)
    """
    return [
        check_exact_target,
        check_survivors_stay,
        check_leaves_the_rest_alone,
        check_model_stays_ordinary,
        check_repeats_itself,
        check_prunes_on,
        check_zeros_outlive_training,
        check_granularities,
        check_layer_sparsity_and_floor,
        check_budget,
        check_result_exports,
        check_refuses_bad_targets,
        check_refuses_broken_weights,
        check_data_is_asked_for,
    ]


def check_pruner(factory: PrunerFactory) -> None:
    """Run all of :func:`pruner_checks`.

    Raises:
        AssertionError: with the check's name and what was broken.

    >>> from shrinkage.pruning import SNIP
    >>> check_pruner(lambda sparsity: SNIP(sparsity, distribution="erk"))
    """
    for check in pruner_checks():
        try:
            check(factory)
        except AssertionError as error:
            raise AssertionError(f"{check.__name__}: {error}") from error


def check_exact_target(factory: PrunerFactory) -> None:
    """Exactly round(sparsity · n) units are +0.0, and the model still works."""
    for sparsity in (0.25, 0.5, 0.9):
        model, result = _pruned(factory(sparsity))
        wanted = round(sparsity * result.units)
        expect(result.zeros == wanted, f"{result.zeros} zeros where {wanted} were asked for ({sparsity})")
        expect(result.target == wanted, f"the result names {result.target} as its target, not {wanted}")
        weights = _selected(model, result)
        lengths = {layer.name: weights[layer.name].numel() // layer.units for layer in result.layers}
        counted = sum(lengths[layer.name] * layer.zeros for layer in result.layers)
        expect(_zeros(model, result) == counted, f"the model has {_zeros(model, result)} zeros, the result {counted}")
        for name, weight in weights.items():
            expect(not bool(((weight == 0) & weight.signbit()).any()), f"{name} holds −0.0")
        expect(bool(torch.isfinite(model(toy.batch(0)[0])).all()), "the network's outputs are not finite")


def check_survivors_stay(factory: PrunerFactory) -> None:
    """What is not zero afterwards is what it was, bit for bit, and tensors that were not selected are untouched."""
    before = copies(_model().state_dict())
    model, result = _pruned(factory(0.5))
    chosen = {layer.name for layer in result.layers}
    for name, tensor in model.state_dict().items():
        kept = tensor != 0 if name in chosen else torch.ones_like(tensor, dtype=torch.bool)
        expect(torch.equal(tensor[kept], before[name][kept]), f"{name} was changed beyond its zeros")


def check_leaves_the_rest_alone(factory: PrunerFactory) -> None:
    """Buffers, gradients, the mode of every module and the global random state are as they were."""
    for gradients in (True, False):
        model = _model()
        toy.train(model, SGD(model.parameters(), lr=0.1), range(2))
        model.get_submodule("1").eval()
        if not gradients:
            model.zero_grad(set_to_none=True)
        buffers = copies(dict(model.named_buffers()))
        grads = [(p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
        modes, trainable = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
        random = torch.get_rng_state()
        _prune(factory(0.5), model)
        expect(torch.equal(random, torch.get_rng_state()), "the global random state has moved")
        expect(not (names := differ(buffers, dict(model.named_buffers()))), f"buffers were changed: {names}")
        expect(modes == [m.training for m in model.modules()], "modules were left in another mode")
        expect(trainable == [p.requires_grad for p in model.parameters()], "requires_grad was changed")
        for parameter, (grad, value) in zip(model.parameters(), grads, strict=True):
            expect(parameter.grad is grad, "a parameter's .grad was replaced")
            expect(grad is None or value is None or torch.equal(grad, value), "a parameter's .grad was changed")


def check_model_stays_ordinary(factory: PrunerFactory) -> None:
    """Names, classes and parameters stay the same objects; the model copies, pickles and saves."""
    untouched, model = _model(), _model()
    parameters = list(model.parameters())
    _prune(factory(0.5), model)
    expect(list(model.state_dict()) == list(untouched.state_dict()), "the model's state_dict has other keys")
    expect([type(m) for m in model.modules()] == [type(m) for m in untouched.modules()], "a class was changed")
    same = all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    expect(same, "parameters were replaced: an optimiser built before would train others")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        expect(not differ(model.state_dict(), twin.state_dict()), "a copied model differs")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    expect(not differ(model.state_dict(), torch.load(file, weights_only=True)), "a saved model differs")


def check_repeats_itself(factory: PrunerFactory) -> None:
    """The same call gives the same zeros: by one pruner, by another, from batches that come only once."""
    pruner = factory(0.9)
    first, _ = _pruned(pruner)
    again, _ = _pruned(pruner)
    expect(not differ(first.state_dict(), again.state_dict()), "the second call of one pruner prunes other units")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        other = _model()
        factory(0.9).prune(other, iter(_batches()), nn.functional.cross_entropy)
    expect(not differ(first.state_dict(), other.state_dict()), "another pruner of the same kind prunes other units")


def check_prunes_on(factory: PrunerFactory) -> None:
    """A sparse model can be pruned further: its zeros stay and count."""
    model, first = _pruned(factory(0.5))
    before = {name: weight == 0 for name, weight in _selected(model, first).items()}
    result = _prune(factory(0.9), model)
    expect(result.zeros == round(0.9 * result.units), f"{result.zeros} of {result.units} zeros in the second pruning")
    for name, weight in _selected(model, result).items():
        expect(not bool(weight[before[name]].any()), f"zeros of {name} have come back")


def check_zeros_outlive_training(factory: PrunerFactory) -> None:
    """``keep_zeros`` holds the zeros in later training, and the survivors train."""
    for build in _OPTIMIZERS:
        model, result = _pruned(factory(0.9))
        optimizer = build(model)
        keeper = keep_zeros(model, include=[layer.name for layer in result.layers]).attach(optimizer)
        before, zeros = copies(_selected(model, result)), _zeros(model, result)
        toy.train(model, optimizer, range(10))
        keeper.detach()
        now = _selected(model, result)
        expect(_zeros(model, result) == zeros, f"{zeros} zeros have become {_zeros(model, result)} in later training")
        expect(bool(differ(before, now)), "the surviving weights do not train")
        signs = sum(int(weight[before[name] == 0].signbit().sum()) for name, weight in now.items())
        expect(signs == 0, "later training leaves −0.0")


def check_granularities(factory: PrunerFactory) -> None:
    """Rows, blocks and N:M patterns are removed whole, and counted exactly."""
    cuts: list[tuple[Granularity, Callable[[Tensor], Tensor]]] = [
        (Row(), lambda weight: weight),
        (Block(4, 2), _blocks),
    ]
    for cut, split in cuts:
        model, result = _pruned(_with(factory(0.5), Options(granularity=cut, distribution="global")))
        units = [split(weight) for weight in _selected(model, result).values()]
        empty = sum(int((unit == 0).all(1).sum()) for unit in units)
        wanted = round(0.5 * sum(len(unit) for unit in units))
        expect(result.zeros == empty == wanted, f"{cut}: {empty} units are empty where {wanted} were asked for")
        torn = sum(int(((unit == 0).any(1) & (unit != 0).any(1)).sum()) for unit in units)
        expect(torn == 0, f"{cut}: {torn} units have lost a part of their weights")
    model, result = _pruned(_with(factory(0.5), Options(granularity=NM(2, 4), distribution="global")))
    for name, weight in _selected(model, result).items():
        left = (weight.reshape(-1, 4) != 0).sum(1)
        expect(bool((left == 2).all()), f"NM(2, 4): groups of {name} keep {left.min()} to {left.max()} weights, not 2")


def check_layer_sparsity_and_floor(factory: PrunerFactory) -> None:
    """Tensors with a share of their own get it, the others theirs, and no tensor falls below the floor."""
    own = {"0.weight": 0.5, "5.*": 0.0}
    _, result = _pruned(_with(factory(0.8), Options(layer_sparsity=own)))
    shares = {"0.weight": 0.5, "3.weight": 0.8, "5.weight": 0.0}
    for layer in result.layers:
        wanted = round(shares[layer.name] * layer.units)
        expect(layer.zeros == wanted, f"{layer.name}: {layer.zeros} zeros where layer_sparsity asks for {wanted}")
    _, result = _pruned(_with(factory(0.9), Options(distribution="global", floor=0.6)))
    density = 1 - result.zeros / result.units
    for layer in result.layers:
        kept = layer.units - layer.zeros
        expect(kept >= 0.6 * density * layer.units, f"{layer.name} keeps {kept} of {layer.units}: below the floor")


def check_budget(factory: PrunerFactory) -> None:
    """With ``macs=`` no more multiply–accumulates are left than the ledger's share, and hardly fewer."""
    example = toy.batch(0)[0][:1]
    for cut in (Weight(), Row()):
        pruner = _with(factory(0.5), Options(macs=0.4, example=example, granularity=cut))
        pruner._sparsity = None
        model, result = _pruned(pruner)
        ledger, spent = footprint(model, example).total, result.macs
        assert spent is not None  # there is a budget
        expect(spent.dense == ledger.macs, f"{cut}: {spent.dense} MACs in the result, {ledger.macs} in the ledger")
        left = ledger.effective_macs
        expect(left <= spent.kept <= 0.4 * ledger.macs, f"{cut}: {left} of {ledger.macs} MACs are left of macs=0.4")
        longest = max(weight[0].numel() for weight in _selected(model, result).values())
        short = spent.budget - spent.kept
        expect(short < longest * len(result.layers), f"{cut}: {short} MACs fewer than the budget leaves")


def check_result_exports(factory: PrunerFactory) -> None:
    """The result names the method, prints a line a tensor and exports to JSON."""
    pruner = factory(0.5)
    _, result = _pruned(pruner)
    expect(result.method == type(pruner).__name__, f"the result is of {result.method}, not {type(pruner).__name__}")
    for layer in result.layers:
        expect(layer.name in str(result), f"the table has no line for {layer.name}")
    exported = json.loads(json.dumps(result.to_dict()))
    expect(exported["zeros"] == result.zeros and exported["units"] == result.units, f"exported: {exported}")


def check_refuses_bad_targets(factory: PrunerFactory) -> None:
    """A target that cannot be is refused at once, with the value seen; a model with nothing to prune as well."""
    sparsities: list[Any] = [0.0, 1.0, -0.1, 95, float("nan"), True, "0.9"]
    for sparsity in sparsities:
        with refused(InputError, f"sparsity={sparsity!r}", sparsity):
            factory(sparsity)
    with refused(InputError, "sparsity=None", "sparsity="):
        factory(None)  # type: ignore[arg-type]
    with refused(InputError, "a model with nothing to select"):
        _prune(factory(0.5), nn.Sequential(nn.BatchNorm1d(3)))


def check_refuses_broken_weights(factory: PrunerFactory) -> None:
    """NaN and infinite weights are refused by name, before anything is changed."""
    for value in (float("nan"), float("inf")):
        model = _model()
        with torch.no_grad():
            model.get_parameter("3.weight")[0, 0] = value
        before = {name: tensor.nan_to_num(9.0) for name, tensor in copies(model.state_dict()).items()}
        with refused(StateError, f"a weight that is {value}", "3.weight"):
            _prune(factory(0.5), model)
        after = {name: tensor.nan_to_num(9.0) for name, tensor in model.state_dict().items()}
        expect(not differ(before, after), "the model was changed before it was refused")


def check_data_is_asked_for(factory: PrunerFactory) -> None:
    """Without batches a method either needs none, or says what to pass and changes nothing."""
    model, untouched = _model(), _model()
    try:
        factory(0.5).prune(model)
    except InputError as error:
        expect("prune(model, [(x, y)])" in str(error), f"the error does not say what to pass: {error}")
        expect(not differ(untouched.state_dict(), model.state_dict()), "the model was changed before it was refused")


# ---- the means ----------------------------------------------------------------------------------


def _sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def _adam(model: nn.Module) -> Optimizer:
    return Adam(model.parameters(), lr=0.01, weight_decay=1e-3)


def _adamw(model: nn.Module) -> Optimizer:
    return AdamW(model.parameters(), lr=0.01, amsgrad=True)


_OPTIMIZERS: tuple[Callable[[nn.Module], Optimizer], ...] = (_sgd, _adam, _adamw)


def _model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return toy.net()


def _batches() -> list[tuple[Tensor, Tensor]]:
    return [toy.batch(0), toy.batch(1)]


def _prune(pruner: Pruner, model: nn.Module) -> Sparsified:
    return pruner.prune(model, _batches(), nn.functional.cross_entropy)


def _pruned(pruner: Pruner) -> tuple[nn.Module, Sparsified]:
    model = _model()
    return model, _prune(pruner, model)


def _with(pruner: Pruner, options: Options) -> Pruner:
    """A factory knows of no options, so they are given to the pruner that it has built."""
    pruner._options = Options(**{**pruner._options, **options})
    return pruner


def _selected(model: nn.Module, result: Sparsified) -> dict[str, Tensor]:
    return {layer.name: model.get_parameter(layer.name).detach() for layer in result.layers}


def _zeros(model: nn.Module, result: Sparsified) -> int:
    return sum(int((weight == 0).sum()) for weight in _selected(model, result).values())


def _blocks(weight: Tensor) -> Tensor:
    down, across = weight.shape[0] // 4, weight.shape[1] // 2
    return weight.reshape(down, 4, across, 2).transpose(1, 2).reshape(down * across, 8)

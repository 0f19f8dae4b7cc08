"""Checks that every sparsifier passes: the promises a user relies on inside a training loop."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from shrinkage.core.engine import Sparsifier
from shrinkage.core.errors import InputError, StateError, TargetError
from shrinkage.core.hold import keep_zeros
from shrinkage.testing import toy
from shrinkage.testing.expect import copies, differ, expect, refused

SparsifierFactory = Callable[[nn.Module, float, int], Sparsifier]
"""Builds the method for ``(model, sparsity, steps)``; every other argument is the factory's own affair."""

STEPS = 40


def sparsifier_checks() -> list[Callable[[SparsifierFactory], None]]:
    """All checks, each a function of a factory that raises ``AssertionError`` where a promise is broken.

    >>> from shrinkage import HALO
    >>> for check in sparsifier_checks():
    ...     check(HALO)
    """
    return [
        check_exact_target,
        check_zeros_outlive_finalize,
        check_life,
        check_model_stays_ordinary,
        check_closure_changes_nothing,
        check_resume_is_bit_identical,
        check_reattach_continues,
        check_state_belongs_to_its_model,
        check_penalty_is_differentiable,
        check_average_gets_the_same_zeros,
        check_result_exports,
        check_refuses_bad_targets,
        check_refuses_wrong_moments,
        check_copied_optimizer_speaks_up,
    ]


def check_sparsifier(factory: SparsifierFactory) -> None:
    """Run all of :func:`sparsifier_checks`.

    Raises:
        AssertionError: with the check's name and what was broken.

    >>> from shrinkage import Lasso
    >>> check_sparsifier(lambda model, sparsity, steps: Lasso(model, sparsity, steps, xi=1e-3))
    """
    for check in sparsifier_checks():
        try:
            check(factory)
        except AssertionError as error:
            raise AssertionError(f"{check.__name__}: {error}") from error


def check_exact_target(factory: SparsifierFactory) -> None:
    """After ``finalize()`` exactly round(sparsity · n) units are +0.0, and the model still works."""
    for sparsity in (0.5, 0.9, 0.96):
        model, optimizer, method = _start(factory, sparsity)
        toy.train(model, optimizer, range(STEPS))
        result = method.finalize()
        wanted = round(sparsity * method.units)
        counted = sum(int((weight == 0).sum()) for weight in _selected(model, method).values())
        expect(result.zeros == method.zeros == counted, f"three counts differ: {result.zeros, method.zeros, counted}")
        expect(counted == wanted, f"{counted} zeros where {wanted} were asked for ({sparsity})")
        expect(result.target == wanted, f"the result names {result.target} as its target, not {wanted}")
        expect(method.measure().keys() == method.masks().keys(), "measure() and masks() name other tensors")
        _expect_kept(model, method)
        expect(bool(torch.isfinite(model(toy.batch(0)[0])).all()), "the network's outputs are not finite")


def check_zeros_outlive_finalize(factory: SparsifierFactory) -> None:
    """Pruned weights stay +0.0 in later training, before and after ``detach`` with ``keep_zeros``."""
    for build in _OPTIMIZERS:
        model, optimizer, method = _start(factory, optimizer=build)
        toy.train(model, optimizer, range(STEPS))
        method.finalize()
        before = copies(_selected(model, method))
        _train_kept(model, optimizer, method)
        expect(bool(differ(before, _selected(model, method))), "the surviving weights no longer train")
        method.detach()
        keeper = keep_zeros(model).attach(optimizer)
        _train_kept(model, optimizer, method)
        keeper.detach()


def check_life(factory: SparsifierFactory) -> None:
    """``step``, ``phase`` and ``wanted`` tell where the method stands, and only selected tensors get zeros."""
    model, optimizer, method = _start(factory)
    expect((method.step, method.phase) == (0, "shrinking"), f"it starts at {method.step}, {method.phase}")
    wanted = [method.wanted]
    toy.train(model, optimizer, range(STEPS), lambda step: wanted.append(method.wanted))
    expect(method.step == STEPS, f"{method.step} steps counted where {STEPS} were taken")
    expect(method.phase == "holding", f"the phase is {method.phase!r} when the ramp has ended")
    expect(wanted == sorted(wanted), f"wanted falls on the way: {wanted}")
    expect(wanted[-1] == round(0.9 * method.units) / method.units, f"wanted ends at {wanted[-1]}")
    method.finalize()
    expect(method.phase == "final", f"the phase is {method.phase!r} after finalize()")
    others = [p for name, p in model.named_parameters() if name not in method.measure() and p.ndim == 1]
    expect(not any(bool((p == 0).all()) for p in others), "a tensor that was not selected was emptied")


def check_model_stays_ordinary(factory: SparsifierFactory) -> None:
    """Names, classes and ``state_dict`` stay; the model copies, pickles and saves in the middle of it all."""
    untouched = toy.net()
    model, optimizer, method = _start(factory)
    for stop in (STEPS // 2, STEPS):
        toy.train(model, optimizer, range(method.step, stop))
        expect(list(model.state_dict()) == list(untouched.state_dict()), "the model's state_dict has other keys")
        expect([type(m) for m in model.modules()] == [type(m) for m in untouched.modules()], "a class was changed")
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            expect(not differ(model.state_dict(), twin.state_dict()), "a copied model differs")
        saved, _ = _load(_save((model.state_dict(), optimizer.state_dict())))
        expect(not differ(model.state_dict(), saved), "a saved model differs")


def check_closure_changes_nothing(factory: SparsifierFactory) -> None:
    """``optimizer.step(closure)`` trains to the same bits as ``backward()`` and ``step()``."""
    plain, optimizer, _ = _start(factory)
    toy.train(plain, optimizer, range(STEPS))
    model, optimizer, _ = _start(factory)

    def closure(step: int) -> float:
        x, y = toy.batch(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    for step in range(STEPS):
        optimizer.step(partial(closure, step))
    expect(not differ(plain.state_dict(), model.state_dict()), "a closure leads to other weights")


def check_resume_is_bit_identical(factory: SparsifierFactory) -> None:
    """From a checkpoint of any step the run ends in the same bits, loaded before or after ``attach``."""
    stops = (0, 1, STEPS // 2, 3 * STEPS // 4 - 1, 3 * STEPS // 4, 3 * STEPS // 4 + 1, STEPS - 1, STEPS)
    for build in _OPTIMIZERS:
        model, optimizer, method = _start(factory, optimizer=build)
        files = []
        for stop in stops:
            toy.train(model, optimizer, range(method.step, stop))
            files.append(_save((model.state_dict(), optimizer.state_dict(), method.state_dict())))
        method.finalize()
        for stop, file in zip(stops, files, strict=True):
            resumed = _resume(factory, build, file, load_first=stop % 2 == 0)
            expect(not differ(model.state_dict(), resumed.state_dict()), f"a run resumed at step {stop} differs")


def _resume(
    factory: SparsifierFactory, build: Callable[[nn.Module], Optimizer], file: bytes, load_first: bool
) -> nn.Module:
    weights, moments, state = _load(file)
    model = toy.net()
    model.load_state_dict(weights)
    optimizer = build(model)
    method = factory(model, 0.9, STEPS)
    if load_first:
        method.load_state_dict(state)
        method.attach(optimizer)
        optimizer.load_state_dict(moments)
    else:
        optimizer.load_state_dict(moments)
        method.attach(optimizer)
        method.load_state_dict(state)
    toy.train(model, optimizer, range(method.step, STEPS))
    method.finalize()
    return model


def check_reattach_continues(factory: SparsifierFactory) -> None:
    """``detach`` and ``attach`` in the middle leave no trace; between them the method does nothing."""
    plain, optimizer, _ = _start(factory)
    toy.train(plain, optimizer, range(STEPS))
    model, optimizer, method = _start(factory)
    for stop in (STEPS // 2, STEPS - 2, STEPS):
        method.detach()
        method.attach(optimizer)
        toy.train(model, optimizer, range(method.step, stop))
    expect(not differ(plain.state_dict(), model.state_dict()), "detach and attach change the outcome")
    method.finalize()
    method.detach()
    masks = method.masks()
    toy.train(model, optimizer, range(3))
    revived = any(bool((weight[~masks[name]] != 0).any()) for name, weight in _selected(model, method).items())
    expect(revived, "after detach() the pruned weights are still held")
    expect(method.step == STEPS, "after detach() steps are still counted")


def check_state_belongs_to_its_model(factory: SparsifierFactory) -> None:
    """The state of another model, target or method is refused and changes nothing."""
    model, optimizer, method = _start(factory)
    toy.train(model, optimizer, range(3))
    state = method.state_dict()
    other = nn.Sequential(nn.Linear(toy.FEATURES, 40), nn.ReLU(), nn.Linear(40, toy.CLASSES))
    with refused(InputError, "the state of another model"):
        factory(other, 0.9, STEPS).load_state_dict(state)
    with refused(InputError, "the state of another target"):
        factory(model, 0.8, STEPS).load_state_dict(state)
    with refused(InputError, "the state of another method"):
        method.load_state_dict({**state, "method": "AnotherMethod"})
    with refused(InputError, "an empty state"):
        method.load_state_dict({})
    expect(method.step == 3, "a refused state has moved the method")


def check_penalty_is_differentiable(factory: SparsifierFactory) -> None:
    """``penalty()`` is a finite scalar ≥ 0 with gradients for selected weights only."""
    model, optimizer, method = _start(factory)
    toy.train(model, optimizer, range(STEPS // 2))
    optimizer.zero_grad()
    value = method.penalty()
    seen = value.item()
    expect(value.ndim == 0 and 0 <= seen < float("inf"), f"the penalty is {seen}, of shape {tuple(value.shape)}")
    value.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        selected = name in method.measure()
        expect((parameter.grad is not None) == selected, f"{name}, {selected=}, has gradient {parameter.grad}")


def check_average_gets_the_same_zeros(factory: SparsifierFactory) -> None:
    """``apply_to`` gives a moving average the model's pattern."""
    model, optimizer, method = _start(factory)
    average = AveragedModel(model)
    with refused(StateError, "apply_to() before the pattern is fixed"):
        method.apply_to(average)
    toy.train(model, optimizer, range(STEPS), lambda step: average.update_parameters(model))
    method.finalize()
    method.apply_to(average)
    _expect_kept(average.module, method)


def check_result_exports(factory: SparsifierFactory) -> None:
    """The result prints a line a tensor and exports to JSON; the method's ``repr`` says where it stands."""
    model, optimizer, method = _start(factory)
    toy.train(model, optimizer, range(STEPS))
    result = method.finalize()
    for name in method.measure():
        expect(name in str(result), f"the table has no line for {name}")
    exported = json.loads(json.dumps(result.to_dict()))
    expect(exported["zeros"] == method.zeros and exported["units"] == method.units, f"exported: {exported}")
    expect("final" in repr(method) and str(STEPS) in repr(method), f"repr: {method!r}")


def check_refuses_bad_targets(factory: SparsifierFactory) -> None:
    """A target or a length that cannot be is refused at once, with the value seen."""
    sparsities: list[float] = [0.0, 1.0, -0.1, 95, float("nan"), True]
    for sparsity in sparsities:
        with refused(InputError, f"sparsity={sparsity}", sparsity):
            factory(toy.net(), sparsity, STEPS)
    lengths: list[Any] = [0, -5, 2.5, True]
    for steps in lengths:
        with refused(InputError, f"steps={steps}", steps):
            factory(toy.net(), 0.9, steps)
    with refused(InputError, "a model with nothing to select"):
        factory(nn.BatchNorm1d(3), 0.9, STEPS)


def check_refuses_wrong_moments(factory: SparsifierFactory) -> None:
    """Calls at the wrong time are refused, and the method goes on unharmed."""
    model = toy.net()
    optimizer = SGD(model.parameters(), lr=0.1)
    method = factory(model, 0.9, STEPS)
    with refused(StateError, "finalize() before attach()", "attach"):
        method.finalize()
    with refused(StateError, "penalty() before attach()", "attach"):
        method.penalty()
    with refused(InputError, "an optimiser of another model"):
        method.attach(SGD(toy.net().parameters(), lr=0.1))
    method.attach(optimizer)
    with refused(StateError, "attaching twice", "detach"):
        method.attach(optimizer)
    with refused(StateError, "masks() before the pattern is fixed"):
        method.masks()
    toy.train(model, optimizer, range(2))
    with refused(TargetError, "finalize() before the ramp has ended", 2, STEPS):
        method.finalize()
    with refused(StateError, "copying an attached method"):
        copy.deepcopy(method)
    toy.train(model, optimizer, range(2, STEPS))
    method.finalize()


def check_copied_optimizer_speaks_up(factory: SparsifierFactory) -> None:
    """A copied optimiser has lost the method: it says so at its next step. The original goes on."""
    model, optimizer, _ = _start(factory)
    toy.train(model, optimizer, range(2))
    for twin, twins_optimizer in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        with refused(StateError, "the step of a copied optimiser", "copy"):
            toy.train(twin, twins_optimizer, range(2, 3))
        factory(twin, 0.9, STEPS).attach(twins_optimizer)
        toy.train(twin, twins_optimizer, range(2, 3))
    toy.train(model, optimizer, range(2, 4))


# ---- the means ----------------------------------------------------------------------------------


def _sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def _adam(model: nn.Module) -> Optimizer:
    return Adam(model.parameters(), lr=0.01, weight_decay=1e-3)


def _adamw(model: nn.Module) -> Optimizer:
    return AdamW(model.parameters(), lr=0.01, amsgrad=True)


_OPTIMIZERS: tuple[Callable[[nn.Module], Optimizer], ...] = (_sgd, _adam, _adamw)


def _start(
    factory: SparsifierFactory, sparsity: float = 0.9, optimizer: Callable[[nn.Module], Optimizer] = _sgd
) -> tuple[nn.Module, Optimizer, Sparsifier]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = toy.net()
        built = optimizer(model)
        return model, built, factory(model, sparsity, STEPS).attach(built)


def _selected(model: nn.Module, method: Sparsifier) -> dict[str, Tensor]:
    return {name: model.get_parameter(name).detach() for name in method.measure()}


def _save(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def _load(file: bytes) -> Any:
    return torch.load(io.BytesIO(file), weights_only=True)


def _train_kept(model: nn.Module, optimizer: Optimizer, method: Sparsifier) -> None:
    toy.train(model, optimizer, range(STEPS, STEPS + 10), lambda step: _expect_kept(model, method))


def _expect_kept(model: nn.Module, method: Sparsifier) -> None:
    for name, mask in method.masks().items():
        pruned = model.get_parameter(name).detach()[~mask]
        expect(not bool((pruned != 0).any()), f"pruned weights of {name} have come back")
        expect(not bool(pruned.signbit().any()), f"{name} holds −0.0")

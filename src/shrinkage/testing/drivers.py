"""Checks that every driver passes: the promises a user relies on when a method owns several trainings."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from shrinkage.core.driver import Driver, Round, Train
from shrinkage.core.errors import InputError, StateError
from shrinkage.core.result import Sparsified
from shrinkage.testing import toy
from shrinkage.testing.expect import differ, expect, refused

DriverFactory = Callable[[float], Driver]
"""Builds the method for a sparsity; every other argument is the factory's own affair."""

STEPS = 20


def driver_checks() -> list[Callable[[DriverFactory], None]]:
    """All checks, each a function of a factory that raises ``AssertionError`` where a promise is broken.

    >>> from shrinkage import LotteryTicket
    >>> for check in driver_checks():
    ...     check(LotteryTicket)
    """
    return [
        check_exact_target,
        check_zeros_hold_in_every_round,
        check_model_stays_ordinary,
        check_closure_changes_nothing,
        check_resume_is_bit_identical,
        check_hands_the_optimizers_back,
        check_result_exports,
        check_refuses_bad_targets,
        check_refuses_a_loop_that_does_not_attach,
        check_state_belongs_to_its_model,
    ]


def check_driver(factory: DriverFactory) -> None:
    """Run all of :func:`driver_checks`.

    Raises:
        AssertionError: with the check's name and what was broken.

    >>> from shrinkage import LotteryTicket
    >>> check_driver(lambda sparsity: LotteryTicket(sparsity, rounds=2, rewind="learning-rate"))
    """
    for check in driver_checks():
        try:
            check(factory)
        except AssertionError as error:
            raise AssertionError(f"{check.__name__}: {error}") from error


def check_exact_target(factory: DriverFactory) -> None:
    """Exactly round(sparsity · n) units are +0.0 in the end, and the global random state is as it was."""
    for sparsity in (0.5, 0.9, 0.96):
        model = _net()
        before = torch.get_rng_state()
        result = factory(sparsity).run(model, _loop(), STEPS)
        expect(torch.equal(before, torch.get_rng_state()), "the global random state has moved")
        weights = [model.get_parameter(layer.name).detach() for layer in result.layers]
        counted, wanted = sum(int((weight == 0).sum()) for weight in weights), round(sparsity * result.units)
        expect(counted == result.zeros == wanted, f"{counted} zeros, {result.zeros} reported, {wanted} asked for")
        expect(not any(bool(weight[weight == 0].signbit().any()) for weight in weights), "there are −0.0")
        expect(bool(torch.isfinite(model(toy.batch(0)[0])).all()), "the network's outputs are not finite")


def check_zeros_hold_in_every_round(factory: DriverFactory) -> None:
    """What is pruned when a round begins is +0.0 after its every step, and each round begins with no fewer zeros."""
    for build in (_sgd, _adam, _adamw):
        counts: list[int] = []

        def train(model: nn.Module, run: Round, build: Any = build, counts: list[int] = counts) -> None:
            optimizer = build(model)
            run.attach(optimizer)
            gone = {name: weight == 0 for name, weight in model.named_parameters() if weight.ndim > 1}
            counts.append(sum(int(mask.sum()) for mask in gone.values()))

            def look(step: int) -> None:
                for name, mask in gone.items():
                    pruned = model.get_parameter(name).detach()[mask]
                    expect(not bool((pruned != 0).any()), f"pruned weights of {name} have come back at step {step}")
                    expect(not bool(pruned.signbit().any()), f"{name} holds −0.0")

            toy.train(model, optimizer, range(run.first_step, run.steps), look)

        result = factory(0.9).run(_net(), train, STEPS)
        expect(len(counts) > 1 and counts[0] == 0, f"a driver begins dense and goes several rounds, not {counts}")
        expect(counts == sorted(counts) and counts[-1] == result.zeros, f"zeros of the rounds: {counts}")


def check_model_stays_ordinary(factory: DriverFactory) -> None:
    """Names and classes stay, and the model copies and pickles in every round."""
    untouched = toy.net()

    def look(model: nn.Module, run: Round) -> None:
        expect(list(model.state_dict()) == list(untouched.state_dict()), "the model's state_dict has other keys")
        expect([type(m) for m in model.modules()] == [type(m) for m in untouched.modules()], "a class was changed")
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            expect(not differ(model.state_dict(), twin.state_dict()), "a copied model differs")

    factory(0.9).run(_net(), _loop(look), STEPS)


def check_closure_changes_nothing(factory: DriverFactory) -> None:
    """``optimizer.step(closure)`` trains to the same bits as ``backward()`` and ``step()``."""

    def train(model: nn.Module, run: Round) -> None:
        optimizer = _sgd(model)
        run.attach(optimizer)

        def closure(step: int) -> float:
            x, y = toy.batch(step)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.item()

        for step in range(run.first_step, run.steps):
            optimizer.step(partial(closure, step))

    plain, model = _net(), _net()
    factory(0.9).run(plain, _loop(), STEPS)
    factory(0.9).run(model, train, STEPS)
    expect(not differ(plain.state_dict(), model.state_dict()), "a closure leads to other weights")


def check_resume_is_bit_identical(factory: DriverFactory) -> None:
    """A run that goes on from the beginning of any round ends in the same bits and reports the same."""
    driver, model = factory(0.9), _net()
    files: list[bytes] = []

    def save(model: nn.Module, run: Round) -> None:
        files.append(_save((model.state_dict(), driver.state_dict())))

    result = driver.run(model, _loop(save, value=97.53), STEPS)
    for index, file in enumerate(files):
        weights, state = torch.load(io.BytesIO(file), weights_only=True)
        again, resumed = toy.net(), factory(0.9)
        again.load_state_dict(weights)
        resumed.load_state_dict(state)
        seen: list[int] = []
        once_more = resumed.run(again, _loop(partial(_note, seen), value=97.53), STEPS)
        expect(seen == list(range(index, len(files))), f"resumed at round {index} of {len(files)} it ran {seen}")
        expect(not differ(model.state_dict(), again.state_dict()), f"a run resumed at round {index} differs")
        expect(once_more.to_dict() == result.to_dict(), f"a run resumed at round {index} reports something else")


def check_hands_the_optimizers_back(factory: DriverFactory) -> None:
    """After a round, ended well or by an error, its optimiser is free: nothing is held, and it may be copied."""
    optimizers: list[Optimizer] = []

    def stop(model: nn.Module, run: Round) -> None:
        optimizers.append(_sgd(model))
        run.attach(optimizers[-1])
        if run.index == 1:
            raise KeyboardInterrupt
        toy.train(model, optimizers[-1], range(run.first_step, run.steps))

    model = _net()
    with suppress(KeyboardInterrupt):
        factory(0.9).run(model, stop, STEPS)
    zeros = _zeros(model)
    for optimizer in optimizers:
        copy.deepcopy(optimizer).step()
        toy.train(model, optimizer, range(1))
    expect(_zeros(model) < zeros, "zeros are held when the run is over")


def check_result_exports(factory: DriverFactory) -> None:
    """The result prints and exports to JSON; what the loop returns is in it."""
    result = factory(0.9).run(_net(), _loop(value=97.53), STEPS)
    exported = json.loads(json.dumps(result.to_dict()))
    expect(exported["zeros"] == result.zeros and exported["units"] == result.units, f"exported: {exported}")
    expect("97.53" in str(exported) and "97.53" in str(result), "what train returned is not in the result")
    expect(isinstance(result, Sparsified) and f"{result.sparsity:.2%}" in str(result), f"it prints: {result}")


def check_refuses_bad_targets(factory: DriverFactory) -> None:
    """A target or a length that cannot be is refused before anything is trained, with the value seen."""
    sparsities: list[float] = [0.0, 1.0, -0.1, 95, float("nan"), True]
    lengths: list[Any] = [0, -5, 2.5, True]
    for sparsity in sparsities:
        with refused(InputError, f"sparsity={sparsity}", sparsity):
            factory(sparsity).run(_net(), _untouchable, STEPS)
    for steps in lengths:
        with refused(InputError, f"steps={steps}", steps):
            factory(0.9).run(_net(), _untouchable, steps)
    with refused(InputError, "a model with nothing to select"):
        factory(0.9).run(nn.BatchNorm1d(3), _untouchable, STEPS)


def check_refuses_a_loop_that_does_not_attach(factory: DriverFactory) -> None:
    """A loop that forgets ``attach``, attaches twice or attaches a stranger is told so."""

    def forgetful(model: nn.Module, run: Round) -> None:
        toy.train(model, _sgd(model), range(run.first_step, run.steps))

    def twice(model: nn.Module, run: Round) -> None:
        optimizer = _sgd(model)
        run.attach(optimizer).attach(optimizer)
        toy.train(model, optimizer, range(run.first_step, run.steps))

    def stranger(model: nn.Module, run: Round) -> None:
        run.attach(_sgd(toy.net()))

    def idle(model: nn.Module, run: Round) -> None:
        run.attach(_sgd(model))

    for train, kind in ((forgetful, StateError), (twice, StateError), (stranger, InputError), (idle, StateError)):
        with refused(kind, f"a {train.__name__} loop"):
            factory(0.9).run(_net(), train, STEPS)


def check_state_belongs_to_its_model(factory: DriverFactory) -> None:
    """A state is taken where a resumed run can begin; that of another model, target or method is refused."""
    driver = factory(0.9)
    states: list[dict[str, Any]] = []

    def late(model: nn.Module, run: Round) -> None:
        states.append(driver.state_dict())
        optimizer = _sgd(model)
        run.attach(optimizer)
        with refused(StateError, "state_dict() in the middle of a round", "attach"):
            driver.state_dict()
        toy.train(model, optimizer, range(run.first_step, run.steps))

    def interrupted(model: nn.Module, run: Round) -> None:
        raise KeyboardInterrupt

    driver.run(_net(), late, STEPS)
    with suppress(KeyboardInterrupt):
        driver.run(_net(), interrupted, STEPS)
    with refused(StateError, "state_dict() when run() is over"):
        driver.state_dict()
    state = states[-1]
    other = nn.Sequential(nn.Linear(toy.FEATURES, 40), nn.ReLU(), nn.Linear(40, toy.CLASSES))
    cases: dict[str, tuple[float, nn.Module, int, dict[str, Any]]] = {
        "another model": (0.9, other, STEPS, state),
        "another target": (0.8, _net(), STEPS, state),
        "another length": (0.9, _net(), STEPS + 1, state),
        "another method": (0.9, _net(), STEPS, {**state, "method": "AnotherMethod"}),
        "nothing": (0.9, _net(), STEPS, {}),
    }
    for what, (sparsity, model, steps, loaded) in cases.items():
        fresh = factory(sparsity)
        with refused(InputError, f"the state of {what}"):
            fresh.load_state_dict(loaded)
            fresh.run(model, _untouchable, steps)


# ---- the means ----------------------------------------------------------------------------------


def _sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def _adam(model: nn.Module) -> Optimizer:
    return Adam(model.parameters(), lr=0.01, weight_decay=1e-3)


def _adamw(model: nn.Module) -> Optimizer:
    return AdamW(model.parameters(), lr=0.01, amsgrad=True)


def _net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return toy.net()


def _loop(begin: Callable[[nn.Module, Round], None] | None = None, value: float | None = None) -> Train:
    def train(model: nn.Module, run: Round) -> float | None:
        if begin is not None:
            begin(model, run)
        optimizer = _sgd(model)
        run.attach(optimizer)
        toy.train(model, optimizer, range(run.first_step, run.steps))
        return value

    return train


def _note(seen: list[int], model: nn.Module, run: Round) -> None:
    seen.append(run.index)


def _untouchable(model: nn.Module, run: Round) -> None:
    raise AssertionError("something was trained that should have been refused")


def _zeros(model: nn.Module) -> int:
    return sum(int((weight == 0).sum()) for weight in model.parameters() if weight.ndim > 1)


def _save(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()

"""Living inside other people's loops: closures, wrappers, copies, compilation."""

import copy
import gc
import io
import pickle
import warnings

import pytest
import torch
from torch import nn, optim
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import shrinkage
from nets import MLP, RAMP, batch, fit, pruned_signs, start
from shrinkage import HALO, InputError, StateError, keep_zeros
from shrinkage.core.hooks import unwrap_optimizer


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# ---- wrappers -----------------------------------------------------------------------------------


def test_accelerate():
    from accelerate import Accelerator

    plain, optimizer, halo = start(optimizer=optim.Adam, lr=0.01)
    fit(plain, optimizer, range(45))
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = MLP()
    wrapped_model, wrapped = accelerator.prepare(model, optim.Adam(model.parameters(), lr=0.01))
    halo = HALO(wrapped_model, 0.9, 40, **RAMP).attach(wrapped)
    for step in range(45):
        x, y = batch(step)
        wrapped.zero_grad()
        accelerator.backward(functional.cross_entropy(wrapped_model(x), y))
        wrapped.step()
    assert same(model, plain)
    assert halo.finalize().zeros == round(0.9 * halo.units)


def test_lightning():
    from lightning import LightningModule, Trainer

    plain, optimizer, _ = start(optimizer=optim.Adam, lr=0.01)
    fit(plain, optimizer, range(45))

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = MLP()

        def configure_optimizers(self):
            return optim.Adam(self.parameters(), lr=0.01)

        def on_fit_start(self):
            self.halo = HALO(self.net, 0.9, 40, **RAMP).attach(self.optimizers())

        def training_step(self, step, _):
            return functional.cross_entropy(self.net(batch(int(step))[0]), batch(int(step))[1])

    module = Module()
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, on workers and on torch's trees
        trainer.fit(module, torch.utils.data.DataLoader(torch.arange(45), batch_size=None))
    assert module.halo.step == 45
    assert same(module.net, plain)
    assert module.halo.finalize().zeros == round(0.9 * module.halo.units)


def test_what_is_not_an_optimiser():
    model = MLP()
    for wrong in (model, [optim.SGD(model.parameters(), lr=0.1)], None):
        with pytest.raises(InputError, match=rf"HALO.attach\(\) takes torch optimisers, got {type(wrong).__name__}"):
            HALO(model, 0.9, 40).attach(wrong)
    inner = optim.SGD(model.parameters(), lr=0.1)
    assert unwrap_optimizer(inner, "HALO") is inner


def test_an_optimiser_given_twice_counts_once():
    model, optimizer = MLP(), None
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    halo = HALO(model, 0.9, 40).attach(optimizer, optimizer)
    fit(model, optimizer, range(5))
    assert halo.step == 5


@pytest.mark.parametrize("strengths", [{}, {"xi": 1e-4, "psi": 1e-4, "lam_momentum": 0.0}])
def test_an_optimiser_without_selected_weights_may_come_along(strengths):
    model = MLP()
    weights = [p for p in model.parameters() if p.ndim == 2]
    biases = optim.Adam([p for p in model.parameters() if p.ndim == 1])
    optimizer = optim.SGD(weights, lr=0.1)
    halo = HALO(model, 0.9, 40, **strengths).attach(biases, optimizer)
    fit(model, optimizer, range(45), after=biases.step)
    assert halo.step == 45
    assert halo.finalize().zeros == round(0.9 * halo.units)


def test_weights_in_no_optimiser_are_named():
    model = MLP()
    halo = HALO(model, 0.9, 40)
    with pytest.raises(InputError, match=r"2 of 3 selected weights, '2\.weight' among them, are in none.*exclude="):
        halo.attach(optim.SGD(model[0].parameters(), lr=0.1))
    with pytest.raises(InputError, match="3 of 3 selected weights"):
        halo.attach()
    halo.attach(optim.SGD(model.parameters(), lr=0.1))  # no harm was done


# ---- learning rates and states ------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["proximal", "gradient"])
def test_a_schedule_still_counts_after_the_optimisers_state_was_loaded(solver):
    """``load_state_dict`` puts new dictionaries in the place of the parameter groups."""

    def run(reload):
        torch.manual_seed(0)
        model = MLP()
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        HALO(model, xi=1e-3, psi=1e-3, solver=solver).attach(optimizer)
        schedule = optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for step in range(6):
            if step == 2 and reload:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            fit(model, optimizer, range(step, step + 1))
            schedule.step()
        return model

    assert same(run(True), run(False))


def test_two_methods_on_one_optimiser():
    torch.manual_seed(0)
    model = MLP()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    halo = HALO(model, 0.9, 40, include="0.*").attach(optimizer)
    lasso = shrinkage.Lasso(model, 0.5, 40, include="2.weight").attach(optimizer)
    fit(model, optimizer, range(42))
    halo.finalize()
    halo.detach()
    fit(model, optimizer, range(42, 45))
    assert lasso.step == 45
    assert lasso.finalize().zeros == 256
    with pytest.raises(StateError, match="copy of one"):
        fit(*copy.deepcopy((model, optimizer)), range(1))


def test_a_detached_or_forgotten_method_leaves_an_ordinary_optimiser():
    model, optimizer, halo = start()
    keeper = None
    fit(model, optimizer, range(35))
    halo.detach()
    halo.detach()
    twin = copy.deepcopy((model, optimizer))
    fit(*twin, range(3))
    keeper = keep_zeros(model).attach(optimizer)
    keeper.detach()
    fit(*copy.deepcopy((model, optimizer)), range(3))
    assert type(optimizer.defaults) is dict
    del halo, keeper
    gc.collect()
    fit(model, optimizer, range(3))


# ---- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, copy.copy, lambda o: pickle.loads(pickle.dumps(o)), lambda o: saved(o, weights_only=False)],
    ids=["deepcopy", "copy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("steps", [3, 35])
def test_a_copied_optimiser_says_what_it_lost(duplicate, steps):
    model, optimizer, _ = start(optimizer=optim.AdamW, lr=0.01)
    fit(model, optimizer, range(steps))
    twin = duplicate(optimizer)
    with pytest.raises(StateError, match="this AdamW is a copy of one that HALO was attached to"):
        twin.step()
    fit(model, optimizer, range(steps, steps + 2))


def saved(thing, weights_only=True):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


def test_a_new_optimiser_with_the_old_ones_state_is_no_copy():
    model, optimizer, _ = start(optimizer=optim.AdamW, lr=0.01)
    fit(model, optimizer, range(3))
    fresh = optim.AdamW(model.parameters(), lr=0.01)
    fresh.load_state_dict(saved(optimizer.state_dict()))
    before = model[0].weight.detach().clone()
    fresh.step()
    assert not torch.equal(model[0].weight, before)


def test_the_method_itself_is_not_copied():
    _, _, halo = start()
    for duplicate in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(StateError, match=r"build a new one for the copied model and give it this one's state_dict"):
            duplicate(halo)


@pytest.mark.parametrize("steps", [10, 35])
def test_a_copied_model_is_an_ordinary_one(steps):
    model, optimizer, _ = start()
    fit(model, optimizer, range(steps))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), saved(model, weights_only=False)):
        assert same(model, twin)
        assert [type(p) for p in twin.parameters()] == [nn.Parameter] * 6
        fit(twin, optim.SGD(twin.parameters(), lr=0.1), range(3))
        assert not same(model, twin)


def test_everything_saves_for_weights_only():
    model, optimizer, halo = start(optimizer=optim.AdamW, lr=0.01)
    for stop in (1, 20, 30, 40):
        fit(model, optimizer, range(halo.step, stop))
        state = saved({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "halo": halo.state_dict()})
        assert state["halo"]["step"] == stop
    masks = sum(value.numel() for value in state["halo"]["kept"].values())
    assert masks == halo.units / 8


def test_averages_get_the_same_zeros():
    model, optimizer, halo = start()
    averages = [AveragedModel(model), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))]
    fit(model, optimizer, range(40), after=lambda: [average.update_parameters(model) for average in averages])
    halo.finalize()
    for average in averages:
        assert pruned_signs(average.module, halo)[0] > 0
        halo.apply_to(average)
        assert pruned_signs(average.module, halo) == (0, 0)
        assert any((p != 0).any() for p in average.parameters())
    half = copy.deepcopy(model).to(torch.bfloat16)
    with torch.no_grad():
        half[0].weight.add_(1)
    halo.apply_to(half)
    assert pruned_signs(half, halo) == (0, 0)
    with pytest.raises(InputError, match=r"has no parameter '0\.weight'"):
        halo.apply_to(nn.Linear(3, 3))
    other = MLP()
    other[4] = nn.Linear(16, 5)
    before = copy.deepcopy(other)
    with pytest.raises(InputError, match=r"'4\.weight' has shape \(5, 16\) there, \(4, 16\) here"):
        halo.apply_to(other)
    assert same(other, before)


# ---- compilation --------------------------------------------------------------------------------


class Counting:
    """A backend that counts how often it is asked to compile."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_model_is_compiled_once():
    plain, optimizer, _ = start()
    fit(plain, optimizer, range(50))
    torch.manual_seed(0)
    model = MLP()
    backend = Counting()
    compiled = torch.compile(model, backend=backend)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    halo = HALO(compiled, 0.9, 40, **RAMP).attach(optimizer)
    assert set(halo.measure()) == {"0.weight", "2.weight", "4.weight"}
    fit(compiled, optimizer, range(2))
    graphs = backend.graphs
    assert graphs > 0
    fit(compiled, optimizer, range(2, 40))
    halo.finalize()
    fit(compiled, optimizer, range(40, 50))
    assert backend.graphs == graphs
    assert same(model, plain)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.filterwarnings("ignore")  # dynamo steps on deprecated parts of torch while it traces
@pytest.mark.parametrize("build", [optim.SGD, optim.AdamW])
def test_a_compiled_step_is_not_recompiled_from_phase_to_phase(build):
    def data(step):
        x, y = batch(step)
        return x.double(), y

    def double():  # so that rounding does not swap two weights of almost the same rank
        return MLP(torch.float64)

    plain, optimizer, _ = start(model=double, optimizer=build, lr=0.01)
    fit(plain, optimizer, range(50), data)
    backend = Counting()
    model, optimizer, halo = start(model=double, optimizer=build, lr=0.01)
    compiled = torch.compile(optimizer.step, backend=backend)
    phases = {}

    def loop(steps):
        for step in steps:
            x, y = data(step)
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            compiled()
            phases.setdefault(halo.phase, backend.graphs)

    loop(range(4))
    graphs = backend.graphs
    loop(range(4, 40))
    halo.finalize()
    loop(range(40, 50))
    assert backend.graphs == graphs > 0, phases
    assert halo.step == 50
    assert pruned_signs(model, halo) == (0, 0)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


class Extended(optim.SGD):
    """Adds to its base's step; a part of torch's users do."""

    fails = False

    def step(self, closure=None):
        loss = super().step(closure)
        if self.fails:
            raise RuntimeError("on the way")
        return loss


@pytest.mark.parametrize("with_closure", [False, True])
def test_a_step_that_calls_its_base_class_counts_once(with_closure):
    optim.SGD(MLP().parameters(), lr=0.1)  # torch hooks a class when it is first built: here base and subclass
    model, plain = MLP(), MLP()
    plain.load_state_dict(model.state_dict())
    optimizer, usual = Extended(model.parameters(), lr=0.1), optim.SGD(plain.parameters(), lr=0.1)
    halo, reference = HALO(model, 0.9, 40).attach(optimizer), HALO(plain, 0.9, 40).attach(usual)
    for step in range(40):
        x, y = batch(step)
        for net, stepper in ((model, optimizer), (plain, usual)):

            def closure(net=net, stepper=stepper, x=x, y=y):
                stepper.zero_grad()
                loss = functional.cross_entropy(net(x), y)
                loss.backward()
                return loss

            if with_closure:
                stepper.step(closure)
            else:
                closure()
                stepper.step()
    assert halo.step == reference.step == 40
    assert halo.finalize().zeros == reference.finalize().zeros
    assert all(torch.equal(weight, plain.state_dict()[name]) for name, weight in model.state_dict().items())


def test_a_step_that_fails_does_not_switch_the_method_off():
    optim.SGD(MLP().parameters(), lr=0.1)
    model = MLP()
    optimizer = Extended(model.parameters(), lr=0.1)
    halo = HALO(model, 0.9, 40).attach(optimizer)
    optimizer.fails = True
    with pytest.raises(RuntimeError, match="on the way"):
        fit(model, optimizer, range(1))
    optimizer.fails = False
    fit(model, optimizer, range(1, 6))
    assert halo.step == 5


# ---- several optimisers -------------------------------------------------------------------------


def test_a_weight_in_two_optimisers_is_refused():
    model = MLP()
    first, second = optim.SGD(model.parameters(), lr=0.1), optim.AdamW(model.parameters())
    with pytest.raises(InputError, match="in two of the optimisers, SGD and AdamW"):
        HALO(model, 0.9, 40).attach(first, second)
    shrinkage.Magnitude(0.5).prune(model)
    with pytest.raises(InputError, match="in two of the optimisers"):
        keep_zeros(model).attach(first, second)


def test_an_attachment_that_fails_leaves_nothing_behind():
    model = MLP()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    other = HALO(MLP(), xi=1e-3, layerwise=True)
    other.attach(optim.SGD(other._model.parameters(), lr=0.1))
    halo = HALO(model, xi=1e-3)
    halo.load_state_dict(other.state_dict())
    with pytest.raises(InputError, match="6 tensors of λ where 3 are"):
        halo.attach(optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    HALO(model, xi=1e-3).attach(optimizer)

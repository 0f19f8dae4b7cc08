from dataclasses import replace

import pytest
import torch
from lines import TRIAL

from shrinkage import StateError
from shrinkage.reproduce import entrants, loop, tasks
from shrinkage.reproduce.entrants import ENTRANTS
from shrinkage.reproduce.loop import Training
from shrinkage.reproduce.run import run
from small_files import write_mnist

CPU = torch.device("cpu")


def start(trial, **options):
    return Training(trial, tasks.read(tasks.find(trial.task), None, held_out=trial.validation), CPU, **options)


@pytest.mark.parametrize("method", [name for name, entrant in ENTRANTS.items() if not entrant.needs_moments])
def test_every_method_meets_its_sparsity_within_the_budget(method):
    trial = replace(TRIAL, method=method, sparsity=0.0 if method == "dense" else 0.9, epochs=3)
    training = start(trial)
    ENTRANTS[method].run(training)
    assert training.step <= training.steps
    outcome = run(trial, None, CPU)
    assert outcome.failure is None
    assert outcome.zeros == round(trial.sparsity * outcome.weights)
    assert sum(zeros for zeros, _ in outcome.layers.values()) == outcome.zeros
    assert outcome.accuracy > 15
    assert (outcome.mac_density < 0.2) == (method != "dense")


def test_equal_trials_give_equal_outcomes_and_other_seeds_do_not():
    first, again = run(TRIAL, None, CPU), run(TRIAL, None, CPU)
    assert replace(first, seconds=0) == replace(again, seconds=0)
    assert run(replace(TRIAL, seed=1), None, CPU).layers != first.layers


def test_a_held_out_trial_is_judged_by_other_images_and_trained_on_fewer():
    task = tasks.find("digits")
    held = start(replace(TRIAL, validation=True))
    whole = start(TRIAL)
    assert whole.epoch_steps - held.epoch_steps == pytest.approx(task.held_out / task.batch_size, abs=1)


class Power(Exception):
    """It is off."""


@pytest.mark.parametrize("method", ["halo", "halo-controller", "rigl", "str", "snip", "dense"])
def test_an_interrupted_training_goes_on_to_the_same_bits(method, tmp_path, monkeypatch):
    trial = replace(TRIAL, method=method, sparsity=0.0 if method == "dense" else 0.9, epochs=4)
    whole = start(trial)
    ENTRANTS[method].run(whole)
    file = tmp_path / "state.pt"
    broken = start(trial, checkpoint=file, every=1)
    fetch = broken._at

    def fail_late(step):
        if step == 2 * broken.epoch_steps + 5:
            raise Power
        return fetch(step)

    monkeypatch.setattr(broken, "_at", fail_late)
    with pytest.raises(Power):
        ENTRANTS[method].run(broken)
    resumed = start(trial, checkpoint=file)
    assert resumed.step == 2 * resumed.epoch_steps
    ENTRANTS[method].run(resumed)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_checkpoint_of_another_origin_or_a_broken_one_is_as_none(tmp_path):
    file = tmp_path / "state.pt"
    dense = replace(TRIAL, method="dense", sparsity=0.0)
    ENTRANTS["dense"].run(start(dense, checkpoint=file, every=1))
    assert start(dense, checkpoint=file).step > 0
    assert start(TRIAL, checkpoint=file).step == 0
    assert start(dense, checkpoint=file, origin=["another recipe", "cpu", None]).step == 0
    for content in (file.read_bytes()[:-1000], b"an earlier state"):
        file.write_bytes(content)
        assert start(dense, checkpoint=file).step == 0


@pytest.mark.parametrize("method", ["magnitude-tuned", "lottery-weights", "lottery-lr"])
def test_procedures_of_several_trainings_use_the_budget_and_see_new_data(method, tmp_path, monkeypatch):
    trial = replace(TRIAL, method=method, epochs=4)
    training = start(trial)
    seen = []
    fetch = training._at
    monkeypatch.setattr(training, "_at", lambda step: seen.append(step) or fetch(step))
    ENTRANTS[method].run(training)
    assert seen == list(range(len(seen)))
    assert 0.97 * training.steps <= len(seen) <= training.steps
    file = tmp_path / "state.pt"
    run(replace(trial, epochs=20), None, CPU, checkpoint=file)  # would be saved at 10, were it a single training
    assert not file.exists()
    assert not ENTRANTS[method].resumable


def test_the_seed_reaches_random_patterns():
    def pattern(method, seed):
        training = start(replace(TRIAL, method=method, seed=seed, epochs=1))
        ENTRANTS[method].run(training)
        return training.model

    for method in ("rigl", "set", "random"):
        one, other = ([p != 0 for p in pattern(method, seed).parameters() if p.ndim > 1] for seed in (0, 1))
        shared = sum(int((a & b).sum()) for a, b in zip(one, other, strict=True))
        assert shared < 0.5 * sum(int(a.sum()) for a in one), method


def test_a_training_that_diverges_is_an_outcome_that_says_so():
    outcome = run(replace(TRIAL, lr=1e6, epochs=8), None, CPU)
    assert outcome.accuracy is None
    assert "step" in outcome.failure


@pytest.mark.parametrize("method", ["dense", "snip"])
def test_a_training_that_diverges_at_the_end_does_so_too(method):
    trial = replace(TRIAL, method=method, sparsity=0.0 if method == "dense" else 0.9, lr=1e9, epochs=1)
    outcome = run(trial, None, CPU)  # 45 steps, fewer than from one look at the loss to the next
    assert outcome.accuracy is None
    assert "too high" in outcome.failure


def test_a_full_disk_is_no_failure_of_the_method(tmp_path, monkeypatch):
    def full(*args, **options):
        raise StateError("no space left on device")

    monkeypatch.setattr(loop, "write", full)
    with pytest.raises(StateError, match="no space left"):
        run(replace(TRIAL, epochs=10), None, CPU, checkpoint=tmp_path / "state.pt")


def test_the_images_of_a_smaller_task_are_averages(tmp_path):
    write_mnist(tmp_path)
    task = replace(tasks.find("mnist"), side=14)
    data = tasks.read(task, tmp_path, held_out=False)
    assert data.input_shape == (1, 14, 14)
    full = tasks.read(tasks.find("mnist"), tmp_path, held_out=False)
    small, large = data.prepare(data.train.x[:2]), full.prepare(data.train.x[:2])
    assert small.shape == (2, 1, 14, 14)
    assert torch.allclose(small[0, 0, 3, 5], large[0, 0, 6:8, 10:12].mean())


def test_methods_that_need_moments_know_it():
    assert [name for name in ENTRANTS if entrants.find(name).needs_moments] == ["gradual-moment"]

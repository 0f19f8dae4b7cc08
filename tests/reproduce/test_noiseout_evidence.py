"""The evidence for NoiseOut on a tiny part: complete, not run twice, paired with networks from scratch."""

import contextlib
import dataclasses
import json

import pytest
import torch

from shrinkage.core.errors import InputError, StateError
from shrinkage.reproduce import shrinking, shrunkplots
from shrinkage.reproduce.lines import Lines
from shrinkage.reproduce.noiseout import Evidence, _evidence, reproduce
from shrinkage.reproduce.runner import Runner
from shrinkage.reproduce.shrinking import Part, Trial, run
from shrinkage.reproduce.shrunkplots import curve_plot

CPU = torch.device("cpu")
TINY = Part("a tiny one", "digits", "mlp", 3, 256, 0.05, (0.1,), 1, (0.5, 0.95), held_out=300)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(shrinking, "PARTS", {"tiny": TINY})


def test_a_trial_leaves_what_it_says_and_repeats_to_the_bit(tiny):
    trial = Trial("tiny", "noiseout", "gaussian", 0.1, 0)
    first, again = run(trial, None, CPU), run(trial, None, CPU)
    whole = 50610
    assert 0.09 * whole < first["parameters"] <= 0.1 * whole
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    assert len(first["correlation"]) == 3
    scratch = Trial("tiny", "scratch", "none", 1.0, 0, shapes=first["shapes"])
    other = run(scratch, None, CPU)
    assert other["parameters"] == first["parameters"]
    assert other["shapes"] == first["shapes"]


def test_halo_leaves_as_many_whether_or_not_neurons_have_gone(tiny):
    found = [
        run(Trial("tiny", "noiseout", "none", left, 0, sparsity=0.95, late=late), None, CPU)
        for left, late in ((1.0, False), (1.0, True), (0.1, False))
    ]
    weights, others = 64 * 300 + 300 * 100 + 100 * 10, 410
    assert [each["nonzeros"] for each in found] == pytest.approx([others + 0.05 * weights] * 3, abs=2)
    assert [each["halo_steps"] for each in found] == [18, 6, 6]  # of three epochs all, or the last
    assert all(each["nonzeros"] <= each["parameters"] >= each["compacted"] for each in found)


def test_a_network_from_scratch_begins_as_wide_as_it_is(tiny):
    shapes = {
        "1.weight": (9, 64),
        "1.bias": (9,),
        "3.weight": (4, 9),
        "3.bias": (4,),
        "5.weight": (10, 4),
        "5.bias": (10,),
    }
    data = shrinking.read(TINY, None, False)
    model = shrinking._Training(Trial("tiny", "scratch", "none", 1.0, 0, shapes=shapes), TINY, data, CPU).model
    reach = model[5].weight.detach().abs().max()
    assert 0.1 < reach <= 0.5  # 1 / √4, not 1 / √100


def runner(lines, said):
    return Runner(lines, fake, lambda trial: trial.method, lambda outcome: "done", 1, said.append)


def fake(trial):
    left = round(50610 * trial.left)
    return {
        "accuracy": 90.0 + (trial.method != "scratch"),
        "parameters": left,
        "nonzeros": left,
        "compacted": left,
        "halo_steps": 7 if trial.sparsity else 0,
        "units": {"1": 30, "3": 10},
        "shapes": {"w": [3, left]},
        "correlation": [{"1": 0.1, "3": 0.2}, {"1": 0.15, "3": 0.25}],
        "seconds": 0.0,
    }


def test_evidence_is_paired_and_prints(tiny, tmp_path):
    said = []
    with Lines(tmp_path / "tiny.jsonl", {"device": "cpu"}, said.append) as lines:
        found = _evidence("tiny", TINY, runner(lines, said))
    assert isinstance(found, Evidence)
    assert found.lead(0.1) == [1.0]
    text = str(found)
    for word in (
        "|ρ| in 3",
        "0.250",
        "90.0%",
        "from scratch",
        "+1.00",
        "HALO, 50% zeros",
        "HALO, 95% zeros, late",
        "NoiseOut to 10.0%, then HALO to 5%",
    ):
        assert word in text
    assert set(found.sparse) == {
        "HALO, 50% zeros",  # more than NoiseOut leaves by itself
        "HALO, 95% zeros",
        "HALO, 95% zeros, late",
        "NoiseOut to 10.0%, then HALO to 5%",
    }
    json.dumps(found.to_dict())
    count = len((tmp_path / "tiny.jsonl").read_text().splitlines())
    with Lines(tmp_path / "tiny.jsonl", {"device": "cpu"}, said.append) as lines:
        _evidence("tiny", TINY, runner(lines, said))
    assert len((tmp_path / "tiny.jsonl").read_text().splitlines()) == count


def test_the_curve_shows_what_is_left_when_halo_is_compacted(tmp_path, monkeypatch):
    shown = set()

    class Axes:
        def plot(self, x, *rest, **style):
            shown.update(x)

        errorbar = plot

        def __getattr__(self, name):
            return lambda *rest, **style: None

    monkeypatch.setattr(shrunkplots, "drawing", lambda *rest: contextlib.nullcontext((None, [Axes()])))
    outcome = {"accuracy": 90.0, "parameters": 50000, "nonzeros": 2000, "compacted": 19000}
    curve_plot({("none", 0.1): [{**outcome, "parameters": 5000}]}, {"HALO": [outcome]}, "title", tmp_path / "a.svg")
    assert shown == {2000.0, 5000.0, 19000.0}


def test_settings_tell_parts_apart(tiny):
    trial = Trial("tiny", "noiseout", "none", 0.1, 0)
    before = trial.settings()
    shrinking.PARTS["tiny"] = dataclasses.replace(TINY, lr=0.5)
    assert trial.settings() != before


def test_lines_survive_what_is_broken_and_know_their_origin(tmp_path):
    path, said = tmp_path / "a.jsonl", []
    with Lines(path, {"torch": "1"}, said.append) as lines:
        lines.add({"x": 1}, {"y": 2})
        with pytest.raises(StateError, match="in use"), Lines(path, {}, said.append):
            pass
    with path.open("a") as file:
        file.write('{"settings": {"x": 3}, "ori')
    with Lines(path, {"torch": "1"}, said.append) as lines:
        assert lines.get({"x": 1}) == {"y": 2}
        assert lines.get({"x": 3}) is None
        lines.add({"x": 3}, {"y": 4})
    with Lines(path, {"torch": "2"}, said.append) as lines:
        assert lines.get({"x": 1}) is None
    assert "not used: 1" in said[0]
    assert "not used: 3" in said[1]


def test_a_part_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError, match="no part 'mnit'; did you mean 'mnist'"):
        reproduce(["mnit"], tmp_path, data_dir=None, where=CPU, processes=1, tell=print)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), Lines(tmp_path / "file" / "a.jsonl", {}, print):
        pass

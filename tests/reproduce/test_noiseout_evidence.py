"""The evidence for NoiseOut on a tiny part: complete, not run twice, paired with networks from scratch."""

import dataclasses
import json

import pytest
import torch

from shrinkage.core.errors import InputError, StateError
from shrinkage.reproduce import shrinking
from shrinkage.reproduce.lines import Lines
from shrinkage.reproduce.noiseout import Evidence, _evidence, reproduce
from shrinkage.reproduce.runner import Runner
from shrinkage.reproduce.shrinking import Part, Trial, run

CPU = torch.device("cpu")
TINY = Part("a tiny one", "digits", "mlp", 3, 256, 0.05, (0.1,), 1, (0.5,), held_out=300)


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
    sparse = run(Trial("tiny", "noiseout", "none", 0.1, 0, sparsity=0.5), None, CPU)
    assert sparse["nonzeros"] < 0.6 * sparse["parameters"]
    assert sparse["compacted"] <= sparse["parameters"]


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
        "units": {"1": 30, "3": 10},
        "shapes": {"w": [3, left]},
        "correlation": [{"1": 0.1, "3": 0.2}, {"1": 0.15, "3": 0.25}],
        "removals": [],
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
        "NoiseOut to 10.0%, then HALO",
    ):
        assert word in text
    json.dumps(found.to_dict())
    count = len((tmp_path / "tiny.jsonl").read_text().splitlines())
    with Lines(tmp_path / "tiny.jsonl", {"device": "cpu"}, said.append) as lines:
        _evidence("tiny", TINY, runner(lines, said))
    assert len((tmp_path / "tiny.jsonl").read_text().splitlines()) == count


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

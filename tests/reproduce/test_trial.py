import json
import shlex
from dataclasses import replace

import pytest
from lines import TRIAL, outcome

from shrinkage import InputError
from shrinkage.reproduce.trial import parse


def test_a_line_is_read_back_as_it_was():
    for each in (outcome(), outcome(None, "it diverged"), outcome(validation=True, lr=0.0123, weight_decay=3.21e-05)):
        assert parse(json.loads(each.to_json())) == each


def test_the_command_names_every_setting():
    words = shlex.split(replace(TRIAL, lr=0.0123, weight_decay=3.21e-05, validation=True).command)
    assert words[:3] == ["shrinkage", "reproduce", "trial"]
    given = dict(zip(words[3:-1:2], words[4::2], strict=True))
    assert given == {
        "--task": "digits", "--method": "halo", "--sparsity": "0.9", "--seed": "0", "--lr": "0.0123",
        "--weight-decay": "3.21e-05", "--schedule": "flat-cosine", "--epochs": "2",
    }  # fmt: skip
    assert words[-1] == "--validation"


def test_the_command_of_a_line_names_device_and_data():
    words = shlex.split(replace(outcome(), device="NVIDIA H200", data_label="a JPEG copy").command)
    assert words[-4:] == ["--device", "cuda", "--data-label", "a JPEG copy"]
    assert outcome().command == TRIAL.command
    labelled = replace(outcome(), data_label="a JPEG copy")
    assert parse(json.loads(labelled.to_json())) == labelled


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"task": "mnst"}, "did you mean 'mnist'"),
        ({"schedule": "steps"}, "flat-cosine"),
        ({"sparsity": 0.0}, "0.95"),
        ({"sparsity": 95.0}, "95.0"),
        ({"method": "dense"}, "0 for the dense network"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"epochs": 0}, "epochs"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 31}, "seed"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(InputError, match=said):
        replace(TRIAL, **wrong)

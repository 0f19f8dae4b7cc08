import json
import multiprocessing
import shlex
from collections import Counter
from dataclasses import replace

import pytest
import torch
from lines import TRIAL

from shrinkage import InputError
from shrinkage.reproduce import tasks
from shrinkage.reproduce.campaign import Campaign, Place
from shrinkage.reproduce.parts import PARTS, Part
from shrinkage.reproduce.store import Results, load

PART = Part("digits", ("halo", "gradual", "dense"), (0.9, 0.95), seeds=1, tuning=3, paired=(0.95,), paired_seeds=2)


@pytest.fixture
def short(monkeypatch):
    quick = {**tasks.TASKS, "digits": replace(tasks.TASKS["digits"], epochs=2)}
    monkeypatch.setattr(tasks, "TASKS", quick)


def carry_out(path, part=PART, deadline=None):
    said = []
    with Results(path, said.append) as results:
        table = Campaign(part, Place(None, torch.device("cpu"), 2), results, said.append, deadline).run()
    return table, [line for line in said if "seed" in line]


def settings(outcome):
    return outcome.trial.lr, outcome.trial.weight_decay, outcome.trial.schedule


@pytest.mark.usefixtures("short")
def test_a_part_from_nothing_and_again(tmp_path):
    path = tmp_path / "part.jsonl"
    table, done = carry_out(path)
    outcomes = load(path)
    tuning = [outcome for outcome in outcomes if outcome.trial.validation]
    own, shared = tuning[:9], tuning[9:]  # what others chose comes after a method's own trials
    assert Counter(outcome.trial.method for outcome in own) == dict.fromkeys(PART.methods, 3)
    assert PART.trainings == 9 + 2 * 2 + 1 + 2  # tuning, table, dense, pairs
    assert len(done) == len(outcomes) == PART.trainings + len(shared)
    chosen = {settings(outcome) for outcome in table.outcomes}
    assert shared
    assert chosen <= {settings(outcome) for outcome in own}
    for method in PART.methods:
        tried = {settings(outcome): outcome.accuracy for outcome in tuning if outcome.trial.method == method}
        (used,) = {settings(outcome) for outcome in table.outcomes if outcome.trial.method == method}
        assert chosen <= tried.keys()
        assert tried[used] == max(tried.values())
    assert sorted(table.cells["halo", 0.95].scores) == sorted(table.cells["gradual", 0.95].scores) == [0, 1]
    assert sorted(table.cells["halo", 0.9].scores) == [0]
    again, done = carry_out(path)
    assert done == []
    assert str(again) == str(table)
    # Without its last lines, only what they held is run again, and comes out the same.
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:40])
    again, done = carry_out(path)
    assert len(done) == 2
    assert str(again) == str(table)


@pytest.mark.usefixtures("short")
def test_when_time_is_up_nothing_more_is_begun(tmp_path):
    table, done = carry_out(tmp_path / "part.jsonl", deadline=0.0)
    assert (done, table.outcomes) == ([], [])


def test_a_method_that_needs_moments_is_refused_under_sgd(tmp_path):
    with pytest.raises(InputError, match="gradual-moment needs an optimiser of the Adam family"):
        carry_out(tmp_path / "part.jsonl", replace(PART, methods=("halo", "gradual-moment")))


def test_parts_name_what_exists():
    for name, part in PARTS.items():
        assert part.task in tasks.TASKS, name
        assert part.methods[0] == "halo", name
        assert set(part.paired) <= set(part.sparsities), name


class Power(Exception):
    """It is off."""


@pytest.mark.usefixtures("short")
def test_an_interruption_stops_the_workers_and_keeps_what_is_done(tmp_path):
    path = tmp_path / "part.jsonl"
    part = replace(PART, methods=("halo", "gradual"), tuning=0, paired=(), seeds=40)

    def stop(line):
        if line.lstrip().startswith("3 "):
            raise Power

    with pytest.raises(Power), Results(path, print) as results:
        Campaign(part, Place(None, torch.device("cpu"), 2), results, stop).run()
    assert 3 <= len(load(path)) <= 6
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("short")
def test_any_row_can_be_run_again_by_the_command_beside_it(tmp_path, capsys):
    from shrinkage.cli.app import app
    from shrinkage.reproduce.trial import parse

    path = tmp_path / "part.jsonl"
    carry_out(path, replace(PART, methods=("halo",), tuning=0, paired=(), sparsities=(0.9,)))
    (row,) = load(path)
    with pytest.raises(SystemExit) as left:
        app(shlex.split(row.trial.command)[1:], prog_name="shrinkage")
    assert not left.value.code
    again = parse(json.loads(capsys.readouterr().out))
    assert replace(again, seconds=row.seconds) == row


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["halo", "--part", "mnst"], "did you mean 'mnist'"),
        (["halo", "--quick", "--part", "mnist"], "leave out --part mnist"),
        (["halo", "--quick", "--device", "gpu"], "device 'gpu' is not known"),
        (["halo", "--quick", "--processes", "0"], "0 is not in the range"),
        (["halo", "--part", "mnist", "--data-dir", "file"], "must be a folder"),
        (["halo", "--quick", "--out", "file"], "cannot be written"),
        (["trial", "--sparsity", "95"], "95.0"),
        (["trial", "--method", "hallo"], "did you mean 'halo'"),
    ],
)
def test_bad_input_is_refused_in_plain_words(arguments, said, tmp_path, monkeypatch, capsys):
    from shrinkage.cli.app import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    if arguments[0] == "trial":
        usual = shlex.split(TRIAL.command)[3:]
        arguments = ["trial", *usual, *arguments[1:]]
    with pytest.raises(SystemExit) as left:
        app(["reproduce", *arguments], prog_name="shrinkage")
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert said in " ".join(told.replace("│", " ").split())
    assert "Traceback" not in told

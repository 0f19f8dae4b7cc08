"""Trials are run once each, in several processes as in one, and what fails keeps what is done."""

from dataclasses import dataclass

import pytest

from shrinkage.reproduce.lines import Lines
from shrinkage.reproduce.runner import Runner


@dataclass(frozen=True)
class Square:
    number: int

    def settings(self):
        return {"number": self.number}


def work(trial):
    if trial.number < 0:
        raise ValueError("no such square")
    return {"square": trial.number**2}


def go(path, trials, processes, told):
    with Lines(path, {}, told.append) as lines:
        runner = Runner(lines, work, str, lambda outcome: f"is {outcome['square']}", processes, told.append)
        return [outcome["square"] for outcome in runner.all(trials)]


@pytest.mark.parametrize("processes", [1, 2])
def test_outcomes_come_in_the_order_of_the_trials_and_are_kept(tmp_path, processes):
    told = []
    assert go(tmp_path / "a.jsonl", [Square(3), Square(1), Square(3)], processes, told) == [9, 1, 9]
    assert len(told) == 2
    assert go(tmp_path / "a.jsonl", [Square(1), Square(2)], processes, told) == [1, 4]
    assert told[2] == "   1 of 1  Square(number=2): is 4"


@pytest.mark.parametrize("processes", [1, 2])
def test_what_fails_keeps_what_is_done(tmp_path, processes):
    with pytest.raises(ValueError, match="no such square"):
        go(tmp_path / "a.jsonl", [Square(5), Square(-1)], processes, [])
    told = []
    assert go(tmp_path / "a.jsonl", [Square(5)], processes, told) == [25]
    assert processes > 1 or told == []

import json
import multiprocessing
from dataclasses import replace

import pytest
from lines import TRIAL, outcome

from shrinkage import InputError, StateError
from shrinkage.reproduce.store import Results, load, mixed


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "part.jsonl"


def fill(path, *outcomes):
    with Results(path, print) as results:
        for each in outcomes:
            results.add(each)


def test_what_was_added_is_found_again(path):
    first, second = outcome(), outcome(seed=1, accuracy=None, failure="it diverged")
    fill(path, first, second)
    with Results(path, pytest.fail) as results:
        assert results.get(first.trial) == first
        assert results.get(second.trial) == second
        assert results.get(replace(TRIAL, seed=2)) is None
    assert load(path) == [first, second]


@pytest.mark.parametrize("cut", [1, 30, -2])
def test_a_half_written_line_is_told_of_and_its_trial_is_run_again(path, cut):
    first, second = outcome(), outcome(seed=1)
    fill(path, first)
    with path.open("a") as file:
        file.write(second.to_json()[:cut])
    said = []
    with Results(path, said.append) as results:
        assert results.get(first.trial) == first
        assert results.get(second.trial) is None
        results.add(second)
    assert "broken lines: 1" in said[0]
    assert path.with_name("part.jsonl.broken").read_text() == second.to_json()[:cut] + "\n"
    assert load(path) == [first, second]


def test_whole_lines_of_another_form_are_not_used_and_not_lost(path):
    fill(path, outcome())
    altered = json.loads(outcome(seed=3).to_json())
    altered["trial"]["sparsity"] = 0.5  # the command says otherwise
    later = json.loads(outcome(seed=4).to_json()) | {"a field of a later version": 1}
    lines = '{"seed": 1}\n[]\n"text"\n' + json.dumps(altered) + "\n" + json.dumps(later) + "\n"
    with path.open("a") as file:
        file.write(lines)
    before = path.read_bytes()
    said = []
    with Results(path, said.append):
        pass
    assert "not used: 5" in said[0]
    assert path.read_bytes() == before
    assert load(path) == [outcome()]


def test_broken_lines_add_up_aside(path):
    for seed in range(2):
        fill(path, outcome(seed=seed))
        with path.open("a") as file:
            file.write('{"half')
    with Results(path, str):
        pass
    assert path.with_name("part.jsonl.broken").read_text() == '{"half\n{"half\n'
    assert len(load(path)) == 2


def test_a_last_line_without_its_newline_is_whole(path):
    fill(path, outcome())
    path.write_text(path.read_text().rstrip("\n"))
    fill(path, outcome(seed=1))
    assert load(path) == [outcome(), outcome(seed=1)]


def test_results_of_another_device_or_data_are_not_used(path):
    copied = replace(outcome(seed=1), data_label="a JPEG copy")
    card = replace(outcome(seed=2), device="NVIDIA H100")
    fill(path, outcome(), copied, card)
    for origin, there in (((), 0), (("cpu", "a JPEG copy"), 1), (("NVIDIA H100",), 2)):
        with Results(path, str, *origin) as results:
            known = [results.get(outcome(seed=seed).trial) is not None for seed in range(3)]
        assert known == [seed == there for seed in range(3)]


def test_results_of_another_version_or_recipe_are_not_used_and_not_lost(path):
    here = outcome()
    others = [
        replace(outcome(seed=1), versions={**here.versions, "torch": "1.0"}),
        replace(outcome(seed=2), versions={**here.versions, "shrinkage": "0.0.1"}),
        replace(outcome(seed=3), recipe="0.0"),
    ]
    fill(path, here, *others)
    said = []
    with Results(path, said.append) as results:
        assert results.get(here.trial) == here
        assert [results.get(other.trial) for other in others] == [None] * 3
    assert "not used: 3" in said[0]
    assert load(path) == [here, *others[:2]]  # tables show other versions and say so, but no other recipe
    assert len(path.read_text().splitlines()) == 4


def test_a_table_of_different_origin_says_so():
    here = outcome()
    other = replace(here, data_label="a JPEG copy", device="NVIDIA H100")
    assert mixed([here, here]) == ""
    assert "NVIDIA H100" in mixed([here, other])
    assert "a JPEG copy" in mixed([here, other])


def hold(path, held, done):
    with Results(path, print):
        held.set()
        done.wait(60)


def test_two_processes_do_not_write_to_one_file(path):
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(path, held, done))
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(StateError, match=f"in use by process {other.pid}"), Results(path, print):
            pass
    finally:
        done.set()
        other.join()
    with Results(path, print):
        pass


def test_a_file_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), Results(tmp_path / "file" / "part.jsonl", print):
        pass
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "nowhere.jsonl")

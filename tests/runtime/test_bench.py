import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import shrinkage
from nets import CNN, MLP
from shrinkage.runtime.bench import ENGINES, Bench, Row, Spread, Times, bench
from shrinkage.runtime.bench.engines import Engine, Ready
from shrinkage.runtime.bench.forms import Pool
from shrinkage.runtime.bench.machine import machine
from shrinkage.runtime.bench.race import race

EXACT = ["eager", "onnxruntime", "openvino", "shrinkage"]
IMAGE = torch.zeros(1, 1, 8, 8)
COARSE = ["openvino-bf16", "onnxruntime-int8", "openvino-int8"]


def sparse_cnn():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    shrinkage.Random(0.8).prune(model)
    for _ in range(3):
        model(torch.randn(16, 1, 8, 8))
    return model


# ------------------------------------------------------------------------------------- taking turns


def test_all_meet_the_same_inputs_and_take_turns_at_going_first():
    log = []
    runs = {name: (lambda item, name=name: log.append((name, item))) for name in "abc"}
    race(runs, items=5, rounds=4)
    log = log[len(log) - _calls_in_rounds(log, 4, 3) :]
    turns = _turns(log)
    assert [name for name, _ in turns] == [*"abc", *"bca", *"cab", *"abc"]
    rounds = [[items for _, items in turns[i : i + 3]] for i in range(0, 12, 3)]
    assert all(items == one[0] for one in rounds for items in one)
    assert len({tuple(one[0]) for one in rounds}) > 1
    assert {item for one in rounds for item in one[0]} == set(range(5))


def _turns(log):
    turns = []
    for name, item in log:
        if not turns or turns[-1][0] != name:
            turns.append((name, []))
        turns[-1][1].append(item)
    return turns


def _calls_in_rounds(log, rounds, contestants):
    """The warm-up calls item 0 alone; a turn of the rounds holds 1001 calls of these idle contestants."""
    return rounds * contestants * 1001


def test_nobody_pays_for_the_caches_another_one_has_emptied(monkeypatch):
    class Clock:
        """A call takes a second after somebody else's, else a quarter of one."""

        now, last = 0.0, None

        def run(self, name):
            self.now += 0.25 if name == self.last else 1.0
            self.last = name

        def perf_counter(self):
            return self.now

        process_time = perf_counter

    clock = Clock()
    monkeypatch.setattr("shrinkage.runtime.bench.race.time", clock)
    times = race({name: (lambda item, name=name: clock.run(name)) for name in "ab"}, items=3, rounds=4)
    for each in times.values():
        assert each.wall == each.processor == (250.0,) * 4


def test_spread():
    assert Spread.of([4.0]) == Spread(4.0, 4.0, 4.0)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)


def test_a_pool_is_random_shared_and_bounded():
    pool = Pool.of((torch.zeros(1, 4), torch.tensor([[7, 9]])), 3, seed=1)
    assert len(pool) == 16
    x, tokens = pool.tensors[0]
    assert (x.shape, tokens.shape) == ((3, 4), (3, 2))
    assert set(tokens.unique().tolist()) <= {7, 8, 9}
    assert not torch.equal(x, pool.tensors[1][0])
    pool.arrays[0][0][0, 0] = 99
    assert x[0, 0] == 99
    assert len(Pool.of((torch.zeros(1, 2**20),), 32, seed=0)) == 2


# ----------------------------------------------------------------------------------- the verdict


def row(key, ms, *, batch=1, error=0.0, form="as trained"):
    engine = ENGINES[key]
    times = None if ms is None else Times(tuple(ms), tuple(10 * value for value in ms))
    return Row(key, engine.title, engine.precision, engine.rival, form, batch, times, 0.5, 1000, error,
               "it is not there" if ms is None else None)  # fmt: skip


def result(*rows, clock="processor"):
    return Bench("Net", 1, clock, rows, {"processor": "some"})


def test_the_rival_is_the_fastest_maintained_dense_engine_and_never_eager():
    found = result(
        row("eager", [1, 1, 1]), row("inductor", [4, 4, 4]), row("onnxruntime", [2, 4, 3]),
        row("openvino-int8", [0.1, 0.1, 0.1], error=0.05), row("shrinkage", [0.5, 2, 1]),
    )  # fmt: skip
    assert found.rival(1).engine == "onnxruntime"
    assert found.winner(1).engine == "eager"  # by a tie of medians, in the order of the rows
    assert found.speed(found.rows[-1]) == Spread.of([4, 2, 3])
    assert result(row("eager", [1]), row("shrinkage", [0.1])).rival(1) is None
    assert "nothing to be measured against" in result(row("eager", [1]), row("shrinkage", [0.1])).verdict(1)


def test_the_winner_is_named_even_if_it_is_dense():
    found = result(row("openvino", [1, 1]), row("shrinkage", [2, 2]), row("onnxruntime", [3, 3]))
    assert found.verdict(1) == ("batch 1: OpenVINO is the fastest at fp32; shrinkage is 0.50 × as fast as OpenVINO")


def test_a_winner_that_is_sparse_and_one_that_is_faster_and_coarser():
    found = result(
        row("openvino", [3, 3]), row("shrinkage", [1, 1]), row("openvino-int8", [0.5, 0.5], error=0.02),
        row("onnxruntime", [1.5, 1.5], form="compacted"),
    )  # fmt: skip
    assert found.verdict(1) == (
        "batch 1: shrinkage is the fastest at fp32; 3.00 × as fast as OpenVINO, the fastest dense engine on the whole "
        "network; ONNX Runtime, compacted is 2.00 × as fast as OpenVINO; "
        "faster still, with an error of 2.0e-02: OpenVINO int8"
    )
    assert found.rival(1).form == "as trained"
    assert found.rows[-1].name == "ONNX Runtime, compacted"


def test_who_gives_something_else_cannot_win():
    found = result(row("openvino", [3]), row("onnxruntime", [1], error=2e-4), row("shrinkage", [2], error=9e-5))
    assert not found.rows[1].counts
    assert found.rival(1).engine == "openvino"
    assert found.winner(1).engine == "shrinkage"
    assert "2.0e-04 wrong" in str(found)
    assert result(row("openvino", [3], error=float("inf"))).verdict(1) == "batch 1: no engine gave the right outputs"


def test_two_clocks():
    rows = row("openvino", [1.0]), row("shrinkage", [0.5])
    assert result(*rows).figures(rows[0]) == (1.0,)
    assert result(*rows, clock="wall").figures(rows[0]) == (10.0,)


def test_prints_a_table_a_batch_and_exports():
    found = result(
        row("openvino", [2, 3, 4]), row("shrinkage", [1, 1, 1]), row("inductor", None), row("openvino", [5], batch=64)
    )
    text = str(found)
    assert text.startswith("Net, batch 1, one thread: processor time a batch\n")
    assert "Net, batch 64" in text
    assert text.index("shrinkage  fp32") < text.index("OpenVINO   fp32")  # fastest first
    assert "3.00 ×" in text
    assert "not run: inductor: it is not there" in text
    exported = json.loads(json.dumps(found.to_dict()))
    assert exported == json.loads(json.dumps(exported))
    assert exported["rows"][1]["speed"]["median"] == 3
    assert exported["rows"][0]["times"]["wall"] == [20, 30, 40]
    assert exported["rows"][2]["ms"] is None
    assert exported["machine"] == {"processor": "some"}
    with pytest.raises(ValueError, match="inductor did not run at batch 1: it is not there"):
        found.figures(found.rows[2])


# ------------------------------------------------------------------------------------- the engines


def test_every_engine_gives_what_eager_gives():
    told, names = [], EXACT + COARSE
    found = bench(
        sparse_cnn(), IMAGE, batches=[3], engines=names, compacted=False, rounds=2, tell=told.append
    )  # fmt: skip
    flags = machine(1)["vector instructions"]
    for each in found.rows:
        if each.engine == "openvino-bf16" and not {"avx512_bf16", "amx_bf16", "bf16"} & set(flags):
            continue
        assert each.note is None, each
        assert len(each.times.processor) == len(each.times.wall) == 2
        assert each.bytes > 100
        assert each.ready > 0
        assert each.error < (1e-5 if each.engine in EXACT else 0.3), each
        assert each.error > 1e-5 or each.engine in EXACT, each  # the others do compute more coarsely
        assert each.counts == (each.engine in EXACT)
    assert found.rows[0].error == 0
    sizes = {each.engine: each.bytes for each in found.rows}
    assert sizes["onnxruntime-int8"] < sizes["onnxruntime"]
    assert sizes["shrinkage"] < sizes["eager"]
    assert [re.split(" ready| not run", line)[0] for line in told] == [f"batch 3: {each.name}" for each in found.rows]


def test_batch_sizes_come_in_order():
    found = bench(sparse_cnn(), IMAGE, batches=[5, 1], engines=EXACT[:2], compacted=False, rounds=1)
    assert found.batches == (5, 1)
    assert all(each.counts for each in found.rows)


@pytest.mark.slow  # a compiler runs
def test_the_compilers_give_what_eager_gives():
    names = ["inductor", "aot-inductor"]
    found = bench(sparse_cnn(), IMAGE, batches=[1, 3], engines=names, compacted=False, rounds=2)
    for each in found.rows:
        assert each.note is None, each
        assert each.counts, each


def test_a_compacted_network_takes_part():
    model = MLP()
    with torch.no_grad():
        model[0].weight[8:] = 0
        model[0].bias[8:] = 0
    found = bench(model, torch.zeros(1, 12), batches=[2], engines=["eager"], rounds=2)
    assert [each.form for each in found.rows] == ["as trained", "compacted"]
    assert all(each.counts for each in found.rows)
    assert found.rows[1].bytes < found.rows[0].bytes
    assert found.remarks == ("compacted: 316 of 1,012 parameters are left",)


def test_what_has_no_empty_neuron_cannot_be_compacted():
    found = bench(MLP(), torch.zeros(1, 12), batches=[2], engines=["eager"], rounds=1)
    assert found.remarks == ("compaction finds nothing to remove: no neuron or channel is empty",)
    assert len(found.rows) == 1


def test_an_engine_that_lies_or_fails_is_shown_and_does_not_count(monkeypatch):
    model = MLP()

    def liar(form, pool, threads):
        answers = [form.model(*inputs) * 1.001 for inputs in pool.tensors]
        return Ready(lambda item: answers[item], 1)

    def broken(form, pool, threads):
        raise RuntimeError("no such operation\nand a lot more")

    monkeypatch.setitem(ENGINES, "onnxruntime", Engine("onnxruntime", "ONNX Runtime", "fp32", True, liar))
    monkeypatch.setitem(ENGINES, "inductor", Engine("inductor", "inductor", "fp32", True, broken))
    monkeypatch.setitem(sys.modules, "openvino", None)
    names = ["eager", "onnxruntime", "inductor", "openvino"]
    found = bench(model, torch.zeros(1, 12), batches=[2], engines=names, compacted=False, rounds=2)
    eager, wrong, failed, missing = found.rows
    assert found.winner(2) == eager
    assert found.rival(2) is None
    assert wrong.error == pytest.approx(1e-3, rel=0.01)
    assert not wrong.counts
    assert failed.note == "RuntimeError: no such operation"
    assert 'pip install "shrinkage[openvino]"' in missing.note


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x, scale):
            return self.linear(x) * scale, x.sum(1)

    example = torch.zeros(1, 4), torch.zeros(1, 1)
    found = bench(Two(), example, batches=[2], engines=["eager", "onnxruntime", "openvino"], compacted=False, rounds=1)
    assert all(each.counts for each in found.rows), found


def test_the_model_and_the_threads_are_left_as_they_were():
    model, state = CNN(), torch.get_rng_state()
    model.norm2.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = bench(model, IMAGE, batches=[1], threads=2, engines=["eager"], compacted=False, rounds=1)
    assert (found.threads, found.clock, torch.get_num_threads()) == (2, "wall", 1)
    assert "2 threads: wall time" in str(found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not model.norm2.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engines": ["tvm"]}, "there is no engine 'tvm'; there are eager, inductor"),
        ({"engines": []}, "name at least one engine"),
        ({"batches": []}, "batches must name at least one batch size"),
        ({"batches": [0]}, "a batch size must be a whole number, at least 1, got 0"),
        ({"threads": True}, "threads must be a whole number, at least 1, got True"),
        ({"rounds": 1.5}, r"rounds must be a whole number, at least 1, got 1\.5"),
        ({"example": "text"}, "the example must be a tensor"),
    ],
)
def test_what_cannot_be_used_is_said(arguments, message):
    with pytest.raises(shrinkage.InputError, match=message):
        bench(MLP(), arguments.pop("example", torch.zeros(1, 12)), **arguments)


def test_the_machine_is_described():
    found = machine(2)
    assert found["threads"] == 2
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0] or found["versions"]["torch"]
    assert json.loads(json.dumps(found)) == found
    assert len(found["date"]) == 10


def test_rows_say_what_they_are():
    assert row("openvino-int8", [1], form="compacted").name == "OpenVINO int8, compacted"
    assert replace(row("eager", [1]), times=None).counts is False

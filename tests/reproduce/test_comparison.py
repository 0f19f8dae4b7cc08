import statistics

import pytest
from lines import outcome

from shrinkage import InputError
from shrinkage.reproduce.plots import accuracy_plot
from shrinkage.reproduce.tables import Table, settings

HALO = [97.0, 98.0, 99.0]
GRADUAL = [96.5, 97.0, 98.5]


@pytest.fixture
def table():
    return Table(
        [
            *(outcome(score, seed=seed) for seed, score in enumerate(HALO)),
            *(outcome(score, seed=seed, method="gradual") for seed, score in enumerate(GRADUAL)),
            outcome(60.0, method="random"),
            outcome(None, "it diverged", method="random", seed=1),
            outcome(None, "it diverged", method="set"),
            outcome(99.5, method="dense", sparsity=0.0),
            outcome(12.0, method="lasso", validation=True),
        ]
    )


def test_means_and_standard_errors(table):
    cell = table.cells["halo", 0.9]
    assert cell.mean == 98.0
    assert cell.error == pytest.approx(statistics.stdev(HALO) / 3**0.5)
    assert str(cell) == "98.00 ± 0.58"


def test_validation_runs_are_not_in_the_table(table):
    assert all(method != "lasso" for method, _ in table.cells)


def test_the_lead_is_over_the_best_other_on_the_same_seeds(table):
    other, difference, error, pairs = table.lead("halo", 0.9)
    differences = [mine - theirs for mine, theirs in zip(HALO, GRADUAL, strict=True)]
    assert (other, pairs) == ("gradual", 3)
    assert difference == pytest.approx(statistics.mean(differences))
    assert error == pytest.approx(statistics.stdev(differences) / 3**0.5)
    assert "+0.67 ± 0.17 points (3 pairs)" in " ".join(table.remarks("halo"))


def test_means_of_unlike_numbers_of_trainings_are_told_of(table):
    assert "means are of 3 trainings, but of 1: SET at 90 %, Dense; 2: Random at 90 %" in table.remarks("halo")
    even = Table([outcome(90.0, seed=seed, method=method) for seed in range(2) for method in ("halo", "set")])
    assert not any("means are of" in remark for remark in even.remarks("halo"))
    assert "±" not in str(even)  # an error of two says nothing


def test_a_lead_counts_common_seeds_only():
    table = Table([outcome(90.0, seed=0), outcome(99.0, seed=1), outcome(80.0, seed=0, method="gradual")])
    assert table.lead("halo", 0.9) == ("gradual", 10.0, None, 1)
    assert Table([outcome(90.0)]).lead("halo", 0.9) is None
    assert Table([outcome(90.0), outcome(91.0, method="set", seed=4)]).lead("halo", 0.9) is None


def test_failures_stay_in_the_table(table):
    text = str(table)
    assert "60.00 (1 failed)" in text
    assert "failed (1)" in text


def test_the_best_comes_first_and_is_bold(table):
    assert table.methods == ["dense", "halo", "gradual", "random", "set"]
    lines = table.markdown().splitlines()
    assert lines[0] == "|  | 90 % |"
    assert lines[3] == "| HALO | **98.00 ± 0.58** |"
    assert "**" not in lines[4]


def test_settings_are_those_of_the_table(table):
    assert settings(table.outcomes)["gradual"] == {"lr": 0.1, "weight_decay": 5e-4, "schedule": "flat-cosine"}


def test_a_method_that_failed_is_not_the_best_other():
    lucky = [outcome(99.9, method="synflow"), outcome(None, "it diverged", method="synflow", seed=1)]
    sound = [outcome(97.0, method="gradual", seed=seed) for seed in range(2)]
    own = [outcome(98.5, method="halo-paper", seed=seed) for seed in range(2)]
    table = Table([*lucky, *sound, *own, *(outcome(98.0, seed=seed) for seed in range(2))])
    assert table.lead("halo", 0.9)[0] == "gradual"
    assert table.ranking(0.9)[-1] == "synflow"


def test_what_failed_is_said_beside_the_lead():
    lucky = [outcome(99.9, method="synflow"), outcome(None, "it diverged", method="synflow", seed=1)]
    sound = [outcome(97.0, method="gradual", seed=seed) for seed in range(2)]
    table = Table([*lucky, *sound, outcome(98.0), outcome(None, "it diverged", seed=1)])
    (lead, *_) = table.remarks("halo")
    assert lead == (
        "90 %: HALO over Gradual magnitude, the best other: +1.00 points (1 pairs); 1 of 2 of HALO failed; SynFlow, of "
        "which 1 failed, is passed over with 99.90"
    )


def test_a_method_without_the_highest_sparsity_comes_after_those_that_have_it():
    easy = [outcome(99.0, method="snip")]
    both = [outcome(98.0, sparsity=sparsity) for sparsity in (0.9, 0.98)]
    assert Table([*easy, *both]).methods == ["halo", "snip"]


def test_a_bar_in_a_name_is_no_cell():
    (_, _, row) = Table([outcome(90.0, method="gradual-moment")]).markdown().splitlines()
    assert row == r"| Gradual, \|w\|·v^¼ | **90.00** |"


def test_a_plot_counts_who_lies_below_and_marks_what_failed(tmp_path):
    good = [outcome(97.0 + seed, method=name, seed=seed) for name in ("halo", "gradual", "rigl") for seed in range(3)]
    poor = [outcome(20.0, method=name, seed=seed) for name in ("set", "snip") for seed in range(3)]
    table = Table([*good, outcome(None, "it diverged", seed=3), *poor])
    accuracy_plot(table, "halo", "a title", tmp_path / "plot.svg")
    assert "2 methods lie below" in (tmp_path / "plot.svg").read_text()


def test_no_mean_over_different_settings():
    with pytest.raises(InputError, match="halo has outcomes of different settings"):
        Table([outcome(98.0), outcome(90.0, seed=1, lr=0.2)])

"""The documentation says what is there: names, code on its pages, examples, and what it is cited by."""

import importlib
import json
import pkgutil
import re
import runpy
import statistics
import types
from pathlib import Path

import pytest

import shrinkage
from shrinkage.core.engine import Sparsifier
from shrinkage.core.pruner import Pruner
from shrinkage.reproduce.entrants import find
from shrinkage.reproduce.store import load
from shrinkage.reproduce.tables import Table

ROOT = Path(__file__).parents[2]
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
REFERENCE = "\n".join(page.read_text() for page in PAGES if page.parent.name == "reference")
DOCUMENTED = re.findall(r"auto(?:class|function|exception|data|module):: ([\w.]+)", REFERENCE)
THINGS = [pkgutil.resolve_name(path) for path in DOCUMENTED]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WITH_CODE = [page for page in [ROOT / "README.md", *PAGES] if BLOCK.search(page.read_text())]


def public(module):
    """The names a package offers: ``__all__``, or what it imports under the very same name."""
    found = importlib.import_module(module)
    if hasattr(found, "__all__"):
        return [name for name in found.__all__ if not name.startswith("__")]
    return re.findall(r"import (\w+) as \1\b", Path(found.__file__).read_text())


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize(
    "module",
    ["shrinkage", "shrinkage.runtime", "shrinkage.data", "shrinkage.models", "shrinkage.testing", "shrinkage.training"],
)
def test_every_public_name_is_in_the_reference(module):
    names = public(module)
    assert names
    offered = importlib.import_module(module)
    assert [name for name in names if not any(thing is getattr(offered, name) for thing in THINGS)] == []


@pytest.mark.parametrize("path", [path for path in DOCUMENTED if callable(pkgutil.resolve_name(path))])
def test_what_the_reference_lists_says_what_it_is(path):
    found = pkgutil.resolve_name(path)
    if isinstance(
        found, type | types.FunctionType
    ):  # an alias says it in a comment of its own, which only Sphinx reads
        assert len(found.__doc__ or "") > 20


def _is_method(thing):
    return issubclass(thing, Sparsifier | Pruner | shrinkage.LotteryTicket)


def test_every_method_has_a_page():
    methods = [thing for thing in vars(shrinkage).values() if isinstance(thing, type) and _is_method(thing)]
    assert len(methods) >= 17
    for method in methods:
        assert (ROOT / f"docs/methods/{method.__name__.lower()}.md").exists()


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_on_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    names = {"__name__": "a_page"}
    for match in BLOCK.finditer(text):
        first = text.count("\n", 0, match.start(1))
        # Empty lines in front make tracebacks name the page's own lines.
        exec(compile("\n" * first + match[1], str(page), "exec"), names)


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=name_of)
def test_examples_run(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    import torch

    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    assert "%" in capsys.readouterr().out


def test_the_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {shrinkage.__version__}\n" in citation
    assert "2008.10183" in citation
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readmes_speeds_are_the_measured_ones():
    text = (ROOT / "README.md").read_text()
    rows = json.loads((ROOT / "results/benchmarks/inference.json").read_text())["rows"]
    assert rows
    for row in rows.values():
        batches = list(row["goals"])
        cells = [f"{row['ratio'][batch]['median']:.1f} × ({row['ratio'][batch]['rival']})" for batch in batches]
        goals = " / ".join(f"{row['goals'][batch]:g}" for batch in batches)
        line = f"| {row['title']} | {row['macs_left']:.1%} | {' / '.join(batches)} | {' / '.join(cells)} | {goals} |"
        assert line in text


def test_the_readmes_trained_networks_are_the_measured_ones():
    text = (ROOT / "README.md").read_text()
    rows = json.loads((ROOT / "results/benchmarks/trained.json").read_text())["rows"]
    assert len(rows) == 3
    for row in rows.values():
        size, speeds = row["bytes"], [f"{ratio['median']:.1f}" for ratio in row["ratio"].values()]
        what = (
            f"{row['model']}, by {row['by']} | {row['accuracy']:.2f} % | {row['sparsity']:.2%} | {row['macs_left']:.1%}"
        )
        smaller = f"{size['exact']:,} ({size['dense'] / size['exact']:.1f} ×)"
        assert f"| {what} | {smaller} | {' / '.join(speeds)} |" in text


@pytest.mark.parametrize("part", ["mnist", "cnn"])
def test_the_readmes_comparison_is_the_measured_one_and_leaves_out_no_rival_that_came_near(part):
    table = Table(load(ROOT / f"results/halo/{part}.jsonl"))
    header, rows = table.rows()
    cells = {row[0]: " | ".join(cell or "" for cell in row[1:]) for row in rows}
    lines = (ROOT / "README.md").read_text().splitlines()
    start, end = lines.index(f"<!-- {part} -->"), lines.index(f"<!-- /{part} -->")
    assert lines[start + 1] == "| " + " | ".join(header) + " |"
    shown = lines[start + 3 : end]
    titles = [line.split(" | ")[0].removeprefix("| ") for line in shown]
    assert shown == [f"| {title} | {cells[title]} |" for title in titles]
    near = {method for sparsity in table.sparsities for method in table.ranking(sparsity)[:2]}
    paper = [method for method in ("halo-paper",) if method in table.methods]
    assert {find(method).title for method in [*near, *paper, "halo", "dense"]} <= set(titles)


def test_the_readmes_figures_are_the_measured_ones():
    text = (ROOT / "README.md").read_text()
    runs = json.loads((ROOT / "results/mnist/lenet-300-100.json").read_text())["runs"]
    for sparsity in (0.95, 0.98):
        chosen = [run for run in runs if run["sparsity"] == sparsity]
        assert [run["seed"] for run in chosen] == [0, 1, 2]
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {100 * sparsity:.0f} % |")]
        for key in ("accuracy", "dense_accuracy"):
            values = [run[key] for run in chosen]
            assert f"{statistics.mean(values):.2f} ± {statistics.stdev(values) / 3**0.5:.2f} %" in row
        assert f"{chosen[0]['zeros']:,} of {chosen[0]['weights']:,}" in row
    for goal in json.loads((ROOT / "results/benchmarks/training_overhead.json").read_text())["goals"]:
        assert f"| {goal['what']} | {goal['goal']:g} | {goal['measured']:.3g} |" in text

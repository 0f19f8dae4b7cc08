"""Pages' parts that are made from the code and from measured results, so that they cannot grow stale."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any, ClassVar

import typer
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from shrinkage.cli.app import app as command
from shrinkage.reproduce.entrants import ENTRANTS
from shrinkage.reproduce.parts import PARTS
from shrinkage.reproduce.store import load
from shrinkage.reproduce.tables import Table, settings
from shrinkage.reproduce.tasks import TASKS

RESULTS = Path(__file__).parents[2] / "results"


def overhead(result: dict[str, Any]) -> str:
    """Step times over plain training, one table a setting."""
    text = []
    for setting, row in result["step_time"].items():
        plain = row["plain_ms"]["median"]
        rows = [
            f"| {kind} | {ratio['median']:.3f} | {ratio['low']:.3f}–{ratio['high']:.3f} "
            f"| {row['added_us'][kind]['median']:,.0f} |"
            for kind, ratio in row["over_plain"].items()
        ]
        text += [f"**{setting}**: a plain step takes {plain:.2f} ms.", ""]
        text += ["| method | over plain | quartiles | added µs |", "| --- | ---: | ---: | ---: |", *rows, ""]
    return "\n".join(text)


def memory(result: dict[str, Any]) -> str:
    """Bytes a weight by method."""
    rows = [f"| {kind} | {row['held']:.1f} | {row['peak']:.1f} |" for kind, row in result["memory"].items()]
    return "\n".join(["| method | held | at most, inside a step |", "| --- | ---: | ---: |", *rows])


def growth(result: dict[str, Any]) -> str:
    """Time of one step of the method by the number of weights."""
    rows = [
        f"| {row['method']} | {row['weights']:,} | {row['ms']['median']:,.3g} | {row['over_floor']['median']:.1f} |"
        for row in result["growth"]
    ]
    return "\n".join(["| method | weights | ms | over the floor |", "| --- | ---: | ---: | ---: |", *rows])


def goals(result: dict[str, Any]) -> str:
    """What was set beforehand and what was reached."""
    rows = [
        f"| {goal['what']} | {goal['goal']:g} | {goal['measured']:.3g} | {'met' if goal['met'] else 'missed'} |"
        for goal in result["goals"]
    ]
    return "\n".join(["| | at most | measured | |", "| --- | ---: | ---: | --- |", *rows])


def machine(result: dict[str, Any]) -> str:
    """What it was measured on."""

    def words(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
        return " ".join(value) if isinstance(value, list) else str(value)

    return ", ".join(f"{key.replace('_', ' ')} {words(value)}" for key, value in result["machine"].items()) + "."


def faster(result: dict[str, Any]) -> str:
    """The engine over the fastest dense one, by network and batch."""
    rows = []
    for row in result["rows"].values():
        for batch, goal in row["goals"].items():
            ratio = row["ratio"][batch]
            met = _unbroken(f"{goal:g}, {'met' if ratio['median'] >= goal else 'missed'}")
            rows.append(
                f"| {_network(row)} | {row['macs_left']:.1%} | {batch} | {_unbroken(ratio['rival'])} "
                f"| **{ratio['median']:.1f}** ({ratio['low']:.1f}–{ratio['high']:.1f}) | {met} |"
            )
    head = "| network | left | batch | fastest dense engine | times as fast (quartiles) | goal |"
    return "\n".join([head, "| --- | ---: | ---: | --- | ---: | ---: |", *rows])


def beside(result: dict[str, Any]) -> str:
    """The same for compacted networks, and two threads over one."""
    rows = []
    for row in result["rows"].values():
        smaller = [row["ratio_compacted"][batch] for batch in row["goals"]]
        both = " / ".join(f"{ratio['median']:.1f}" for ratio in smaller if ratio) or "nothing to remove"
        rows.append(
            f"| {_network(row)} | {' / '.join(row['goals'])} | {both} | {row['two_threads']['ratio']['median']:.2f} |"
        )
    head = "| network | batches | both compacted, times as fast | two threads over one, largest batch |"
    return "\n".join([head, "| --- | ---: | ---: | ---: |", *rows])


def _network(row: dict[str, Any]) -> str:
    learned = "" if row["masks"] == "random" else f", {row['masks']}"
    return _unbroken(row["title"] + learned)


def _unbroken(text: str) -> str:
    """In one line, however narrow the column."""
    return text.replace(" ", "\N{NO-BREAK SPACE}").replace("-", "\N{NON-BREAKING HYPHEN}")


def sizes(result: dict[str, Any]) -> str:
    """Bytes of sparse files and how many times smaller than dense float32 they are."""
    modes = list(next(iter(result["networks"].values()))["modes"])
    rows = []
    for name, network in result["networks"].items():
        cells = [f"{network['modes'][mode]['bytes']:,} ({network['modes'][mode]['ratio']:.1f} ×)" for mode in modes]
        rows.append(f"| {name} | {network['dense_bytes']:,} | {' | '.join(cells)} |")
    head = f"| network | dense | {' | '.join(modes)} |"
    return "\n".join([head, f"| --- | ---: |{' ---: |' * len(modes)}", *rows])


def accuracy(result: dict[str, Any]) -> str:
    """Test accuracy by sparsity, mean and standard error over seeds."""
    rows = []
    for sparsity in sorted({run["sparsity"] for run in result["runs"]}):
        runs = [run for run in result["runs"] if run["sparsity"] == sparsity]
        cells = []
        for key in ("accuracy", "dense_accuracy"):
            values = [run[key] for run in runs]
            error = statistics.stdev(values) / len(values) ** 0.5
            cells.append(f"{statistics.mean(values):.2f} ± {error:.2f} % ({', '.join(f'{v:.2f}' for v in values)})")
        rows.append(f"| {sparsity:.0%} | {runs[0]['zeros']:,} of {runs[0]['weights']:,} | {' | '.join(cells)} |")
    head = "| sparsity | exact zeros | test accuracy | of the same network dense |"
    return "\n".join([head, "| ---: | ---: | ---: | ---: |", *rows])


def trained(result: dict[str, Any]) -> str:
    """Networks that HALO trained, from accuracy to speed."""
    rows = []
    for row in result["rows"].values():
        size, speeds = row["bytes"], [f"{speed['median']:.1f}" for speed in row["ratio"].values()]
        rows.append(
            f"| {_unbroken(row['model'])}, by {row['by']} | {row['accuracy']:.2f} % | {row['sparsity']:.2%} "
            f"| {row['macs_left']:.1%} | {size['exact']:,} ({size['dense'] / size['exact']:.1f} ×) "
            f"| {size['fp16, compressed']:,} ({size['dense'] / size['fp16, compressed']:.1f} ×) "
            f"| {' / '.join(speeds)} | {row['two_threads']['median']:.2f} |"
        )
    head = "| network | accuracy | zeros | left | exact bytes | fp16, compressed | faster, 1 / 64 | two threads |"
    return "\n".join([head, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", *rows])


def commands(result: dict[str, Any]) -> str:
    """How they were trained."""
    lines = [f"{row['command']} --name {name}" for name, row in result["rows"].items()]
    return "\n".join(
        [
            "```bash",
            *lines,
            f"python benchmarks/trained.py {' '.join(f'runs/{name}' for name in result['rows'])}",
            "```",
        ]
    )


TABLES = {
    "accuracy": accuracy,
    "overhead": overhead,
    "memory": memory,
    "growth": growth,
    "goals": goals,
    "machine": machine,
    "faster": faster,
    "beside": beside,
    "sizes": sizes,
    "trained": trained,
    "commands": commands,
}


# Test accuracy in percent by part and sparsity: Seto, Wells and Zhang, of their released checkpoints.
PUBLISHED = (("cifar100-resnet-50", 0.7, "70.70"), ("cifar100-resnet-50", 0.95, "65.57"))


class Measured(SphinxDirective):
    """A table of results: the file's name under ``results/`` and one of :data:`TABLES`."""

    required_arguments = 2
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """Read the committed results and lay them out."""
        name, table = self.arguments
        path = RESULTS / f"{name}.json"
        self.env.note_dependency(str(path))
        return self.parse_text_to_nodes(TABLES[table](json.loads(path.read_text(encoding="utf-8"))))


class Comparison(SphinxDirective):
    """A part of the evidence: its table, remarks, plot and the settings that were chosen."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Read the committed outcomes and lay them out."""
        name = self.arguments[0]
        path = RESULTS / "halo" / f"{name}.jsonl"
        self.env.note_dependency(str(path))
        table = Table(load(path))
        chosen = [
            f"| {ENTRANTS[method].title} | {each['lr']:g} | {each['weight_decay']:g} | {each['schedule']} |"
            for method, each in settings(table.outcomes).items()
        ]
        plot = os.path.relpath(path.with_suffix(".svg"), Path(self.env.doc2path(self.env.docname)).parent)
        remarks = [f"- {remark}" for remark in table.remarks(PARTS[name].methods[0])]
        head = ["| | learning rate | weight decay | schedule |", "| --- | ---: | ---: | --- |"]
        lines = table.markdown().replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
        text = [lines, "", *remarks, "", f"![Accuracy by sparsity]({plot})", "", *head, *chosen]
        return self.parse_text_to_nodes("\n".join(text))


class Outcome(SphinxDirective):
    """Tables that a reproduction has written: the file's name under ``results/``, and which of them; without, all."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Read the committed tables."""
        path = RESULTS / f"{self.arguments[0]}.md"
        self.env.note_dependency(str(path))
        blocks = path.read_text(encoding="utf-8").strip().split("\n\n")
        if len(self.arguments) == 2:  # a title and a table each
            place = 2 * (int(self.arguments[1]) - 1)
            blocks = blocks[place : place + 2]
        return self.parse_text_to_nodes("\n\n".join(blocks))


class Published(SphinxDirective):
    """The paper's figures beside those of this library, where they have been run."""

    def run(self) -> list[nodes.Node]:
        """Lay out :data:`PUBLISHED`."""
        rows = ["| | zeros | published | here |", "| --- | ---: | ---: | ---: |"]
        for part, sparsity, figure in PUBLISHED:
            path = RESULTS / "halo" / f"{part}.jsonl"
            cells = Table(load(path)).cells if path.is_file() else {}
            cell = cells.get(("halo", sparsity), "not run yet")
            rows.append(f"| {TASKS[PARTS[part].task].title} | {100 * sparsity:g} % | {figure} | {cell} |")
        return self.parse_text_to_nodes("\n".join(rows))


class Parts(SphinxDirective):
    """The parts that ``shrinkage reproduce halo`` knows."""

    def run(self) -> list[nodes.Node]:
        """Lay out :data:`PARTS`."""
        rows = []
        for name, part in PARTS.items():
            task = TASKS[part.task]
            sparsities = ", ".join(f"{100 * sparsity:g}" for sparsity in part.sparsities)
            rows.append(
                f"| `{name}` | {task.title} | {len(part.methods)} | {sparsities} | {part.seeds} | {task.epochs} "
                f"| {part.tuning or 'as given'} |"
            )
        head = "| part | what | methods | zeros, % | seeds | epochs | trials to tune |"
        return self.parse_text_to_nodes("\n".join([head, "| --- | --- | ---: | --- | ---: | ---: | ---: |", *rows]))


class Entrants(SphinxDirective):
    """The methods that are compared."""

    def run(self) -> list[nodes.Node]:
        """Lay out :data:`ENTRANTS`."""
        rows = [f"| `{name}` | {entrant.title} |" for name, entrant in ENTRANTS.items()]
        return self.parse_text_to_nodes("\n".join(["| method | |", "| --- | --- |", *rows]))


class Help(SphinxDirective):
    """What a subcommand prints with ``--help``."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Ask the command itself."""
        sub: Any = typer.main.get_command(command)
        name = self.arguments[0]
        for word in name.split():
            sub = sub.commands[word]
        with sub.context_class(sub, info_name=f"shrinkage {name}", terminal_width=88, max_content_width=88) as context:
            text = sub.get_help(context)
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer this file's directives."""
    app.add_directive("measured", Measured)
    app.add_directive("command-help", Help)
    app.add_directive("comparison", Comparison)
    app.add_directive("outcome", Outcome)
    app.add_directive("parts", Parts)
    app.add_directive("published", Published)
    app.add_directive("entrants", Entrants)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""The commands and their options. What they need is imported when they run, so that help is quick."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shrinkage.cli import deploy, reproduce
from shrinkage.cli.console import echo, reported, say
from shrinkage.cli.options import Debug

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train neural networks that end up small, and prove it.",
)

app.add_typer(reproduce.app, name="reproduce")


def _version(wanted: bool) -> None:
    if wanted:
        from shrinkage import __version__

        typer.echo(f"shrinkage {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    data: Annotated[str | None, typer.Option(help="digits, mnist, cifar10 or cifar100. [default: digits]")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the data set; what is missing is downloaded into it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A name such as lenet-300-100, or package.module:factory. [by data set]")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="halo, lasso, sws, mcp, bridge, gradual, set, rigl, str, soft-topk, movement, noiseout, conntra or "
            "dense. [default: halo]"
        ),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(
            help="Share of zeros to reach, exactly; with noiseout the share of the parameters to go, at least; "
            "not with conntra. [default: 0.95]"
        ),
    ] = None,
    macs: Annotated[
        float | None,
        typer.Option(help="Share of the multiplications of an example to leave, at most; in place of --sparsity."),
    ] = None,
    granularity: Annotated[
        str | None, typer.Option(help="What is removed as one: weight, row, block:4x4, 2:4. [default: weight]")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images. [by data set]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images an optimiser step. [by data set]")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam or adamw. [default: sgd]")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. [by data set]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay. [by data set]")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="flat-cosine, cosine, step or constant. [default: flat-cosine]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random. [default: 0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps. [default: auto]")] = None,
    devices: Annotated[
        int | None, typer.Option(help="How many of them; each takes its share of a batch. [default: 1]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU. [by data set]")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, or bf16: faster where the device has it, weights in fp32. [default: fp32]")
    ] = None,
    val: Annotated[int | None, typer.Option(help="Training images to hold out and report on. [default: 0]")] = None,
    regularizer: Annotated[
        str | None, typer.Option(help="none, dropfilter or dropfilter-plus, of all convolutions. [default: none]")
    ] = None,
    drop_rate: Annotated[float | None, typer.Option(help="Of the regularizer, in [0, 1). [default: 0.1]")] = None,
    compare_dense: Annotated[
        bool | None,
        typer.Option("--compare-dense/--no-compare-dense", help="Also train the network dense. [default: yes]"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with any of the settings above; options here override it.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of a run to go on with; its own settings hold.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where run folders are made. [default: runs]")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run folder. [default: time, data, model, method]")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")] = False,
    debug: Debug = False,
) -> None:
    """Train a network to a wanted sparsity, compare it with the dense one, and write a report."""
    given: dict[str, Any] = {
        name: value
        for name, value in {
            "data": data,
            "data_dir": data_dir,
            "model": model,
            "method": method,
            "sparsity": sparsity,
            "macs": macs,
            "granularity": granularity,
            "epochs": epochs,
            "batch_size": batch_size,
            "optimizer": optimizer,
            "lr": lr,
            "weight_decay": weight_decay,
            "schedule": schedule,
            "seed": seed,
            "device": device,
            "devices": devices,
            "threads": threads,
            "precision": precision,
            "val": val,
            "regularizer": regularizer,
            "drop_rate": drop_rate,
            "compare_dense": compare_dense,
        }.items()
        if value is not None
    }
    begun: list[Path] = []

    def begin(path: Path) -> None:
        begun.append(path)
        tell(f"run folder: {path}")

    def tell(line: str) -> None:
        if not quiet:
            say(line)

    with reported(debug, begun):
        from shrinkage.core.errors import InputError

        others = {"config": config, "out": out, "name": name, **given}
        if resume is not None and (extra := [key for key, value in others.items() if value is not None]):
            options = ", ".join("--" + key.replace("_", "-") for key in extra)
            raise InputError(f"a resumed run keeps its settings: leave out {options}, or start a new run")

        from shrinkage.training import config as settings
        from shrinkage.training import run

        progress = not quiet and sys.stderr.isatty()
        if resume is not None:
            begun.append(resume)
            folder, summary = run.resume(resume, tell=tell, progress=progress)
        else:
            written = settings.read_yaml(config) if config is not None else {}
            folder, summary = run.train(
                settings.resolve(settings.override(written, given)),
                out=out or Path("runs"),
                name=name,
                command=shlex.join(["shrinkage", *sys.argv[1:]]),
                begun=begin,
                tell=tell,
                progress=progress,
            )
        echo(f"\n{summary}\n\nmodel   {folder.model}\nreport  {folder.report}")


@app.command()
def inspect(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Print what the trained network of a run costs, layer by layer."""
    with reported(debug, []):
        from shrinkage.training.run import inspect

        echo(str(inspect(run)))


app.command()(deploy.export)
app.command()(deploy.bench)

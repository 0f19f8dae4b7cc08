"""The command ``shrinkage reproduce``: the evidence, and any single line of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shrinkage.cli import conntra, dropfilter, noiseout
from shrinkage.cli.console import echo, reported, say
from shrinkage.cli.options import DataDir, Debug, Device, Processes, Quick, at_a_time, parts

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Run the experiments this library is judged by.")
app.command()(dropfilter.dropfilter)
app.command()(conntra.conntra)
app.command()(noiseout.noiseout)

DataLabel = Annotated[
    str | None, typer.Option(help="Say what the data is where it is not the original, such as a JPEG copy.")
]


@app.command()
def halo(
    part: Annotated[
        list[str] | None,
        typer.Option(help="Which table; may be repeated. [default: mnist, lenet-5, cnn and vit]"),
    ] = None,
    quick: Quick = False,
    data_dir: DataDir = None,
    out: Annotated[
        Path,
        typer.Option(show_default=False, help="Folder for results, tables and plots. [default: runs/reproduce-halo]"),
    ] = Path("runs/reproduce-halo"),
    processes: Processes = None,
    device: Device = "cpu",
    data_label: DataLabel = None,
    limit: Annotated[float | None, typer.Option(help="Minutes after which no further training is begun.")] = None,
    debug: Debug = False,
) -> None:
    """Compare HALO with every baseline, tuned alike, and print the tables.

    What is interrupted goes on where it stood when the command is given again.
    """
    with reported(debug, []):
        from shrinkage.reproduce.campaign import Place
        from shrinkage.reproduce.halo import reproduce
        from shrinkage.reproduce.parts import PARTS
        from shrinkage.reproduce.run import device as find_device

        names = parts(part, quick, ["quick"], ["mnist", "lenet-5", "cnn", "vit"])
        where = find_device(device)
        place = Place(data_dir, where, at_a_time(processes, where), data_label, out / "checkpoints")
        tables = reproduce(names, out, place, tell=say, limit=None if limit is None else 60 * limit)
        for name, table in tables.items():
            remarks = table.remarks(PARTS[name].methods[0])
            echo("\n".join(["", f"{name}: test accuracy in percent by share of zeros", "", str(table), "", *remarks]))
            files = {"results": out / f"{name}.jsonl", "plot": out / f"{name}.svg"}
            echo("\n" + "\n".join(f"{what:7} {path}" for what, path in files.items() if path.is_file()))


@app.command()
def trial(
    task: Annotated[str, typer.Option(help="What is trained, such as mnist.")],
    method: Annotated[str, typer.Option(help="By which method.")],
    sparsity: Annotated[float, typer.Option(help="Share of zeros; 0 for the dense network.")],
    seed: Annotated[int, typer.Option(help="Of all that is random.")],
    lr: Annotated[float, typer.Option(help="Learning rate.")],
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")],
    schedule: Annotated[str, typer.Option(help="Of the learning rate.")],
    epochs: Annotated[int, typer.Option(help="Passes over the training images in all.")],
    validation: Annotated[bool, typer.Option("--validation", help="Judge by held-out training images.")] = False,
    data_dir: DataDir = None,
    device: Device = "cpu",
    data_label: DataLabel = None,
    debug: Debug = False,
) -> None:
    """Run one training again and print its line: the settings are those of any line in a results file."""
    with reported(debug, []):
        from shrinkage.reproduce.run import device as find_device
        from shrinkage.reproduce.run import run
        from shrinkage.reproduce.trial import Trial

        settings = Trial(task, method, sparsity, seed, lr, weight_decay, schedule, epochs, validation)
        echo(run(settings, data_dir, find_device(device), data_label=data_label).to_json())

"""The command ``shrinkage reproduce noiseout``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shrinkage.cli.console import echo, reported, say
from shrinkage.cli.options import DataDir, Debug, Device, Processes, Quick, at_a_time, parts


def noiseout(
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="Which: mnist (LeNet-300-100), mnist-strong, mnist-sigmoid or lenet-5; may be repeated. [default: all]"
        ),
    ] = None,
    quick: Quick = False,
    data_dir: DataDir = None,
    out: Annotated[
        Path,
        typer.Option(show_default=False, help="Folder for results and plots. [default: runs/reproduce-noiseout]"),
    ] = Path("runs/reproduce-noiseout"),
    processes: Processes = None,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    """Correlations with and without noise outputs, and accuracy by neurons left beside networks from scratch.

    What is interrupted goes on where it stood when the command is given again.
    """
    with reported(debug, []):
        from shrinkage.reproduce.noiseout import reproduce
        from shrinkage.reproduce.run import device as find_device

        names = parts(part, quick, ["quick", "quick-sigmoid"], ["mnist", "mnist-strong", "mnist-sigmoid", "lenet-5"])
        where = find_device(device)
        found = reproduce(names, out, data_dir=data_dir, where=where, processes=at_a_time(processes, where), tell=say)
        for name, evidence in found.items():
            echo(f"\n{evidence}\n\nresults {out / name}.jsonl")
            echo(f"plots   {out / name}-correlation.svg, {out / name}-curve.svg")

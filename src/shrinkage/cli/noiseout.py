"""The command ``shrinkage reproduce noiseout``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from shrinkage.cli.console import echo, reported, say
from shrinkage.cli.options import Debug


def noiseout(
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="Which network: mnist (LeNet-300-100), mnist-sigmoid or lenet-5; may be repeated. [default: all]"
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Digits instead: minutes, nothing to download.")] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the data set; what is missing is downloaded into it.")
    ] = None,
    out: Annotated[
        Path,
        typer.Option(show_default=False, help="Folder for results and plots. [default: runs/reproduce-noiseout]"),
    ] = Path("runs/reproduce-noiseout"),
    processes: Annotated[
        int | None, typer.Option(min=1, help="Trainings at a time. [default: as many as processors; 1 on a GPU]")
    ] = None,
    device: Annotated[str, typer.Option(show_default=False, help="auto, cpu, cuda, cuda:1. [default: cpu]")] = "cpu",
    debug: Debug = False,
) -> None:
    """Correlations with and without noise outputs, and accuracy by neurons left beside networks from scratch.

    What is interrupted goes on where it stood when the command is given again.
    """
    with reported(debug, []):
        from shrinkage.core.errors import InputError
        from shrinkage.reproduce.noiseout import reproduce
        from shrinkage.reproduce.run import device as find_device

        if quick and part:
            raise InputError(f"--quick is a table of its own: leave it out, or leave out --part {part[0]}")
        names = part or (["quick", "quick-sigmoid"] if quick else ["mnist", "mnist-sigmoid", "lenet-5"])
        where = find_device(device)
        usual = 1 if where.type == "cuda" else os.cpu_count() or 1
        found = reproduce(names, out, data_dir=data_dir, where=where, processes=processes or usual, tell=say)
        for name, evidence in found.items():
            echo(f"\n{evidence}\n\nresults {out / name}.jsonl")
            echo(f"plots   {out / name}-correlation.svg, {out / name}-curve.svg")

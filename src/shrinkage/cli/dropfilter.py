"""The command ``shrinkage reproduce dropfilter``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from shrinkage.cli.console import echo, reported, say
from shrinkage.cli.options import Debug


def dropfilter(
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="Which table; may be repeated: mnist-1000, lenet-5-1000, scaling, mnist, lenet-5, or, on a GPU, "
            "cifar10-first. [default: all but the last]"
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Digits instead: minutes, nothing to download.")] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the data set; what is missing is downloaded into it.")
    ] = None,
    out: Annotated[
        Path, typer.Option(show_default=False, help="Folder for results. [default: runs/reproduce-dropfilter]")
    ] = Path("runs/reproduce-dropfilter"),
    processes: Annotated[
        int | None, typer.Option(min=1, help="Trainings at a time. [default: as many as processors; 1 on a GPU]")
    ] = None,
    device: Annotated[str, typer.Option(show_default=False, help="auto, cpu, cuda, cuda:1. [default: cpu]")] = "cpu",
    debug: Debug = False,
) -> None:
    """Compare DropFilter and DropFilter-PLUS with Dropout, Dropout2d and DropConnect, at tuned rates.

    What is interrupted goes on where it stood when the command is given again.
    """
    with reported(debug, []):
        from shrinkage.core.errors import InputError
        from shrinkage.reproduce.dropfilter import reproduce
        from shrinkage.reproduce.run import device as find_device

        if quick and part:
            raise InputError(f"--quick is a table of its own: leave it out, or leave out --part {part[0]}")
        usual = ["quick", "quick-scaling"] if quick else ["mnist-1000", "lenet-5-1000", "scaling", "mnist", "lenet-5"]
        where = find_device(device)
        at_a_time = processes or (1 if where.type == "cuda" else os.cpu_count() or 1)
        tables = reproduce(part or usual, out, data_dir=data_dir, where=where, processes=at_a_time, tell=say)
        for table in tables:
            echo(f"\n{table}")
        echo(f"\nresults in {out}")

"""The command ``shrinkage reproduce conntra``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from shrinkage.cli.console import echo, reported, say
from shrinkage.cli.options import Debug


def conntra(
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="Which table; may be repeated: iris, digits, mnist-10000, mnist, features. [default: iris and mnist]"
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Iris and digits, nothing to download; MNIST too, if --data-dir has it.")
    ] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the data set; what is missing is downloaded into it.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="For features: an .npz file with x, y, x_test and y_test.")
    ] = None,
    out: Annotated[
        Path, typer.Option(show_default=False, help="Folder for results. [default: runs/reproduce-conntra]")
    ] = Path("runs/reproduce-conntra"),
    processes: Annotated[
        int | None, typer.Option(min=1, help="Trainings at a time. [default: as many as processors]")
    ] = None,
    debug: Debug = False,
) -> None:
    """Compare ternary networks trained by CoNNTrA with backpropagation in double precision.

    What is interrupted goes on where it stood when the command is given again.
    """
    with reported(debug, []):
        from shrinkage.core.errors import InputError
        from shrinkage.reproduce.conntra import reproduce

        if quick and part:
            raise InputError(f"--quick is a table of its own: leave it out, or leave out --part {part[0]}")
        usual = ["iris", "digits", *(["mnist-10000"] if data_dir else [])] if quick else ["iris", "mnist"]
        if features is not None and not part:
            usual = ["features"]
        at_a_time = processes or os.cpu_count() or 1
        found = reproduce(part or usual, out, data_dir=data_dir, features=features, processes=at_a_time, tell=say)
        for comparison in found:
            echo(f"\n{comparison}")
        echo(f"\nresults in {out}\nplot    {out / 'conntra.svg'}")

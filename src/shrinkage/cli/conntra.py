"""The command ``shrinkage reproduce conntra``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shrinkage.cli.console import echo, reported, say
from shrinkage.cli.options import DataDir, Debug, Processes, at_a_time, parts


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
    data_dir: DataDir = None,
    features: Annotated[
        Path | None, typer.Option(help="For features: an .npz file with x, y, x_test and y_test.")
    ] = None,
    out: Annotated[
        Path, typer.Option(show_default=False, help="Folder for results. [default: runs/reproduce-conntra]")
    ] = Path("runs/reproduce-conntra"),
    processes: Processes = None,
    debug: Debug = False,
) -> None:
    """Compare ternary networks trained by CoNNTrA with backpropagation in double precision.

    What is interrupted goes on where it stood when the command is given again.
    """
    with reported(debug, []):
        from shrinkage.reproduce.conntra import reproduce

        quick_ones = ["iris", "digits", *(["mnist-10000"] if data_dir else [])]
        usual = ["iris", "mnist"] if features is None else ["features"]
        names = parts(part, quick, quick_ones, usual)
        at_once = at_a_time(processes)
        found = reproduce(names, out, data_dir=data_dir, features=features, processes=at_once, tell=say)
        for comparison in found:
            echo(f"\n{comparison}")
        echo(f"\nresults in {out}\nplot    {out / 'conntra.svg'}")

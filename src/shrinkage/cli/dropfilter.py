"""The command ``shrinkage reproduce dropfilter``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shrinkage.cli.console import echo, reported, say
from shrinkage.cli.options import DataDir, Debug, Device, Processes, Quick, at_a_time, parts


def dropfilter(
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="Which table; may be repeated: mnist-1000, lenet-5-1000, scaling, mnist, lenet-5, or, on a GPU, "
            "cifar10-first. [default: all but the last]"
        ),
    ] = None,
    quick: Quick = False,
    data_dir: DataDir = None,
    out: Annotated[
        Path, typer.Option(show_default=False, help="Folder for results. [default: runs/reproduce-dropfilter]")
    ] = Path("runs/reproduce-dropfilter"),
    processes: Processes = None,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    """Compare DropFilter and DropFilter-PLUS with Dropout, Dropout2d and DropConnect, at tuned rates.

    What is interrupted goes on where it stood when the command is given again.
    """
    with reported(debug, []):
        from shrinkage.reproduce.dropfilter import reproduce
        from shrinkage.reproduce.run import device as find_device

        usual = ["mnist-1000", "lenet-5-1000", "scaling", "mnist", "lenet-5"]
        names = parts(part, quick, ["quick", "quick-scaling"], usual)
        where = find_device(device)
        at_once = at_a_time(processes, where)
        tables = reproduce(names, out, data_dir=data_dir, where=where, processes=at_once, tell=say)
        for table in tables:
            echo(f"\n{table}")
        echo(f"\nresults in {out}")

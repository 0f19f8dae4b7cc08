"""Options that several commands have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shrinkage.core.errors import InputError

if TYPE_CHECKING:
    import torch

Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        envvar="SHRINKAGE_DEBUG",
        show_envvar=False,
        help="Show where in the program an error arose; SHRINKAGE_DEBUG=1 does so too.",
    ),
]

DataDir = Annotated[Path | None, typer.Option(help="Folder with the data set; what is missing is downloaded into it.")]
Device = Annotated[str, typer.Option(show_default=False, help="auto, cpu, cuda, cuda:1. [default: cpu]")]
Processes = Annotated[
    int | None, typer.Option(min=1, help="Trainings at a time. [default: as many as processors; 1 on a GPU]")
]
Quick = Annotated[bool, typer.Option("--quick", help="Digits instead: minutes, nothing to download.")]


def parts(part: Sequence[str] | None, quick: bool, quick_ones: Sequence[str], usual: Sequence[str]) -> Sequence[str]:
    """Which tables a reproduction makes.

    Raises:
        InputError: if ``--quick`` and ``--part`` are given together.
    """
    if quick and part:
        raise InputError(f"--quick is a table of its own: leave it out, or leave out --part {part[0]}")
    return part or (quick_ones if quick else usual)


def at_a_time(processes: int | None, where: torch.device | None = None) -> int:
    """How many trainings run side by side."""
    return processes or (1 if where is not None and where.type == "cuda" else os.cpu_count() or 1)

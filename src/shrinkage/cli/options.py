"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        envvar="SHRINKAGE_DEBUG",
        show_envvar=False,
        help="Show where in the program an error arose; SHRINKAGE_DEBUG=1 does so too.",
    ),
]

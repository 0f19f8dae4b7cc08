"""What is printed, where to, and what becomes of errors and signals."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

from shrinkage.cli.signals import Stopped, stoppable

_USAGE, _FAILURE = 2, 1


def echo(text: str) -> None:
    """Print a result to the standard output."""
    typer.echo(text)


def say(text: str) -> None:
    """Print what goes on to the standard error, so that results can be piped."""
    typer.echo(text, err=True)


@contextlib.contextmanager
def reported(debug: bool, begun: list[Path]) -> Iterator[None]:
    """Turn errors and signals into a short message and an exit status.

    Statuses: 2 for what the user can put right, 1 for what went wrong on the way, 128 + n for signal n.

    Args:
        debug: let errors pass, with their traceback.
        begun: the run's folder, once there is one.
    """
    from shrinkage.core.errors import InputError, ShrinkageError

    try:
        with stoppable():
            yield
    except Stopped as stop:
        say(f"\nstopped by {signal.Signals(stop.signum).name}{_remedy(begun)}")
        raise typer.Exit(128 + stop.signum) from None
    except ShrinkageError as error:
        if debug:
            raise
        typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
        say(str(error))
        if not isinstance(error, InputError) and begun:
            say(_remedy(begun).removeprefix("; "))
        raise typer.Exit(_USAGE if isinstance(error, InputError) else _FAILURE) from None
    finally:
        sys.stdout.flush()


def _remedy(begun: list[Path]) -> str:
    if not begun:
        return ""
    return f"; every finished epoch is saved. Go on with: shrinkage train --resume {shlex.quote(str(begun[0]))}"

"""The commands ``shrinkage export`` and ``shrinkage bench``: what becomes of a trained network."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shrinkage.cli.console import echo, reported, say
from shrinkage.cli.options import Debug

if TYPE_CHECKING:
    from torch import Tensor, nn

Run = Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)]


def export(
    run: Run,
    to: Annotated[str, typer.Option(help="onnx, safetensors, torch-export or openvino.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The file to write. [default: model.* in RUN/export]")] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Take emptied neurons and channels out first; that makes it faster.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write the trained network of a run as a file for another runtime, and try the file there.

    Zeros alone do not make those runtimes faster; --compact does where whole neurons or channels are empty.
    """
    with reported(debug, []):
        from shrinkage.core.errors import InputError
        from shrinkage.deploy.export import export
        from shrinkage.deploy.export_formats import FORMATS

        if to not in FORMATS:
            raise InputError(f"--to must be one of {', '.join(FORMATS)}, got {to!r}")
        model, example, name = trained(run)
        if compact:
            from shrinkage.deploy.compact import compact as compacted

            smaller = compacted(model, example)
            echo(f"{smaller}\n")
            model = smaller.model
        if out is None:
            out = run / "export" / f"model{'-compact' if compact else ''}{FORMATS[to].suffix}"
            out.parent.mkdir(exist_ok=True)
        echo(str(replace(export(model, example, out, to), model=name)))  # type: ignore[arg-type]


def bench(
    run: Run,
    batch: Annotated[
        list[int] | None, typer.Option(help="Examples a call; may be repeated. [default: 1 and 64]")
    ] = None,
    threads: Annotated[int, typer.Option(show_default=False, help="Of every engine. [default: 1]")] = 1,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="eager, inductor, aot-inductor, onnxruntime, onnxruntime-int8, openvino, openvino-bf16, "
            "openvino-int8 or shrinkage; may be repeated. [default: all]"
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(show_default=False, help="Turns that every engine has. [default: 15]")] = 15,
    json_: Annotated[Path | None, typer.Option("--json", help="Also write every figure to this file.")] = None,
    debug: Debug = False,
) -> None:
    """Run the trained network of a run in every engine that is there, and say which is the fastest.

    All of them run on the same random inputs, take turns, and are checked against PyTorch. If whole neurons or
    channels are empty, the network without them takes part, too.
    """
    with reported(debug, []):
        from shrinkage.core.files import write
        from shrinkage.runtime.bench import bench

        model, example, name = trained(run)
        result = bench(
            model, example, batches=batch or (1, 64), threads=threads, engines=engine, rounds=rounds, tell=_tell
        )
        result = replace(result, model=name)
        if json_ is not None:
            write(json_, json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n")
        echo(str(result))


def trained(run: Path) -> tuple[nn.Module, Tensor, str]:
    """The network of a run as its ``model.safetensors`` has it, an example, and the network's name.

    Raises:
        InputError: if it is no run folder, the run has no network yet, or it cannot be read.
    """
    import torch

    from shrinkage.training.run import network

    model, summary = network(run)
    return model, torch.zeros(1, *summary.input_shape), summary.model


def _tell(line: str) -> None:
    """What goes on, for whoever watches."""
    if sys.stderr.isatty():
        say(line)

"""Networks as files for other runtimes, each tried in its runtime before it is handed over."""

from __future__ import annotations

import copy
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from shrinkage.core.errors import InputError, ShrinkageError, StateError
from shrinkage.core.evaluation import evaluating
from shrinkage.core.selection import unwrap
from shrinkage.core.tables import render
from shrinkage.deploy.export_formats import FORMATS, Format
from shrinkage.deploy.export_inputs import Inputs, as_inputs, difference, outputs, random_inputs

To = Literal["onnx", "safetensors", "torch-export", "openvino"]

TOLERANCE = 1e-4
"""The largest difference between the file and the model that passes, relative to the largest output."""

_OTHER_BATCH = 3  # beside the example's own; neither 1 nor 2, the sizes that tracing treats as special


@dataclass(frozen=True)
class Exported:
    """A file that was written and tried; prints as a table.

    Attributes:
        model: the name of the model's class.
        to: what kind of file; ``title`` as people call it.
        files: what was written, the one to open first.
        bytes: of each file.
        dense_bytes: of the model's parameters as float32.
        runtime: that the file was tried in, with its version.
        difference: the largest one between the file's outputs and the model's on random inputs, relative to the
            largest output; at most ``tolerance``.
        tolerance: what would have been let pass.
        batches: the batch sizes it was tried at.
        dynamic: whether it takes batches of any size.
        note: what is to be known about speed.
    """

    model: str
    to: str
    title: str
    files: tuple[Path, ...]
    bytes: tuple[int, ...]
    dense_bytes: int
    runtime: str
    difference: float
    tolerance: float
    batches: tuple[int, ...]
    dynamic: bool
    note: str

    @property
    def ratio(self) -> float:
        """How many times smaller than dense float32 parameters."""
        return self.dense_bytes / sum(self.bytes)

    def to_dict(self) -> dict[str, Any]:
        """The same as numbers, texts, lists and booleans, ready for JSON."""
        return {**vars(self), "files": [str(path) for path in self.files], "bytes": list(self.bytes),
                "batches": list(self.batches), "ratio": self.ratio}  # fmt: skip

    def __str__(self) -> str:
        rows: list[list[object]] = [[str(path), size] for path, size in zip(self.files, self.bytes, strict=True)]
        total: list[object] = [
            sum(self.bytes), self.dense_bytes, f"{self.ratio:.2f} ×", f"{self.difference:.1e}", self.runtime,
        ]  # fmt: skip
        if len(rows) == 1:
            rows = [[rows[0][0], *total]]
        else:
            rows = [*([*row, None, None, None, None] for row in rows), [], ["total", *total]]
        batch = "of any size" if self.dynamic else f"of {self.batches[0]}"
        tried = " and ".join(map(str, self.batches))
        return render(
            ["file", "bytes", "dense float32", "smaller", "largest difference", "tried in"],
            rows,
            title=f"{self.model} as {self.title}, for batches {batch}; tried at {tried}",
        ) + f"\n{self.note}"  # fmt: skip


def export(
    model: nn.Module,
    example: Any,
    path: str | os.PathLike[str],
    to: To = "onnx",
    *,
    dynamic: bool = True,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write a model as a file for another runtime, and try the file there.

    The file is written aside, loaded in its runtime, and compared with the model on random inputs, at the example's
    batch size and at another one; only then does it take its name. The model runs in evaluation mode without gradients
    and is left as it was.

    ``"onnx"``, ``"torch-export"`` and ``"safetensors"`` are one file. OpenVINO's form is two by nature: the graph in
    ``.xml``, the weights in a ``.bin`` of the same name.

    Zeros alone make none of these runtimes faster: they multiply by zero like by any other number. Compaction does,
    which takes emptied neurons and channels out before the export, and so does an engine that skips zeros.

    Args:
        model: any module whose outputs are tensors, alone or in tuples or dicts; wrappers of ``torch.compile`` and DDP
            are looked through. One on a GPU is copied to the CPU.
        example: an input: a tensor, or a tuple of tensors in the order of ``forward``'s arguments. The first dimension
            counts examples.
        path: where to; ends in ``.onnx``, ``.safetensors``, ``.pt2`` or ``.xml``. What is there already is replaced.
        to: ``"onnx"`` (extra ``export``), ``"safetensors"`` (the small file of :func:`shrinkage.save`),
            ``"torch-export"``, or ``"openvino"`` (extra ``openvino``).
        dynamic: take batches of any size; ``False`` fixes the example's, for models that allow no other.
        tolerance: the largest difference to let pass, relative to the largest output.

    Returns:
        The files, their bytes beside those of the parameters as float32, and the largest difference found.

    Raises:
        InputError: if the arguments cannot be used, or the model cannot be written in this form.
        StateError: if the file gives something else than the model; it is removed.
        MissingExtra: if a package is not installed; it names the extra.

    >>> import tempfile
    >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = export(net, torch.zeros(1, 8), f"{folder}/net.pt2", to="torch-export")
    >>> result.batches, result.difference <= result.tolerance
    ((1, 3), True)
    """
    if to not in FORMATS:
        raise InputError(f"to must be one of {', '.join(FORMATS)}, got {to!r}")
    kind = FORMATS[to]
    target = _target(Path(path), kind)
    kind.check()
    inputs = as_inputs(example)
    model = unwrap(model)
    if any(tensor.device.type != "cpu" for tensor in model.state_dict().values()):
        model = copy.deepcopy(model).cpu()
    with evaluating(model), tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        aside = Path(folder) / target.name
        _write(kind, model, inputs, aside, dynamic)
        batches, gap = _try(kind, model, inputs, aside, dynamic)
        if not gap <= tolerance:
            raise StateError(
                f"{kind.runtime} gives other outputs for the exported {type(model).__name__} than torch: they differ "
                f"by {gap:.1e} of the largest output on random inputs, more than the tolerance {tolerance:g}; the file "
                "was removed. Look for operations that are random or depend on the precision, or raise tolerance="
            )
        files = _publish(aside, target)
    return Exported(
        type(model).__name__,
        to,
        kind.title,
        files,
        tuple(file.stat().st_size for file in files),
        sum(4 * parameter.numel() for parameter in model.parameters()),
        kind.version,
        gap,
        tolerance,
        batches,
        dynamic,
        kind.note,
    )


def _target(path: Path, kind: Format) -> Path:
    if path.suffix != kind.suffix:
        raise InputError(f"the name of a file for {kind.title} ends in {kind.suffix}, got {path}")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}")
    return path


def _write(kind: Format, model: nn.Module, inputs: Inputs, path: Path, dynamic: bool) -> None:
    try:
        kind.write(model, inputs, path, dynamic)
    except ShrinkageError:
        raise
    except OSError as error:
        raise InputError(f"{path.name} could not be written: {(error.strerror or str(error)).lower()}") from error
    except Exception as error:  # exporters raise what they like
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        size = "any batch size; dynamic=False writes it for the example's alone" if dynamic else "this batch size"
        raise InputError(
            f"{type(model).__name__} cannot be written as {kind.title} for {size}. "
            f"{type(error).__name__}: {lines[0] if lines else ''}"
        ) from error


def _try(kind: Format, model: nn.Module, inputs: Inputs, path: Path, dynamic: bool) -> tuple[tuple[int, ...], float]:
    """Batch sizes at which the file ran, and the largest difference from the model."""
    run = kind.load(path, model)
    own = inputs[0].shape[0]
    batches = tuple(dict.fromkeys((own, _OTHER_BATCH if own != _OTHER_BATCH else own + 1))) if dynamic else (own,)
    dice = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch in batches:
        given = random_inputs(inputs, batch, dice)
        expected = outputs(model(*(tensor.clone() for tensor in given)))
        if not all(bool(tensor.isfinite().all()) for tensor in expected):
            raise InputError(
                f"{type(model).__name__} gives values that are not finite on random inputs from N(0, 1), so the file "
                "cannot be checked against it"
            )
        try:
            found = run(given)
        except Exception as error:  # runtimes raise what they like
            raise StateError(
                f"{kind.runtime} cannot run the exported {type(model).__name__} on a batch of {batch}; the file was "
                f"removed. {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            ) from error
        worst = max(worst, difference(found, expected))
    return batches, worst


def _publish(aside: Path, target: Path) -> tuple[Path, ...]:
    """Give the files their names, the one to open last, and list that first."""
    others = sorted(path for path in aside.parent.iterdir() if path != aside)
    for path in (*others, aside):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(path, target.parent / path.name)
    return (target, *(target.parent / path.name for path in others))

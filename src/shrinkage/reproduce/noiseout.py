"""The evidence for NoiseOut: what noise outputs do to correlations, and what neurons are worth that are left.

Every training is a line of JSON in ``OUT/PART.jsonl``; what is there is not run again.
"""

from __future__ import annotations

import difflib
import math
import multiprocessing
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shrinkage.core.errors import InputError
from shrinkage.core.tables import render
from shrinkage.reproduce.lines import Lines
from shrinkage.reproduce.shrinking import NOISES, PARTS, RECIPE, Part, Trial, read, run
from shrinkage.reproduce.shrunkplots import correlation_plot, curve_plot
from shrinkage.training.summary import versions

_JUDGED = "gaussian"
"""The noise that is compared with networks from scratch, and goes before HALO."""

_PAPER = f"{_JUDGED}, by |ρ|"
"""The same with pairs compared as in the paper."""

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What a part has shown; prints as three tables.

    Attributes:
        title: what was trained.
        seeds: trainings a row.
        noise: outcomes without removal, by noise.
        curve: outcomes by noise and by share of the parameters left; ``"scratch"`` in place of a noise: networks that
            had the judged noise's shapes from the beginning.
        sparse: outcomes with HALO, by what was done.
    """

    title: str
    seeds: int
    noise: dict[str, list[Outcome]]
    curve: dict[tuple[str, float], list[Outcome]]
    sparse: dict[str, list[Outcome]]

    @property
    def budgets(self) -> list[float]:
        """Shares of the parameters left, the largest first."""
        return sorted({left for _, left in self.curve}, reverse=True)

    def lead(self, left: float) -> list[float]:
        """Points by which the judged network is ahead of the one from scratch, seed by seed."""
        mine, other = self.curve[_JUDGED, left], self.curve["scratch", left]
        return [one["accuracy"] - two["accuracy"] for one, two in zip(mine, other, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Means and single values as plain numbers, texts, lists and dicts."""
        return {
            "title": self.title,
            "seeds": self.seeds,
            "noise": {name: [_plain(each) for each in found] for name, found in self.noise.items()},
            "curve": [
                {"noise": name, "left": left, "outcomes": [_plain(each) for each in found]}
                for (name, left), found in self.curve.items()
            ],
            "sparse": {name: [_plain(each) for each in found] for name, found in self.sparse.items()},
        }

    def __str__(self) -> str:
        return "\n\n".join([self._noise_table(), self._curve_table(), *([self._sparse_table()] if self.sparse else [])])

    def _noise_table(self) -> str:
        layers = list(self.noise["none"][0]["correlation"][-1])
        rows: list[list[object]] = []
        for name, found in self.noise.items():
            ends = [outcome["correlation"][-1] for outcome in found]
            rho = [_mean([end[layer] for end in ends], 3) for layer in layers]
            rows.append([name, _mean([outcome["accuracy"] for outcome in found]), *rho])
        header = ["noise", "test accuracy", *(f"|ρ| in {layer}" for layer in layers)]
        return render(
            header, rows, title=f"{self.title}: correlations at the end (mean ± standard error of {self.seeds})"
        )

    def _curve_table(self) -> str:
        rows: list[list[object]] = []
        for left in self.budgets:
            mine = self.curve[_JUDGED, left]
            parameters = statistics.mean(outcome["parameters"] for outcome in mine)
            whole = self.noise["none"][0]["parameters"]
            units = "-".join(
                f"{statistics.mean(each['units'][layer] for each in mine):.0f}" for layer in mine[0]["units"]
            )
            scores = [
                _mean([each["accuracy"] for each in self.curve[name, left]]) for name in (*NOISES, _PAPER, "scratch")
            ]
            rows.append(
                [f"{1 - parameters / whole:.1%}", round(parameters), units, *scores, _mean(self.lead(left), sign="+")]
            )
        header = ["removed", "parameters", "neurons", *NOISES, _PAPER, "from scratch", f"{_JUDGED} over scratch"]
        return render(
            header, rows, title="Test accuracy by what is left, and of networks that had that shape all along"
        )

    def _sparse_table(self) -> str:
        rows: list[list[object]] = [
            [
                name,
                _mean([outcome["accuracy"] for outcome in found]),
                *(
                    round(statistics.mean(each[key] for each in found))
                    for key in ("parameters", "nonzeros", "compacted")
                ),
            ]
            for name, found in self.sparse.items()
        ]
        header = ["method", "test accuracy", "parameters", "non-zeros", "parameters, compacted"]
        return render(header, rows, title="With HALO, and HALO's own dead units taken out")


def reproduce(
    names: Sequence[str],
    out: Path,
    *,
    data_dir: Path | None,
    where: torch.device,
    processes: int,
    tell: Callable[[str], None],
) -> dict[str, Evidence]:
    """Run parts, or what is missing of them.

    Args:
        names: of the parts.
        out: folder for ``NAME.jsonl``, ``NAME-correlation.svg`` and ``NAME-curve.svg``.
        data_dir: folder with the data sets.
        where: the device to train on.
        processes: trainings at a time.
        tell: receives what a person should know, a line at a time.

    Raises:
        InputError: for a part that does not exist, or data or a folder that cannot be used.
        StateError: if another process is adding to the same results.
    """
    for name in names:
        if name not in PARTS:
            near = difflib.get_close_matches(name, PARTS, 1, 0.0)[0]
            raise InputError(f"there is no part {name!r}; did you mean {near!r}? ({', '.join(PARTS)})")
    found = {}
    present = {package: versions().get(package) for package in ("shrinkage", "torch")}
    for name in names:
        part = PARTS[name]
        tell(f"{name}: {part.title}")
        read(part, data_dir, False)  # what is wrong with the data is said once
        origin = {**present, "device": where.type, "recipe": RECIPE}
        with Lines(out / f"{name}.jsonl", origin, tell) as lines:
            evidence = _evidence(name, part, Runner(lines, data_dir, where, processes, tell))
        correlation_plot(evidence.noise, part.title, out / f"{name}-correlation.svg")
        curve_plot(evidence.curve, evidence.sparse, part.title, out / f"{name}-curve.svg")
        found[name] = evidence
    return found


@dataclass(frozen=True)
class Runner:
    """Runs trials and keeps their outcomes."""

    lines: Lines
    data_dir: Path | None
    where: torch.device
    processes: int
    tell: Callable[[str], None]

    def all(self, trials: Iterable[Trial]) -> list[Outcome]:
        """The outcomes of trials, in their order; run where they are not known."""
        wanted = list(trials)
        missing = [trial for trial in wanted if self.lines.get(trial.settings()) is None]
        if missing:
            self._run(missing)
        return [outcome for trial in wanted if (outcome := self.lines.get(trial.settings())) is not None]

    def _run(self, trials: list[Trial]) -> None:
        with ProcessPoolExecutor(self.processes, multiprocessing.get_context("spawn")) as pool:
            try:
                running = {pool.submit(run, trial, self.data_dir, self.where): trial for trial in trials}
                for count, future in enumerate(as_completed(running), 1):
                    outcome, trial = future.result(), running[future]
                    self.lines.add(trial.settings(), outcome)
                    self.tell(
                        f"{count:4d} of {len(trials)}  {_title(trial)}, seed {trial.seed}: "
                        f"{outcome['accuracy']:.2f} % with {outcome['parameters']:,} parameters, "
                        f"{outcome['seconds']:.0f} s"
                    )
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in multiprocessing.active_children():  # what they were at is run again next time
                    worker.terminate()
                raise


def _evidence(name: str, part: Part, runner: Runner) -> Evidence:
    seeds = range(part.seeds)

    def trials(noise: str, left: float, sparsity: float = 0.0, by: str = "error") -> list[Trial]:
        return [Trial(name, "noiseout", noise, left, seed, sparsity, by) for seed in seeds]

    # All at once, so that no process waits for another.
    grid = {(noise, left): trials(noise, left) for noise in NOISES for left in (1.0, *part.budgets)}
    grid |= {(_PAPER, left): trials(_JUDGED, left, by="correlation") for left in part.budgets}
    middle = part.budgets[(len(part.budgets) - 1) // 2]
    sparse = {
        **{f"HALO, {share:.0%} zeros": trials("none", 1.0, share) for share in part.sparse},
        **{
            f"NoiseOut to {middle:.1%}, then HALO, {share:.0%} zeros": trials(_JUDGED, middle, share)
            for share in part.sparse
        },
    }
    wanted = [*(each for some in grid.values() for each in some), *(each for some in sparse.values() for each in some)]
    runner.all(wanted)
    found = {key: runner.all(some) for key, some in grid.items()}
    curve = {key: outcomes for key, outcomes in found.items() if key[1] != 1.0}
    scratch = {
        left: [
            Trial(name, "scratch", "none", 1.0, seed, shapes={key: tuple(size) for key, size in mine["shapes"].items()})
            for seed, mine in zip(seeds, found[_JUDGED, left], strict=True)
        ]
        for left in part.budgets
    }
    runner.all(each for some in scratch.values() for each in some)
    curve |= {("scratch", left): runner.all(some) for left, some in scratch.items()}
    return Evidence(
        part.title,
        part.seeds,
        {noise: found[noise, 1.0] for noise in NOISES},
        curve,
        {title: runner.all(some) for title, some in sparse.items()},
    )


def _title(trial: Trial) -> str:
    if trial.method == "scratch":
        return "from scratch"
    behind = f", {trial.sparsity:.0%} zeros by HALO" if trial.sparsity else ""
    return f"noise {trial.noise}, {trial.left:.1%} left{behind}"


def _plain(outcome: Outcome) -> Outcome:
    return {key: value for key, value in outcome.items() if key not in ("shapes", "correlation")}


def _mean(values: Sequence[float], digits: int = 2, sign: str = "") -> str | None:
    seen = [value for value in values if not math.isnan(value)]
    if not seen:
        return None
    spread = f" ± {statistics.stdev(seen) / len(seen) ** 0.5:.{digits}f}" if len(seen) > 1 else ""
    return f"{statistics.mean(seen):{sign}.{digits}f}{spread}"

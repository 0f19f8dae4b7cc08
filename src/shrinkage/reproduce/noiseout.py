"""The evidence for NoiseOut: what noise outputs do to correlations, and what neurons are worth that are left.

Every training is a line of JSON in ``OUT/PART.jsonl``; what is there is not run again.
"""

from __future__ import annotations

import difflib
import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shrinkage.core.errors import InputError
from shrinkage.reproduce.lines import Lines
from shrinkage.reproduce.runner import Outcome, Runner
from shrinkage.reproduce.sheets import Sheet, mean, save
from shrinkage.reproduce.shrinking import NOISES, PARTS, RECIPE, Part, Trial, read, run
from shrinkage.reproduce.shrunkplots import correlation_plot, curve_plot
from shrinkage.training.summary import versions

_JUDGED = "gaussian"
"""The noise that is compared with networks from scratch, and goes before HALO."""

_PAPER = f"{_JUDGED}, by |ρ|"
"""The same with pairs compared as in the paper."""


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

    def sheets(self) -> list[Sheet]:
        """As tables."""
        return [self._noise_sheet(), self._curve_sheet(), *([self._sparse_sheet()] if self.sparse else [])]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.sheets()))

    def _noise_sheet(self) -> Sheet:
        layers = list(self.noise["none"][0]["correlation"][-1])
        rows: list[list[object]] = []
        for name, found in self.noise.items():
            ends = [outcome["correlation"][-1] for outcome in found]
            rho = [_present([end[layer] for end in ends], 3) for layer in layers]
            rows.append([name, mean([outcome["accuracy"] for outcome in found]), *rho])
        title = f"{self.title}: correlations at the end (mean ± standard error of {self.seeds})"
        return Sheet(title, ["noise", "test accuracy", *(f"|ρ| in {layer}" for layer in layers)], rows)

    def _curve_sheet(self) -> Sheet:
        whole = self.noise["none"][0]["parameters"]
        header, parameters, neurons, lead = (
            ["removed"],
            ["parameters left"],
            ["neurons left"],
            [f"{_JUDGED} over scratch"],
        )
        scores: dict[str, list[object]] = {name: [name] for name in (*NOISES, _PAPER, "scratch")}
        scores["scratch"] = ["that shape from scratch"]
        for left in self.budgets:
            mine = self.curve[_JUDGED, left]
            count = statistics.mean(outcome["parameters"] for outcome in mine)
            header.append(f"{1 - count / whole:.1%}")
            parameters.append(f"{count:,.0f}")
            units = (statistics.mean(each["units"][layer] for each in mine) for layer in mine[0]["units"])
            neurons.append("-".join(f"{unit:.0f}" for unit in units))
            for name, row in scores.items():
                row.append(mean([each["accuracy"] for each in self.curve[name, left]]))
            lead.append(mean(self.lead(left), sign="+") or "")
        rows: list[list[object]] = [[*parameters], [*neurons], *scores.values(), [*lead]]
        return Sheet("Test accuracy by what is left, and of networks that had that shape all along", header, rows)

    def _sparse_sheet(self) -> Sheet:
        counts = ("halo_steps", "parameters", "nonzeros", "compacted")
        rows: list[list[object]] = [
            [
                name,
                mean([outcome["accuracy"] for outcome in found]),
                *(round(statistics.mean(each[key] for each in found)) for key in counts),
            ]
            for name, found in self.sparse.items()
        ]
        header = ["method", "test accuracy", "steps of HALO", "parameters", "non-zeros", "parameters, compacted"]
        return Sheet("With HALO, and HALO's own dead units taken out", header, rows)


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
        out: folder for ``NAME.jsonl``, ``NAME.md``, ``NAME-correlation.svg`` and ``NAME-curve.svg``.
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
            work = functools.partial(run, data_dir=data_dir, where=where)
            evidence = _evidence(name, part, Runner(lines, work, _title, _score, processes, tell))
        save(evidence.sheets(), out / f"{name}.md")
        correlation_plot(evidence.noise, part.title, out / f"{name}-correlation.svg")
        curve_plot(evidence.curve, evidence.sparse, part.title, out / f"{name}-curve.svg")
        found[name] = evidence
    return found


def _evidence(name: str, part: Part, runner: Runner) -> Evidence:
    seeds = range(part.seeds)

    def trials(noise: str, left: float, sparsity: float = 0.0, by: str = "error", late: bool = False) -> list[Trial]:
        return [Trial(name, "noiseout", noise, left, seed, sparsity, by, late=late) for seed in seeds]

    # All at once, so that no process waits for another.
    grid = {(noise, left): trials(noise, left) for noise in NOISES for left in (1.0, *part.budgets)}
    grid |= {(_PAPER, left): trials(_JUDGED, left, by="correlation") for left in part.budgets}
    middle = part.budgets[(len(part.budgets) - 1) // 2]
    sparse = {f"HALO, {share:.0%} zeros": trials("none", 1.0, share) for share in part.sparse}
    for share in (share for share in part.sparse if 1 - share < 0.9 * middle):  # else NoiseOut alone has left fewer
        sparse[f"HALO, {share:.0%} zeros, late"] = trials("none", 1.0, share, late=True)
        sparse[f"NoiseOut to {middle:.1%}, then HALO to {1 - share:.0%}"] = trials(_JUDGED, middle, share)
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
        return f"from scratch, seed {trial.seed}"
    behind = f", {trial.sparsity:.0%} zeros with HALO{' late' * trial.late}" if trial.sparsity else ""
    return f"noise {trial.noise}, {trial.left:.1%} left{behind}, seed {trial.seed}"


def _score(outcome: Mapping[str, Any]) -> str:
    parameters, seconds = outcome["parameters"], outcome["seconds"]
    return f"{outcome['accuracy']:.2f} % with {parameters:,} parameters, {seconds:.0f} s"


def _plain(outcome: Outcome) -> Outcome:
    return {key: value for key, value in outcome.items() if key not in ("shapes", "correlation")}


def _present(values: Sequence[float], digits: int) -> str | None:
    return mean([value for value in values if not math.isnan(value)], digits)

"""Architectures on Multi30k with as many parameters: what each reaches for the same FLOPs, and in the same time.

    python benchmarks/architectures.py --runs FOLDER --steps 1200 --name architectures

The Transformer is trained for so many steps; the others until they have spent as many FLOPs (as `t2t cost` counts
them), and until they have trained for as long, whichever comes first being evaluated on the way. One after the other,
so that each has the machine for itself. Run folders that are there are gone on with. What was found is kept in
benchmarks/results and BENCHMARKS.md is written from it. Knobs of all experiments may follow, as for `t2t train`.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import commands
from page import keep, origin

from t2t import cost
from t2t.experiment import get, override
from t2t.run import Run, read_metrics

NAMES = tuple(
    f"multi30k_{name}" for name in ("ende", "recurrent", "convolutional", "language_model", "pre_ln", "rope", "learned")
)
CHECKPOINTS, AVERAGE = 20, 5  # that the Transformer writes, and how many of the last are averaged
PACE = 40  # steps from which the time of a step is told at first: compilation is not in it
CLOSE = 0.02  # the part of a time by which another may be shorter and count as the same


class Trained:
    """A run that is gone on with, step by step."""

    def __init__(self, name: str, folder: Path, every: int, knobs: list[str]) -> None:
        self.name, self.run, self.knobs = name, folder / name, [*knobs, "--checkpoint_every", str(every)]
        found = cost.cost(override(get(name), commands.knobs(knobs)), None)
        self.flops, self.parameters = found["flops_per_step"], found["parameters"]

    def to(self, steps: int) -> "Trained":
        """Trains it up to that step, if it was not."""
        ending = ["--evaluate_every", "1000000", "--final_evaluation", "none"]
        self._t2t("train", self.name, "--run", str(self.run), "--train_steps", str(steps), *ending, *self.knobs)
        return self

    def seconds(self) -> float:
        """The time it was trained for."""
        return sum(row["seconds"] for row in self._rows())

    def steps(self) -> int:
        """Those it was trained for."""
        return self._rows()[-1]["step"]

    def pace(self) -> float:
        """Seconds a step."""
        return self.seconds() / self.steps()

    def reached(self) -> dict[str, Any]:
        """What it has spent, and its test scores: those of the mean of its last checkpoints."""
        said = json.loads(self._t2t("evaluate", str(self.run), "--average", str(AVERAGE), "--json"))
        rows = self._rows()
        return {
            "steps": self.steps(),
            "flops": self.flops * self.steps(),
            "seconds": self.seconds(),
            "tokens_per_second": sum(row["tokens"] for row in rows) / self.seconds(),
            "perplexity": said["perplexity"],
            "scores": said["scores"],
        }

    def _rows(self) -> list[dict[str, Any]]:
        return [row for row in read_metrics(Run(self.run)) if row["split"] == "train"]

    def _t2t(self, *words: str) -> str:
        done = subprocess.run([sys.executable, "-m", "t2t", *words], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"t2t {' '.join(words)} ended with {done.returncode}")
        return done.stdout


def beside(run: Trained, flops: float, seconds: float) -> dict[str, dict[str, Any]]:
    """What a run reaches by the time it has spent as many FLOPs, and by the time it was trained for as long."""
    run.to(PACE)
    found: dict[str, dict[str, Any]] = {}
    while left := {of: n for of, n in _steps_left(run, flops, seconds).items() if of not in found}:
        nearest = min(left, key=lambda of: left[of])
        if left[nearest] > 0:
            run.to(run.steps() + left[nearest])
        else:
            found[nearest] = run.reached()
    return found


def _steps_left(run: Trained, flops: float, seconds: float) -> dict[str, int]:
    """Until either; for the time it is told anew on the way, as first steps are slower, and a few are none."""
    time_left = seconds - run.seconds()
    return {
        "flops": max(0, round(flops / run.flops) - run.steps()),
        "time": math.ceil(time_left / run.pace()) if time_left > CLOSE * seconds else 0,
    }


def main() -> None:
    """Trains all, keeps what was found, and writes BENCHMARKS.md anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="where the run folders lie, or will")
    parser.add_argument("--steps", type=int, default=1200, help="of the Transformer")
    parser.add_argument("--name", default="architectures", help="of the file of results")
    parser.add_argument("--results", type=Path, help="a folder for it; without, it joins those of BENCHMARKS.md")
    options, knobs = parser.parse_known_args()
    every = max(1, options.steps // CHECKPOINTS)
    first, *others = (Trained(name, options.runs, every, knobs) for name in NAMES)
    whole = first.to(options.steps).reached()
    found = [(first, {"flops": whole, "time": whole})]
    found += [(run, beside(run, whole["flops"], whole["seconds"])) for run in others]
    words = f"--runs FOLDER --steps {options.steps} --name {options.name}"
    result = {
        "kind": "architectures",
        "beside": NAMES[0],
        **origin([" ".join(["python benchmarks/architectures.py", words, *knobs])]),
        "runs": [{"experiment": run.name, "parameters": run.parameters, **points} for run, points in found],
    }
    keep(options.name, result, options.results)


if __name__ == "__main__":
    main()

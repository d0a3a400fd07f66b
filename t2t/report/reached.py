"""What the runs in a folder reached, as their evaluations say: nothing is trained or decoded here.

A run stands for an experiment when its own is the registered one, but for what says where it ran, how long and where
its data lies. Any other run of that name has "changed", the knobs that differ.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from t2t import cost, storage
from t2t import experiment as experiments
from t2t import run as runs
from t2t.constraints import knobs_of
from t2t.data.parsing import Parsing
from t2t.errors import UserError
from t2t.experiment import RESUMABLE, Experiment

Say = Callable[[str], None]
RUNS = Path("runs")  # where `t2t train` puts run folders
# Knobs that change no number but speed: those of a run's length and place, where data lies, how it is computed.
HARMLESS = {*RESUMABLE, "base", "model.unroll", "model.attention"}
HARMLESS |= {"task.corpus.data_dir", "task.corpus.mirror", "task.corpus.folder"}
HARMLESS |= {"task.treebank.folder", "task.treebank.gold.folder", "task.treebank.automatic"}


def by_experiment(
    folder: Path, wanted: Mapping[str, Experiment], split: str, say: Say
) -> dict[str, list[dict[str, Any]]]:
    """What the runs in a folder reached on a split, by the name of their experiment."""
    found = {name: [] for name in wanted}
    there = storage.content(folder) if folder.is_dir() else []
    for path in sorted(each for each in there if each.is_dir() and each.suffix != storage.UNFINISHED):
        try:
            run, tree, _ = runs.load(path)
            if tree.name in wanted:
                found[tree.name].append(_reached(run, wanted[tree.name], tree, split, say))
        except UserError as error:
            say(f"{path} is left out: {error}")
        except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:  # JSON, but not as t2t writes it
            say(f"{path} is left out: it is damaged: {error!r}")
    return found


def standing(experiment: Experiment, found: list[dict[str, Any]], say: Say) -> dict[str, Any]:
    """Of the runs of an experiment the one that stands for it, "ours", or None, and those that are "changed".

    "status" is "run", or "not evaluated", or "not run". Runs that stand behind another are named by `say`.
    """
    made = sorted((each for each in found if "steps" in each), key=_rank(experiment))
    *others, ours = [None, *(each for each in made if not each["changed"])]
    for other in filter(None, others):
        say(f"{experiment.name}: {other['run']} is not shown, evaluated at {other['steps']:,} steps")
    waiting = any("steps" not in each and not each["changed"] for each in found)
    return {
        "status": "run" if ours else "not evaluated" if waiting else "not run",
        "ours": ours,
        "changed": [each for each in made if each["changed"]],
    }


def _reached(run: runs.Run, registered: Experiment, tree: Experiment, split: str, say: Say) -> dict[str, Any]:
    """The evaluation of a run that is nearest to what is registered; without "steps" if there is none."""
    changed = {
        path: pair
        for path, pair in experiments.differences(registered, tree).items()
        if not HARMLESS & {path, path.split(".")[0]}
    }
    found = [_evaluated(each, registered, changed) for each in runs.evaluations(run, split)]
    if not found:
        say(f"{run.folder} has no evaluation of the {split} split: t2t evaluate {run.folder} --split {split}")
        return {"run": str(run.folder), "changed": changed}
    logged = [row for row in runs.read_metrics(run) if row["split"] == "train"]
    part = runs.parts(run)[-1]
    return {
        "run": str(run.folder),
        **max(reversed(found), key=_rank(registered)),  # reversed: of equals the newest
        "parameters": cost.parameters(tree),
        "commit": str(part["commit"]),
        "device": str(part["device"]),
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in logged) if logged else None,
        "seconds": sum(row.get("seconds", 0.0) for row in logged) or None,  # of training
    }


def _evaluated(evaluation: runs.Evaluation, registered: Experiment, changed: dict[str, Any]) -> dict[str, Any]:
    summary, decoding = evaluation.summary, dataclasses.asdict(registered.decoding)
    decoded = {
        f"decoding.{name}": (decoding.get(name), value)
        for name, value in (summary["decoding"] or {}).items()
        if name != "rows" and decoding.get(name) != value  # rows: how many at a time
    }
    if (before := _constraint(registered)) != (now := summary.get("constraint")):
        decoded["constraint"] = before, now
    decoded |= {path: pair for path, pair in evaluation.other_task(registered.task).items() if path not in HARMLESS}
    trained = getattr(registered.model, "dtype", None)
    if (dtype := summary.get("dtype", trained)) != trained:
        decoded["model.dtype"] = trained, dtype
    return {
        "evaluation": str(evaluation.folder),
        "perplexity": float(summary["perplexity"]),
        "scores": {name: _score(score) for name, score in summary["scores"].items()},
        "steps": int(summary["checkpoints"][-1]),
        "averaged": len(summary["checkpoints"]),
        "changed": {path: {"registered": there, "run": here} for path, (there, here) in {**changed, **decoded}.items()},
    }


def _constraint(registered: Experiment) -> dict[str, Any] | None:
    """What evaluations of an experiment as it is registered say of the constraint of their outputs."""
    task = registered.task
    return knobs_of(task.max_openings) if isinstance(task, Parsing) and task.constrained else None


def _score(found: dict[str, Any]) -> dict[str, Any]:
    numbers = {name: float(found[name]) for name in ("score", "low", "high")}
    return {**numbers, "signature": str(found["signature"])}


def _rank(registered: Experiment) -> Callable[[dict[str, Any]], tuple[bool, int, bool]]:
    """The more the better: nothing changed, more steps, as many checkpoints averaged as the experiment says."""
    return lambda each: (not each["changed"], each["steps"], each["averaged"] == registered.average)

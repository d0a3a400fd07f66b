"""What the paper replaced and what followed, beside the Transformer: one table for each, from what run folders say.

An experiment belongs to the table of the one that it is a variant of, if that translates and stands in no table of the
paper: so the variants of `quickstart` stand beside it. Which run stands for a row is said in `reached`.
"""

from pathlib import Path
from typing import Any

from t2t import cost
from t2t import experiment as experiments
from t2t.data.translation import Translation
from t2t.errors import UserError
from t2t.experiment import Experiment
from t2t.report import columns, reached
from t2t.report.columns import Marks, flops, made, marks_of, number, of_registered, reading
from t2t.report.reached import Say

SPLIT = "test"
READINGS = ("paper", "sacrebleu")  # the scores that are shown; JSON has all
WORDS = (("", "experiment"), ("", "model"))  # the heads of columns that hold words, not numbers
NOTES = (
    "PPL: perplexity per piece of the vocabulary, which all of a table share",
    "FLOPs: as `t2t cost` counts those of the run's steps; time: of training alone",
)


def rows(folder: Path | None, say: Say) -> list[dict[str, Any]]:
    """A row for each experiment, as JSON has it; those "beside" one experiment stand together, itself first.

    `folder` is where run folders lie, None for `reached.RUNS`, which need not exist. "model" is the architecture,
    "parameters" are counted from the registered experiment. "ours" is the run that stands for the row, with its
    "perplexity", "scores", "train_flops", "tokens_per_second" and "seconds" of training, or None; "status" and
    "changed" are those of `reached.standing`.

    Raises:
        UserError: no such folder.
    """
    if folder and not folder.is_dir():
        raise UserError(f"no folder {folder}")
    wanted = _wanted()
    found = reached.by_experiment(folder or reached.RUNS, wanted, SPLIT, say)
    return [_row(each, found[each.name], say) for each in wanted.values()]


def _wanted() -> dict[str, Experiment]:
    """Each experiment that others stand beside, and these after it, by name."""
    known = experiments.registered().values()
    beside = {each.base for each in known if each.base and each.table == 0}
    groups = [[one, *(each for each in known if each.base == one.name)] for one in known if one.name in beside]
    return {each.name: each for group in groups for each in group if isinstance(each.task, Translation)}


def _row(experiment: Experiment, found: list[dict[str, Any]], say: Say) -> dict[str, Any]:
    stands = reached.standing(experiment, found, say)
    if stands["ours"]:
        per_step = cost.cost(experiment, None)["flops_per_step"]
        stands["ours"] = {**stands["ours"], "train_flops": per_step * stands["ours"]["steps"]}
    return {
        "experiment": experiment.name,
        "beside": experiment.base or experiment.name,
        "model": type(experiment.model.build()).__name__,
        "split": SPLIT,
        "parameters": cost.parameters(experiment),
        "train_steps": experiment.train_steps,
        "average": experiment.average,
        **stands,
    }


# ------------------------------------------------------------------------------ In words


def text(found: list[dict[str, Any]]) -> str:
    """Aligned columns, a table for each experiment that others stand beside; below them signatures, runs and notes."""
    parts = [part for beside, rows in _groups(found) for part in (_title(beside), columns.aligned(rows, WORDS))]
    return "\n\n".join([*parts, *("\n".join(lines) for lines in _below(found))])


def markdown(found: list[dict[str, Any]]) -> str:
    """The same as tables of GitHub's Markdown."""
    tables = [(f"**{_title(beside)}**", columns.markdown(rows, WORDS)) for beside, rows in _groups(found)]
    below = ["\n".join(f"- {line}" for line in lines) for lines in _below(found)]
    return "\n\n".join([*(part for table in tables for part in table), *below])


def _groups(found: list[dict[str, Any]]) -> list[tuple[str, list[columns.Row]]]:
    marks = marks_of(found, READINGS)
    names = dict.fromkeys(row["beside"] for row in found)
    return [(name, [_cells(row, marks) for row in found if row["beside"] == name]) for name in names]


def _title(beside: str) -> str:
    return f"Beside {beside}, {SPLIT} split: as many parameters, the same data and training"


def _cells(row: dict[str, Any], marks: Marks) -> columns.Row:
    ours = row["ours"]
    scores = [reading(ours, name, marks) for name in READINGS] if ours else [row["status"], ""]
    return {
        ("", "experiment"): row["experiment"],
        ("", "model"): row["model"],
        ("", "params, M"): number(row["parameters"] / 1e6, ".2f"),
        ("", "PPL"): number(ours and ours["perplexity"], ".2f"),
        **{("BLEU:", name): score for name, score in zip(READINGS, scores, strict=True)},
        ("training:", "FLOPs"): flops(ours and ours["train_flops"]),
        ("training:", "tokens/s"): number(ours and ours["tokens_per_second"], ",.0f"),
        ("training:", "minutes"): number(ours and ours["seconds"] and ours["seconds"] / 60, ".1f"),
        ("training:", "steps"): of_registered(ours["steps"], row["train_steps"]) if ours else "",
    }


def _below(found: list[dict[str, Any]]) -> list[list[str]]:
    """What stands below the tables, in paragraphs: signatures; how runs were made; those that are no row; notes."""
    marks = marks_of(found, READINGS)
    signatures = [f"{mark} {name}: {signature}" for (name, signature), mark in marks.items()]
    runs = [made(row["experiment"], row["ours"]) for row in found if row["ours"]]
    changed = [_changed(row["experiment"], each, marks) for row in found for each in row["changed"]]
    return [lines for lines in (signatures, runs, changed, [*NOTES]) if lines]


def _changed(experiment: str, run: dict[str, Any], marks: Marks) -> str:
    """A run that does not stand for its row: why not, and what it reached."""
    changed = ", ".join(f"{path} {pair['run']} (not {pair['registered']})" for path, pair in run["changed"].items())
    scores = ", ".join(f"{name} {reading(run, name, marks)}" for name in READINGS)
    return f"{experiment}: {run['run']}, changed: {changed}; PPL {run['perplexity']:.2f}, {scores}"

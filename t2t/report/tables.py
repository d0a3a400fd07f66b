"""The paper's Tables 2, 3 and 4 with our numbers beside its own, from what run folders say: nothing is trained here.

Which run stands for a row is said in `reached`. Any other run of that name is listed apart, with the knobs that differ.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from t2t import cost
from t2t import experiment as experiments
from t2t.data.parsing import Parsing
from t2t.data.translation import Translation
from t2t.data.treebank import SemiSupervised
from t2t.errors import UserError, unknown
from t2t.experiment import Experiment, Reported
from t2t.report import columns, reached
from t2t.report.columns import Marks, flops, made, marks_of, millions, number, of_registered, reading

Say = Callable[[str], None]
TABLES = {"table2": (2, "test"), "table3": (3, "dev"), "table4": (4, "test")}  # number, and the split that it is about
BLEU = ("paper", "sacrebleu")
READINGS = {2: BLEU, 3: BLEU, 4: ("f1", "recall", "precision")}  # the scores that are shown by table; JSON has all
KINDS = {2: "pair", 4: "training"}  # what beside its name tells a row from the others
WORDS = (("", "experiment"), ("", "pair"), ("", "training"))  # the heads of columns that hold words, not numbers

# Table 2's other systems: into German, into French. Ensembles stand below single models, as on the page.
SYSTEMS = {
    "ByteNet": (Reported(bleu=23.75), Reported()),
    "Deep-Att + PosUnk": (Reported(), Reported(bleu=39.2, train_flops=1.0e20)),
    "GNMT + RL": (Reported(bleu=24.6, train_flops=2.3e19), Reported(bleu=39.92, train_flops=1.4e20)),
    "ConvS2S": (Reported(bleu=25.16, train_flops=9.6e18), Reported(bleu=40.46, train_flops=1.5e20)),
    "MoE": (Reported(bleu=26.03, train_flops=2.0e19), Reported(bleu=40.56, train_flops=1.2e20)),
    "Deep-Att + PosUnk ensemble": (Reported(), Reported(bleu=40.4, train_flops=8.0e20)),
    "GNMT + RL ensemble": (Reported(bleu=26.30, train_flops=1.8e20), Reported(bleu=41.16, train_flops=1.1e21)),
    "ConvS2S ensemble": (Reported(bleu=26.36, train_flops=7.7e19), Reported(bleu=41.29, train_flops=1.2e21)),
}

# Table 4's other parsers: by training, F1 on section 23.
PARSERS = {
    "Vinyals & Kaiser et al. 2014": {"WSJ only": 88.3, "semi-supervised": 92.1},
    "Petrov et al. 2006": {"WSJ only": 90.4},
    "Zhu et al. 2013": {"WSJ only": 90.4, "semi-supervised": 91.3},
    "Dyer et al. 2016, discriminative": {"WSJ only": 91.7},
    "Huang & Harper 2009": {"semi-supervised": 91.3},
    "McClosky et al. 2006": {"semi-supervised": 92.1},
    "Luong et al. 2015": {"multi-task": 93.0},
    "Dyer et al. 2016, generative": {"generative": 93.3},
}


def rows(name: str, folder: Path | None, say: Say) -> list[dict[str, Any]]:
    """The rows of "table2", "table3" or "table4" in the paper's order, as JSON has them.

    `folder` is where run folders lie, None for `reached.RUNS`, which need not exist. Each row has the "paper"'s
    numbers, and as "ours" those of the run that stands for it, or None: then "status" is "not run", or "not evaluated"
    on this table's split. "changed" are the runs of that name that differ from what is registered. A damaged run folder
    is named by `say` and left out. "parameters" and "train_flops" are those of the registered experiment, by
    `cost.cost`, the latter for Table 2 alone.

    Raises:
        UserError: no such table, or no such folder.
    """
    if name not in TABLES:
        raise unknown("report", name, [*TABLES, "baselines"])
    if folder and not folder.is_dir():
        raise UserError(f"no folder {folder}")
    table, split = TABLES[name]
    wanted = {each.name: each for each in experiments.registered().values() if each.table == table}
    found = reached.by_experiment(folder or reached.RUNS, wanted, split, say)
    return [*_others(table), *(_row(each, split, found[each.name], say) for each in wanted.values())]


def _others(table: int) -> Iterator[dict[str, Any]]:
    """The rows of systems that the paper compares with."""
    if table == 2:
        for system, both in SYSTEMS.items():
            for pair, paper in zip(("EN-DE", "EN-FR"), both, strict=True):
                if paper != Reported():
                    yield _other(2, system, pair, paper)
    if table == 4:
        for system, trained in PARSERS.items():
            for training, f1 in trained.items():
                yield _other(4, system, training, Reported(f1=f1))


def _other(table: int, system: str, kind: str, paper: Reported) -> dict[str, Any]:
    return {
        "experiment": None,
        "system": system,
        "table": table,
        "split": "test",
        KINDS[table]: kind,
        "paper": dataclasses.asdict(paper),
        "parameters": None,
        "train_flops": None,
        "train_steps": None,
        "average": None,
        "status": "the paper's",
        "ours": None,
        "changed": [],
    }


def _row(experiment: Experiment, split: str, found: list[dict[str, Any]], say: Say) -> dict[str, Any]:
    stands = reached.standing(experiment, found, say)
    ours = stands["ours"]
    per_step = cost.cost(experiment, None)["flops_per_step"] if experiment.table == 2 else None
    return {
        "experiment": experiment.name,
        "system": None,
        "table": experiment.table,
        "split": split,
        **_kind(experiment),
        "paper": dataclasses.asdict(experiment.paper),
        "parameters": cost.parameters(experiment),
        "train_flops": per_step and per_step * experiment.train_steps,
        "train_steps": experiment.train_steps,
        "average": experiment.average,
        **stands,
        "ours": ours and {**ours, "train_flops": per_step and per_step * ours["steps"]},
    }


def _kind(experiment: Experiment) -> dict[str, str | None]:
    task = experiment.task
    if isinstance(task, Parsing):
        return {"training": "semi-supervised" if isinstance(task.treebank, SemiSupervised) else "WSJ only"}
    return {"pair": f"{task.source}-{task.target}".upper() if isinstance(task, Translation) else None}


# ------------------------------------------------------------------------------ In words


def text(found: list[dict[str, Any]]) -> str:
    """The rows as aligned columns; below them signatures, runs and notes."""
    marks = marks_of(found, READINGS[found[0]["table"]])
    cells = [_cells(row, marks) for row in found]
    below = ["\n".join(lines) for lines in _below(found, marks)]
    return "\n\n".join([_title(found), columns.aligned(cells, WORDS), *below])


def markdown(found: list[dict[str, Any]]) -> str:
    """The rows as a table of GitHub's Markdown; below it signatures, runs and notes."""
    marks = marks_of(found, READINGS[found[0]["table"]])
    cells = [_cells(row, marks) for row in found]
    below = ["\n".join(f"- {line}" for line in lines) for lines in _below(found, marks)]
    return "\n\n".join([f"**{_title(found)}**", columns.markdown(cells, WORDS), *below])


def _title(found: list[dict[str, Any]]) -> str:
    return f"Table {found[0]['table']}, {found[0]['split']} split: the paper's numbers and ours"


def _cells(row: dict[str, Any], marks: Marks) -> dict[tuple[str, str], str]:
    """A row's cells by the heads of their columns, which are of two lines."""
    table, paper, ours = row["table"], row["paper"], row["ours"]
    readings, metric = READINGS[table], "F1" if table == 4 else "BLEU"
    cells = {("", "experiment"): row["experiment"] or row["system"]}
    if table in KINDS:
        cells["", KINDS[table]] = row[KINDS[table]] or ""
    if table == 3:
        cells["paper's", "PPL"] = number(paper["perplexity"], ".2f")
    cells["ours:", "PPL"] = number(ours and ours["perplexity"], ".2f")
    cells["paper's", metric] = number(paper[metric.lower()], "")
    for name in readings:
        cells["ours:", name] = reading(ours, name, marks) if ours else ""
    if row["experiment"] and not ours:
        cells["ours:", readings[0]] = row["status"]
    if table != 4:
        cells["paper's", "params, M"] = number(paper["parameters"], "g")
    cells["ours:", "params, M"] = millions(row["parameters"])
    if table == 2:
        cells["paper's", "FLOPs"] = flops(paper["train_flops"])
        cells["ours:", "FLOPs"] = flops((ours or row)["train_flops"])
    cells["", "steps"] = of_registered(ours["steps"], row["train_steps"]) if ours else ""
    cells["", "mean of"] = of_registered(ours["averaged"], row["average"]) if ours else ""
    return cells


def _below(found: list[dict[str, Any]], marks: Marks) -> list[list[str]]:
    """What stands below a table, in paragraphs: signatures; how runs were made; those that are no row; notes."""
    signatures = [f"{mark} {name}: {signature}" for (name, signature), mark in marks.items()]
    runs_made = [made(row["experiment"], each) for row in found for each in (row["ours"], *row["changed"]) if each]
    table = found[0]["table"]
    changed = [_changed(row["experiment"], each, marks, table) for row in found for each in row["changed"]]
    notes = ["PPL: perplexity per piece of our vocabulary; the paper's compares with it only if its own is the same"]
    if table == 4:
        notes = ["PPL: perplexity per token of the linearised trees; the paper has none"]
    if table == 2:
        notes += [
            "FLOPs: the paper's are hours x devices x their sustained rate; ours as `t2t cost` counts a run's steps",
            "ByteNet to ConvS2S ensemble: the paper's figures for systems that it compares with; they are not run here",
        ]
    return [lines for lines in (signatures, runs_made, changed, notes) if lines]


def _changed(experiment: str, run: dict[str, Any], marks: Marks, table: int) -> str:
    """A run that does not stand for its row: why not, and what it reached."""
    changed = ", ".join(f"{path} {pair['run']} (not {pair['registered']})" for path, pair in run["changed"].items())
    scores = ", ".join(f"{name} {reading(run, name, marks)}" for name in READINGS[table])
    return (
        f"{experiment}: {run['run']}, changed: {changed}; PPL {run['perplexity']:.2f}, {scores}, "
        f"{millions(run['parameters'])} M parameters, {run['steps']:,} steps, mean of {run['averaged']}"
    )

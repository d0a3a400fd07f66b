"""The page of a run, or of several beside each other: one file of HTML, made from what the run folders say.

Nothing is trained or decoded for it; of the weights only attention is asked, over sentences of the newest evaluation.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from t2t import checkpoint, cost, storage
from t2t import experiment as experiments
from t2t import run as runs
from t2t.data.task import Pair
from t2t.data.vocabulary import Vocabularies
from t2t.errors import UserError
from t2t.experiment import Experiment
from t2t.report import attention, samples
from t2t.report.html import document
from t2t.run import Evaluation, Run
from t2t.sharding import MeshConfig
from t2t.trees import BrokenTree

Say = Callable[[str], None]
FILE = "report.html"  # in the run folder
SPLITS = ("train", "dev", "test")
CURVES = ("loss", "perplexity", "learning_rate", "tokens_per_second")
ROWS = 1200  # of metrics.jsonl that a curve is drawn from; of more, evenly chosen ones
DIGITS = 6  # of a number in a curve
SENTENCES = 6  # whose attention is kept
WEIGHTS = 1_000_000  # attention weights that are kept, a byte each: what bounds the size of the page
SHORT, LONG = 4, 24  # words of a source whose attention is kept: such fit on a screen


def write(folders: Sequence[Path], out: Path | None, average: int | None, say: Say) -> Path:
    """Writes the page of one run, or of several compared, to `out` (None: report.html of the one run).

    `average`: of how many last checkpoints the attention is; None: as many as the newest evaluation. What cannot be
    shown is said on the page, and by `say`.

    Raises:
        UserError: a folder is no run folder or damaged, it has fewer checkpoints than `average`, or the page cannot be
            written.
    """
    if len(folders) > 1 and out is None:
        raise UserError(f"{len(folders)} runs: say where their page goes with --out FILE.html")
    if len(folders) > 1 and average is not None:
        raise UserError("--average is for the attention of one run, which a page of several does not show")
    named = [str(folder) for folder in folders]
    if len({*named}) < len(named):
        raise UserError(f"{max(named, key=named.count)} is given twice")
    found = [_Read.of(folder) for folder in folders]
    if len(found) == 1:
        title, content = f"{found[0].experiment.name}: {folders[0]}", _page(found[0], average, say)
    else:
        title, content = ", ".join(named), _comparison(found)
    place = out or folders[0] / FILE
    storage.write(place, document(title, content))
    return place


@dataclasses.dataclass(frozen=True)
class _Read:
    """What a run folder says."""

    run: Run
    experiment: Experiment
    vocabulary: Vocabularies
    metrics: list[dict[str, Any]]
    evaluations: list[Evaluation]  # the newest last

    @classmethod
    def of(cls, folder: Path) -> "_Read":
        """Raises UserError for what is no run folder, or a damaged one."""
        run, experiment, vocabulary = runs.load(folder)
        each = [one for split in SPLITS for one in runs.evaluations(run, split)]
        for one in each:
            if not {"perplexity", "scores"} <= one.summary.keys():
                raise UserError(f"{one.folder / 'scores.json'} is damaged: it is not the summary of an evaluation")
        each.sort(key=lambda one: one.summary["checkpoints"][-1])
        return cls(run, experiment, vocabulary, runs.read_metrics(run), each)

    @property
    def name(self) -> str:
        """What it is called beside others."""
        return self.run.folder.name or str(self.run.folder)


# ------------------------------------------------------------------------------ One run


def _page(read: _Read, average: int | None, say: Say) -> dict[str, Any]:
    shown, rated = _samples(read, say)
    return {
        "run": {
            "name": read.experiment.name,
            "reports": read.experiment.reports,
            "folder": str(read.run.folder),
            "facts": _tiles(read),
            "parts": [_part(part) for part in runs.parts(read.run)],
            "differences": _differences(read.experiment),
            "knobs": _knobs(read.experiment),
            "data": _data(read.run),
        },
        "curves": [{"name": read.name, **_curves(read)}],
        "evaluations": [_evaluation(each, read.experiment) for each in reversed(read.evaluations)],
        "samples": shown,
        "attention": _attention(read, rated, average, say),
    }


def _tiles(read: _Read) -> list[tuple[str, str, str]]:
    """The few numbers that stand at the head of the page: name, number, what more there is to say of it."""
    found = []
    for newest in read.evaluations[-1:]:
        split, scores = newest.summary["split"], newest.summary["scores"]
        for name in [each for each in ("sacrebleu", "chrf", "f1") if each in scores]:
            score = scores[name]
            found.append((f"{name}, {split}", f"{score['score']:.2f}", f"{score['low']:.2f} to {score['high']:.2f}"))
        found.append((f"perplexity, {split}", f"{newest.summary['perplexity']:.2f}", "per token"))
    if not runs.imported_from(read.run):
        found.append(("steps", f"{_last_step(read):,}", f"of {read.experiment.train_steps:,}"))
    found.append(("parameters", f"{cost.parameters(read.experiment):,}", type(read.experiment.model.build()).__name__))
    if speed := _speed(read):
        found.append(("tokens/s", f"{speed:,.0f}", "median, targets"))
    return found


def _last_step(read: _Read) -> int:
    """The last that is known of."""
    evaluated = [each.summary["checkpoints"][-1] for each in read.evaluations]
    return max([row["step"] for row in read.metrics] + evaluated, default=0)


def _speed(read: _Read) -> float | None:
    rates = [row["tokens_per_second"] for row in read.metrics if "tokens_per_second" in row]
    return statistics.median(rates) if rates else None


def _part(part: dict[str, Any]) -> list[tuple[str, str]]:
    """How a part of the run was made, in words."""
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    return [
        ("after step", f"{part['after_step']:,}"),
        ("commit", part["commit"] or "not known: an installed package"),
        ("hardware", part["device"]),
        ("software", f"Python {part['python']}, {versions}"),
    ]


def _differences(experiment: Experiment) -> list[dict[str, Any]]:
    """The knobs in which it differs from the registered experiment of its name, and from that one's base."""
    known = experiments.registered()
    found = []
    for name, about in ((experiment.name, "as registered"), (experiment.base, "the base it is a variant of")):
        if name in known:
            changed = experiments.differences(known[name], experiment).items()
            rows = [(path, str(theirs), str(ours)) for path, (theirs, ours) in changed if path not in _NAMES]
            found.append({"from": name, "about": about, "rows": rows})
    return found


_NAMES = {"name", "reports", "base", "table", *(f"paper.{f.name}" for f in dataclasses.fields(experiments.Reported))}


def _knobs(experiment: Experiment) -> list[tuple[str, str, str]]:
    return [(path, str(value), comment) for path, (value, _, comment) in experiments.leaves(experiment).items()]


def _data(run: Run) -> list[tuple[str, str]]:
    """What preparing the training pairs found, in words."""
    if where := runs.imported_from(run):
        return [("training", f"elsewhere: the weights were imported from {where}")]
    report = runs.data(run)
    lines = [("pairs", f"{report['pairs']:,} read, {report['kept']:,} kept")]
    for name, counts in (("cleaned", report.get("reading", {})), ("dropped", report.get("dropped", {}))):
        if counts:
            lines.append((name, ", ".join(f"{count:,} {what}" for what, count in counts.items())))
    for side, n in report.get("lengths", {}).items():
        spread = ", ".join(f"{share} up to {n[share]}" for share in ("50%", "90%", "99%") if share in n)
        lines.append((side, f"{n['tokens']:,} tokens, {n['mean']} a sentence; {spread}, all {n['longest']}"))
    return [*lines, *((f"input {name}", digest) for name, digest in report.get("inputs", {}).items())]


def _curves(read: _Read) -> dict[str, Any]:
    """The curves of a run by split: of each name the numbers, and the steps that they are of."""
    found = {}
    for split in ("train", "dev"):
        rows = _evenly([row for row in read.metrics if row["split"] == split], ROWS)
        known = [name for name in CURVES if rows and all(name in row for row in rows)]
        found[split] = {"step": [row["step"] for row in rows]}
        found[split] |= {name: [float(f"{row[name]:.{DIGITS}g}") for row in rows] for name in known}
    return found


def _evenly(rows: list[Any], most: int) -> list[Any]:
    """At most so many of the rows, the last one among them."""
    every = -(-len(rows) // most) or 1
    return rows[::-1][::every][::-1]


def _evaluation(each: Evaluation, experiment: Experiment) -> dict[str, Any]:
    summary = each.summary
    other = [f"{path} {here}" for path, (_, here) in each.other_task(experiment.task).items()]
    scores = [
        (name, f"{s['score']:.2f}", f"{s['low']:.2f} to {s['high']:.2f}", s["signature"])
        for name, s in summary["scores"].items()
    ]
    return {
        "split": summary["split"],
        "folder": each.folder.name,
        "how": "; ".join([checkpoint.described(summary["checkpoints"]), *_decoding(summary["decoding"]), *other]),
        "perplexity": f"{summary['perplexity']:.2f}",
        "scores": scores,
    }


def _decoding(knobs: dict[str, Any] | None) -> list[str]:
    """How outputs were found, if there are any: texts without sources have none."""
    return [", ".join(f"{name} {knobs[name]}" for name in ("beam", "alpha") if name in knobs)] if knobs else []


# ------------------------------------------------------------------------------ Sentences


def _samples(read: _Read, say: Say) -> tuple[dict[str, Any], samples.Rated | None]:
    """The newest evaluation's sentences for the page, and all of them rated; or why there are none."""
    if not read.evaluations:
        named = " --task.corpus.test FILES" if runs.imported_from(read.run) else ""
        return {"missing": f"There is no evaluation yet: t2t evaluate {read.run.folder}{named}"}, None
    newest = read.evaluations[-1]
    if not newest.summary["decoding"]:
        return {"missing": "Texts without sources have no outputs: t2t sample draws some."}, None
    try:
        lines = [newest.lines(kind) for kind in ("sources", "hypotheses", "references")]
        if not lines[0] or len({*map(len, lines)}) > 1:
            raise UserError(f"{newest.folder} is damaged: it has not an output a line")
        rated = samples.rate(read.experiment.task, *lines)
    except UserError as error:
        say(f"no samples: {error}")
        return {"missing": f"No samples: {error}"}, None
    except BrokenTree as error:
        say(f"no samples: {newest.folder}, line {error.line}: {error.reason}")
        return {"missing": f"No samples: {newest.folder}, line {error.line}: {error.reason}"}, None
    return {"of": f"{newest.summary['split']}: {newest.folder.name}", **samples.facts(rated)}, rated


def _attention(read: _Read, rated: samples.Rated | None, average: int | None, say: Say) -> dict[str, Any]:
    """Who looks at whom in some sentences of the newest evaluation; or why that is not shown."""
    if rated is None:
        return {"missing": "Attention is shown over outputs of an evaluation."}
    try:
        one = dataclasses.replace(read.experiment, mesh=MeshConfig(data=1))
        wanted = average or min(len(read.evaluations[-1].summary["checkpoints"]), len(checkpoint.steps(read.run, one)))
        params, steps = checkpoint.load_params(read.run, one, max(1, wanted))
        attention.sizes(one, params)
        pairs = one.task.given(_to_look_at(rated))
        found = [each.facts() for each in attention.of_pairs(one, read.vocabulary, params, pairs)]
    except UserError as error:
        if average:
            raise
        say(f"no attention: {error}")
        return {"missing": f"Attention is not shown: {error}."}
    return {
        "sentences": _bounded(found),
        "weights": checkpoint.described(runs.averaged(read.run) or steps),
        "shown": {"kind": "", "layer": None, "head": None},
    }


def _to_look_at(rated: samples.Rated) -> list[Pair]:
    """Outputs of sentences that are neither short nor long, evenly over the split."""
    lengths = [len(source.split()) for source in rated.sources]
    said = [i for i, output in enumerate(rated.outputs) if output.strip() and lengths[i]]
    fit = [i for i in said if SHORT <= lengths[i] <= LONG] or sorted(said, key=lambda i: lengths[i])[:1]
    if not fit:
        raise UserError("no sentence has an output")
    return [Pair(rated.sources[i], rated.outputs[i]) for i in fit[:: max(1, len(fit) // SENTENCES)][:SENTENCES]]


def _bounded(sentences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first ones that fit into the page, one at least."""
    kept, room = [], WEIGHTS
    for each in sentences:
        room -= sum(3 * len(view["weights"]) // 4 for view in each["views"].values())
        if kept and room < 0:
            break
        kept.append(each)
    return kept


# ------------------------------------------------------------------------------ Several runs


def _comparison(found: list[_Read]) -> dict[str, Any]:
    """The table of runs, the knobs in which any two differ, and their curves."""
    names = [each.name for each in found]
    if len({*names}) < len(names):
        names = [str(each.run.folder) for each in found]
    trees = [experiments.leaves(each.experiment) for each in found]
    paths = dict.fromkeys(path for tree in trees for path in tree)
    values = {path: [str(tree[path][0]) if path in tree else "" for tree in trees] for path in paths}
    differing = {path: row for path, row in values.items() if len({*row}) > 1 and path not in _NAMES - {"name"}}
    return {
        "runs": [{"name": name, **_row(each)} for name, each in zip(names, found, strict=True)],
        "differing": [*differing.items()],
        "curves": [{"name": name, **_curves(each)} for name, each in zip(names, found, strict=True)],
    }


def _row(read: _Read) -> dict[str, Any]:
    newest = {each.summary["split"]: each for each in read.evaluations}
    return {
        "folder": str(read.run.folder),
        "experiment": read.experiment.name,
        "steps": _last_step(read),
        "parameters": cost.parameters(read.experiment),
        "tokens_per_second": _speed(read),
        "device": runs.parts(read.run)[-1]["device"] if runs.parts(read.run) else "",
        "evaluations": [_evaluation(each, read.experiment) for each in newest.values()],
    }

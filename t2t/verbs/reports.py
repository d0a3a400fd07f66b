"""Verbs that hold runs side by side or draw them: comparisons, pages, tables of the paper, attention."""

import json
from argparse import Namespace as Args
from pathlib import Path
from typing import Any

from t2t import storage
from t2t.arguments import Option, Verb
from t2t.errors import UserError
from t2t.verbs import opening, options, printing
from t2t.verbs.options import ALPHA, AVERAGE, BEAM, JSON, RUN, SPLIT


def compare(args: Args) -> None:
    """t2t compare"""
    from t2t.metrics import bleu
    from t2t.progress import say
    from t2t.run import paired

    (first, task), (second, other) = (_evaluation(storage.folder(each), args.split) for each in (args.a, args.b))
    if (task.source, task.target) != (other.source, other.target):
        ours, others = f"{task.source} into {task.target}", f"{other.source} into {other.target}"
        raise UserError(f"{args.a} translates {ours}, but {args.b} {others}")
    mine, theirs, references = paired(first, second)
    say(f"comparing {len(references):,} {args.split} pairs: half a minute for 3,000")
    found = bleu.compare(mine, theirs, references, task.target, task.source)
    if args.json:
        scores = {name: each._asdict() for name, each in found.items()}
        folders = {"first": str(first.folder), "second": str(second.folder)}
        print(json.dumps({"split": args.split, **folders, "scores": scores}, indent=1))
        return
    print(f"{args.split} split; the second less the first, p by paired approximate randomisation")
    for name, evaluation in (("first", first), ("second", second)):
        print(f"{name:<13} {evaluation.folder}, weights: {printing.described(evaluation.summary)}")
    for name, each in found.items():
        values = f"{each.second:.2f} - {each.first:.2f} = {each.difference:+.2f}"
        print(f"{name:<13} {values}, p {each.p:.4f} ({each.signature})")


def _evaluation(folder: Path, split: str) -> tuple[Any, Any]:
    """The evaluation in this folder, or the newest of a split in a run folder; and its task, which is translating."""
    from t2t import run as runs
    from t2t.data.translation import Translation

    found = runs.evaluation(folder) if (folder / "scores.json").is_file() else None
    task = _task(found) if found else runs.load(folder)[1].task
    if not isinstance(task, Translation):
        raise UserError(f"{folder} is no run of translating: its scores are others")
    found = found or _newest(folder, split)
    if found.summary["split"] != split:
        raise UserError(f"{folder} is an evaluation of the {found.summary['split']} split, not of {split} (--split)")
    return found, task


def _task(evaluation: Any) -> Any:
    """What is evaluated: in a run folder, what the run was trained for."""
    from t2t import run as runs
    from t2t.experiment import from_json

    written = evaluation.summary.get("task")
    return from_json(written) if written else runs.load(evaluation.folder.parent.parent)[1].task


def _newest(folder: Path, split: str) -> Any:
    """The newest evaluation of a split in a run folder."""
    from t2t import run as runs
    from t2t.progress import say

    found = runs.evaluations(runs.Run(folder), split)
    if not found:
        raise UserError(f"{folder} has no evaluation of the {split} split: t2t evaluate {folder} --split {split}")
    if len(found) > 1:
        say(f"{folder} has {len(found)} evaluations of the {split} split; the newest is {found[-1].folder.name}")
    return found[-1]


def report(args: Args) -> None:
    """t2t report"""
    from t2t.progress import say
    from t2t.report import page, tables

    folders = [storage.folder(each) for each in args.what]
    if args.what[0] in (*tables.TABLES, "baselines") or not any(map(_is_path, folders)):
        _table(args, say)
        return
    for option, given in {"--runs": args.runs, "--markdown": args.markdown, "--json": args.json}.items():
        if given:
            raise UserError(f"{option} is for a table of the paper; the page of a run is one file of HTML")
    average = None if args.average is None else options.number(args.average, "average")
    print(page.write(folders, storage.folder(args.out) if args.out else None, average, say))


def _is_path(folder: Path) -> bool:
    """Whether a word means a run folder, rather than a table that is misspelt."""
    return storage.remote(folder) or len(folder.parts) > 1 or folder.exists()


def _table(args: Args, say: Any) -> None:
    """A table of the paper, or of what it replaced."""
    from t2t.report import baselines, tables

    if len(args.what) > 1:
        raise UserError(f"{args.what[0]} is reported alone, not with {args.what[1]}")
    for option, given in {"--out": args.out, "--average": args.average}.items():
        if given:
            raise UserError(f"{option} is for the page of a run; a table goes to standard output")
    if args.markdown and args.json:
        raise UserError("--markdown and --json are two forms of one report: give one of them")
    folder, replaced = storage.folder(args.runs) if args.runs else None, args.what[0] == "baselines"
    found = baselines.rows(folder, say) if replaced else tables.rows(args.what[0], folder, say)
    form: Any = baselines if replaced else tables
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print(form.markdown(found) if args.markdown else form.text(found))


def attention(args: Args) -> None:
    """t2t attention"""
    from t2t import checkpoint
    from t2t.report import attention, pictures

    kind = Path(args.out).suffix
    if kind not in (".html", ".svg", ".png"):
        raise UserError(f"--out {args.out}: a picture is an .html, .svg or .png file")
    if kind == ".html" and args.lines:
        raise UserError("--lines is for a picture; a page of .html has lines and heat map")
    if kind == ".png":
        pictures.check_png()
    layer, head = options.number(args.layer, "layer"), options.number(args.head, "head")
    _, tree, vocabulary, params, steps = opening.loaded(args)
    attention.check(attention.sizes(tree, params), args.which, layer, head)
    found = attention.of_text(tree, vocabulary, params, args.text, args.to)
    if kind == ".html":
        picture: str | bytes = found.html(args.which, layer, head, checkpoint.described(steps))
    else:
        draw = found.svg if kind == ".svg" else found.png
        picture = draw(args.which, layer, head, "lines" if args.lines else "grid")
    storage.write(Path(args.out), picture)
    print(args.out)


# ------------------------------------------------------------------------------ The table

VERBS = (
    Verb(
        "compare",
        "whether the newest evaluations of two runs differ by more than chance, in each score",
        compare,
        (
            Option("a", {"metavar": "RUN", "help": "a run folder, or the folder of an evaluation"}),
            Option("b", {"metavar": "RUN", "help": "the same, of what is compared with it"}),
            SPLIT,
            JSON,
        ),
    ),
    Verb(
        "report",
        "the page of a run, or of several compared; or a table of the paper, or of what it replaced",
        report,
        (
            Option(
                "what", {"metavar": "WHAT", "nargs": "+", "help": "run folders; or table2, table3, table4 or baselines"}
            ),
            Option(
                "--out", {"metavar": "FILE.html", "help": "where the page goes; default, for one run: RUN/report.html"}
            ),
            Option(
                "--average",
                {
                    "metavar": "N",
                    "help": "of how many last checkpoints attention is; default: as the newest evaluation",
                },
            ),
            Option("--runs", {"metavar": "DIR", "help": "tables: where the run folders lie; default: runs"}),
            Option("--markdown", {"action": "store_true", "help": "tables: one of GitHub's Markdown"}),
            JSON,
        ),
    ),
    Verb(
        "attention",
        "draw which tokens look at which, over a text and its best output or one that you give",
        attention,
        (
            RUN,
            Option("--text", {"required": True, "help": "a line as it stands in the data"}),
            Option("--to", {"default": "", "help": "its translation, or its tree; default: the best output"}),
            Option(
                "--out",
                {
                    "required": True,
                    "metavar": "FILE",
                    "help": "an .html page to choose from, or an .svg or .png picture",
                },
            ),
            Option(
                "--which",
                {
                    "choices": ["encoder", "decoder", "cross"],
                    "default": "",
                    "help": "default: cross, decoder over source",
                },
            ),
            Option("--lines", {"action": "store_true", "help": "lines between tokens, in place of a heat map"}),
            Option("--layer", {"metavar": "N", "help": "the layer, from 1; default: the last"}),
            Option("--head", {"metavar": "H", "help": "one head, from 1; default: the mean of all"}),
            AVERAGE,
            BEAM,
            ALPHA,
        ),
        "run",
    ),
)

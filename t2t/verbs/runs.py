"""Verbs on runs: what a trained model reaches, and what it makes of text."""

import dataclasses
import json
import sys
from argparse import Namespace as Args
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from t2t import storage
from t2t.arguments import Option, Verb
from t2t.errors import UserError, unknown
from t2t.verbs import opening, printing
from t2t.verbs.options import ALPHA, AVERAGE, BEAM, DRAWS, JSON, OTHERS, RUN, SEARCH, SPLIT


def evaluate(args: Args) -> None:
    """t2t evaluate"""
    from t2t import evaluate
    from t2t import run as runs
    from t2t.progress import say

    if args.out:
        folder = storage.folder(args.out)
        runs.check_apart(folder)
        members, tree, vocabulary, params = opening.together(args)
        found = evaluate.evaluate_to(folder, members, tree, vocabulary, params, args.split, say)
    elif args.others:
        raise UserError(f"{1 + len(args.others)} runs: say where their evaluation goes with --out DIR")
    else:
        run, tree, vocabulary, params, steps = opening.loaded(args)
        found, _ = evaluate.evaluate(run, tree, vocabulary, params, steps, args.split, say)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        printing.evaluation(found)


def translate(args: Args) -> int:
    """t2t translate"""
    from t2t import lines, translate
    from t2t.decode import SamplingConfig
    from t2t.experiment import override
    from t2t.progress import say

    given = _draws(args)
    if given and not args.sample:
        raise UserError(f"--{next(iter(given))} goes with --sample")
    if args.engine:
        _check_engine(args)
    if args.sample:
        _refuse_search(args, "with --sample")
    stdin = _stdin()
    sampling = override(SamplingConfig(), given) if args.sample else None
    wanted = override(translate.TranslationConfig(sampling=sampling), {"n_best": args.n_best})
    wanted = dataclasses.replace(wanted, scores=args.scores, too_long=args.too_long)
    if not args.engine:
        _, tree, vocabulary, params = opening.together(args)
        work = translate.TranslateLines(tree, vocabulary, wanted, say)
        return lines.stream(tree, params, work, sampling, stdin, sys.stdout, say)
    from t2t.interop import ctranslate2

    _, tree, vocabulary = opening.opened(args)
    work = translate.TranslateLines(tree, vocabulary, wanted, say)
    engine = ctranslate2.Engine(_folder_of(args.engine), vocabulary, tree.decoding, tree.model.longest)
    return lines.stream(tree, None, work, None, stdin, sys.stdout, say, engine)


def _check_engine(args: Args) -> None:
    """Raises UserError for what --with, which searches with other weights and by itself, leaves no meaning to."""
    ours = ("mesh.", "model.", "decoding.early_stopping")
    given = [
        *["--sample"] * args.sample,
        *["--average"] * (args.average != "1"),
        *["a second run"] * bool(args.others),
        *(f"--{path}" for path in args.overrides if path.startswith(ours)),
    ]
    if given:
        raise UserError(f"{given[0]} does not go with --with, which searches with other weights and by itself")


def _folder_of(words: Sequence[str]) -> Path:
    """That of --with ENGINE DIR."""
    if words[0] != "ctranslate2":
        raise unknown("engine (--with)", words[0], ["ctranslate2"])
    return Path(words[1])


def _draws(args: Args) -> dict[str, str]:
    """The options of drawing that are given."""
    options = {name: getattr(args, name) for name in ("temperature", "top_k", "nucleus", "seed")}
    return {name: value for name, value in options.items() if value is not None}


def sample(args: Args) -> None:
    """t2t sample"""
    from t2t import sample
    from t2t.decode import SamplingConfig
    from t2t.experiment import override
    from t2t.progress import say

    _refuse_search(args, "by `t2t sample`")
    sampling = override(SamplingConfig(), _draws(args))
    wanted = override(sample.TextConfig(prompt=args.prompt), {"samples": args.samples})
    _, tree, vocabulary, params, _ = opening.loaded(args)
    for text in sample.texts(tree, params, vocabulary, wanted, sampling, say):
        print(text)


def _refuse_search(args: Args, where: str) -> None:
    """Raises UserError for a knob of the search where outputs are drawn."""
    given = [name for name in ("beam", "alpha") if getattr(args, name, None) is not None]
    given += [path for path in args.overrides if path in SEARCH]
    if given:
        raise UserError(f"--{given[0]} is of the search for the best output; {where} it is drawn")


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise UserError("standard input is closed: lines are read from it")
    return sys.stdin.buffer


def parse_lines(args: Args) -> int:
    """t2t parse"""
    from t2t import lines, parse
    from t2t.progress import say

    stdin, wanted = _stdin(), parse.ParsingConfig(args.raw, args.pretty, args.svg or "")
    _, tree, vocabulary, params, _ = opening.loaded(args)
    work = parse.ParseLines(tree, vocabulary, wanted, say)
    code = lines.stream(tree, params, work, None, stdin, sys.stdout, say)
    if work.repaired:
        say(f"{work.repaired:,} outputs were no trees over their sentences' words, and were repaired")
    return code


def score(args: Args) -> None:
    """t2t score"""
    from t2t import evaluate
    from t2t.data.corpora import parallel

    if given := [path for path in args.overrides if path.startswith("decoding.")]:
        raise UserError(f"--{given[0]} is of decoding; `t2t score` decodes nothing")
    pairs = list(parallel(Path(args.source), Path(args.target)))
    _, tree, vocabulary, params, _ = opening.loaded(args)
    values = evaluate.score_pairs(tree.model, params, vocabulary, tree.task.given(pairs))
    if args.json:
        rows = [{**pair._asdict(), "log_probability": value} for pair, value in zip(pairs, values, strict=True)]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for value in values:
        print(f"{value:.6f}")


# ------------------------------------------------------------------------------ The table

VERBS = (
    Verb(
        "evaluate",
        "perplexity and scores of a run on a split, or of several decoded together",
        evaluate,
        (
            RUN,
            OTHERS,
            SPLIT,
            AVERAGE,
            BEAM,
            ALPHA,
            Option(
                "--out", {"metavar": "DIR", "help": "a new folder for it; default, for one run: in RUN/evaluations"}
            ),
            JSON,
        ),
        "run",
    ),
    Verb(
        "translate",
        "translate lines from standard input to standard output, a line each, in order",
        translate,
        (
            RUN,
            OTHERS,
            AVERAGE,
            BEAM,
            ALPHA,
            Option("--n_best", {"default": "1", "metavar": "N", "help": "N lines out for each line in, best first"}),
            Option("--scores", {"action": "store_true", "help": "write each output's score and a tab before it"}),
            Option(
                "--too_long",
                {
                    "choices": ["split", "cut"],
                    "default": "split",
                    "help": "a line with more tokens than --decoding.max_input: in pieces (default), or its beginning",
                },
            ),
            Option("--sample", {"action": "store_true", "help": "draw the output instead of searching for the best"}),
            *DRAWS,
            Option(
                "--with",
                {
                    "dest": "engine",
                    "nargs": 2,
                    "metavar": ("ENGINE", "DIR"),
                    "help": "search by another engine: ctranslate2, and the folder the run was exported to",
                },
            ),
        ),
        "run",
    ),
    Verb(
        "sample",
        "draw texts from a run that models text, such as one of lm_quickstart: a line each",
        sample,
        (
            RUN,
            AVERAGE,
            Option("--prompt", {"metavar": "TEXT", "help": "what each text begins with; default: nothing"}),
            Option("--samples", {"default": "1", "metavar": "N", "help": "so many texts; default 1"}),
            *DRAWS,
        ),
        "run",
        SEARCH,
    ),
    Verb(
        "parse",
        "parse lines from standard input, words between spaces, to standard output: a tree a line, in order",
        parse_lines,
        (
            RUN,
            AVERAGE,
            BEAM,
            ALPHA,
            Option(
                "--raw",
                {"action": "store_true", "help": "the lines are raw text, a sentence each: split it into words first"},
            ),
            Option("--pretty", {"action": "store_true", "help": "draw the trees, in place of a line of brackets each"}),
            Option("--svg", {"metavar": "DIR", "help": "write a picture of each tree, DIR/000001.svg for line 1"}),
        ),
        "run",
    ),
    Verb(
        "score",
        "log-probability (nats) of each line of TARGET as a translation of the same line of SOURCE",
        score,
        (RUN, Option("source", {"metavar": "SOURCE"}), Option("target", {"metavar": "TARGET"}), AVERAGE, JSON),
        "run",
        ("decoding.",),
    ),
)

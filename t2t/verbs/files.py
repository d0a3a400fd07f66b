"""Verbs on files of lines, whoever wrote them: the scores of text and of trees."""

import json
from argparse import Namespace as Args
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2t.arguments import Option, Verb
from t2t.errors import UserError
from t2t.trees import OUTER, TOP
from t2t.verbs import printing
from t2t.verbs.options import JSON

EVALB = {
    "Number of sentence": "sentences",
    "Error sentence": "errors",
    "Skip sentence": "skipped",
    "Valid sentence": "valid",
    "Bracketing Recall": "recall",
    "Bracketing Precision": "precision",
    "Bracketing FMeasure": "f1",
    "Complete match": "complete_match",
    "Average crossing": "crossing",
    "No crossing": "no_crossing",
    "2 or less crossing": "two_crossing",
    "Tagging accuracy": "tagging_accuracy",
}  # its lines of the summary, and what they are in t2t.metrics.brackets

UNLIKE_TOP = {"", *OUTER} - {TOP}  # what else a tree's outermost bracket is called


def bleu(args: Args) -> None:
    """t2t bleu"""
    from t2t.data.corpora import parallel
    from t2t.metrics import bleu

    bleu.check_languages(args.lang, args.source_lang)
    references, hypotheses = zip(*parallel(Path(args.reference), Path(args.hypothesis)), strict=True)
    scores = bleu.scores(hypotheses, references, args.lang, args.source_lang)
    found = {name: score._asdict() for name, score in scores.items()}
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        printing.scores(found)


def brackets(args: Args) -> None:
    """t2t brackets"""
    from t2t.data.corpora import parallel
    from t2t.metrics import brackets
    from t2t.progress import say

    gold, test = zip(*parallel(Path(args.gold), Path(args.test)), strict=True)
    read = {args.test: _trees(args.test, test), args.gold: _trees(args.gold, gold)}
    for path, trees in read.items():
        if outer := sorted({tree.label for tree in trees if tree} & UNLIKE_TOP):
            say(f"{path}: a bracket ({outer[0]} ...) around a tree is counted, as EVALB does; ({TOP} ...) is not")
    found = brackets.statistics(read[args.test], read[args.gold])
    if errors := found.errors():
        named = ", ".join(map(str, errors[:10])) + (f" and {len(errors) - 10:,} more" if errors[10:] else "")
        say(f"errors, which no score counts: {args.test} has other words than {args.gold} in line {named}")
    sections = found, found.short()
    if args.json:
        every, short = map(_bracket_facts, sections)
        print(json.dumps({**every, f"length_{brackets.SHORT}": short}, indent=1))
    else:
        _print_brackets(sections)


def _trees(path: str, lines: Sequence[str]) -> Any:
    from t2t.metrics import brackets
    from t2t.trees import BrokenTree

    try:
        return brackets.read(lines)
    except BrokenTree as error:
        raise UserError(f"{path}, line {error.line}: {error.reason}") from None


def _bracket_facts(found: Any) -> dict[str, Any]:
    total, scores = found.total(), found.scores()
    values = {name: score.score for name, score in scores.items()}
    counts = {"sentences": total.sentences, "skipped": total.skipped, "errors": total.errors}
    f1 = scores["f1"]
    return {**values, "low": f1.low, "high": f1.high, **counts, "signature": f1.signature}


def _print_brackets(sections: Sequence[Any]) -> None:
    print(f"{'':<21} {'all':>8} {'len<=40':>8}")
    totals = [section.total() for section in sections]
    for title, name in EVALB.items():
        values = [getattr(total, name) for total in totals]
        print(f"{title:<21}", *(f"{value:8.2f}" if isinstance(value, float) else f"{value:8}" for value in values))
    for f1 in (section.scores()["f1"] for section in sections):
        print(f"Bracketing FMeasure   [{f1.low:.2f}, {f1.high:.2f}] ({f1.signature})")


# ------------------------------------------------------------------------------ The table

VERBS = (
    Verb(
        "bleu",
        "the scores of a file of outputs against a file of references, with signatures and intervals",
        bleu,
        (
            Option("reference", {"metavar": "REF", "help": "detokenised text, a sentence a line; .gz and .xz too"}),
            Option("hypothesis", {"metavar": "HYP", "help": "the same, of what is scored"}),
            Option("--lang", {"default": "de", "metavar": "L", "help": "the language of both; default: de"}),
            Option(
                "--source_lang",
                {
                    "default": "en",
                    "metavar": "L",
                    "help": "what was translated; the paper's reading splits hyphens from en into de; default: en",
                },
            ),
            JSON,
        ),
    ),
    Verb(
        "brackets",
        "EVALB's scores (COLLINS.prm) of a file of trees against a file of gold trees, with intervals",
        brackets,
        (
            Option("gold", {"metavar": "GOLD", "help": "bracketed trees, one a line; .gz and .xz too"}),
            Option("test", {"metavar": "TEST", "help": "the same, of what is scored; a blank line is a skipped one"}),
            JSON,
        ),
    ),
)

"""Outputs beside their references: which to look at, what differs, and how they fare by length."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sacrebleu.metrics.chrf import CHRF

from t2t.data.parsing import Parsing
from t2t.data.task import Task
from t2t.metrics import brackets

SHOWN = 10  # samples, and worst outputs
POINTS = 1500  # sentences that are drawn one by one
BINS = 8  # ranges of length, of equally many sentences


class Rated(NamedTuple):
    """Sentences of a split and how good each output is."""

    sources: list[str]
    outputs: list[str]
    references: list[str]
    metric: str  # its name, in words
    scores: list[float]  # of each sentence
    of: Callable[[Sequence[int]], float]  # the score of several sentences together
    trees: bool  # outputs are bracketed trees


def rate(task: Task, sources: list[str], outputs: list[str], references: list[str]) -> Rated:
    """F1 for trees, chrF2 for text. Raises BrokenTree when a tree is none."""
    lines = sources, outputs, references
    if isinstance(task, Parsing):
        counts = brackets.statistics(brackets.read(outputs), brackets.read(references)).counts
        each = [brackets.Counts(*row.tolist()).f1 for row in counts]
        return Rated(*lines, "F1", each, lambda rows: brackets.Counts(*counts[[*rows]].sum(0).tolist()).f1, True)
    chrf = CHRF()

    def together(rows: Sequence[int]) -> float:
        return chrf.corpus_score([outputs[i] for i in rows], [[references[i] for i in rows]]).score

    each = [chrf.sentence_score(*pair).score for pair in ((o, [r]) for o, r in zip(outputs, references, strict=True))]
    return Rated(*lines, "chrF2", each, together, False)


def facts(rated: Rated) -> dict[str, Any]:
    """What the page shows: samples evenly over the split, the worst, and length against score."""
    number = len(rated.scores)
    even = range(number)[:: max(1, number // SHOWN)][:SHOWN]
    worst = sorted(range(number), key=lambda i: rated.scores[i])[:SHOWN]
    return {
        "metric": rated.metric,
        "sentences": number,
        "trees": rated.trees,
        "even": [_sample(rated, i) for i in even],
        "worst": [_sample(rated, i) for i in worst],
        "lengths": lengths(rated),
    }


def _sample(rated: Rated, index: int) -> dict[str, Any]:
    output, reference = rated.outputs[index], rated.references[index]
    shown = (output, reference) if rated.trees else differences(output, reference)
    number = {"line": index + 1, "source": rated.sources[index], "score": round(rated.scores[index], 2)}
    return {**number, **dict(zip(("output", "reference"), shown, strict=True))}


def differences(output: str, reference: str) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Both texts as parts: words in order, and 1 where the other text has them not, at that place, else 0."""
    words = output.split(), reference.split()
    sides: tuple[list[tuple[str, int]], list[tuple[str, int]]] = ([], [])
    matcher = difflib.SequenceMatcher(None, *words, autojunk=False)
    for tag, *ends in matcher.get_opcodes():
        for side, own, begin, end in zip(sides, words, ends[::2], ends[1::2], strict=True):
            if begin < end:
                side.append((" ".join(own[begin:end]), int(tag != "equal")))
    return sides


def lengths(rated: Rated) -> dict[str, Any]:
    """Words of the source against score: single sentences, evenly taken, and ranges of length as a whole."""
    words = np.array([len(source.split()) for source in rated.sources])
    taken = range(0, len(words), -(-len(words) // POINTS))
    order = np.argsort(words, kind="stable")
    edges = sorted({int(words[part[0]]) for part in np.array_split(order, BINS) if len(part)})
    bins = []
    for low, high in zip(edges, [*edges[1:], int(words.max()) + 1], strict=True):
        rows = np.flatnonzero((words >= low) & (words < high)).tolist()
        bins.append({"low": low, "high": high - 1, "sentences": len(rows), "score": round(rated.of(rows), 2)})
    return {"points": [[int(words[i]), round(rated.scores[i], 1)] for i in taken], "bins": bins}

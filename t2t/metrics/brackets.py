"""Labelled bracket scores with the meaning of EVALB with COLLINS.prm, as its evalb.c computes them.

    f1, recall, precision  of labelled brackets in percent, all sentences together
    complete_match         percent of the sentences that have all brackets and no other
    crossing               brackets of the test tree that cross one of the gold tree, the mean of the sentences
    tagging_accuracy       percent of the words that have the tag of the gold tree

Punctuation is no word, by the tag it has in either tree; so a tag alone can make two trees of one sentence differ in
their words. Such a sentence is an error to EVALB, one whose test tree has no word is skipped, and neither counts in any
score. In `f1_40` and the like the same is said of the sentences of at most 40 words, punctuation included.

Departure: where no bracket matches at all, EVALB's F-measure is "nan"; here it is 0.
"""

import importlib.metadata
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from t2t.metrics import Score, interval
from t2t.trees import PUNCTUATION, TOP, TRACE, BrokenTree, Tree, parse, walk

DELETED = {TOP, TRACE, *PUNCTUATION}  # DELETE_LABEL: as a bracket's label, or as a tag with its word
SAME = {"PRT": "ADVP"}  # EQ_LABEL, of tags too
SHORT = 40  # CUTOFF_LEN
NAMES = ("f1", "recall", "precision", "complete_match", "crossing", "tagging_accuracy")


class Counts(NamedTuple):
    """What EVALB counts in a sentence, or in all of them; the scores that it prints, not rounded, are properties."""

    sentences: int
    errors: int  # sentences whose two trees have other words; of these nothing below is counted
    skipped: int  # sentences whose test tree has no word; nor of these
    matched: int = 0  # brackets
    gold: int = 0
    test: int = 0
    crossing_brackets: int = 0
    words: int = 0
    correct_tags: int = 0
    complete: int = 0  # sentences with all brackets and no other
    uncrossed: int = 0  # sentences without a crossing bracket
    little_crossed: int = 0  # sentences with 2 or less

    @property
    def valid(self) -> int:
        """The sentences that count in the scores."""
        return self.sentences - self.errors - self.skipped

    @property
    def recall(self) -> float:
        """Percent of the gold trees' brackets that are matched."""
        return _percent(self.matched, self.gold)

    @property
    def precision(self) -> float:
        """Percent of the test trees' brackets that are matched."""
        return _percent(self.matched, self.test)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 where both are."""
        p, r = self.precision, self.recall
        return 2 * p * r / (p + r) if self.matched else 0.0  # in EVALB's order of operations, to the last bit

    @property
    def complete_match(self) -> float:
        """Percent of the sentences with all brackets and no other."""
        return _percent(self.complete, self.valid)

    @property
    def crossing(self) -> float:
        """Crossing brackets a sentence."""
        return self.crossing_brackets / self.valid if self.valid else 0.0

    @property
    def no_crossing(self) -> float:
        """Percent of the sentences without a crossing bracket."""
        return _percent(self.uncrossed, self.valid)

    @property
    def two_crossing(self) -> float:
        """Percent of the sentences with 2 crossing brackets or less."""
        return _percent(self.little_crossed, self.valid)

    @property
    def tagging_accuracy(self) -> float:
        """Percent of the words with the right tag."""
        return _percent(self.correct_tags, self.words)


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0


class Statistics(NamedTuple):
    """What is counted of each sentence."""

    counts: np.ndarray  # [sentences, fields of Counts], integers
    lengths: np.ndarray  # [sentences]: words of the gold trees, punctuation included
    section: str = "all"  # which lengths are counted, for signatures

    def short(self) -> "Statistics":
        """The same with nothing counted of sentences of more than 40 words."""
        return self._replace(counts=self.counts * (self.lengths <= SHORT)[:, None], section=str(SHORT))

    def total(self) -> Counts:
        """All sentences together."""
        return Counts(*self.counts.sum(0).tolist())

    def scores(self) -> dict[str, Score]:
        """The scores with their intervals, of one sentence at least."""
        total = self.total()
        counted = f"sentences:{total.sentences}|skipped:{total.skipped}|errors:{total.errors}"
        version = f"version:{importlib.metadata.version('t2t')}"
        signature = f"evalb|prm:COLLINS|len:{self.section}|{counted}|{version}"
        return {name: self._score(name, signature) for name in NAMES}

    def _score(self, name: str, signature: str) -> Score:
        def value(total: np.ndarray) -> float:
            return round(float(getattr(Counts(*total.tolist()), name)), 4)

        return Score(value(self.counts.sum(0)), signature, *interval(self.counts, value))

    def errors(self) -> list[int]:
        """The sentences, counted from 1, whose two trees have other words."""
        return [int(i) + 1 for i in np.flatnonzero(self.counts[:, Counts._fields.index("errors")])]


def scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Score]:
    """The scores of all sentences, and as `f1_40` and so on those of sentences of at most 40 words.

    Each line, of one at least, is a bracketed tree or blank: a tree without words.

    Raises:
        BrokenTree: a line is neither; its `line` is the number of the line, from 1.
    """
    found = statistics(read(hypotheses), read(references))
    short = {f"{name}_{SHORT}": score for name, score in found.short().scores().items()}
    return {**found.scores(), **short}


def read(lines: Iterable[str]) -> list[Tree | None]:
    """The tree of each line, None of a blank one. Raises BrokenTree for the first line with anything else."""
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(parse(line) if line.strip() else None)
        except BrokenTree as error:
            raise BrokenTree(number, error.reason) from None
    return found


def statistics(test: Sequence[Tree | None], gold: Sequence[Tree | None]) -> Statistics:
    """What EVALB counts of each sentence."""
    counts, lengths = [], []
    for ours, theirs in zip(map(_Marked.of, test), map(_Marked.of, gold), strict=True):
        counts.append(_compared(ours, theirs))
        lengths.append(theirs.length)
    return Statistics(np.array(counts, int).reshape(-1, len(Counts._fields)), np.array(lengths, int))


# ------------------------------------------------------------------------------ One sentence


class _Marked(NamedTuple):
    """What counts of a tree. Brackets stand between words, at which of them they begin and end counted from 0."""

    words: list[str]
    tags: list[str]
    brackets: Counter[tuple[str, int, int]]  # label, start, end
    length: int  # words, punctuation included

    @classmethod
    def of(cls, tree: Tree | None) -> "_Marked":
        words, tags, brackets, length, starts = [], [], Counter(), 0, []
        for node, entering in walk(tree) if tree else ():
            if node.word:
                length += node.label != TRACE
                if node.label not in DELETED:
                    words.append(node.word)
                    tags.append(SAME.get(node.label, node.label))
            elif entering:
                starts.append(len(words))
            else:
                start, label = starts.pop(), _cut(node.label)
                if start < len(words) and label not in DELETED:
                    brackets[SAME.get(label, label), start, len(words)] += 1
        return cls(words, tags, brackets, length)


def _cut(label: str) -> str:
    # Not trees.plain: to EVALB nothing is left of a label that begins with "-", and that still is a bracket.
    return re.split("[-=]", label, maxsplit=1)[0]


def _compared(test: _Marked, gold: _Marked) -> Counts:
    if not test.words:
        return Counts(sentences=1, errors=0, skipped=1)
    if test.words != gold.words:
        return Counts(sentences=1, errors=1, skipped=0)
    matched, crossing = (test.brackets & gold.brackets).total(), _crossing(test, gold)
    return Counts(
        sentences=1,
        errors=0,
        skipped=0,
        matched=matched,
        gold=gold.brackets.total(),
        test=test.brackets.total(),
        crossing_brackets=crossing,
        words=len(gold.words),
        correct_tags=sum(a == b for a, b in zip(test.tags, gold.tags, strict=True)),
        complete=matched == gold.brackets.total() == test.brackets.total(),
        uncrossed=crossing == 0,
        little_crossed=crossing <= 2,
    )


def _crossing(test: _Marked, gold: _Marked) -> int:
    """How many of the test tree's brackets cross one or more of the gold tree's."""
    spans = {(start, end) for _, start, end in gold.brackets}
    return sum(
        times
        for (_, start, end), times in test.brackets.items()
        if any(a < start < b < end or start < a < end < b for a, b in spans)
    )

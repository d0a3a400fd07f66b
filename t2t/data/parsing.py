"""The parsing task: words in, a constituency tree out, EVALB's F1 (section 6.3)."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

from t2t.data.cleaning import Cleaning
from t2t.data.linearisation import Linearisation, Tags, tree_of
from t2t.data.task import Pair
from t2t.data.treebank import Treebank, describe
from t2t.errors import UserError
from t2t.knobs import Count
from t2t.metrics import Score, brackets
from t2t.trees import BrokenTree, Tree, bracketed, clean, parse, words


def sentence(words: list[str]) -> str:
    """Words as a source. The sign that sentencepiece puts for spaces is none of its tokens where it is a word."""
    return " ".join(words).replace("▁", "_")


@dataclasses.dataclass(frozen=True)
class Parsing:
    """Sentences of one treebank into its trees. A pair is words between spaces and a bracketed tree."""

    treebank: Treebank  # where the trees come from
    tags: Tags = "keep"  # part-of-speech tags: learnt as they are, or XX for all but punctuation
    constrained: bool = True  # decode trees only; False: anything, repaired into a tree afterwards
    max_openings: Count = 10  # constituents that may begin in a row; WSJ and CRAFT have up to 8; bounds unary chains
    cleaning: Cleaning = Cleaning(ratio=0.0, duplicates="keep")
    vocabulary: str = ""  # a sentencepiece model for the words; none: one is trained on the training sentences

    def pairs(self, split: str) -> Iterator[Pair]:
        """The sentences and cleaned trees of a split, in order."""
        return (Pair(sentence(words(tree)), bracketed(tree)) for tree in self._cleaned(split, Counter()))

    def _cleaned(self, split: str, counts: Counter[str]) -> Iterator[Tree]:
        for tree in self.treebank.trees(split):
            if cleaned := clean(tree, counts):
                yield cleaned
            else:
                counts["trees without words"] += 1

    def facts(self, split: str) -> dict[str, int]:
        """What cleaning did to the trees of a split; reads it once."""
        counts: Counter[str] = Counter()
        trees = sum(1 for _ in self._cleaned(split, counts))
        return {"trees": trees, **describe(counts)}

    def inputs(self, split: str) -> dict[str, str]:
        """What the split is read from, each with a digest."""
        return self.treebank.inputs(split)

    def vocabulary_file(self) -> str:
        """The vocabulary of words that the user gave, or ""."""
        return self.vocabulary

    @property
    def has_sources(self) -> bool:
        """Sentences to parse."""
        return True

    @property
    def linearisation(self) -> Linearisation:
        """How the trees become tokens."""
        return Linearisation(self.tags)

    def outputs(self, sources: list[str], decoded: list[str]) -> tuple[list[str], dict[str, Any]]:
        """A bracketed tree for each sentence, from the tokens decoded for it; and how many needed repair."""
        found = [tree_of(line.split(), source.split()) for source, line in zip(sources, decoded, strict=True)]
        return [bracketed(tree) for tree, _ in found], {"repaired": sum(repaired for _, repaired in found)}

    def given(self, pairs: list[Pair]) -> list[Pair]:
        """Pairs of a user's: the trees cleaned, each over the words of its sentence.

        Raises:
            UserError: a target is no tree, or not over these words; names its line.
        """
        return [self._given(number, *pair) for number, pair in enumerate(pairs, 1)]

    def _given(self, number: int, source: str, target: str) -> Pair:
        try:
            tree = clean(parse(target), Counter())
        except BrokenTree as error:
            raise UserError(f"line {number}: {target[:60]!r} is not a tree: {error.reason}") from None
        if tree is None or words(tree) != source.split():
            raise UserError(f"line {number}: the tree is over {words(tree) if tree else []}, not {source.split()}")
        return Pair(sentence(source.split()), bracketed(tree))

    def score(self, hypotheses: list[str], references: list[str]) -> dict[str, Score]:
        """EVALB's figures, by `brackets.scores`."""
        return brackets.scores(hypotheses, references)

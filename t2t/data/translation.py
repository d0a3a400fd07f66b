"""The translation task: sentence pairs in, one shared vocabulary, BLEU out."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from t2t.data.cleaning import Cleaning
from t2t.data.corpora import Corpus
from t2t.data.task import Pair
from t2t.metrics import Score, bleu


@dataclasses.dataclass(frozen=True)
class Translation:
    """Sentences of one language into another."""

    corpus: Corpus  # where the pairs come from
    source: str  # language of the source, as a two-letter code
    target: str  # language of the target, as a two-letter code
    cleaning: Cleaning = Cleaning()
    vocabulary: str = ""  # a sentencepiece model to use; none: one is trained on the training pairs

    def pairs(self, split: str) -> Iterator[Pair]:
        """The sentence pairs of a split, in order."""
        return self.corpus.pairs(split)

    def inputs(self, split: str) -> dict[str, str]:
        """What the split is read from, each with a digest."""
        return self.corpus.inputs(split)

    def facts(self, split: str) -> dict[str, int]:
        """Nothing: text is taken as it stands."""
        return {}

    def vocabulary_file(self) -> str:
        """The vocabulary the user gave, or ""."""
        return self.vocabulary

    @property
    def has_sources(self) -> bool:
        """Sentences to translate."""
        return True

    @property
    def linearisation(self) -> None:
        """Targets are text, and share the sources' vocabulary."""
        return None

    def outputs(self, sources: list[str], decoded: list[str]) -> tuple[list[str], dict[str, Any]]:
        """The decoded text itself."""
        return decoded, {}

    def given(self, pairs: list[Pair]) -> list[Pair]:
        """As they are."""
        return pairs

    def score(self, hypotheses: list[str], references: list[str]) -> dict[str, Score]:
        """The readings of `bleu.scores`."""
        return bleu.scores(hypotheses, references, self.target, self.source)

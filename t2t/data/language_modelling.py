"""The task of language modelling: texts alone, each predicted from beginning to end; perplexity and no score."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from t2t.data.cleaning import Cleaning
from t2t.data.corpora import Corpus
from t2t.data.task import Pair
from t2t.errors import UserError
from t2t.metrics import Score


@dataclasses.dataclass(frozen=True)
class LanguageModelling:
    """The texts on one side of a corpus, a line each.

    A file of lines without tabs is a corpus whose both sides are the same: `Text(train="a.txt", target_column=0)`.
    """

    corpus: Corpus  # where the texts come from
    side: Literal["source", "target"] = "source"  # of its pairs
    duplicates: Literal["drop", "keep"] = "drop"  # of training texts that are the same: keep the first, or all
    vocabulary: str = ""  # a sentencepiece model to use; none: one is trained on the training texts

    @property
    def cleaning(self) -> Cleaning:
        """Texts have no sources whose lengths they could be unlike."""
        return Cleaning(ratio=0.0, duplicates=self.duplicates)

    def pairs(self, split: str) -> Iterator[Pair]:
        """The texts of a split as targets, in order."""
        return (Pair("", getattr(pair, self.side)) for pair in self.corpus.pairs(split))

    def inputs(self, split: str) -> dict[str, str]:
        """What the split is read from, each with a digest, and the side that is read."""
        return {name: f"{digest} {self.side} alone" for name, digest in self.corpus.inputs(split).items()}

    def facts(self, split: str) -> dict[str, int]:
        """Nothing: text is taken as it stands."""
        return {}

    def vocabulary_file(self) -> str:
        """The vocabulary the user gave, or ""."""
        return self.vocabulary

    @property
    def has_sources(self) -> bool:
        """Texts come from nothing."""
        return False

    @property
    def linearisation(self) -> None:
        """Targets are text."""
        return None

    def outputs(self, sources: list[str], decoded: list[str]) -> tuple[list[str], dict[str, Any]]:
        """The decoded text itself."""
        return decoded, {}

    def given(self, pairs: list[Pair]) -> list[Pair]:
        """Always raises UserError: there are no pairs of which one side would be the output."""
        raise UserError("this run models text, which belongs to no source: `t2t evaluate` gives its perplexity")

    def score(self, hypotheses: list[str], references: list[str]) -> dict[str, Score]:
        """Nothing: texts are not held against others."""
        return {}

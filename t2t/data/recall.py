"""A toy for long-range dependencies (section 4): lines that end with the word that they began with.

    d . . . . . ? d

Between the two lie as many steps as the distance says. All words between are the same, so that nothing but the first
word says what the last one is: whoever predicts it has carried it over the distance.
"""

import dataclasses
import hashlib
import json
import string
from collections.abc import Iterator
from typing import Annotated

import numpy as np

from t2t.data.corpora import SPLITS
from t2t.data.task import Pair
from t2t.errors import unknown
from t2t.knobs import Count, Range

FILLER, QUESTION = ".", "?"
SHORTEST = 2  # steps: the first word, the question, the word again


@dataclasses.dataclass(frozen=True)
class Recall:
    """Lines drawn from a seed; both sides of a pair are the line.

    Training has distances of any size up to `trained`, as many between 2 and 4 as between 32 and 64. The other splits
    have each word at each power of two up to `longest`.
    """

    trained: Annotated[int, Range(low=SHORTEST)] = 64  # n: steps from a word to the same word again, in training
    longest: Annotated[int, Range(low=SHORTEST)] = 1024  # n: and in what is told right or not
    words: Annotated[int, Range(low=2, high=26)] = 16  # that a line may begin with
    lines: Count = 20_000  # of the training split
    seed: Annotated[int, Range(low=0, high=2**31)] = 0  # of the training split

    def pairs(self, split: str) -> Iterator[Pair]:
        """The lines of a split, in order.

        Raises:
            UserError: no such split.
        """
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        words = string.ascii_lowercase[: self.words]
        if split != "train":
            return (_pair(word, distance) for distance in self.distances for word in words)
        rng = np.random.default_rng(self.seed)
        low, high = np.log2([SHORTEST, self.trained + 1])
        distances = np.exp2(rng.uniform(low, high, self.lines)).astype(int)
        return (_pair(words[i], n) for i, n in zip(rng.integers(0, self.words, self.lines), distances, strict=True))

    @property
    def distances(self) -> list[int]:
        """Those of "dev" and "test": powers of two."""
        return [1 << i for i in range(1, self.longest.bit_length())]

    def inputs(self, split: str) -> dict[str, str]:
        """Lines are a function of these knobs."""
        digest = hashlib.sha256(json.dumps([split, *dataclasses.astuple(self)]).encode()).hexdigest()
        return {f"recall {split}": digest}


def _pair(word: str, distance: int) -> Pair:
    line = " ".join([word, *[FILLER] * (distance - SHORTEST), QUESTION, word])
    return Pair(line, line)

"""A corpus that is made up as it is read: numbers as digits, and as words."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from t2t.data.task import Pair
from t2t.knobs import Count

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Pairs such as "407" and "four zero seven"."""

    size: Count = 300  # training pairs; dev and test have a tenth each

    def pairs(self, split: str) -> Iterator[Pair]:
        """The pairs of a split, always the same."""
        rng = np.random.default_rng(len(split) + ord(split[0]))
        for number in rng.integers(0, 100_000, self.size if split == "train" else self.size // 10):
            yield Pair(" ".join(str(number)), " ".join(WORDS[int(digit)] for digit in str(number)))

    def inputs(self, split: str) -> dict[str, str]:
        """A name for what `pairs` gives."""
        return {"numbers": f"{split} {self.size}"}

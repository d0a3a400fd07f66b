"""Which training pairs are left out before anything learns from them. Evaluation leaves nothing out.

Departure: the paper says nothing of cleaning. We drop what cannot be a translation (no text, broken text, one side many
times as long as the other), and all but the first of pairs that are the same.
"""

import dataclasses
from typing import Literal

import numpy as np

from t2t.data.task import Pair
from t2t.knobs import NonNegative

NOT_UTF_8 = "not UTF-8"


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """What becomes of training pairs that can be read, but had better not be learnt from."""

    ratio: NonNegative = 9.0  # most tokens of the longer side for each of the shorter; 0: any number
    duplicates: Literal["drop", "keep"] = "drop"  # pairs that are the same on both sides: keep the first, or all

    def alike(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Which pairs have lengths, in tokens with EOS, that are alike enough: bool [pairs]."""
        if not self.ratio:
            return np.ones(len(source), bool)
        return np.maximum(source, target) <= self.ratio * np.minimum(source, target)


def first_fault(pair: Pair, has_sources: bool) -> str:
    """Why a pair is no training pair whatever the knobs: "not UTF-8", "empty", or "" for none."""
    try:
        for text in pair:
            text.encode()  # what was not UTF-8 was read as lone surrogates, which cannot be written
    except UnicodeEncodeError:
        return NOT_UTF_8
    return "" if (pair.source.strip() or not has_sources) and pair.target.strip() else "empty"

"""Scores of outputs against references. Nothing here imports JAX."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

RESAMPLES, SEED = 1000, 12345  # sacreBLEU's own, and its seed whatever SACREBLEU_SEED says


class Score(NamedTuple):
    """A metric's value, the signature that says how it was measured, and its 95 % interval, `low` to `high`."""

    score: float
    signature: str
    low: float
    high: float


def interval(statistics: np.ndarray, value: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """The middle 95 % of `value` over bootstrap resamples of the sentences: the scores that other such texts may give.

    `statistics` [sentences, numbers] are such that their sum over sentences is what `value` takes. The resamples are
    those of sacreBLEU, and so is the rule that 1 in 40 is left out on either side. A single sentence gives its score.
    """
    rng, count = np.random.default_rng(SEED), len(statistics)
    # How often each sentence was drawn, times its numbers: a resample is never copied, however large the split.
    drawn = (np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(RESAMPLES))
    values = sorted(value(times @ statistics) for times in drawn)
    return values[RESAMPLES // 40], values[-1 - RESAMPLES // 40]

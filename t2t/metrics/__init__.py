"""Scores of outputs against references. Nothing here imports JAX."""

from typing import NamedTuple


class Score(NamedTuple):
    """A metric's value, and the signature that says how it was measured."""

    score: float
    signature: str

"""What a task must provide. One file a task; adding one touches nothing else."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

from t2t.data.linearisation import Linearisation
from t2t.metrics import Score


class Pair(NamedTuple):
    """One example as text."""

    source: str
    target: str


def fingerprint(inputs: dict[str, str]) -> str:
    """One digest of the digests of all inputs; their names do not matter."""
    return hashlib.sha256(json.dumps([*inputs.values()]).encode()).hexdigest()


@runtime_checkable
class Task(Protocol):
    """A frozen dataclass: where text comes from and how outputs are scored."""

    @property
    def cleaning(self) -> Any:
        """Which training pairs are left out (`t2t.data.cleaning.Cleaning`)."""
        ...

    def pairs(self, split: str) -> Iterator[Pair]:
        """The examples of "train", "dev" or "test", in order. Raises UserError when a file is missing or broken."""
        ...

    def inputs(self, split: str) -> dict[str, str]:
        """What a split is read from, by name, each with a digest: equal digests mean equal pairs."""
        ...

    def facts(self, split: str) -> dict[str, int]:
        """What reading did to a split, counted by name; {} for what is taken as it stands."""
        ...

    def vocabulary_file(self) -> str:
        """A sentencepiece model to use, or "" to train one on the training split."""
        ...

    @property
    def has_sources(self) -> bool:
        """Whether outputs belong to sources; if not, each source is the empty text and has no token, not even EOS."""
        ...

    @property
    def linearisation(self) -> Linearisation | None:
        """How targets become tokens when they are trees; None: they are text in the sources' vocabulary."""
        ...

    def outputs(self, sources: list[str], decoded: list[str]) -> tuple[list[str], dict[str, Any]]:
        """What the text decoded for each source stands for, and what there is to know of how it came about."""
        ...

    def given(self, pairs: list[Pair]) -> list[Pair]:
        """Pairs of a user's as those of a split are; raises UserError for what the task cannot take."""
        ...

    def score(self, hypotheses: list[str], references: list[str]) -> dict[str, Score]:
        """Metric by name, over a whole split."""
        ...

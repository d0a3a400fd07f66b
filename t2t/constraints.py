"""What a beam may still say: the automaton beside it that keeps parses well formed (section 6.3).

A hypothesis is the beginning of a linearised tree. It may go on with a token only if it can still become a tree over
exactly the sentence's words within the positions that are left. So every output is a tree, whatever the weights.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t2t.batch import EOS
from t2t.data.linearisation import CLOSE, DEPTH, LEAF, OPEN, SPECIAL, TreeVocabulary, kind
from t2t.data.parsing import Parsing
from t2t.data.task import Task
from t2t.data.vocabulary import Vocabularies


class Stack(NamedTuple):
    """Where each hypothesis stands."""

    labels: jax.Array  # int32 [B K DEPTH]: of the open constituents, outermost first
    depth: jax.Array  # int32 [B K]: how many they are
    words: jax.Array  # int32 [B K]: words of the sentence that have no leaf yet
    openings: jax.Array  # int32 [B K]: constituents opened since the last leaf or closing


class TreeAutomaton(NamedTuple):
    """The rules for a batch of sentences; all fields are arrays, so that one compiled search serves every batch."""

    opens: Any  # bool [V]: tokens that open a constituent
    closes: Any  # bool [V]
    leaves: Any  # bool [V]: tags
    labels: Any  # int32 [V]: of tokens that open or close, the same number for the same label
    words: Any  # int32 [B]: words of each sentence
    max_openings: Any  # int32: constituents that may begin in a row

    def start(self, beams: int) -> Stack:
        """Before the first token, for `beams` hypotheses a sentence."""
        shape = (len(self.words), beams)
        zero = jnp.zeros(shape, jnp.int32)
        words = jnp.broadcast_to(self.words[:, None], shape)
        return Stack(jnp.zeros((*shape, DEPTH), jnp.int32), zero, words, zero)

    def allowed(self, at: Stack, left: jax.Array) -> jax.Array:
        """Which tokens may come next: bool [B K V]; left [B]: positions that are left, this one and EOS counted.

        To end, a hypothesis needs a position for each word that has no leaf, for each open constituent, and for EOS.
        It starts with as many (`DecodingConfig.extra_length` is not negative); a leaf or a closing takes one position
        and one need; an opening takes one and adds one, so it needs two to spare.
        """
        spare = left[:, None] - (at.words + at.depth + 1)
        may_open = (at.words > 0) & (spare >= 2) & (at.openings < self.max_openings) & (at.depth < DEPTH)
        may_close = (at.depth > 0) & (at.openings == 0)  # what was opened last is not empty
        top = jnp.take_along_axis(at.labels, jnp.maximum(at.depth - 1, 0)[..., None], axis=-1)
        ends = (at.depth == 0) & (at.words == 0)
        return (
            (may_open[..., None] & self.opens)
            | (may_close[..., None] & self.closes & (self.labels == top))
            | ((at.words > 0)[..., None] & self.leaves)
            | (ends[..., None] & (jnp.arange(len(self.opens)) == EOS))
        )

    def advance(self, at: Stack, token: jax.Array) -> Stack:
        """After `token` [B K]."""
        opens, closes, leaf = (x[token].astype(jnp.int32) for x in (self.opens, self.closes, self.leaves))
        here = jnp.arange(DEPTH) == at.depth[..., None]
        labels = jnp.where(here & (opens == 1)[..., None], self.labels[token][..., None], at.labels)
        openings = jnp.where(opens == 1, at.openings + 1, 0)
        return Stack(labels, at.depth + opens - closes, at.words - leaf, openings)


@dataclasses.dataclass(frozen=True)
class TreeConstraint:
    """The constraint for a list of sentences, from which batches take what concerns them."""

    vocabulary: TreeVocabulary
    words: list[int]  # of each sentence
    max_openings: int

    @property
    def knobs(self) -> dict[str, Any]:
        """What an output depends on beside weights and search."""
        return {"max_openings": self.max_openings}

    def batch(self, sentences: list[int], rows: int) -> TreeAutomaton:
        """The automaton for the sentences of these numbers, and empty rows after them."""
        words = np.zeros(rows, np.int32)
        words[: len(sentences)] = [self.words[i] for i in sentences]
        return _automaton(self.vocabulary)._replace(words=words, max_openings=np.int32(self.max_openings))


def _automaton(vocabulary: TreeVocabulary) -> TreeAutomaton:
    """The rules of a vocabulary, for no sentences."""
    kinds = ["" if i < len(SPECIAL) else kind(token) for i, token in enumerate(vocabulary.tokens)]
    kinds += [""] * (len(vocabulary) - len(kinds))
    names = {token[1:]: i for i, token in enumerate(vocabulary.tokens) if kinds[i] == OPEN}
    labels = np.full(len(vocabulary), -1, np.int32)
    for i, token in enumerate(vocabulary.tokens):
        if kinds[i] in (OPEN, CLOSE):
            labels[i] = names[token[1:]]
    opens, closes, leaves = (np.array([k == which for k in kinds]) for which in (OPEN, CLOSE, LEAF))
    return TreeAutomaton(opens, closes, leaves, labels, np.zeros(0, np.int32), np.int32(0))


def constraint_of(task: Task, vocabulary: Vocabularies, sources: list[str]) -> TreeConstraint | None:
    """What the outputs for `sources` must obey; None: nothing."""
    if not isinstance(task, Parsing) or not isinstance(vocabulary.target, TreeVocabulary) or not task.constrained:
        return None
    return TreeConstraint(vocabulary.target, [len(source.split()) for source in sources], task.max_openings)

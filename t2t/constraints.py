"""What a beam may still say: the automaton beside it that keeps parses well formed (section 6.3).

A hypothesis is the beginning of a linearised tree. It may go on with a token only if it can still become a tree over
exactly the sentence's words within the positions that are left, and gives each word a tag that it may have
(`TreeVocabulary.tags`). So every output is a tree, whatever the weights.

A model that has missed a word would say the next word's tag but may not, and open one constituent after the other for
want of anything better. So where it would mostly (LOST) say what may not stand, it opens none.

Departure: the paper says of no constraint on what is decoded.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t2t.batch import EOS
from t2t.beam_search import NEVER
from t2t.data.linearisation import DEPTH, LEAF, OPEN, SPECIAL, TreeVocabulary, kind
from t2t.data.parsing import Parsing
from t2t.data.task import Task
from t2t.data.vocabulary import Vocabularies

LOST = 0.5  # probability of what may stand below which nothing is opened; found on parse_quickstart's dev trees


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
    tags: Any  # bool [N V]: the N sets of tags that words may have
    sets: Any  # int32 [B W]: of each word of each sentence, which of these
    labels: Any  # int32 [V]: of tokens that open or close, the same number for the same label
    words: Any  # int32 [B]: words of each sentence
    max_openings: Any  # int32: constituents that may begin in a row
    lost: Any  # float32: the least probability of what may stand for a constituent to begin

    def start(self, beams: int) -> Stack:
        """Before the first token, for `beams` hypotheses a sentence."""
        shape = (len(self.words), beams)
        zero = jnp.zeros(shape, jnp.int32)
        words = jnp.broadcast_to(self.words[:, None], shape)
        return Stack(jnp.zeros((*shape, DEPTH), jnp.int32), zero, words, zero)

    def constrain(self, log_probs: jax.Array, at: Stack, left: jax.Array) -> jax.Array:
        """`Automaton.constrain`: what is `allowed`, and nothing opened where that has little probability."""
        allowed = self.allowed(at, left)
        lost = jnp.where(allowed, jnp.exp(log_probs), 0.0).sum(-1, keepdims=True) < self.lost
        return jnp.where(allowed & ~(lost & self.opens), log_probs, NEVER)

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
            | ((at.words > 0)[..., None] & self._tags(at))
            | (ends[..., None] & (jnp.arange(len(self.opens)) == EOS))
        )

    def rows(self, index: jax.Array) -> "TreeAutomaton":
        """`Automaton.rows`."""
        return self._replace(sets=jnp.asarray(self.sets)[index], words=jnp.asarray(self.words)[index])

    def _tags(self, at: Stack) -> jax.Array:
        """The tags that each hypothesis's next word may have, bool [B K V]; of one that has had all, the last's."""
        place = jnp.clip(self.words[:, None] - at.words, 0, self.sets.shape[1] - 1)
        return self.tags[jnp.take_along_axis(self.sets, place, axis=1)]

    def advance(self, at: Stack, token: jax.Array) -> Stack:
        """After `token` [B K]."""
        opens, closes = (x[token].astype(jnp.int32) for x in (self.opens, self.closes))
        leaf = (token >= len(SPECIAL)) - opens - closes
        here = jnp.arange(DEPTH) == at.depth[..., None]
        labels = jnp.where(here & (opens == 1)[..., None], self.labels[token][..., None], at.labels)
        openings = jnp.where(opens == 1, at.openings + 1, 0)
        return Stack(labels, at.depth + opens - closes, at.words - leaf, openings)


def knobs_of(max_openings: int, lost: float = LOST) -> dict[str, Any]:
    """What evaluations keep of a constraint."""
    return {"max_openings": max_openings, "lost": lost}


@dataclasses.dataclass(frozen=True)
class TreeConstraint:
    """The constraint for a list of sentences, from which batches take what concerns them."""

    vocabulary: TreeVocabulary
    sentences: list[list[str]]  # the words of each
    max_openings: int
    lost: float = LOST

    @property
    def knobs(self) -> dict[str, Any]:
        """What an output depends on beside weights, vocabularies and search."""
        return knobs_of(self.max_openings, self.lost)

    def batch(self, sentences: list[int], rows: int, length: int) -> TreeAutomaton:
        """The automaton for the sentences of these numbers, and empty rows after them.

        `length`, their tokens at most, is more than their words but for words that are no tokens.
        """
        most = max([length, *(len(self.sentences[number]) for number in sentences)])
        words, sets = np.zeros(rows, np.int32), np.zeros((rows, most), np.int32)
        for row, number in enumerate(sentences):
            words[row] = len(self.sentences[number])
            sets[row, : words[row]] = [self.vocabulary.tag_set(word) for word in self.sentences[number]]
        opens, closes, labels = _brackets(self.vocabulary)
        tags = np.zeros((len(self.vocabulary.tag_sets), len(self.vocabulary)), bool)
        for one, its in zip(tags, self.vocabulary.tag_sets, strict=True):
            one[list(its)] = True
        limits = np.int32(self.max_openings), np.float32(self.lost)
        return TreeAutomaton(opens, closes, tags, sets, labels, words, *limits)


def _brackets(vocabulary: TreeVocabulary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of `TreeAutomaton` opens, closes and labels."""
    opens, closes = np.zeros((2, len(vocabulary)), bool)
    labels, names = np.full(len(vocabulary), -1, np.int32), {}
    for i, token in enumerate(vocabulary.tokens):
        if i >= len(SPECIAL) and (which := kind(token)) != LEAF:
            (opens if which == OPEN else closes)[i] = True
            labels[i] = names.setdefault(token[1:], len(names))
    return opens, closes, labels


def constraint_of(task: Task, vocabulary: Vocabularies, sources: list[str]) -> TreeConstraint | None:
    """What the outputs for `sources` must obey; None: nothing."""
    if not isinstance(task, Parsing) or not isinstance(vocabulary.target, TreeVocabulary) or not task.constrained:
        return None
    return TreeConstraint(vocabulary.target, [source.split() for source in sources], task.max_openings)

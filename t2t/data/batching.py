"""Batches by like length under a token budget (section 5.1), as a function of seed and step.

Few shapes: every batch of a bucket is one array of the same rows and length, so that a training step is compiled once a
bucket. A step's batch needs no history, only the lengths of all pairs: step 70,000 can be asked for first.

Departure: the last batch of a bucket in an epoch holds what is left, and counts as a whole step however little that is.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from t2t.batch import Batch, Sequences
from t2t.errors import UserError
from t2t.knobs import Count


@dataclasses.dataclass(frozen=True)
class BatchingConfig:
    """How pairs become batches."""

    tokens: Count = 25_000  # source tokens, and target tokens, that a batch has room for
    max_length: Count = 256  # tokens with EOS: a longer source or target is left out in training, never in evaluation
    shapes: Count = 8  # buckets: batch shapes to compile; more of them means less padding


class Bucket:
    """The pairs of like length, and the shape of their batches."""

    def __init__(self, pairs: np.ndarray, length: int, tokens: int) -> None:
        self.pairs = pairs  # indices into the corpus
        self.length = length  # tokens a row has room for, on both sides
        self.rows = max(1, tokens // length)

    def __len__(self) -> int:
        """Batches an epoch; the last may be partly empty rows."""
        return -(-len(self.pairs) // self.rows)


class Epochs:
    """Every epoch gives each pair once, in an order that is a function of the seed and of the epoch's number."""

    def __init__(self, longest: np.ndarray, config: BatchingConfig, seed: int) -> None:
        """`longest` [pairs]: tokens of the longer side of each pair, EOS counted.

        Raises:
            UserError: the budget holds no sentence of the allowed length, or no pair is short enough.
        """
        if config.max_length > config.tokens:
            raise UserError(f"--batching.tokens {config.tokens} cannot hold --batching.max_length {config.max_length}")
        kept = np.flatnonzero(longest <= config.max_length)
        if not len(kept):
            raise UserError(f"no training pair has at most {config.max_length} tokens (--batching.max_length)")
        self.left_out = len(longest) - len(kept)
        self._seed = seed
        self._order = -1, np.empty((0, 2), np.int64), []  # the epoch at hand: its number, its batches, its pairs
        bounds = bucket_lengths(longest[kept], config.shapes)
        place = np.searchsorted(bounds, longest[kept])
        self.buckets = [Bucket(kept[place == i], bound, config.tokens) for i, bound in enumerate(bounds)]

    def __len__(self) -> int:
        """Batches an epoch, the same for every epoch and seed."""
        return sum(map(len, self.buckets))

    def at(self, step: int) -> tuple[np.ndarray, Bucket]:
        """The pairs of the batch at `step`, counted from 0, and the bucket that gives its shape."""
        epoch, place = divmod(step, len(self))
        order = self._order  # read once: another thread may ask for another epoch
        if order[0] != epoch:
            order = self._order = (epoch, *self._shuffle(epoch))
        _, batches, pairs = order
        number, start = batches[place]
        bucket = self.buckets[number]
        return pairs[number][start : start + bucket.rows], bucket

    def _shuffle(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        rng = np.random.default_rng([self._seed, epoch])
        pairs = [rng.permutation(bucket.pairs) for bucket in self.buckets]
        batches = [(i, start) for i, b in enumerate(self.buckets) for start in range(0, len(b.pairs), b.rows)]
        return rng.permutation(np.array(batches)), pairs


def bucket_lengths(lengths: np.ndarray, shapes: int) -> list[int]:
    """The `shapes` row lengths (or fewer) that pad `lengths` the least, ascending; the last is the longest length.

    Dynamic programming over the distinct lengths: best[b][j] is the fewest positions that b buckets need for the j + 1
    shortest distinct lengths.
    """
    distinct, counts = np.unique(lengths, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    shapes, n = min(shapes, len(distinct)), len(distinct)
    best, cut = np.full((shapes + 1, n + 1), np.inf), np.zeros((shapes + 1, n + 1), int)
    best[0, 0] = 0
    for b in range(1, shapes + 1):
        for j in range(1, n + 1):
            cost = best[b - 1, :j] + (below[j] - below[:j]) * distinct[j - 1]
            cut[b, j] = np.argmin(cost)
            best[b, j] = cost[cut[b, j]]
    ends, j = [], n
    for b in range(shapes, 0, -1):
        ends.append(int(distinct[j - 1]))
        j = cut[b, j]
    return ends[::-1]


def evaluation_length(tokens: int) -> int:
    """The row length for evaluation: the next power of two from 16, so that any file needs few shapes."""
    return max(16, 1 << (tokens - 1).bit_length())


def fill(sentences: Sequence[Sequence[int] | np.ndarray], rows: int, length: int) -> Sequences:
    """One sentence a row, [rows length]; what is left is padding, and so are rows beyond the sentences."""
    tokens, segments = np.zeros((2, rows, length), np.int32)
    for row, sentence in enumerate(sentences):
        tokens[row, : len(sentence)] = sentence
        segments[row, : len(sentence)] = 1
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    return Sequences(tokens, segments, positions)


def evaluation_batches(
    sources: list[list[int]], targets: list[list[int]], tokens: int
) -> list[tuple[np.ndarray, Batch]]:
    """Every pair once, none left out, by length: (indices of the pairs, batch) each, batches of few shapes."""
    lengths = np.array([evaluation_length(max(len(s), len(t))) for s, t in zip(sources, targets, strict=True)])
    batches = []
    for length in np.unique(lengths):
        pairs, rows = np.flatnonzero(lengths == length), max(1, tokens // int(length))
        for start in range(0, len(pairs), rows):
            chosen = pairs[start : start + rows]
            sides = (fill([side[i] for i in chosen], rows, int(length)) for side in (sources, targets))
            batches.append((chosen, Batch(*sides)))
    return batches

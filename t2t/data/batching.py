"""Batches under a token budget (section 5.1), as a function of seed and step.

Rows hold several sentences, so few positions are padding, and there are few shapes: every batch of a bucket is one
array of the same rows and lengths, so that a training step is compiled once a bucket. A step's batch needs no history,
only the lengths of all pairs: step 70,000 can be asked for first.

Departure: a row holds several sentences, which do not see each other; the paper has one, padded to the batch's longest.

Departure: the last batch of a bucket in an epoch holds what is left, and counts as a whole step however little that is.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from t2t.batch import Batch, Sequences
from t2t.data.packing import CELL, Room, Rows, cells, plan
from t2t.errors import UserError
from t2t.knobs import Count, Range

Length = Annotated[int, Range(low=1, high=CELL - 1)]


@dataclasses.dataclass(frozen=True)
class BatchingConfig:
    """How pairs become batches."""

    tokens: Count = 25_000  # source tokens, and target tokens, that a batch has room for; paper: about 25,000
    max_length: Length = 256  # tokens with EOS: a pair with a longer side is left out in training, never in evaluation
    packed: bool = True  # a row holds as many sentences as fit; paper: false, one, and padding after it
    shapes: Count = 3  # row lengths to compile: max_length, its half, ...; in shorter rows attention costs less


class Bucket:
    """Rows of one shape, and how many of them make a batch."""

    def __init__(self, rows: Rows, tokens: int) -> None:
        self.packed = rows
        self.room = rows.room
        self.rows = max(1, tokens // max(rows.room))

    def __len__(self) -> int:
        """Batches an epoch; the last may be partly empty rows."""
        return -(-len(self.packed) // self.rows)


class Drawn(NamedTuple):
    """The pairs of a batch: pair i of the corpus stands in row `row` of the bucket's shape, in this order."""

    bucket: Bucket
    pairs: np.ndarray  # int64 [pairs of the batch]
    row: np.ndarray  # int64, ascending


class Epochs:
    """Every epoch gives each pair once, in an order that is a function of the seed and of the epoch's number."""

    def __init__(self, source: np.ndarray, target: np.ndarray, config: BatchingConfig, seed: int) -> None:
        """source, target [pairs]: tokens of each side, EOS counted.

        Raises:
            UserError: the budget holds no sentence of the allowed length, or no pair is short enough.
        """
        if config.max_length > config.tokens:
            raise UserError(f"--batching.tokens {config.tokens} cannot hold --batching.max_length {config.max_length}")
        kept = np.flatnonzero(np.maximum(source, target) <= config.max_length)
        if not len(kept):
            raise UserError(f"no training pair has at most {config.max_length} tokens (--batching.max_length)")
        self.left_out = len(source) - len(kept)
        source, target = source[kept], target[kept]
        self.tokens = int(source.sum(dtype=np.int64)), int(target.sum(dtype=np.int64))  # an epoch, source and target
        self.pairs = len(kept)
        self.longest = int(max(source.max(), target.max()))
        packed = plan(source, target, rooms(config, *self.tokens), config.packed)
        self.buckets = [Bucket(rows, config.tokens) for rows in packed if len(rows)]
        self._seed = seed
        place = cells(source, target)
        self._by_cell = kept[np.argsort(place, kind="stable")]
        self._bounds = np.concatenate([[0], np.cumsum(np.unique(place, return_counts=True)[1])])
        # Where each place in a row finds its pair: its cell's pairs are dealt out one after the other.
        every = np.concatenate([bucket.packed.cells for bucket in self.buckets])
        self._dealt = np.empty(len(every), np.int64)
        self._dealt[np.argsort(every, kind="stable")] = np.arange(len(every))
        self._order: tuple[Any, ...] = -1, None, None, None  # the epoch at hand: its number, batches, pairs, rows

    def __len__(self) -> int:
        """Batches an epoch, the same for every epoch and seed."""
        return sum(map(len, self.buckets))

    @property
    def padding(self) -> float:
        """The part of all positions of an epoch that hold no token; empty rows of last batches are counted."""
        positions = sum(len(bucket) * bucket.rows * sum(bucket.room) for bucket in self.buckets)
        return 1 - sum(self.tokens) / positions

    def at(self, step: int) -> Drawn:
        """The pairs of the batch at `step`, counted from 0."""
        epoch, place = divmod(step, len(self))
        order = self._order  # read once: another thread may ask for another epoch
        if order[0] != epoch:
            order = self._order = (epoch, *self._shuffle(epoch))
        _, batches, pairs, rows = order
        number, start = batches[place]
        bucket = self.buckets[number]
        chosen = rows[number][start : start + bucket.rows]
        begin, end = bucket.packed.starts[chosen], bucket.packed.starts[chosen + 1]
        row = np.repeat(np.arange(len(chosen)), end - begin)
        within = np.arange(len(row)) - np.repeat(np.cumsum(end - begin) - (end - begin), end - begin)
        return Drawn(bucket, pairs[number][begin[row] + within], row)

    def _shuffle(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Batches as (bucket, first row), each bucket's pairs by place, each bucket's rows in their new order."""
        rng = np.random.default_rng([self._seed, epoch])
        by_cell = self._by_cell.copy()
        for begin, end in zip(self._bounds, self._bounds[1:], strict=False):
            rng.shuffle(by_cell[begin:end])
        pairs = by_cell[self._dealt]
        parts = np.split(pairs, np.cumsum([len(bucket.packed.cells) for bucket in self.buckets])[:-1])
        rows = [rng.permutation(len(bucket.packed)) for bucket in self.buckets]
        batches = [(i, start) for i, b in enumerate(self.buckets) for start in range(0, len(b.packed), b.rows)]
        return rng.permutation(np.array(batches)), parts, rows


def rooms(config: BatchingConfig, source: int, target: int) -> list[Room]:
    """The shapes of rows, ascending: max_length and its halves, the side with fewer tokens in all the shorter.

    The longest has room for max_length on both sides; where sources have no tokens at all, nowhere is room for any.
    source, target: tokens of all pairs.
    """
    longest = max(source, target)
    lengths = sorted({max(1, config.max_length >> i) for i in range(1, config.shapes)})
    shorter = [Room(*(-(-length * side // longest) for side in (source, target))) for length in lengths]
    return [*shorter, Room(config.max_length if source else 0, config.max_length)]


def evaluation_length(tokens: int) -> int:
    """The row length for evaluation: the next power of two from 16, so that any file needs few shapes."""
    return max(16, 1 << (tokens - 1).bit_length())


def fill(sentences: Sequence[Sequence[int] | np.ndarray], rows: int, length: int) -> Sequences:
    """One sentence a row, [rows length]; what is left is padding, and so are rows beyond the sentences."""
    tokens = np.concatenate([np.empty(0, np.int32), *(np.asarray(s, np.int32) for s in sentences)])
    lengths = np.array([len(s) for s in sentences], np.int64)
    return pack(tokens, lengths, np.arange(len(lengths)), rows, length)


def pack(tokens: np.ndarray, lengths: np.ndarray, row: np.ndarray, rows: int, length: int) -> Sequences:
    """Sentences in rows, [rows length], one after the other; what is left is padding.

    tokens: all sentences end to end; lengths [sentences]; row [sentences]: where each goes, ascending.

    Raises:
        ValueError: a row's sentences are longer than `length`, or there are more rows than `rows`.
    """
    begin = np.cumsum(lengths) - lengths  # of each sentence in `tokens`
    first = np.searchsorted(row, row)  # the first sentence of each sentence's row
    offset = begin - begin[first]
    if len(row) and (row[-1] >= rows or (offset + lengths).max() > length):
        raise ValueError(f"the sentences do not fit into {rows} rows of {length} tokens")
    position = np.arange(len(tokens)) - np.repeat(begin, lengths)
    place = np.repeat(row * length + offset, lengths) + position
    made = np.zeros((3, rows * length), np.int32)
    made[0, place] = tokens
    made[1, place] = np.repeat(np.arange(len(row)) - first + 1, lengths)
    made[2, place] = position
    return Sequences(*made.reshape(3, rows, length))


def evaluation_batches(
    sources: list[list[int]], targets: list[list[int]], tokens: int
) -> list[tuple[np.ndarray, Batch]]:
    """Every pair once, none left out, by length: (indices of the pairs, batch) each, batches of few shapes.

    Where no source has a token, the arrays of sources have no columns.
    """
    empty = not any(map(len, sources))
    lengths = np.array([evaluation_length(max(len(s), len(t))) for s, t in zip(sources, targets, strict=True)])
    batches = []
    for length in np.unique(lengths):
        pairs, rows = np.flatnonzero(lengths == length), max(1, tokens // int(length))
        for start in range(0, len(pairs), rows):
            chosen = pairs[start : start + rows]
            source = fill([sources[i] for i in chosen], rows, 0 if empty else int(length))
            batches.append((chosen, Batch(source, fill([targets[i] for i in chosen], rows, int(length)))))
    return batches

"""Training batches from prepared data, and reading ahead of their use."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from t2t.batch import Batch, Sequences
from t2t.data.batching import BatchingConfig, Bucket, Epochs, pack
from t2t.data.prepare import SIDES, Prepared
from t2t.data.vocabulary import Vocabularies

NOTHING = np.empty(0, np.int32)

Share = Callable[[Bucket], np.ndarray]


def everything(bucket: Bucket) -> np.ndarray:
    """The share that is all rows, in one part."""
    return np.arange(bucket.rows)[None]


class TrainingBatches:
    """The batch of any training step, or a process's share of it: no other token is read."""

    def __init__(self, prepared: Prepared, config: BatchingConfig, seed: int, share: Share = everything) -> None:
        """`share`: the rows wanted of the batches of a bucket, ascending [P B/P]; those beyond its rows are padding."""
        self._sides = [prepared.side(name) for name in SIDES]
        source, target = (np.asarray(lengths) for _, _, lengths in self._sides)
        self.epochs = Epochs(source, target, config, seed)
        self._share = share

    def __getitem__(self, step: int) -> Batch:
        """The batch at `step`, counted from 0: arrays [B T], or [P B/P T] when it is computed in P parts."""
        bucket, pairs, row = self.epochs.at(step)
        wanted = self._share(bucket)
        mine = np.isin(row, wanted)
        pairs, row = pairs[mine], np.searchsorted(wanted.ravel(), row[mine])
        sides = []
        for (tokens, starts, lengths), room in zip(self._sides, bucket.room, strict=True):
            begin, count = starts[pairs], lengths[pairs].astype(np.int64)
            sentences = [tokens[i : i + n] for i, n in zip(begin.tolist(), count.tolist(), strict=True)]
            packed = pack(np.concatenate([NOTHING, *sentences]), count, row, wanted.size, room)
            sides.append(in_parts(packed, len(wanted)))
        return Batch(*sides)

    def shared(self, share: Share) -> "TrainingBatches":
        """The same batches, of which another share is read."""
        other = copy.copy(self)
        other._share = share
        return other

    def empty(self, bucket: Bucket) -> Batch:
        """A batch of a bucket's shape without a token."""
        wanted = self._share(bucket)
        sides = (Sequences(*np.zeros((3, wanted.size, length), np.int32)) for length in bucket.room)
        return Batch(*(in_parts(side, len(wanted)) for side in sides))


def texts(batch: Batch, vocabulary: Vocabularies) -> list[tuple[str, str]]:
    """The pairs in a batch [B T], decoded."""
    return [(vocabulary.source.decode(source), vocabulary.target.decode(target)) for source, target in pairs(batch)]


def pairs(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Source and target tokens of every pair in a batch [B T]."""
    found = []
    for source, target in zip(*(zip(side.tokens, side.segments, strict=True) for side in batch), strict=True):
        for n in range(1, target[1].max(initial=0) + 1):
            first, second = (side[0][side[1] == n].tolist() for side in (source, target))
            found.append((first, second))
    return found


def in_parts(side: Sequences, parts: int) -> Sequences:
    """Arrays [P B/P T] of arrays [B T]; these as they are if there is one part."""
    return side if parts == 1 else Sequences(*(x.reshape(parts, len(x) // parts, x.shape[-1]) for x in side))


def read_ahead(batches: TrainingBatches, start: int, stop: int) -> Any:
    """A Grain iterator over the batches from step `start` to before `stop`, made by a thread ahead of their use.

    Its `get_state` and `set_state` are the position in the data that a checkpoint keeps.
    """
    import grain

    steps = grain.MapDataset.range(0, stop).map(batches.__getitem__)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)
    iterator = iter(steps.to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator

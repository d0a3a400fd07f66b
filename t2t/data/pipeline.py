"""Training batches from prepared data, and reading ahead of their use."""

from typing import Any

import numpy as np

from t2t.batch import Batch
from t2t.data.batching import BatchingConfig, Epochs, pack
from t2t.data.prepare import SIDES, Prepared


class TrainingBatches:
    """The batch of any training step."""

    def __init__(self, prepared: Prepared, config: BatchingConfig, seed: int) -> None:
        self._sides = [prepared.side(name) for name in SIDES]
        source, target = (np.asarray(lengths) for _, _, lengths in self._sides)
        self.epochs = Epochs(source, target, config, seed)

    def __getitem__(self, step: int) -> Batch:
        """The batch at `step`, counted from 0."""
        bucket, pairs, row = self.epochs.at(step)
        sides = []
        for (tokens, starts, lengths), room in zip(self._sides, bucket.room, strict=True):
            begin, count = starts[pairs], lengths[pairs].astype(np.int64)
            sentences = [tokens[i : i + n] for i, n in zip(begin.tolist(), count.tolist(), strict=True)]
            sides.append(pack(np.concatenate(sentences), count, row, bucket.rows, room))
        return Batch(*sides)


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

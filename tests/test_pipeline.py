"""Batches from prepared data: every one the pairs it should be, and reading ahead changes nothing."""

import collections
import itertools

import numpy as np
import pytest

from t2t.data.batching import BatchingConfig
from t2t.data.corpora import Embedded, Text
from t2t.data.pipeline import TrainingBatches, read_ahead
from t2t.data.prepare import Sizes, prepare
from t2t.data.translation import Translation

SIZE = 200
CONFIG = BatchingConfig(tokens=512, max_length=48, shapes=3)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T2T_DATA", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path):
    """A file with the first 300 pairs of the quickstart."""
    lines = ["\t".join(pair) for pair in itertools.islice(Embedded("quickstart").pairs("train"), 300)]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "pairs.tsv"


def translation(path):
    return Translation(Text(train=str(path)), "en", "de")


def quiet(message):
    """Nobody listens."""


def texts(batch, vocabulary):
    """The pairs in a batch: segment n of a source row with segment n of the same target row."""
    for row in range(len(batch.source.tokens)):
        numbers, others = (set(side.segments[row].tolist()) - {0} for side in batch)
        assert numbers == others
        for n in sorted(numbers):
            yield tuple(vocabulary.decode(side.tokens[row][side.segments[row] == n].tolist()) for side in batch)


def test_batches_decode_to_the_right_pairs(path):
    task = translation(path)
    prepared = prepare(task, Sizes(SIZE), quiet)
    batches = TrainingBatches(prepared, CONFIG, seed=3)
    lengths = [max(map(len, prepared.vocabulary.source.encode(list(pair)))) for pair in task.pairs("train")]
    kept = [tuple(pair) for pair, n in zip(task.pairs("train"), lengths, strict=True) if n <= CONFIG.max_length]
    assert batches.epochs.left_out == 300 - len(kept) > 0
    for epoch in range(2):
        steps = range(epoch * len(batches.epochs), (epoch + 1) * len(batches.epochs))
        seen = collections.Counter(pair for step in steps for pair in texts(batches[step], prepared.vocabulary.source))
        assert seen == collections.Counter(kept)


def test_batches_have_few_shapes(path):
    prepared = prepare(translation(path), Sizes(SIZE), quiet)
    batches = TrainingBatches(prepared, CONFIG, seed=0)
    shapes = set()
    for step in range(len(batches.epochs)):
        source, target = batches[step]
        assert len(source.tokens) == len(target.tokens)
        assert max(source.tokens.size, target.tokens.size) <= CONFIG.tokens
        shapes.add((source.tokens.shape, target.tokens.shape))
    assert len(shapes) == CONFIG.shapes


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(itertools.chain(*a), itertools.chain(*b), strict=True))


def test_reading_ahead_is_indexing(path):
    prepared = prepare(translation(path), Sizes(SIZE), quiet)
    batches = TrainingBatches(prepared, CONFIG, seed=1)
    start, stop = 5, len(batches.epochs) + 9  # into the second epoch
    expected = [batches[step] for step in range(start, stop)]
    reader = read_ahead(TrainingBatches(prepared, CONFIG, seed=1), start, stop)
    assert reader.get_state()["next_index"] == start
    for step, batch in enumerate(expected, start):
        assert same(next(reader), batch)
        assert reader.get_state()["next_index"] == step + 1
    with pytest.raises(StopIteration):
        next(reader)


def test_reading_ahead_goes_on_from_a_state(path):
    prepared = prepare(translation(path), Sizes(SIZE), quiet)
    batches = TrainingBatches(prepared, CONFIG, seed=1)
    first = read_ahead(batches, 0, 20)
    for _ in range(12):
        next(first)
    second = read_ahead(TrainingBatches(prepared, CONFIG, seed=1), 0, 20)
    second.set_state(first.get_state())
    rest = list(second)
    assert len(rest) == 8
    assert all(same(a, b) for a, b in zip(rest, first, strict=True))

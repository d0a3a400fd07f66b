"""Batches by like length: little padding, every pair once an epoch, and all of it a function of seed and step."""

import itertools

import numpy as np
import pytest

from t2t.data.batching import (
    BatchingConfig,
    Epochs,
    bucket_lengths,
    evaluation_batches,
    evaluation_length,
    fill,
)
from t2t.errors import UserError


def padded(lengths, bounds):
    """Positions that rows take when each sentence goes to the shortest bound that holds it."""
    return sum(min(bound for bound in bounds if bound >= n) for n in lengths)


def least_padded(lengths, shapes):
    """The same for the best of all choices of at most `shapes` bounds."""
    longest, distinct = max(lengths), sorted(set(lengths))
    choices = itertools.chain.from_iterable(itertools.combinations(distinct, n) for n in range(shapes))
    return min(padded(lengths, [*choice, longest]) for choice in choices)


@pytest.mark.parametrize("shapes", [1, 2, 3, 4])
def test_bucket_lengths_pad_the_least(shapes):
    rng = np.random.default_rng(shapes)
    for _ in range(60):
        lengths = rng.integers(1, 30, size=rng.integers(1, 40)) ** rng.integers(1, 3)
        bounds = bucket_lengths(lengths, shapes)
        assert bounds == sorted(set(bounds))
        assert len(bounds) == min(shapes, len(set(lengths)))
        assert bounds[-1] == max(lengths)
        assert padded(lengths, bounds) == least_padded(lengths.tolist(), shapes)


def lengths(pairs=500, seed=0):
    return np.random.default_rng(seed).integers(1, 60, size=pairs)


CONFIG = BatchingConfig(tokens=256, max_length=50, shapes=4)


def epoch(epochs, number):
    """The batches of an epoch, as lists of pairs."""
    return [epochs.at(number * len(epochs) + i)[0].tolist() for i in range(len(epochs))]


@pytest.mark.parametrize("seed", [0, 7])
def test_every_epoch_gives_each_kept_pair_once(seed):
    epochs = Epochs(lengths(), CONFIG, seed)
    kept = np.flatnonzero(lengths() <= 50).tolist()
    assert epochs.left_out == 500 - len(kept) > 0
    for number in range(4):
        assert sorted(itertools.chain.from_iterable(epoch(epochs, number))) == kept


def test_length_is_that_of_every_epoch_and_seed():
    assert len({len(Epochs(lengths(), CONFIG, seed)) for seed in range(5)}) == 1
    epochs = Epochs(lengths(), CONFIG, 0)
    batches = [epochs.at(step) for step in range(3 * len(epochs))]
    assert all(len(pairs) for pairs, _ in batches)  # no batch is empty
    rows = sum(len(bucket.pairs) for bucket in epochs.buckets)
    assert [sum(len(pairs) for pairs, _ in batches[i * len(epochs) :][: len(epochs)]) for i in range(3)] == [rows] * 3


def test_order_is_a_function_of_seed_and_epoch():
    first, again, other = (Epochs(lengths(), CONFIG, seed) for seed in (3, 3, 4))
    orders = [epoch(first, 0), epoch(first, 1), epoch(first, 2), epoch(other, 0), epoch(other, 1)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert orders[:3] == [epoch(again, number) for number in range(3)]
    pairings = [{frozenset(batch) for batch in order} for order in orders]
    assert all(a != b for a, b in itertools.combinations(pairings, 2))  # not only the batches' order changes


def test_any_step_can_be_asked_for_first():
    one = Epochs(lengths(), CONFIG, 5)
    steps = range(3 * len(one))
    sequential = [one.at(step)[0].tolist() for step in steps]
    two = Epochs(lengths(), CONFIG, 5)
    for step in np.random.default_rng(0).permutation(steps).tolist():
        assert two.at(step)[0].tolist() == sequential[step]
    assert Epochs(lengths(), CONFIG, 5).at(steps[-1])[0].tolist() == sequential[-1]


@pytest.mark.parametrize("tokens", [50, 64, 1_000, 100_000])
def test_batches_hold_their_pairs_within_the_budget(tokens):
    epochs = Epochs(lengths(), BatchingConfig(tokens=tokens, max_length=50, shapes=4), 0)
    assert len(epochs.buckets) == 4
    for shorter, bucket in itertools.pairwise(epochs.buckets):
        assert min(lengths()[bucket.pairs]) > shorter.length
    for step in range(2 * len(epochs)):
        pairs, bucket = epochs.at(step)
        assert bucket.rows * bucket.length <= tokens < (bucket.rows + 1) * bucket.length
        assert len(pairs) <= bucket.rows
        assert max(lengths()[pairs]) <= bucket.length


def test_overlong_pairs_are_left_out_and_counted():
    epochs = Epochs(np.array([3, 9, 10, 11, 400]), BatchingConfig(tokens=20, max_length=10, shapes=2), 0)
    assert epochs.left_out == 2
    assert sorted(itertools.chain.from_iterable(epoch(epochs, 0))) == [0, 1, 2]


def test_more_shapes_than_lengths():
    epochs = Epochs(np.array([4, 4, 9]), BatchingConfig(tokens=20, max_length=10, shapes=8), 0)
    assert [bucket.length for bucket in epochs.buckets] == [4, 9]


def test_budget_below_the_longest_allowed():
    with pytest.raises(UserError, match=r"--batching.tokens 49 cannot hold --batching.max_length 50"):
        Epochs(lengths(), BatchingConfig(tokens=49, max_length=50), 0)


def test_no_pair_is_short_enough():
    with pytest.raises(UserError, match=r"no training pair has at most 2 tokens \(--batching.max_length\)"):
        Epochs(np.array([3, 4]), BatchingConfig(max_length=2), 0)


# ------------------------------------------------------------------------------ Arrays


def test_fill():
    tokens, segments, positions = fill([[5, 6, 1], np.array([7], np.uint16)], 3, 4)
    assert tokens.tolist() == [[5, 6, 1, 0], [7, 0, 0, 0], [0, 0, 0, 0]]
    assert segments.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert np.asarray(positions)[0, :3].tolist() == [0, 1, 2]
    assert positions[1, 0] == 0
    assert {x.dtype for x in (tokens, segments, positions)} == {np.dtype(np.int32)}
    assert {x.shape for x in (tokens, segments, positions)} == {(3, 4)}


@pytest.mark.parametrize("sentences", [[[1, 2, 3]], [[1], [1], [1]]])
def test_fill_never_cuts(sentences):
    with pytest.raises((ValueError, IndexError)):
        fill(sentences, 2, 2)


@pytest.mark.parametrize(("tokens", "length"), [(0, 16), (1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (999, 1024)])
def test_evaluation_length(tokens, length):
    assert evaluation_length(tokens) == length


@pytest.mark.parametrize("budget", [1, 64, 4_096])
def test_evaluation_leaves_nobody_out(budget):
    rng = np.random.default_rng(0)
    sources, targets = [[rng.integers(3, 99, size=n).tolist() for n in rng.integers(1, 80, size=60)] for _ in range(2)]
    sources[7], targets[9] = [3] * 1_000, [4] * 3_000
    batches = evaluation_batches(sources, targets, budget)
    assert sorted(np.concatenate([pairs for pairs, _ in batches]).tolist()) == list(range(60))
    for pairs, batch in batches:
        rows, length = batch.source.tokens.shape
        assert batch.target.tokens.shape == (rows, length)
        assert rows == 1 or rows * length <= budget
        for side, filled in zip((sources, targets), batch, strict=True):
            real = [row[mask == 1].tolist() for row, mask in zip(filled.tokens, filled.segments, strict=True)]
            assert real == [side[i] for i in pairs] + [[]] * (rows - len(pairs))


def test_evaluation_needs_few_shapes():
    sentences = [[3] * n for n in range(1, 129)]
    shapes = {batch.source.tokens.shape for _, batch in evaluation_batches(sentences, sentences, 1_024)}
    assert shapes == {(64, 16), (32, 32), (16, 64), (8, 128)}
    assert evaluation_batches([], [], 1_024) == []


def test_evaluation_sides_must_match():
    with pytest.raises(ValueError, match="zip"):
        evaluation_batches([[1]], [[1], [1]], 64)

"""Batches of packed rows: little padding, every pair once an epoch, and all of it a function of seed and step."""

import itertools
import tracemalloc

import numpy as np
import pytest

from t2t.data.batching import BatchingConfig, Epochs, evaluation_batches, evaluation_length, fill, pack, rooms
from t2t.data.packing import CELL, Room, cells, plan
from t2t.errors import UserError


def lengths(pairs=500, seed=0):
    """Source and target lengths that go together, some above the 50 that CONFIG allows."""
    rng = np.random.default_rng(seed)
    source = rng.integers(1, 60, size=pairs)
    return source, np.clip(source + rng.integers(-5, 8, size=pairs), 1, 70)


CONFIG = BatchingConfig(tokens=256, max_length=50, shapes=3)


def epoch(epochs, number):
    """The batches of an epoch, as lists of pairs."""
    return [epochs.at(number * len(epochs) + i).pairs.tolist() for i in range(len(epochs))]


# ------------------------------------------------------------------------------ Packing


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_places_every_pair_once_where_it_fits(seed):
    rng = np.random.default_rng(seed)
    source, target = rng.integers(1, 41, size=(2, 700)) // rng.integers(1, 5, size=(2, 700)) + 1
    rooms = [Room(10, 12), Room(20, 24), Room(41, 41)]
    planned = plan(source, target, rooms)
    assert [rows.room for rows in planned] == rooms
    placed = np.concatenate([rows.cells for rows in planned])
    assert sorted(placed.tolist()) == sorted(cells(source, target).tolist())
    for rows in planned:
        assert rows.starts[0] == 0 and rows.starts[-1] == len(rows.cells) and (np.diff(rows.starts) > 0).all()
        for begin, end in itertools.pairwise(rows.starts):
            s, t = np.divmod(rows.cells[begin:end], CELL)
            assert s.sum() <= rows.room.source and t.sum() <= rows.room.target


def test_a_plan_leaves_no_row_with_room_for_a_pair_of_a_later_one():
    """First fit: the longest first, so a row is closed only when nothing that is left would fit."""
    source, target = lengths(300, seed=4)
    (rows,) = plan(source, target, [Room(70, 70)])
    for r in range(len(rows) - 1):
        s, t = np.divmod(rows.cells[rows.starts[r] : rows.starts[r + 1]], CELL)
        later_s, later_t = np.divmod(rows.cells[rows.starts[r + 1] :], CELL)
        assert not ((later_s <= 70 - s.sum()) & (later_t <= 70 - t.sum())).any()


@pytest.mark.parametrize(("ratio", "padding"), [(0.6, 0.025), (0.95, 0.025), (1.0, 0.025), (1.6, 0.035)])
def test_rows_are_full_on_both_sides(ratio, padding):
    """Sentences whose lengths go together loosely, as a corpus has them. The largest that fits would leave 4 %."""
    rng = np.random.default_rng(3)
    target = np.clip(rng.lognormal(3.0, 0.4, 20_000), 2, 250).astype(int)
    source = np.clip(ratio * target * rng.lognormal(0, 0.2, 20_000), 1, 250).astype(int)
    tokens = int(source.sum()), int(target.sum())
    planned = plan(source, target, rooms(BatchingConfig(max_length=256), *tokens))
    positions = sum(len(rows) * sum(rows.room) for rows in planned)
    assert 1 - sum(tokens) / positions < padding


def test_memory_goes_with_the_lengths_that_there_are():
    """A limit of ten thousand tokens is no reason for a table of that size squared."""
    tracemalloc.start()
    planned = plan(np.array([3, 4, 5]), np.array([4, 4, 4]), [Room(8000, 10_000)])
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(len(rows.cells) for rows in planned) == 3 and most < 1e6


def test_a_row_holds_one_sentence_pair_where_they_are_not_packed():
    source, target = lengths(300, seed=4)
    planned = plan(source, target, [Room(35, 35), Room(70, 70)], packed=False)
    placed = np.concatenate([rows.cells for rows in planned])
    assert sorted(placed.tolist()) == sorted(cells(source, target).tolist())
    assert all((np.diff(rows.starts) == 1).all() for rows in planned)
    assert [len(rows) for rows in planned] == [n := int((np.maximum(source, target) <= 35).sum()), 300 - n]


def test_rooms_are_halves_and_the_side_with_fewer_tokens_is_narrower():
    config = BatchingConfig(max_length=256, shapes=3)
    assert rooms(config, 100, 100) == [Room(64, 64), Room(128, 128), Room(256, 256)]
    assert rooms(config, 90, 100) == [Room(58, 64), Room(116, 128), Room(256, 256)]
    assert rooms(config, 100, 50) == [Room(64, 32), Room(128, 64), Room(256, 256)]
    assert rooms(BatchingConfig(max_length=2, shapes=9), 5, 5) == [Room(1, 1), Room(2, 2)]


def test_little_is_padding():
    """Lengths as in captions: about fifteen tokens, the target a little longer."""
    rng = np.random.default_rng(0)
    source = np.clip(rng.lognormal(2.7, 0.4, size=30_000).astype(int), 3, 64)
    target = np.clip((source * rng.normal(1.05, 0.2, size=30_000)).astype(int), 3, 64)
    epochs = Epochs(source, target, BatchingConfig(tokens=4_096, max_length=64, shapes=2), 0)
    assert epochs.padding < 0.08
    positions = real = 0
    for step in range(len(epochs)):
        bucket, pairs, _ = epochs.at(step)
        positions += bucket.rows * sum(bucket.room)
        real += int(source[pairs].sum() + target[pairs].sum())
    assert epochs.padding == pytest.approx(1 - real / positions)


# ------------------------------------------------------------------------------ Epochs


@pytest.mark.parametrize("seed", [0, 7])
def test_every_epoch_gives_each_kept_pair_once(seed):
    epochs = Epochs(*lengths(), CONFIG, seed)
    kept = np.flatnonzero(np.maximum(*lengths()) <= 50).tolist()
    assert epochs.left_out == 500 - len(kept) > 0
    for number in range(4):
        assert sorted(itertools.chain.from_iterable(epoch(epochs, number))) == kept


def test_length_is_that_of_every_epoch_and_seed():
    assert len({len(Epochs(*lengths(), CONFIG, seed)) for seed in range(5)}) == 1
    epochs = Epochs(*lengths(), CONFIG, 0)
    batches = [epochs.at(step) for step in range(3 * len(epochs))]
    assert all(len(batch.pairs) for batch in batches)  # no batch is empty
    assert [sum(len(b.pairs) for b in batches[i * len(epochs) :][: len(epochs)]) for i in range(3)] == [
        epochs.pairs
    ] * 3


def test_order_is_a_function_of_seed_and_epoch():
    first, again, other = (Epochs(*lengths(), CONFIG, seed) for seed in (3, 3, 4))
    orders = [epoch(first, 0), epoch(first, 1), epoch(first, 2), epoch(other, 0), epoch(other, 1)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert orders[:3] == [epoch(again, number) for number in range(3)]
    pairings = [{frozenset(batch) for batch in order} for order in orders]
    assert all(a != b for a, b in itertools.combinations(pairings, 2))  # not only the batches' order changes


def test_rows_are_made_up_anew_every_epoch():
    """Lengths are planned once; which pair of a length stands beside which is not."""

    def beside(number):
        batches = [epochs.at(number * len(epochs) + i) for i in range(len(epochs))]
        return {frozenset(b.pairs[b.row == r].tolist()) for b in batches for r in set(b.row.tolist())}

    source = np.random.default_rng(0).integers(3, 8, size=400)
    epochs = Epochs(source, source, CONFIG, 0)
    rows = [{row for row in beside(number) if len(row) > 1} for number in range(2)]
    assert len(rows[0] & rows[1]) < len(rows[0]) / 10


def test_any_step_can_be_asked_for_first():
    one = Epochs(*lengths(), CONFIG, 5)
    steps = range(3 * len(one))
    sequential = [one.at(step).pairs.tolist() for step in steps]
    two = Epochs(*lengths(), CONFIG, 5)
    for step in np.random.default_rng(0).permutation(steps).tolist():
        assert two.at(step).pairs.tolist() == sequential[step]
    assert Epochs(*lengths(), CONFIG, 5).at(steps[-1]).pairs.tolist() == sequential[-1]


@pytest.mark.parametrize("tokens", [50, 64, 1_000, 100_000])
def test_batches_hold_their_pairs_within_the_budget(tokens):
    source, target = lengths()
    epochs = Epochs(source, target, BatchingConfig(tokens=tokens, max_length=50, shapes=3), 0)
    assert 2 <= len(epochs.buckets) <= 3  # fillers may leave the shortest rows nothing
    for step in range(2 * len(epochs)):
        bucket, pairs, row = epochs.at(step)
        assert bucket.rows * max(bucket.room) <= tokens < (bucket.rows + 1) * max(bucket.room)
        assert (np.diff(row) >= 0).all() and row[-1] < bucket.rows
        for side, room in zip((source, target), bucket.room, strict=True):
            assert np.bincount(row, side[pairs]).max() <= room


def test_overlong_pairs_are_left_out_and_counted():
    source, target = np.array([3, 9, 10, 11, 400, 5]), np.array([3, 1, 10, 2, 1, 11])
    epochs = Epochs(source, target, BatchingConfig(tokens=20, max_length=10, shapes=2), 0)
    assert epochs.left_out == 3
    assert epochs.longest == 10
    assert sorted(itertools.chain.from_iterable(epoch(epochs, 0))) == [0, 1, 2]


def test_more_shapes_than_lengths():
    epochs = Epochs(np.array([4, 4, 9]), np.array([4, 4, 9]), BatchingConfig(tokens=20, max_length=10, shapes=8), 0)
    assert [bucket.room for bucket in epochs.buckets] == [Room(5, 5), Room(10, 10)]


def test_budget_below_the_longest_allowed():
    with pytest.raises(UserError, match=r"--batching.tokens 49 cannot hold --batching.max_length 50"):
        Epochs(*lengths(), BatchingConfig(tokens=49, max_length=50), 0)


def test_no_pair_is_short_enough():
    with pytest.raises(UserError, match=r"no training pair has at most 2 tokens \(--batching.max_length\)"):
        Epochs(np.array([3, 4]), np.array([1, 1]), BatchingConfig(max_length=2), 0)


# ------------------------------------------------------------------------------ Arrays


def test_fill():
    tokens, segments, positions = fill([[5, 6, 1], np.array([7], np.uint16)], 3, 4)
    assert tokens.tolist() == [[5, 6, 1, 0], [7, 0, 0, 0], [0, 0, 0, 0]]
    assert segments.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert np.asarray(positions)[0, :3].tolist() == [0, 1, 2]
    assert positions[1, 0] == 0
    assert {x.dtype for x in (tokens, segments, positions)} == {np.dtype(np.int32)}
    assert {x.shape for x in (tokens, segments, positions)} == {(3, 4)}


def test_pack():
    made = pack(np.array([5, 6, 1, 7, 1, 8, 1]), np.array([3, 2, 2]), np.array([0, 0, 2]), 4, 6)
    assert made.tokens.tolist() == [[5, 6, 1, 7, 1, 0], [0] * 6, [8, 1, 0, 0, 0, 0], [0] * 6]
    assert made.segments.tolist() == [[1, 1, 1, 2, 2, 0], [0] * 6, [1, 1, 0, 0, 0, 0], [0] * 6]
    assert made.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0] * 6, [0, 1, 0, 0, 0, 0], [0] * 6]


@pytest.mark.parametrize("row", [[0, 0], [0, 4]])
def test_pack_never_cuts(row):
    with pytest.raises(ValueError, match="do not fit into 4 rows of 4 tokens"):
        pack(np.arange(5), np.array([3, 2]), np.array(row), 4, 4)


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

"""Several sentence pairs in one row, so that few positions are padding.

Which lengths go together is planned once, from how many pairs there are of each length: few plans serve all rows. Which
pairs these are is drawn anew every epoch. Packing one side alone would be easy; here a row has room for both sides, and
the nth sentence of its source is translated by the nth of its target.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

Cell = tuple[int, int]  # tokens of a pair's source and target


class Room(NamedTuple):
    """Tokens that a row holds."""

    source: int
    target: int


class Rows(NamedTuple):
    """Rows of one shape: row r takes pairs of the lengths `cells[starts[r]:starts[r + 1]]`."""

    room: Room
    cells: np.ndarray  # int32 [pairs]: source length * CELL + target length
    starts: np.ndarray  # int64 [rows + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1


CELL = 1 << 15  # more tokens than a packed sentence may have


def cells(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The two lengths of each pair as one number. source, target [pairs], below CELL -> int32 [pairs]."""
    return source.astype(np.int32) * CELL + target.astype(np.int32)


def plan(source: np.ndarray, target: np.ndarray, rooms: list[Room], packed: bool = True) -> list[Rows]:
    """Rows that hold every pair once; `rooms` ascend, and every pair fits into the last.

    A row begins with the longest pair that is left, in the smallest room it fits, and takes the longest that still fits
    until none does; or none but that one, unless `packed`. source, target: lengths [pairs].
    """
    largest = rooms[-1]
    counts = np.zeros((largest.source + 1, largest.target + 1), np.int64)
    np.add.at(counts, (source, target), 1)
    parts: list[list[tuple[list[int], int]]] = [[] for _ in rooms]
    for room, combination, times in _combinations(counts, rooms, packed):
        parts[room].append(([s * CELL + t for s, t in combination], times))
    return [_rows(room, part) for room, part in zip(rooms, parts, strict=True)]


def _rows(room: Room, part: list[tuple[list[int], int]]) -> Rows:
    repeated = [np.tile(np.array(lengths, np.int32), times) for lengths, times in part]
    pairs = np.repeat([len(lengths) for lengths, _ in part], [times for _, times in part])
    starts = np.concatenate([[0], np.cumsum(pairs, dtype=np.int64)])
    return Rows(room, np.concatenate([np.empty(0, np.int32), *repeated]), starts)


def _combinations(counts: np.ndarray, rooms: list[Room], packed: bool) -> Iterator[tuple[int, list[Cell], int]]:
    """Which lengths fill a row of which room together, and how many such rows there are. Empties `counts`."""
    sizes = np.add.outer(*(np.arange(n) / max(n - 1, 1) for n in counts.shape))
    left = np.where(counts > 0, sizes, -1.0)  # the size of each cell that still has pairs
    seeds = sorted(zip(*(axis.tolist() for axis in np.nonzero(counts)), strict=True), key=lambda c: (-sizes[c], c))
    for seed in seeds:
        room = next(i for i, r in enumerate(rooms) if seed[0] <= r.source and seed[1] <= r.target)
        while counts[seed]:
            combination = _fill(seed, rooms[room], counts, left) if packed else [seed]
            used = Counter(combination)
            times = min(int(counts[cell]) // n for cell, n in used.items())
            for cell, n in used.items():
                counts[cell] -= n * times
                left[cell] = sizes[cell] if counts[cell] else -1.0
            yield room, combination, times


def _fill(seed: Cell, room: Room, counts: np.ndarray, left: np.ndarray) -> list[Cell]:
    """The seed, and then the largest that still fits, as long as one does; marks in `left` what it used up."""
    combination, cell = [], seed
    source, target = room
    while True:
        combination.append(cell)
        source, target = source - cell[0], target - cell[1]
        if combination.count(cell) == counts[cell]:
            left[cell] = -1.0
        fits = left[: source + 1, : target + 1]
        s, t = divmod(int(fits.argmax()), fits.shape[1])
        if fits[s, t] < 0:
            return combination
        cell = s, t

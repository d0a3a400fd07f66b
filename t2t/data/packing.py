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
BALANCES = 1.0, 4.0  # each is tried for each row, see `_fill`: more of them gained no more than 0.1 % of positions


def cells(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The two lengths of each pair as one number. source, target [pairs], below CELL -> int32 [pairs]."""
    return source.astype(np.int32) * CELL + target.astype(np.int32)


def plan(source: np.ndarray, target: np.ndarray, rooms: list[Room], packed: bool = True) -> list[Rows]:
    """Rows that hold every pair once; `rooms` ascend, and every pair fits into the last.

    A row begins with the longest pair that is left, in the smallest room it fits, and takes more until none fits; or
    none but that one, unless `packed`. source, target: lengths [pairs].
    """
    left = np.zeros((int(source.max()) + 1, int(target.max()) + 1), np.int64)
    np.add.at(left, (source, target), 1)
    parts: list[list[tuple[list[int], int]]] = [[] for _ in rooms]
    for room, combination, times in _combinations(left, rooms, packed):
        parts[room].append(([s * CELL + t for s, t in combination], times))
    return [_rows(room, part) for room, part in zip(rooms, parts, strict=True)]


def _rows(room: Room, part: list[tuple[list[int], int]]) -> Rows:
    repeated = [np.tile(np.array(lengths, np.int32), times) for lengths, times in part]
    pairs = np.repeat([len(lengths) for lengths, _ in part], [times for _, times in part])
    starts = np.concatenate([[0], np.cumsum(pairs, dtype=np.int64)])
    return Rows(room, np.concatenate([np.empty(0, np.int32), *repeated]), starts)


def _combinations(left: np.ndarray, rooms: list[Room], packed: bool) -> Iterator[tuple[int, list[Cell], int]]:
    """Which lengths fill a row of which room together, and how many such rows there are.

    `left` [source length, target length] says how many pairs there are of each; it ends empty.
    """
    seeds = sorted(
        zip(*(axis.tolist() for axis in np.nonzero(left)), strict=True), key=lambda c: (-_size(c, rooms[-1]), c)
    )
    for seed in seeds:
        number = next(i for i, r in enumerate(rooms) if seed[0] <= r.source and seed[1] <= r.target)
        room = rooms[number]
        while left[seed]:
            combination = [seed]
            if packed:
                tried = [_fill(seed, room, left, balance) for balance in BALANCES]
                combination = max(tried, key=lambda cells: sum(_size(cell, room) for cell in cells))
            used = Counter(combination)
            times = min(int(left[cell]) // n for cell, n in used.items())
            for cell, n in used.items():
                left[cell] -= n * times
            yield number, combination, times


def _size(cell: Cell, room: Room) -> float:
    """The parts of a room's two sides that a pair takes, together."""
    return cell[0] / max(room.source, 1) + cell[1] / room.target


def _fill(seed: Cell, room: Room, left: np.ndarray, balance: float) -> list[Cell]:
    """The seed, and then pair after pair as long as one fits: the largest, less `balance` times what it is to one side.

    That is the difference between the parts of the room's two sides that would be left. Without it one side is full
    while the other is not.
    """
    combination, used = [seed], Counter([seed])
    source, target = room.source - seed[0], room.target - seed[1]
    while True:
        fits = left[: source + 1, : target + 1] > 0
        for cell, n in used.items():
            if n == left[cell] and cell[0] <= source and cell[1] <= target:
                fits[cell] = False
        s, t = np.nonzero(fits)
        if not len(s):
            return combination
        after = (source - s) / max(room.source, 1), (target - t) / room.target
        best = (-after[0] - after[1] - balance * np.abs(after[0] - after[1])).argmax()
        cell = int(s[best]), int(t[best])
        combination.append(cell)
        used[cell] += 1
        source, target = source - cell[0], target - cell[1]

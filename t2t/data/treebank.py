"""Where trees come from: bracketed files, the WSJ as the LDC ships it, and a sample that comes with t2t.

Files are bracketed as in the Penn Treebank, one or many trees a file, one or many lines a tree; they may be compressed.
A broken tree is named with its file, line and reason.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Protocol, runtime_checkable

from t2t.data.corpora import EMBEDDED, SPLITS, digest, matching, read_lines
from t2t.errors import UserError, unknown
from t2t.knobs import Positive
from t2t.trees import BrokenTree, Tree, read

SUFFIX = ".mrg"  # of the files that a folder stands for


@runtime_checkable
class Treebank(Protocol):
    """A frozen dataclass that yields trees by split."""

    def trees(self, split: str) -> Iterator[Tree]:
        """The trees of a split as they stand in its files, in order."""
        ...

    def inputs(self, split: str) -> dict[str, str]:
        """What the split is read from, by name, each with a digest of its content and of how it is read."""
        ...


def read_trees(path: Path) -> Iterator[Tree]:
    """The trees of a bracketed file.

    Raises:
        UserError: it cannot be read, or a tree in it is broken: names the line.
    """
    try:
        yield from read(read_lines(path))
    except BrokenTree as error:
        raise UserError(f"{path}, line {error.line}: {error.reason}") from None


@dataclasses.dataclass(frozen=True)
class Trees:
    """Bracketed files. A split is a file, several by a pattern ("news-*.mrg"), or a folder of .mrg files."""

    train: str = ""  # file, pattern or folder with the training trees
    dev: str = ""  # the same with the trees that guide development
    test: str = ""  # the same with the trees to report on
    folder: str = ""  # where these names start; the working directory unless given

    def files(self, split: str) -> list[Path]:
        """The files of a split, in the order of their names; raises UserError when there are none."""
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if not (name := getattr(self, split)):
            raise UserError(f"this treebank names no file for its {split} split (--task.treebank.{split})")
        return matching(os.path.join(os.path.expanduser(self.folder), name), SUFFIX)

    def inputs(self, split: str) -> dict[str, str]:
        """A digest for each file of the split."""
        return {str(path): digest(path) for path in self.files(split)}

    def trees(self, split: str) -> Iterator[Tree]:
        """The trees of the split, file after file."""
        for path in self.files(split):
            yield from read_trees(path)


SECTIONS = {"train": range(2, 22), "dev": (22,), "test": (23,)}  # of the WSJ: the split of Collins 1999


@dataclasses.dataclass(frozen=True)
class Wsj:
    """The Wall Street Journal part of the Penn Treebank 3 (LDC99T42), in the folders of its release.

    Sections 02 to 21 train, 22 is dev, 23 is test.
    """

    folder: str = "data/treebank_3/parsed/mrg/wsj"  # holds the folders 00 to 24 of .mrg files

    def files(self, split: str) -> list[Path]:
        """The files of a split, section after section; raises UserError when a section is missing."""
        if split not in SECTIONS:
            raise unknown("split", split, SECTIONS)
        return [path for n in SECTIONS[split] for path in self._section(n)]

    def _section(self, number: int) -> list[Path]:
        folder = Path(os.path.expanduser(self.folder)) / f"{number:02}"
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: here belong the sections 00 to 24 of the WSJ, of the LDC's LDC99T42")
        return matching(str(folder), SUFFIX)

    def inputs(self, split: str) -> dict[str, str]:
        """A digest for each file of the split, by section and name."""
        return {f"{path.parent.name}/{path.name}": digest(path) for path in self.files(split)}

    def trees(self, split: str) -> Iterator[Tree]:
        """The trees of the split, file after file."""
        for path in self.files(split):
            yield from read_trees(path)


@dataclasses.dataclass(frozen=True)
class SemiSupervised:
    """A gold treebank with automatically parsed sentences mixed into its training split.

    An epoch has each automatic tree once, and gold trees over and over, one for each `ratio` automatic ones; each gold
    tree at least once.
    """

    gold: Wsj = Wsj()  # the treebank; its dev and test are these
    automatic: str = "data/automatic"  # file, pattern or folder with parses that nobody checked, bracketed
    ratio: Positive = 425.0  # automatic trees for each gold one; paper: about 17 M beside 40,000

    def _automatic(self) -> Trees:
        return Trees(train=self.automatic)

    def inputs(self, split: str) -> dict[str, str]:
        """A digest for each file of the split, and the ratio."""
        found = self.gold.inputs(split)
        if split == "train":
            found |= {**self._automatic().inputs("train"), "ratio": str(self.ratio)}
        return found

    def trees(self, split: str) -> Iterator[Tree]:
        """The trees of the split; of the training split, gold and automatic ones mixed."""
        if split != "train":
            yield from self.gold.trees(split)
            return
        given, gold = 0, cycle(self.gold.trees("train"))
        for number, tree in enumerate(self._automatic().trees("train"), 1):
            yield tree
            due = int(number / self.ratio)
            yield from islice(gold, due - given)
            given = due
        yield from islice(self.gold.trees("train"), given, None)  # those that have had no turn yet


@dataclasses.dataclass(frozen=True)
class EmbeddedTrees:
    """A treebank that comes with t2t; its licence and its authors stand in ATTRIBUTION.md beside it."""

    name: str  # folder below t2t/data/embedded

    def _files(self) -> Trees:
        if self.name not in (names := [path.parent.name for path in EMBEDDED.glob(f"*/train{SUFFIX}.xz")]):
            raise unknown("embedded treebank", self.name, names)
        return Trees(**{split: f"{split}{SUFFIX}.xz" for split in SPLITS}, folder=str(EMBEDDED / self.name))

    def inputs(self, split: str) -> dict[str, str]:
        """A digest of the split's one file."""
        return {Path(name).name: value for name, value in self._files().inputs(split).items()}

    def trees(self, split: str) -> Iterator[Tree]:
        """The trees of the split, in the order of its file."""
        yield from self._files().trees(split)


def describe(counts: Counter[str]) -> dict[str, int]:
    """The counts of `trees.clean` by name, each there even if it is 0."""
    names = ("traces", "empty constituents", "function tags", "outer labels", "trees without words")
    return {name: counts[name] for name in names}

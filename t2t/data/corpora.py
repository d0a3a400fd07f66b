"""Where sentence pairs come from: parallel text files, tab-separated files, and the corpora that t2t carries.

Files may be compressed (.gz, .xz). Every error names the file and, where there is one, the line.
"""

import dataclasses
import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from t2t.data.task import Pair
from t2t.errors import UserError, unknown
from t2t.knobs import Whole

SPLITS = ("train", "dev", "test")
EMBEDDED = Path(__file__).parent / "embedded"
OPENERS = {".gz": gzip.open, ".xz": lzma.open}  # by suffix


@runtime_checkable
class Corpus(Protocol):
    """A frozen dataclass that yields pairs by split."""

    def pairs(self, split: str) -> Iterator[Pair]:
        """The pairs of a split, in the order of its files."""
        ...

    def fingerprint(self, split: str) -> str:
        """A digest of the split's files and of how they are read."""
        ...


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file without their ends, decompressed by its suffix.

    Raises:
        UserError: no such file, not readable, not UTF-8 (named by line), or broken compression.
    """
    opened = OPENERS.get(path.suffix, open)
    number = 0
    try:
        with opened(path, "rb") as file:
            for line in file:
                number += 1
                yield line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not UTF-8 (byte {error.start + 1} of the line)") from None
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise UserError(f"{path}: broken compression after line {number}: {error}") from None
    except FileNotFoundError:
        raise UserError(f"no file {path}{_near(path)}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent} either"
    names = [p.name for p in path.parent.iterdir()]
    return "; " + str(unknown("file", path.name, names)).partition("; ")[2] if names else f"; {path.parent} is empty"


def _path(split: str, where: str) -> Path:
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if not where:
        raise UserError(f"this corpus names no file for its {split} split")
    return Path(os.path.expanduser(where))


def digest(files: list[Path], *reading: int) -> str:
    """SHA-256 over what the files hold and `reading`, the settings they are read with.

    Raises:
        UserError: a file is missing or not readable.
    """
    total = hashlib.sha256(repr(reading).encode())
    for path in files:
        total.update(path.suffix.encode() if path.suffix in OPENERS else b"")
        try:
            with open(path, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        except FileNotFoundError:
            raise UserError(f"no file {path}{_near(path)}") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
    return total.hexdigest()


def _columns(path: Path, source: int, target: int) -> Iterator[Pair]:
    number = 0
    for number, line in enumerate(read_lines(path), 1):
        fields = line.split("\t")
        if len(fields) <= max(source, target):
            given = f"{len(fields)} tab-separated field(s)"
            raise UserError(f"{path}, line {number}: {given}, but column {max(source, target)} is asked for, from 0")
        yield Pair(fields[source], fields[target])
    if not number:
        raise UserError(f"{path} is empty")


@dataclasses.dataclass(frozen=True)
class Tsv:
    """Tab-separated files, one pair a line."""

    train: str = ""  # file with the training pairs
    dev: str = ""  # file with the pairs that guide development
    test: str = ""  # file with the pairs to report on
    source_column: Whole = 0  # column of the source sentence, from 0
    target_column: Whole = 1  # column of the target sentence, from 0

    def files(self, split: str) -> list[Path]:
        """The one file of the split."""
        return [_path(split, getattr(self, split, ""))]

    def fingerprint(self, split: str) -> str:
        """A digest of the split's file and of the columns read from it."""
        return digest(self.files(split), self.source_column, self.target_column)

    def pairs(self, split: str) -> Iterator[Pair]:
        """The pairs of the split, in the order of its file."""
        yield from _columns(self.files(split)[0], self.source_column, self.target_column)


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """Two plain text files a split: line n of one translates line n of the other."""

    train_source: str = ""  # file with the source side of the training pairs
    train_target: str = ""  # file with their target side
    dev_source: str = ""  # the same for the dev split
    dev_target: str = ""  # the same for the dev split
    test_source: str = ""  # the same for the test split
    test_target: str = ""  # the same for the test split

    def files(self, split: str) -> list[Path]:
        """Source file, target file."""
        return [_path(split, getattr(self, f"{split}_{side}", "")) for side in ("source", "target")]

    def fingerprint(self, split: str) -> str:
        """A digest of the split's two files."""
        return digest(self.files(split))

    def pairs(self, split: str) -> Iterator[Pair]:
        """The pairs of the split; raises UserError when the files differ in their number of lines."""
        yield from parallel(*self.files(split))


def parallel(source: Path, target: Path) -> Iterator[Pair]:
    """The pairs of two files, line by line.

    Raises:
        UserError: the files differ in their number of lines, or are empty.
    """
    sources, targets = read_lines(source), read_lines(target)
    count = 0
    while True:
        ends = next(sources, None), next(targets, None)
        if ends[0] is None or ends[1] is None:
            break
        count += 1
        yield Pair(ends[0], ends[1])
    left = [count + (ends[i] is not None) + sum(1 for _ in rest) for i, rest in enumerate((sources, targets))]
    if left[0] != left[1]:
        raise UserError(f"{source} has {left[0]} lines, but {target} has {left[1]}: they must match line by line")
    if not count:
        raise UserError(f"{source} and {target} are empty")


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A corpus that comes with t2t; its licence and its authors stand in ATTRIBUTION.md beside it."""

    name: str  # folder below t2t/data/embedded
    source_column: Whole = 0  # column of the source sentence: 0 is English
    target_column: Whole = 1  # column of the target sentence: 1 is the other language

    def files(self, split: str) -> list[Path]:
        """The one file of the split."""
        if self.name not in (names := sorted(p.name for p in EMBEDDED.iterdir())):
            raise unknown("embedded corpus", self.name, names)
        return [_path(split, str(EMBEDDED / self.name / f"{split}.tsv.gz"))]

    def fingerprint(self, split: str) -> str:
        """A digest of the split's file and of the columns read from it."""
        return digest(self.files(split), self.source_column, self.target_column)

    def pairs(self, split: str) -> Iterator[Pair]:
        """The pairs of the split, in the order of its file."""
        yield from _columns(self.files(split)[0], self.source_column, self.target_column)

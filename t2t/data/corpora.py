"""Where sentence pairs come from: text files, plain or compressed, and the corpora that t2t carries.

Files may be compressed (.gz, .xz, .zst). Every error names the file and, where there is one, the line.
"""

import dataclasses
import glob
import gzip
import hashlib
import lzma
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from t2t.data.task import Pair
from t2t.errors import UserError, unknown
from t2t.knobs import Whole

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SPLITS = ("train", "dev", "test")
EMBEDDED = Path(__file__).parent / "embedded"


OPENERS: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".zst": zstd.open}  # by suffix


@runtime_checkable
class Corpus(Protocol):
    """A frozen dataclass that yields pairs by split."""

    def pairs(self, split: str) -> Iterator[Pair]:
        """The pairs of a split, in the order of its files.

        Bytes of the training split that are not UTF-8 are kept as lone surrogates: preparing drops and counts them.
        """
        ...

    def inputs(self, split: str) -> dict[str, str]:
        """What the split is read from, by name, each with a digest of its content and of how it is read."""
        ...


# ------------------------------------------------------------------------------ Files


def read_lines(path: Path, errors: str = "strict") -> Iterator[str]:
    """The lines of a UTF-8 text file without their ends, decompressed by its suffix.

    `errors` is that of bytes.decode. Raises:
        UserError: no such file, not readable, not UTF-8 (named by line), or broken compression.
    """
    opened = OPENERS.get(path.suffix, open)
    number = 0
    try:
        with _named(path), opened(path, "rb") as file:
            for line in file:
                number += 1
                yield line.decode("utf-8", errors).rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not UTF-8 (byte {error.start + 1} of the line)") from None
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstd.ZstdError, EOFError) as error:
        raise UserError(f"{path}: broken compression after line {number}: {error}") from None


class _named:
    """Says which file is missing or cannot be read; a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, FileNotFoundError):
            raise UserError(f"no file {self._path}{_near(self._path)}") from None
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise UserError(f"cannot read {self._path}: {error.strerror}") from None


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent} either"
    names = [p.name for p in path.parent.iterdir()]
    return "; " + str(unknown("file", path.name, names)).partition("; ")[2] if names else f"; {path.parent} is empty"


def digest(path: Path, *reading: int) -> str:
    """SHA-256 of a file, and how it is read: decompressed or not, and the settings in `reading`.

    Raises:
        UserError: it is missing or not readable.
    """
    with _named(path), open(path, "rb") as file:
        total = hashlib.file_digest(file, "sha256").hexdigest()
    compressed = f" {path.suffix}" if path.suffix in OPENERS else ""
    return f"{total}{compressed}" + (f" columns {reading}" if reading else "")


def on_broken(split: str) -> str:
    """The `errors` of bytes.decode for the text of a split: see `Corpus.pairs`."""
    return "surrogateescape" if split == "train" else "strict"


def parallel(source: Path, target: Path, errors: str = "strict") -> Iterator[Pair]:
    """The pairs of two files, line by line.

    Raises:
        UserError: the files differ in their number of lines, or are empty.
    """
    sources, targets = read_lines(source, errors), read_lines(target, errors)
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


def columns(path: Path, source: int, target: int, errors: str = "strict") -> Iterator[Pair]:
    """Two columns, counted from 0, of a tab-separated file.

    Raises:
        UserError: a line has fewer columns, or there is none.
    """
    number = 0
    for number, line in enumerate(read_lines(path, errors), 1):
        fields = line.split("\t")
        if len(fields) <= max(source, target):
            given = f"{len(fields)} tab-separated field(s)"
            raise UserError(f"{path}, line {number}: {given}, but column {max(source, target)} is asked for, from 0")
        yield Pair(fields[source], fields[target])
    if not number:
        raise UserError(f"{path} is empty")


# ------------------------------------------------------------------------------ Text of the user's


class Piece(NamedTuple):
    """A part of a split: a tab-separated file, or two files that match line by line."""

    source: Path
    target: Path | None = None


@dataclasses.dataclass(frozen=True)
class Text:
    """Text files. A split is one of

    - a tab-separated file: "train.tsv";
    - two files that match line by line, with a comma between: "train.en,train.de";
    - several of either, by a pattern ("news-*.en,news-*.de") or as a folder of .tsv files.
    """

    train: str = ""  # file, two files, pattern or folder with the training pairs
    dev: str = ""  # the same with the pairs that guide development
    test: str = ""  # the same with the pairs to report on
    folder: str = ""  # where these names start; the working directory unless given
    source_column: Whole = 0  # column of the source sentence in a tab-separated file, from 0
    target_column: Whole = 1  # column of the target sentence, from 0

    def pieces(self, split: str) -> list[Piece]:
        """The files of a split, patterns resolved, in the order of their names.

        Raises:
            UserError: no such split, nothing is named for it, or a pattern matches nothing.
        """
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if not (where := getattr(self, split)):
            how = f"--task.corpus.{split} PAIRS.tsv, or SOURCES,TARGETS"
            raise UserError(f"this corpus names no file for its {split} split: give {how}")
        folder = os.path.expanduser(self.folder)
        sides = [matching(os.path.join(folder, name.strip()), ".tsv") for name in where.split(",")]
        if len(sides) == 1:
            return [Piece(path) for path in sides[0]]
        if len(sides) > 2 or len(sides[0]) != len(sides[1]):
            counts = " and ".join(f"{len(side)} file(s)" for side in sides)
            raise UserError(f"{where!r} names {counts}; allowed: one tab-separated file, or as many source as target")
        return [Piece(*both) for both in zip(*sides, strict=True)]

    def inputs(self, split: str) -> dict[str, str]:
        """A digest for each file of the split."""
        found = {}
        for source, target in self.pieces(split):
            both = {source: (), target: ()} if target else {source: (self.source_column, self.target_column)}
            found.update({str(path): digest(path, *reading) for path, reading in both.items()})
        return found

    def pairs(self, split: str) -> Iterator[Pair]:
        """The pairs of the split, file after file."""
        errors = on_broken(split)
        for source, target in self.pieces(split):
            if target:
                yield from parallel(source, target, errors)
            else:
                yield from columns(source, self.source_column, self.target_column, errors)


def matching(name: str, suffix: str) -> list[Path]:
    """The files that a name, a pattern or a folder stands for: of a folder those of `suffix`, compressed or not.

    Raises:
        UserError: a pattern or a folder without such a file. A plain name is not looked up; one that is there is plain.
    """
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        endings = tuple(suffix + compressed for compressed in ("", *OPENERS))
        found = sorted(p for p in path.iterdir() if p.name.endswith(endings) and p.is_file())
        if not found:
            raise UserError(f"no {suffix} file in the folder {path}; name files or a pattern, such as {path}/*.txt")
        return found
    if glob.has_magic(name) and not path.exists():
        found = sorted(map(Path, glob.glob(str(path))))
        if not found:
            raise UserError(f"no file matches {path}{_near(path)}")
        return found
    return [path]


# ------------------------------------------------------------------------------ What comes with t2t


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A corpus that comes with t2t; its licence and its authors stand in ATTRIBUTION.md beside it."""

    name: str  # folder below t2t/data/embedded
    source_column: Whole = 0  # column of the source sentence: 0 is English
    target_column: Whole = 1  # column of the target sentence: 1 is the other language

    def _text(self) -> Text:
        if self.name not in (names := sorted(p.name for p in EMBEDDED.iterdir())):
            raise unknown("embedded corpus", self.name, names)
        files = {split: f"{split}.tsv.gz" for split in SPLITS}
        folder = str(EMBEDDED / self.name)
        return Text(**files, folder=folder, source_column=self.source_column, target_column=self.target_column)

    def inputs(self, split: str) -> dict[str, str]:
        """A digest of the split's one file, and how it is read."""
        return {Path(name).name: value for name, value in self._text().inputs(split).items()}

    def pairs(self, split: str) -> Iterator[Pair]:
        """The pairs of the split, in the order of its file."""
        yield from self._text().pairs(split)

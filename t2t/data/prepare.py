"""A task's training data made ready once, for all runs: vocabularies, tokenised pairs on disk, a report on the data.

The folder of prepared data is named by a fingerprint of the files, of how they are read and cleaned, and of the
vocabularies. It appears whole or not at all. What is unfinished lies beside it and is gone on with, chunk by chunk, by
whoever needs it next. Pairs stream from the files to the disk: memory holds a few numbers a pair, never its text.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs

from t2t import storage
from t2t.batch import UNK
from t2t.data.cleaning import Cleaning, first_fault
from t2t.data.linearisation import Counted, TreeVocabulary
from t2t.data.task import Pair, Task, fingerprint
from t2t.data.vocabulary import Vocabularies, Vocabulary, count_words
from t2t.errors import UserError

FORMAT = 3  # raise it when the layout of a prepared folder changes
TOKEN = np.dtype("<u2")  # ids of up to 65,536 pieces; larger vocabularies take <u4
CHUNK = 10_000  # pairs tokenised at a time
EVERY = 10.0  # seconds between two words of progress
SIDES = ("source", "target")

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A task's training data, ready to batch."""

    folder: Path
    vocabulary: Vocabularies
    fingerprint: str
    report: dict[str, Any]  # inputs with their digests; pairs read, kept, dropped and why; tokens, lengths

    def side(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of "source" or "target": all tokens, and for each kept pair where they begin and how many, EOS counted."""
        file, dtype = f"{name}.tokens", np.dtype(self.report["dtype"])
        tokens = np.memmap(self.folder / file, dtype, mode="r") if self.report["sizes"][file] else np.empty(0, dtype)
        return tokens, *(np.load(self.folder / f"{name}.{part}.npy", mmap_mode="r") for part in ("starts", "lengths"))

    def hashes(self, name: str) -> np.ndarray:
        """A number for the text of each kept sentence of "source" or "target"."""
        return np.load(self.folder / f"{name}.hashes.npy", mmap_mode="r")


def cache_folder() -> Path:
    """$T2T_DATA, or the user's cache folder."""
    return Path(os.environ.get("T2T_DATA") or platformdirs.user_cache_dir("t2t"))


class Sizes(NamedTuple):
    """Of vocabularies."""

    source: int
    target: int = 0  # 0: both sides share one


def prepare(task: Task, sizes: Sizes, say: Say, vocabulary: Vocabularies | None = None) -> Prepared:
    """The task's vocabularies and tokenised training pairs, made now unless they were before.

    With a `vocabulary`, which weights that are trained further bring along, none is made.

    Raises:
        UserError: data or vocabulary are missing or broken, the sizes are no sizes for the task, or the cache folder
            cannot be written.
    """
    given = vocabulary or _given(task, sizes)
    inputs = task.inputs("train")
    cleaning = dataclasses.astuple(task.cleaning)
    key = [FORMAT, fingerprint(inputs), cleaning, given.fingerprint if given else sizes.source]
    if task.linearisation:
        key += [sizes.target, dataclasses.astuple(task.linearisation)]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    folder = cache_folder() / "prepared" / name[:20]
    found = _read(folder)
    if not found:
        with _alone(folder, say):
            found = _read(folder) or _build(folder, task, given, sizes, say)
    vocabulary, report = found
    return Prepared(folder, vocabulary, name, {"inputs": inputs, **report})


def _given(task: Task, sizes: Sizes) -> Vocabulary | None:
    """The user's own vocabulary, if there is one; the sizes are checked."""
    if task.linearisation and not sizes.target:
        raise UserError("--model.target_vocab_size must be above 0: trees have a vocabulary of their own")
    if sizes.target and not task.linearisation:
        raise UserError(f"--model.target_vocab_size must be 0, not {sizes.target}: both sides share one vocabulary")
    if not (file := task.vocabulary_file()):
        return None
    given = Vocabulary.load(Path(os.path.expanduser(file)))
    if len(given) != sizes.source:
        raise UserError(f"{file} has {len(given)} pieces, but --model.vocab_size is {sizes.source}")
    return given


def _read(folder: Path) -> tuple[Vocabularies, dict[str, Any]] | None:
    """Vocabularies and report of a prepared folder; None unless all files have the sizes that the report gives."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        vocabulary = Vocabularies.load(folder)
        if any((folder / file).stat().st_size != size for file, size in report["sizes"].items()):
            return None
    except (OSError, ValueError, KeyError, UserError):
        return None
    return vocabulary, report


@contextlib.contextmanager
def _alone(folder: Path, say: Say) -> Iterator[None]:
    """Keeps other processes from preparing the same: they wait, and then find it done."""
    try:
        waiting = f"another process is preparing {folder}; waiting for it"
        with storage.alone(folder.with_suffix(".lock"), lambda: say(waiting)):
            yield
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror} (set T2T_DATA to another folder)") from None


# ------------------------------------------------------------------------------ Making it


def _build(
    folder: Path, task: Task, given: Vocabularies | Vocabulary | None, sizes: Sizes, say: Say
) -> tuple[Vocabularies, dict[str, Any]]:
    """Writes the prepared folder beside its place, or goes on with what lies there, and renames it."""
    if folder.is_dir():
        say(f"{folder} is damaged: it is made anew")
        shutil.rmtree(folder)
    beside = folder.with_suffix(storage.UNFINISHED)
    say(f"{'going on with' if beside.is_dir() else 'preparing'} the training pairs, once, in {folder}")
    beside.mkdir(exist_ok=True)
    counted = beside / "facts.json"  # written last: with it the vocabularies are whole
    if not counted.is_file():
        for name, content in _vocabularies(task, given, sizes, say).files().items():
            _write(beside / name, content)
        _write(counted, json.dumps(task.facts("train")).encode())
    vocabulary = Vocabularies.load(beside)
    stored = _Tokenised(beside, max(map(len, vocabulary)))
    stored.extend(task, vocabulary, say)
    facts = json.loads(counted.read_text(encoding="utf-8"))
    counted.unlink()
    report = {"reading": facts, **stored.finish(task.cleaning)}
    _write(beside / "report.json", json.dumps(report, indent=1).encode())
    beside.rename(folder)
    return vocabulary, report


def _vocabularies(task: Task, given: Vocabularies | Vocabulary | None, sizes: Sizes, say: Say) -> Vocabularies:
    """Made from the training pairs that are text."""
    if isinstance(given, Vocabularies):
        return given
    words: Counter[str] = Counter()
    trees = Counted(Counter(), {})
    if given and not task.linearisation:
        return Vocabularies(given, given)
    for chunk in _chunks(task.pairs("train"), "counting words for the vocabulary", 0, say):
        whole = [pair for pair in chunk if not first_fault(pair, task.has_sources)]
        if task.linearisation:
            count_words((pair.source for pair in whole), words)
            trees.add((pair.target for pair in whole), task.linearisation)
        else:
            count_words(chain.from_iterable(whole), words)
    source = given or Vocabulary.train(words, sizes.source)
    target = TreeVocabulary.of(trees, sizes.target, task.linearisation) if task.linearisation else source
    return Vocabularies(source, target)


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    beside = path.with_suffix(storage.UNFINISHED)
    beside.write_bytes(content)
    beside.replace(path)


def _chunks(pairs: Iterator[Pair], doing: str, done: int, say: Say) -> Iterator[list[Pair]]:
    """Lists of CHUNK pairs, each read while the one before it is used; says now and then how far it is."""
    begin = last = time.monotonic()
    read = 0
    with ThreadPoolExecutor(1) as reader:
        chunk = reader.submit(lambda: list(islice(pairs, CHUNK)))
        while found := chunk.result():
            chunk = reader.submit(lambda: list(islice(pairs, CHUNK)))
            yield found
            read += len(found)
            if (now := time.monotonic()) - last > EVERY:
                say(f"{doing}: {done + read:,} pairs, {read / (now - begin):,.0f} a second")
                last = now


class Progress(NamedTuple):
    """What the files of an unfinished folder hold for certain."""

    pairs: int = 0  # read from the corpus
    stored: int = 0
    tokens: tuple[int, int] = (0, 0)
    unknown: tuple[int, int] = (0, 0)  # tokens that stand for what the vocabulary has no piece for
    dropped: dict[str, int] = {}  # by reason


class _Tokenised:
    """The files of tokenised pairs in an unfinished folder."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._folder = folder
        self._dtype = TOKEN if vocab_size <= 1 << 16 else np.dtype("<u4")
        self._columns = {
            f"{side}.{part}": dtype
            for side in SIDES
            for part, dtype in (("tokens", self._dtype), ("lengths", np.dtype("<u4")), ("hashes", np.dtype("<u8")))
        }
        try:
            self._progress = Progress(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self._progress = Progress()

    def extend(self, task: Task, vocabulary: Vocabularies, say: Say) -> None:
        """Adds the training pairs that are not there yet; after each chunk it is on record how far that is."""
        pairs = task.pairs("train")
        for _ in islice(pairs, self._progress.pairs):
            pass
        with contextlib.ExitStack() as stack:
            files = {}
            for name, dtype in self._columns.items():
                path = self._folder / name
                path.touch()
                tokens = self._progress.tokens[SIDES.index(name.split(".")[0])]
                count = tokens if name.endswith("tokens") else self._progress.stored
                os.truncate(path, count * dtype.itemsize)  # what a killed process wrote past its record
                files[name] = stack.enter_context(open(path, "ab"))
            for chunk in _chunks(pairs, "tokenising", self._progress.pairs, say):
                columns, self._progress = _tokenise(chunk, vocabulary, task, self._progress)
                for name, values in columns.items():
                    files[name].write(values.astype(self._columns[name]).tobytes())
                    files[name].flush()
                _write(self._folder / "progress.json", json.dumps(self._progress._asdict()).encode())

    def finish(self, cleaning: Cleaning) -> dict[str, Any]:
        """Leaves out duplicates, writes where each kept sentence begins, and reports."""
        progress = self._progress
        numbers = {name: dtype for name, dtype in self._columns.items() if not name.endswith("tokens")}
        stored = {name: np.fromfile(self._folder / name, dtype) for name, dtype in numbers.items()}
        kept = np.arange(progress.stored)
        if cleaning.duplicates == "drop":
            kept = _first_of_each(*(stored[f"{side}.hashes"] for side in SIDES))
        if not len(kept):
            raise UserError("the training split has no pair with text on both sides that cleaning keeps")
        lengths = {}
        for side in SIDES:
            every = stored[f"{side}.lengths"]
            starts = np.cumsum(every, dtype=np.int64) - every
            lengths[side] = every[kept]
            np.save(self._folder / f"{side}.starts.npy", starts[kept])
            np.save(self._folder / f"{side}.lengths.npy", lengths[side])
            np.save(self._folder / f"{side}.hashes.npy", stored[f"{side}.hashes"][kept])
        for name in ("progress.json", *stored):
            (self._folder / name).unlink()
        dropped = {**progress.dropped, "duplicate": progress.stored - len(kept)}
        return {
            "pairs": progress.pairs,
            "kept": len(kept),
            "dropped": dropped,
            "unknown": dict(zip(SIDES, progress.unknown, strict=True)),
            "lengths": {side: _distribution(values) for side, values in lengths.items()},
            "dtype": self._dtype.str,
            "sizes": {p.name: p.stat().st_size for p in sorted(self._folder.iterdir())},
        }


def _tokenise(
    chunk: list[Pair], vocabulary: Vocabularies, task: Task, progress: Progress
) -> tuple[dict[str, np.ndarray], Progress]:
    """What to add to each file for a chunk, and the progress after it."""
    faults = [first_fault(pair, task.has_sources) for pair in chunk]
    whole = [pair for pair, fault in zip(chunk, faults, strict=True) if not fault]
    ids = vocabulary.encode(whole, task.has_sources)
    lengths = [np.fromiter(map(len, sentences), np.int64, len(whole)) for sentences in ids]
    alike = task.cleaning.alike(*lengths)
    dropped = Counter(progress.dropped) + Counter(filter(None, faults))
    dropped["ratio"] += int((~alike).sum())
    columns, tokens, unknown = {}, [], []
    for side, name in enumerate(SIDES):
        kept = [sentence for sentence, keep in zip(ids[side], alike, strict=True) if keep]
        texts = [pair[side] for pair, keep in zip(whole, alike, strict=True) if keep]
        flat = np.fromiter(chain.from_iterable(kept), np.int64)
        columns |= {f"{name}.tokens": flat, f"{name}.lengths": lengths[side][alike], f"{name}.hashes": hashes(texts)}
        tokens.append(progress.tokens[side] + len(flat))
        unknown.append(progress.unknown[side] + int((flat == UNK).sum()))
    stored = progress.stored + int(alike.sum())
    after = Progress(progress.pairs + len(chunk), stored, tuple(tokens), tuple(unknown), dict(dropped))
    return columns, after


def hashes(texts: list[str]) -> np.ndarray:
    """A 64-bit number for each text without its outer spaces; two texts of 36 million share one by a chance of 4e-5."""
    digests = (hashlib.blake2b(text.strip().encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), "<u8")


def _first_of_each(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The places, ascending, at which a pair of hashes stands for the first time."""
    both = source ^ (target * np.uint64(0x9E3779B97F4A7C15))  # an odd number: the order of the two counts
    return np.sort(np.unique(both, return_index=True)[1])


def _distribution(lengths: np.ndarray) -> dict[str, float]:
    """Of the lengths of a side: their sum, mean, quantiles and the longest."""
    quantiles = {f"{q}%": int(np.percentile(lengths, q, method="lower")) for q in (50, 90, 99)}
    mean = round(float(lengths.mean()), 2)
    return {"tokens": int(lengths.sum(dtype=np.int64)), "mean": mean, **quantiles, "longest": int(lengths.max())}


# ------------------------------------------------------------------------------ What else there is to know of the data


def overlap(task: Task, prepared: Prepared, split: str) -> dict[str, int]:
    """How many pairs of "dev" or "test" stand in the training set as they are, and how many of either of their sides.

    {"pairs" of the split, "both": the same pair, "source", "target": the same sentence}. Raises UserError when the
    split cannot be read or is empty.
    """
    pairs = list(task.pairs(split))
    if not pairs:
        raise UserError(f"the {split} split is empty")
    mine = [hashes(list(side)) for side in zip(*pairs, strict=True)]
    theirs = [prepared.hashes(name) for name in SIDES]
    known = [_is_in(there, here) for there, here in zip(theirs, mine, strict=True)]
    found = {
        name: int(np.isin(here, there[where]).sum())
        for name, here, there, where in zip(SIDES, mine, theirs, known, strict=True)
    }
    trained = set(zip(*(there[known[0] & known[1]].tolist() for there in theirs), strict=True))
    both = sum(pair in trained for pair in zip(*(here.tolist() for here in mine), strict=True))
    return {"pairs": len(mine[0]), "both": both, **found}


def _is_in(many: np.ndarray, few: np.ndarray) -> np.ndarray:
    """Which of `many` are among `few`, without sorting the many."""
    few = np.unique(few)
    place = np.searchsorted(few, many)
    return few[np.minimum(place, len(few) - 1)] == many

"""From a task to training batches: the vocabulary, the tokenised cache on disk, and reading ahead.

`prepare` does the work once: its folder below the cache is named by a fingerprint of the data, the reading and the
vocabulary, and appears whole or not at all.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from t2t.batch import Batch
from t2t.data.batching import BatchingConfig, Epochs, pack
from t2t.data.task import Pair, Task, fingerprint
from t2t.data.vocabulary import Vocabulary
from t2t.errors import UserError

FORMAT = 1  # raise it when the layout of a prepared folder changes
TOKEN = np.dtype("<u2")  # ids of up to 65,536 pieces; larger vocabularies take <u4
CHUNK = 10_000  # pairs tokenised at a time


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A task's training data, ready to batch."""

    folder: Path
    vocabulary: Vocabulary
    fingerprint: str
    report: dict[str, Any]  # pairs read, kept, dropped; tokens a side

    def side(self, name: str) -> tuple[np.memmap, np.ndarray]:
        """Tokens of all sentences of "source" or "target" end to end, and where each begins [pairs + 1]."""
        dtype = np.dtype(self.report["dtype"])
        tokens = np.memmap(self.folder / f"{name}.tokens", dtype, mode="r")
        return tokens, np.load(self.folder / f"{name}.offsets.npy")


def cache_folder() -> Path:
    """$T2T_DATA, or the user's cache folder."""
    return Path(os.environ.get("T2T_DATA") or platformdirs.user_cache_dir("t2t"))


def prepare(task: Task, vocab_size: int, say: Callable[[str], None]) -> Prepared:
    """The task's vocabulary and tokenised training pairs, made now unless they were before.

    Raises:
        UserError: data or vocabulary are missing or broken, or the cache folder cannot be written.
    """
    given = task.vocabulary_file()
    vocabulary = Vocabulary.load(Path(os.path.expanduser(given))) if given else None
    if vocabulary and len(vocabulary) != vocab_size:
        raise UserError(f"{given} has {len(vocabulary)} pieces, but --model.vocab_size is {vocab_size}")
    inputs = task.inputs("train")
    key = [FORMAT, fingerprint(inputs), vocabulary.fingerprint if vocabulary else vocab_size]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    folder = cache_folder() / "prepared" / name[:20]
    if folder.is_dir() and not _whole(folder):
        say(f"{folder} is damaged: it is made anew")
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.is_dir():
        say(f"preparing the training pairs, once, in {folder}")
        _build(folder, task, vocabulary, vocab_size)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return Prepared(folder, Vocabulary.load(folder / "vocabulary.model"), name, {"inputs": inputs, **report})


def _whole(folder: Path) -> bool:
    """Whether the files of a prepared folder are there in the sizes that its report gives."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        Vocabulary.load(folder / "vocabulary.model")
        for side in ("source", "target"):
            offsets = np.load(folder / f"{side}.offsets.npy")
            size = (folder / f"{side}.tokens").stat().st_size
            if len(offsets) != report["kept"] + 1 or size != offsets[-1] * np.dtype(report["dtype"]).itemsize:
                return False
    except (OSError, ValueError, KeyError, EOFError, UserError):
        return False
    return True


def _build(folder: Path, task: Task, vocabulary: Vocabulary | None, vocab_size: int) -> None:
    """Writes the prepared folder beside its place and renames it."""
    beside = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        beside.chmod(0o755)  # a cache may be shared
        vocabulary = vocabulary or Vocabulary.train(chain.from_iterable(task.pairs("train")), vocab_size)
        (beside / "vocabulary.model").write_bytes(vocabulary.model)
        report = _tokenise(beside, task.pairs("train"), vocabulary)
        (beside / "report.json").write_text(json.dumps(report, indent=1))
        beside.rename(folder)
    except OSError as error:
        if folder.is_dir():  # another process was quicker: its folder holds the same
            return
        raise UserError(f"cannot write {folder}: {error.strerror} (set T2T_DATA to another folder)") from None
    finally:
        if beside:
            shutil.rmtree(beside, ignore_errors=True)


def _tokenise(folder: Path, pairs: Iterator[Pair], vocabulary: Vocabulary) -> dict[str, Any]:
    """Writes both sides' tokens as they come, and then where each sentence begins. Pairs with an empty side go."""
    dtype = TOKEN if len(vocabulary) <= 1 << 16 else np.dtype("<u4")
    lengths: tuple[list[int], list[int]] = [], []
    read = 0
    with open(folder / "source.tokens", "wb") as source, open(folder / "target.tokens", "wb") as target:
        while chunk := list(islice(pairs, CHUNK)):
            read += len(chunk)
            chunk = [pair for pair in chunk if _has_text(pair.source) and _has_text(pair.target)]
            for file, texts, seen in zip((source, target), zip(*chunk, strict=True), lengths, strict=False):
                ids = vocabulary.encode(list(texts))
                seen.extend(map(len, ids))
                file.write(np.fromiter(chain.from_iterable(ids), dtype).tobytes())
    kept = len(lengths[0])
    if not kept:
        raise UserError("the training split has no pair with text on both sides")
    for name, seen in zip(("source", "target"), lengths, strict=True):
        np.save(folder / f"{name}.offsets.npy", np.concatenate([[0], np.cumsum(seen)]))
    tokens = {f"{name}_tokens": sum(seen) for name, seen in zip(("source", "target"), lengths, strict=True)}
    return {"pairs": read, "kept": kept, "empty": read - kept, **tokens, "dtype": dtype.str}


def _has_text(text: str) -> bool:
    """Whether there is something, and all of it is UTF-8: what is not was read as lone surrogates."""
    return bool(text.strip()) and not any("\ud800" <= c <= "\udfff" for c in text)


class TrainingBatches:
    """The batch of any training step."""

    def __init__(self, prepared: Prepared, config: BatchingConfig, seed: int) -> None:
        self._sides = [prepared.side(name) for name in ("source", "target")]
        source, target = (np.diff(offsets) for _, offsets in self._sides)
        self.epochs = Epochs(source, target, config, seed)

    def __getitem__(self, step: int) -> Batch:
        """The batch at `step`, counted from 0."""
        bucket, pairs, row = self.epochs.at(step)
        sides = []
        for (tokens, offsets), room in zip(self._sides, bucket.room, strict=True):
            lengths = offsets[pairs + 1] - offsets[pairs]
            sentences = np.concatenate([tokens[offsets[i] : offsets[i + 1]] for i in pairs])
            sides.append(pack(sentences, lengths, row, bucket.rows, room))
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

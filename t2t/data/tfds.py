"""Parallel corpora of TensorFlow Datasets, such as WMT14.

A data set that lies prepared on disk as ArrayRecord is read without TensorFlow. Preparing one, and reading the older
TFRecord, is TensorFlow's work: an optional part, `pip install 't2t[tfds]'` or `'t2t[tensorflow]'` for all of it.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t2t import storage
from t2t.data.corpora import SPLITS, digest, on_broken
from t2t.data.task import Pair
from t2t.errors import UserError, unknown

CHUNK = 1000  # records read at a time
DATA_DIR = "~/tensorflow_datasets"  # TensorFlow Datasets' own default
VERSION = re.compile(r"\d+\.\d+\.\d+")  # what a folder of a prepared version is called


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A translation data set of TensorFlow Datasets."""

    dataset: str  # its name and configuration there, and :version if not the newest: wmt14_translate/de-en
    source: str  # the feature that is the source sentence, a two-letter code
    target: str  # the feature that is the target sentence
    data_dir: str = ""  # folder of prepared data sets; "": $TFDS_DATA_DIR, or ~/tensorflow_datasets
    mirror: str = ""  # folder or address (gs, https) of prepared data sets, laid out alike: copied if not in data_dir
    train: str = "train"  # the split with the training pairs
    dev: str = "validation"  # the split that guides development: newstest2013 in wmt14_translate
    test: str = "test"  # the split to report on: newstest2014 in wmt14_translate

    def pairs(self, split: str) -> Iterator[Pair]:
        """The pairs of a split, in the order of its files."""
        builder = self._builder()
        name = self._name(split, builder)
        for example in _examples(builder, name):
            yield Pair(*(_text(example[side], split) for side in (self.source, self.target)))

    def inputs(self, split: str) -> dict[str, str]:
        """A digest for each file of the split, and which feature is which side."""
        builder = self._builder()
        files = builder.info.splits[self._name(split, builder)].filepaths
        return {
            f"{self.dataset}/{Path(file).name}": f"{digest(Path(file))} {self.source} {self.target}" for file in files
        }

    def _name(self, split: str, builder: Any) -> str:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if (name := getattr(self, split)) not in builder.info.splits:
            raise unknown(f"split of {self.dataset}", name, builder.info.splits)
        for side in (self.source, self.target):
            if side not in builder.info.features:
                raise unknown(f"language in {self.dataset}", side, builder.info.features)
        return name

    def _builder(self) -> Any:
        """The data set, read from its folder; fetched or prepared before if it is not there.

        Raises:
            UserError: it is not there and cannot be had, or a package is missing.
        """
        tfds = _package()
        if "://" in self.data_dir:
            raise UserError(f"--task.corpus.data_dir {self.data_dir}: a folder; an address is --task.corpus.mirror's")
        root = Path(os.path.expanduser(self.data_dir or os.environ.get("TFDS_DATA_DIR") or DATA_DIR))
        folder = _newest(root, self.dataset)
        if not folder:
            folder = fetch(self.mirror, self.dataset, root) if self.mirror else _prepare(tfds, self.dataset, root)
        try:
            return tfds.builder_from_directory(str(folder))
        except Exception as error:  # it raises many kinds for a folder that is not whole
            raise UserError(f"{folder} is no data set that can be read: {_first_line(error)}") from None


def _package() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"data sets of TensorFlow Datasets need {error.name or 'tensorflow_datasets'}: pip install 't2t[tfds]'"
        ) from None
    return tensorflow_datasets


def _newest(root: Path, dataset: str) -> Path | None:
    """The folder of the version that `dataset` names, or of the highest one, such as wmt14_translate/de-en/1.0.0.

    Beside them may lie what processes that were killed left unfinished, under longer names.
    """
    name, _, version = dataset.partition(":")
    folder = root / name
    found = [p for p in folder.iterdir() if VERSION.fullmatch(p.name)] if folder.is_dir() else []
    there = [p for p in found if version in ("", p.name) and (p / "dataset_info.json").is_file()]
    return max(there, key=lambda p: [*map(int, p.name.split("."))], default=None)


def _alone(root: Path, dataset: str) -> contextlib.AbstractContextManager[None]:
    """Keeps other processes, such as those of the same run, from making the same: they wait, and then find it done."""
    return storage.alone(root / f"{dataset.partition(':')[0]}.lock")


def _prepare(tfds: Any, dataset: str, root: Path) -> Path:
    """Downloads and prepares a data set as ArrayRecord, with TensorFlow."""
    where = f"no data set {dataset} in {root} (--task.corpus.data_dir)"
    if not importlib.util.find_spec("tensorflow"):
        raise UserError(
            f"{where}; to prepare it there: pip install 't2t[tensorflow]'; or name a --task.corpus.mirror that has it"
        )
    try:
        with _alone(root, dataset):
            builder = tfds.builder(dataset, data_dir=str(root), file_format="array_record")
            builder.download_and_prepare()  # nothing, if another process did meanwhile
    except Exception as error:  # whatever network, disk, parser or registry may raise
        raise UserError(f"{where}, and preparing it failed: {_first_line(error)}") from None
    return Path(builder.data_path)


def _examples(builder: Any, split: str) -> Iterator[Any]:
    if builder.info.file_format.value == "array_record":
        records = builder.as_data_source(split=split)
        for begin in range(0, len(records), CHUNK):  # many at a time is several times faster than one by one
            yield from records.__getitems__(range(begin, min(begin + CHUNK, len(records))))
        return
    if not importlib.util.find_spec("tensorflow"):
        raise UserError(
            f"{builder.data_path} holds {builder.info.file_format.value} files, which TensorFlow reads: "
            "pip install 't2t[tensorflow]', or prepare it as ArrayRecord"
        )
    import tensorflow_datasets

    yield from tensorflow_datasets.as_numpy(builder.as_dataset(split=split, shuffle_files=False))


def _text(value: bytes | str, split: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8", on_broken(split))
    except UnicodeDecodeError as error:
        raise UserError(f"the {split} split has a text that is not UTF-8: {error.object[:60]!r}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# ------------------------------------------------------------------------------ Mirrors


def fetch(mirror: str, dataset: str, root: Path) -> Path:
    """Copies a prepared data set (version 1.0.0 unless named) from `mirror` into `root`, whole or not at all.

    `mirror` is an address (gs, http, https, file) or a folder. Every file that dataset_info.json counts is fetched.

    Raises:
        UserError: the mirror cannot be reached or lacks a file, or what reads buckets is not installed.
    """
    name, _, version = dataset.partition(":")
    version = version or "1.0.0"
    place = root / name / version
    source = f"{mirror.rstrip('/')}/{name}/{version}"
    try:
        with _alone(root, dataset):
            if not _newest(root, f"{name}:{version}"):
                _copy_all(source, place)
    except (ValueError, KeyError, *storage.errors()) as error:
        what = f"cannot fetch {dataset} from {source} (--task.corpus.mirror)"
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        if isinstance(error, urllib.error.URLError):
            raise UserError(f"{what}: {error.reason}") from None
        raise storage.failed(what, error) from None
    return place


def _copy_all(source: str, place: Path) -> None:
    """The files of a prepared data set, written beside their place and then renamed."""
    beside = place.with_name(f"{place.name}{storage.UNFINISHED}")
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
    beside.mkdir(parents=True)
    try:
        for file in ("dataset_info.json", "features.json"):
            _copy(f"{source}/{file}", beside / file)
        info = json.loads((beside / "dataset_info.json").read_text(encoding="utf-8"))
        for shard in _shards(info):
            _copy(f"{source}/{shard}", beside / shard)
        beside.rename(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _shards(info: dict[str, Any]) -> Iterator[str]:
    """The names of all record files of a data set, by its dataset_info.json."""
    for split in info["splits"]:
        count = len(split["shardLengths"])
        template = split.get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
        names = {"DATASET": info["name"], "SPLIT": split["name"], "FILEFORMAT": info.get("fileFormat", "tfrecord")}
        for shard in range(count):
            yield template.format(**names, SHARD_X_OF_Y=f"{shard:05d}-of-{count:05d}")


def _copy(source: str, place: Path) -> None:
    if source.startswith(storage.BUCKET):
        with storage.folder(source).open("rb") as there, open(place, "wb") as here:
            shutil.copyfileobj(there, here)
        return
    address = source if urllib.parse.urlparse(source).scheme else Path(os.path.expanduser(source)).absolute().as_uri()
    with contextlib.closing(urllib.request.urlopen(address, timeout=60)) as there, open(place, "wb") as here:
        shutil.copyfileobj(there, here)
        expected = there.headers.get("Content-Length")
    if expected and place.stat().st_size != int(expected):
        raise OSError(f"{source} broke off")

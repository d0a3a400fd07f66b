"""A real data set of TensorFlow Datasets, prepared on disk here, read through the calls that a user makes."""

import functools
import http.server
import itertools
import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import buckets
import pytest

from t2t import storage
from t2t.__main__ import main
from t2t.data import tfds as ours
from t2t.data.corpora import Embedded
from t2t.data.task import Pair
from t2t.data.tfds import Tfds
from t2t.errors import UserError

MAKE = """
import json, sys
import tensorflow_datasets as tfds

class Wmt14Translate(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="de-en")]

    def _info(self):
        languages = tfds.features.Translation(languages=("de", "en"))
        return tfds.core.DatasetInfo(builder=self, features=languages, supervised_keys=("de", "en"))

    def _split_generators(self, _):
        return {name: self._generate_examples(pairs) for name, pairs in json.load(open(sys.argv[2])).items()}

    def _generate_examples(self, pairs):
        for number, (en, de) in enumerate(pairs):
            yield number, {"en": en, "de": de}

Wmt14Translate(config="de-en", data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""
DATASET = "wmt14_translate/de-en"


@pytest.fixture(scope="module")
def pairs():
    every = list(map(tuple, itertools.islice(Embedded("quickstart").pairs("train"), 360)))
    return {"train": every[:300], "validation": every[300:330], "test": every[330:]}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, pairs):
    """A folder that holds the data set, of a few hundred pairs."""
    folder = tmp_path_factory.mktemp("tfds")
    (folder / "make.py").write_text(MAKE)
    (folder / "pairs.json").write_text(json.dumps(pairs))
    command = [sys.executable, str(folder / "make.py"), str(folder / "data"), str(folder / "pairs.json")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "data"


def corpus(data_dir, **knobs):
    return Tfds(DATASET, "en", "de", data_dir=str(data_dir), **knobs)


def test_every_split(data_dir, pairs):
    """TensorFlow Datasets shuffles once, when it prepares: the order is its files'."""
    found = {split: list(corpus(data_dir).pairs(split)) for split in ("train", "dev", "test")}
    assert {name: sorted(found[split]) for name, split in zip(pairs, found, strict=True)} == {
        name: sorted(Pair(*pair) for pair in some) for name, some in pairs.items()
    }
    assert list(corpus(data_dir).pairs("train")) == found["train"]
    back = Tfds(DATASET, "de", "en", data_dir=str(data_dir))
    assert [(t, s) for s, t in back.pairs("dev")] == found["dev"]
    assert back.inputs("dev") != corpus(data_dir).inputs("dev")
    assert len({tuple(corpus(data_dir).inputs(split).values()) for split in found}) == 3


def test_prepare_by_its_name(data_dir, tmp_path, monkeypatch, capsys):
    """The paper's own experiment, with a vocabulary that so little text supports."""
    monkeypatch.setenv("T2T_DATA", str(tmp_path))
    words = ["prepare", "ende_base", "--task.corpus.data_dir", str(data_dir), "--model.vocab_size", "300", "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pairs"] == report["kept"] == 300
    assert report["overlap"]["test"]["pairs"] == 30
    assert [*report["inputs"]] == [f"{DATASET}/wmt14_translate-train.array_record-00000-of-00001"]


def test_the_usual_folder_is_found(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert len(list(Tfds(f"{DATASET}:1.0.0", "en", "de").pairs("dev"))) == 30


def refused(read, *says):
    with pytest.raises(UserError) as error:
        list(read())
    assert [said for said in says if str(said) not in str(error.value)] == []
    assert "\n" not in str(error.value)


def test_what_is_refused(data_dir, tmp_path):
    refused(lambda: corpus(data_dir).pairs("tset"), "no split 'tset'", "test")
    refused(lambda: corpus(data_dir, dev="valid").pairs("dev"), "'valid'", "did you mean validation?")
    refused(lambda: Tfds(DATASET, "en", "fr", data_dir=str(data_dir)).pairs("dev"), "language", "'fr'")
    refused(lambda: corpus(tmp_path).pairs("dev"), f"no data set {DATASET} in {tmp_path}", "t2t[tensorflow]", "mirror")
    refused(lambda: corpus("gs://b/data").pairs("dev"), "--task.corpus.data_dir gs://b/data: a folder", "mirror")
    refused(lambda: Tfds(f"{DATASET}:2.0.0", "en", "de", data_dir=str(data_dir)).pairs("dev"), "2.0.0")
    broken = tmp_path / DATASET / "1.0.0"
    broken.mkdir(parents=True)
    (broken / "dataset_info.json").write_text("{")
    refused(lambda: corpus(tmp_path).pairs("dev"), f"{broken} is no data set that can be read")


def test_without_the_package_it_says_what_to_install(data_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    refused(lambda: corpus(data_dir).pairs("dev"), "pip install 't2t[tfds]'")


# ------------------------------------------------------------------------------ Mirrors


@pytest.fixture(scope="module")
def address(data_dir):
    """The data set on a server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(data_dir)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def bucket(data_dir):
    """The same in a bucket."""
    with buckets.serving() as address:
        for file in filter(Path.is_file, data_dir.rglob("*")):
            (storage.folder(f"{address}/data") / file.relative_to(data_dir)).write_bytes(file.read_bytes())
        yield f"{address}/data"


@pytest.mark.parametrize("kind", ["address", "data_dir", "bucket"])
def test_a_mirror_is_copied_once(kind, tmp_path, monkeypatch, data_dir, request):
    mirrored = corpus(tmp_path, mirror=str(request.getfixturevalue(kind)))
    assert list(mirrored.pairs("dev")) == list(corpus(data_dir).pairs("dev"))
    monkeypatch.setattr(ours, "fetch", None)
    assert list(mirrored.pairs("train")) == list(corpus(data_dir).pairs("train"))
    assert [p.name for p in (tmp_path / DATASET).iterdir()] == ["1.0.0"]


def test_what_a_killed_process_left_is_no_data_set(data_dir, tmp_path):
    """Of a copy that ended after its first file, and of TensorFlow Datasets' own preparing."""
    for name in ("1.0.0.unfinished", "1.0.0.incompleteA1B2C3"):
        left = tmp_path / DATASET / name
        left.mkdir(parents=True)
        shutil.copy(data_dir / DATASET / "1.0.0" / "dataset_info.json", left)
    refused(lambda: corpus(tmp_path).pairs("dev"), f"no data set {DATASET} in {tmp_path}")
    mirrored = corpus(tmp_path, mirror=str(data_dir))
    assert list(mirrored.pairs("dev")) == list(corpus(data_dir).pairs("dev"))
    assert not (tmp_path / DATASET / "1.0.0.unfinished").exists()


def test_several_that_fetch_at_once_all_have_it(data_dir, tmp_path, monkeypatch):
    copied = []
    copy = ours._copy
    monkeypatch.setattr(ours, "_copy", lambda source, place: (copied.append(place.name), copy(source, place)))
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda _: ours.fetch(str(data_dir), DATASET, tmp_path), range(4))]
    assert {*found} == {tmp_path / DATASET / "1.0.0"}
    assert len(copied) == len({*copied}) == len([*found[0].iterdir()])


def test_a_text_that_is_not_utf_8_is_kept_for_preparing_and_refused_elsewhere():
    assert ours._text(b"gr\xfcn", "train").encode("utf-8", "surrogateescape") == b"gr\xfcn"
    with pytest.raises(UserError, match=r"the dev split has a text that is not UTF-8: b'gr\\xfcn'"):
        ours._text(b"gr\xfcn", "dev")


def test_a_mirror_that_fails_leaves_nothing(data_dir, address, bucket, tmp_path):
    refused(lambda: corpus(tmp_path, mirror=f"{bucket}/x").pairs("dev"), "cannot fetch", "mirror", "gs://bucket/data/x")
    refused(lambda: corpus(tmp_path, mirror="http://127.0.0.1:9").pairs("dev"), "cannot fetch", "mirror")
    refused(
        lambda: Tfds("wmt14_translate/fr-en", "en", "fr", str(tmp_path), address).pairs("dev"),
        "cannot fetch",
        "not found",
    )
    for left in tmp_path.rglob("*"):
        assert left.suffix == ".lock" or (left.is_dir() and "unfinished" not in left.name)

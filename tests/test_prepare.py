"""From a task to its prepared data: once, whole or not at all, gone on with where it was stopped, and reported on."""

import collections
import fcntl
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from t2t.data import prepare as preparing
from t2t.data.cleaning import Cleaning
from t2t.data.corpora import Embedded, Text
from t2t.data.prepare import Sizes, overlap, prepare
from t2t.data.translation import Translation
from t2t.data.vocabulary import Vocabulary, count_words
from t2t.errors import UserError
from t2t.storage import UNFINISHED

SIZE = 200


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own, the folder of all prepared data."""
    monkeypatch.setenv("T2T_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepared"


@pytest.fixture
def path(tmp_path):
    """A file with the first 300 pairs of the quickstart."""
    lines = ["\t".join(pair) for pair in itertools.islice(Embedded("quickstart").pairs("train"), 300)]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "pairs.tsv"


def translation(path, **knobs):
    return Translation(Text(train=str(path)), "en", "de", **knobs)


def quiet(message):
    """Nobody listens."""


def no_more(*_, **__):
    raise AssertionError("this was prepared before")


def model_file(path, size=SIZE, name="model"):
    """A vocabulary of `size` pieces, trained on the file at `path`, in a file of its own."""
    text = path.read_text(encoding="utf-8").replace("\t", "\n").splitlines()
    file = path.with_name(name)
    file.write_bytes(Vocabulary.train(count_words(text, collections.Counter()), size).model)
    return str(file)


# ------------------------------------------------------------------------------ Prepared once


def test_prepared_once(path, cache, monkeypatch):
    said = []
    first = prepare(translation(path), Sizes(SIZE), said.append)
    assert len(said) == 1
    assert str(first.folder) in said[0]
    assert sorted(cache.iterdir()) == [first.folder, first.folder.with_suffix(".lock")]
    monkeypatch.setattr(Vocabulary, "train", no_more)
    monkeypatch.setattr(Translation, "pairs", no_more)
    second = prepare(translation(path), Sizes(SIZE), no_more)
    assert second.folder == first.folder
    assert second.report == first.report
    assert second.fingerprint == first.fingerprint
    assert second.vocabulary.source.model == first.vocabulary.source.model


def sentences(prepared, name):
    """The token ids of each kept sentence of a side."""
    tokens, starts, lengths = prepared.side(name)
    return [tokens[i : i + n].tolist() for i, n in zip(starts.tolist(), lengths.tolist(), strict=True)]


def test_prepared_tokens_are_the_pairs(path):
    task = translation(path)
    prepared = prepare(task, Sizes(SIZE), quiet)
    assert prepared.vocabulary.shared and len(prepared.vocabulary.source) == SIZE
    for name, texts in zip(("source", "target"), zip(*task.pairs("train"), strict=True), strict=True):
        ids = sentences(prepared, name)
        assert ids == prepared.vocabulary.source.encode(list(texts))
        spread = prepared.report["lengths"][name]
        assert spread["tokens"] == sum(map(len, ids)) and spread["longest"] == max(map(len, ids))
        assert spread["50%"] == sorted(map(len, ids))[149]
        assert prepared.report["unknown"][name] == 0
    assert [prepared.report[key] for key in ("pairs", "kept")] == [300, 300]
    assert not any(prepared.report["dropped"].values())


@pytest.mark.parametrize("chunk", [1, 7, 299, 300])
def test_chunks_leave_no_trace(path, monkeypatch, chunk):
    whole = prepare(translation(path), Sizes(SIZE), quiet)
    before = {file.name: file.read_bytes() for file in whole.folder.iterdir()}
    monkeypatch.setattr(preparing, "CHUNK", chunk)
    monkeypatch.setenv("T2T_DATA", str(path.parent / "other"))
    again = prepare(translation(path), Sizes(SIZE), quiet)
    assert again.folder != whole.folder
    assert {file.name: file.read_bytes() for file in again.folder.iterdir()} == before


def test_cache_key(path, tmp_path):
    first = prepare(translation(path), Sizes(SIZE), quiet)
    moved = tmp_path / "moved.tsv"
    moved.write_bytes(path.read_bytes())
    assert prepare(translation(moved), Sizes(SIZE), no_more).folder == first.folder
    others = [
        prepare(translation(path), Sizes(SIZE + 1), quiet),
        prepare(Translation(Text(train=str(path), source_column=1, target_column=0), "de", "en"), Sizes(SIZE), quiet),
        prepare(translation(path, vocabulary=model_file(path, SIZE + 20)), Sizes(SIZE + 20), quiet),
    ]
    path.with_name("other").write_text(
        "another text with other pieces\n" * 3 + path.read_text(encoding="utf-8")[5_000:]
    )
    other = model_file(path.with_name("other"), SIZE + 20, "other.model")
    others.append(prepare(translation(path, vocabulary=other), Sizes(SIZE + 20), quiet))
    with open(path, "a", encoding="utf-8") as file:
        file.write("one more\tnoch eins\n")
    others.append(prepare(translation(path), Sizes(SIZE), quiet))
    assert len({p.folder for p in (first, *others)}) == 6
    assert len({p.fingerprint for p in (first, *others)}) == 6
    assert others[-1].report["pairs"] == 301


def test_cache_folder(tmp_path, monkeypatch):
    assert preparing.cache_folder() == tmp_path / "cache"
    monkeypatch.setattr(preparing.platformdirs, "user_cache_dir", lambda name: f"/home/somebody/.cache/{name}")
    for nothing in (lambda: monkeypatch.setenv("T2T_DATA", ""), lambda: monkeypatch.delenv("T2T_DATA")):
        nothing()
        assert preparing.cache_folder() == Path("/home/somebody/.cache/t2t")


# ------------------------------------------------------------------------------ Whole or not at all


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("given", [False, True], ids=["trained", "given"])
def test_a_broken_file_leaves_nothing_that_is_taken_for_whole(path, cache, monkeypatch, given):
    monkeypatch.setattr(preparing, "CHUNK", 50)
    vocabulary = model_file(path) if given else ""
    whole = path.read_bytes()
    path.write_bytes(whole + b"one column\n")
    with pytest.raises(UserError, match=r"pairs\.tsv, line 301: 1 tab-separated field"):
        prepare(translation(path, vocabulary=vocabulary), Sizes(SIZE), quiet)
    assert {file.suffix for file in cache.iterdir()} == {".lock", UNFINISHED}
    path.write_bytes(whole)
    assert prepare(translation(path, vocabulary=vocabulary), Sizes(SIZE), quiet).report["kept"] == 300


@pytest.mark.parametrize("killed_in", [0, 1, 3, 5])
@pytest.mark.parametrize("torn", [False, True])
def test_what_was_interrupted_is_gone_on_with(path, tmp_path, monkeypatch, killed_in, torn):
    """Chunk by chunk: what is on record stays, what a killed process wrote past it goes, and the end is the same."""
    monkeypatch.setattr(preparing, "CHUNK", 50)
    whole = prepare(translation(path), Sizes(SIZE), quiet)
    monkeypatch.setenv("T2T_DATA", str(tmp_path / "other"))
    tokenise, seen = preparing._tokenise, []

    def counted(chunk, *rest):
        if len(seen) == killed_in:
            raise KeyboardInterrupt
        seen.append(chunk)
        return tokenise(chunk, *rest)

    monkeypatch.setattr(preparing, "_tokenise", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare(translation(path), Sizes(SIZE), quiet)
    (unfinished,) = (tmp_path / "other" / "prepared").glob(f"*{UNFINISHED}")
    if torn:
        for file in unfinished.glob("source.*"):
            file.write_bytes(file.read_bytes() + b"torn")
    monkeypatch.setattr(preparing, "_tokenise", tokenise)
    monkeypatch.setattr(Vocabulary, "train", no_more)  # that part was done
    said = []
    again = prepare(translation(path), Sizes(SIZE), said.append)
    assert said[0].startswith("going on with")
    assert contents(again.folder) == contents(whole.folder)
    assert again.report == whole.report


@pytest.mark.parametrize("there", [True, False])
def test_another_process_is_waited_for(path, there):
    """It holds the lock; when it lets go, the folder is there or is made."""
    whole = prepare(translation(path), Sizes(SIZE), quiet)
    before, away = contents(whole.folder), whole.folder.rename(whole.folder.with_name("away"))
    said, waits = [], threading.Event()

    def say(message):
        said.append(message)
        waits.set()

    with ThreadPoolExecutor() as pool:
        with open(whole.folder.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = pool.submit(prepare, translation(path), Sizes(SIZE), say)
            assert waits.wait(30)
            if there:
                away.rename(whole.folder)
        assert found.result().report == whole.report
    assert contents(whole.folder) == before and away.exists() != there
    assert said[0] == f"another process is preparing {whole.folder}; waiting for it" and there == (len(said) == 1)


@pytest.mark.parametrize("file", ["report.json", "shared.model", "source.tokens", "target.lengths.npy"])
@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_a_damaged_folder_is_made_anew(path, file, harm):
    folder = prepare(translation(path), Sizes(SIZE), quiet).folder
    before = contents(folder)
    (folder / file).unlink() if harm == "gone" else (folder / file).write_bytes(before[file][:50])
    said = []
    assert contents(prepare(translation(path), Sizes(SIZE), said.append).folder) == before
    assert said[0] == f"{folder} is damaged: it is made anew"


@pytest.mark.parametrize("below", [(), ("deeper",)])
def test_cache_that_cannot_be_written(path, tmp_path, monkeypatch, below):
    (tmp_path / "file").write_text("a file, not a folder")
    monkeypatch.setenv("T2T_DATA", str(tmp_path.joinpath("file", *below)))
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}/file.*T2T_DATA"):
        prepare(translation(path), Sizes(SIZE), quiet)


# ------------------------------------------------------------------------------ A vocabulary of the user's


def test_given_vocabulary_is_used(path, monkeypatch):
    file = model_file(path)
    monkeypatch.setattr(Vocabulary, "train", no_more)
    prepared = prepare(translation(path, vocabulary=file), Sizes(SIZE), quiet)
    assert prepared.vocabulary.source.model == Path(file).read_bytes()
    Path(file).rename(path.with_name("moved"))
    again = prepare(translation(path, vocabulary=str(path.with_name("moved"))), Sizes(SIZE), no_more)
    assert again.folder == prepared.folder


def test_given_vocabulary_of_another_size(path):
    file = model_file(path, SIZE + 1)
    with pytest.raises(UserError, match=rf"{file} has 201 pieces, but --model.vocab_size is 200"):
        prepare(translation(path, vocabulary=file), Sizes(SIZE), quiet)


def test_given_vocabulary_is_missing(path):
    with pytest.raises(UserError, match=r"no vocabulary file .*nowhere"):
        prepare(translation(path, vocabulary=str(path.with_name("nowhere"))), Sizes(SIZE), quiet)


def test_large_vocabularies_take_wider_tokens(path, monkeypatch):
    file = model_file(path)
    monkeypatch.setattr(Vocabulary, "__len__", lambda self: 70_000)
    monkeypatch.setattr(Vocabulary, "encode", lambda self, texts: [[69_999, 1] for _ in texts])
    prepared = prepare(translation(path, vocabulary=file), Sizes(70_000), quiet)
    assert set(prepared.side("target")[0].tolist()) == {69_999, 1}
    assert prepared.side("target")[0].dtype.itemsize == 4


# ------------------------------------------------------------------------------ What is dropped, and why


def append(path, *lines):
    with open(path, "ab") as file:
        file.writelines(line if isinstance(line, bytes) else f"{line}\n".encode() for line in lines)


def test_every_reason_is_counted(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    empty = ["\tnur Deutsch", "only English\t", "\t", "  \t \u3000 "]
    append(path, *empty, b"five\tf\xfcnf\n", f"long\t{'sehr lang ' * 30}", lines[0], lines[7], f" {lines[7]} ")
    prepared = prepare(translation(path), Sizes(SIZE), quiet)
    assert [prepared.report[key] for key in ("pairs", "kept")] == [309, 300]
    assert prepared.report["dropped"] == {"empty": 4, "not UTF-8": 1, "ratio": 1, "duplicate": 3}
    text = [map(prepared.vocabulary.source.decode, sentences(prepared, name)) for name in ("source", "target")]
    assert [f"{source}\t{target}" for source, target in zip(*text, strict=True)] == lines


def test_duplicates_and_unlike_lengths_can_be_kept(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    append(path, f"long\t{'sehr lang ' * 30}", lines[0])
    keeping = Cleaning(ratio=0, duplicates="keep")
    prepared = prepare(translation(path, cleaning=keeping), Sizes(SIZE), quiet)
    assert prepared.report["kept"] == 302 and not any(prepared.report["dropped"].values())
    assert prepare(translation(path), Sizes(SIZE), quiet).folder != prepared.folder


def test_the_same_source_with_another_target_is_no_duplicate(path):
    append(path, "one source\tein Ziel", "one source\tzwei Ziele", "another source\tein Ziel", "ein Ziel\tone source")
    assert prepare(translation(path), Sizes(SIZE), quiet).report["kept"] == 304


def test_nothing_but_empty_sides(path):
    file = model_file(path)
    path.write_text("one\t\n\tzwei\n", encoding="utf-8")
    with pytest.raises(UserError, match="no pair with text on both sides"):
        prepare(translation(path, vocabulary=file), Sizes(SIZE), quiet)


def test_overlap_with_what_is_held_out(path, tmp_path):
    lines = path.read_text(encoding="utf-8").splitlines()
    source, target = lines[3].split("\t")
    held = [lines[0], lines[1], lines[1], f"{source}\tetwas anderes", f"something else\t{target}", "new\tneu"]
    (tmp_path / "dev.tsv").write_text("\n".join(held) + "\n", encoding="utf-8")
    task = Translation(Text(train=str(path), dev=str(tmp_path / "dev.tsv")), "en", "de")
    found = overlap(task, prepare(task, Sizes(SIZE), quiet), "dev")
    assert found == {"pairs": 6, "both": 3, "source": 4, "target": 4}


def test_unknown_pieces_are_counted(path):
    file = model_file(path)
    append(path, "猫 is here\tHier ist 猫 und 猫")
    prepared = prepare(translation(path, vocabulary=file), Sizes(SIZE), quiet)
    assert prepared.report["unknown"] == {"source": 1, "target": 2}

"""From a task to batches: prepared once, whole or not at all, and every batch the pairs it should be."""

import collections
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from t2t.data import pipeline
from t2t.data.batching import BatchingConfig
from t2t.data.corpora import Embedded, Text
from t2t.data.pipeline import TrainingBatches, prepare, read_ahead
from t2t.data.translation import Translation
from t2t.data.vocabulary import Vocabulary
from t2t.errors import UserError

SIZE = 200
CONFIG = BatchingConfig(tokens=512, max_length=48, shapes=3)


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
    file.write_bytes(Vocabulary.train(text, size).model)
    return str(file)


# ------------------------------------------------------------------------------ Prepared once


def test_prepared_once(path, cache, monkeypatch):
    said = []
    first = prepare(translation(path), SIZE, said.append)
    assert len(said) == 1
    assert str(first.folder) in said[0]
    assert [first.folder] == list(cache.iterdir())
    monkeypatch.setattr(Vocabulary, "train", no_more)
    monkeypatch.setattr(Translation, "pairs", no_more)
    second = prepare(translation(path), SIZE, no_more)
    assert second.folder == first.folder
    assert second.report == first.report
    assert second.fingerprint == first.fingerprint
    assert second.vocabulary.model == first.vocabulary.model


def test_prepared_tokens_are_the_pairs(path):
    task = translation(path)
    prepared = prepare(task, SIZE, quiet)
    assert len(prepared.vocabulary) == SIZE
    for name, texts in zip(("source", "target"), zip(*task.pairs("train"), strict=True), strict=True):
        tokens, offsets = prepared.side(name)
        ids = [tokens[a:b].tolist() for a, b in itertools.pairwise(offsets)]
        assert ids == prepared.vocabulary.encode(list(texts))
        assert prepared.report[f"{name}_tokens"] == len(tokens) == offsets[-1]
    assert [prepared.report[key] for key in ("pairs", "kept", "empty")] == [300, 300, 0]


@pytest.mark.parametrize("chunk", [1, 7, 299, 300])
def test_chunks_leave_no_trace(path, monkeypatch, chunk):
    whole = prepare(translation(path), SIZE, quiet)
    before = {file.name: file.read_bytes() for file in whole.folder.iterdir()}
    monkeypatch.setattr(pipeline, "CHUNK", chunk)
    monkeypatch.setenv("T2T_DATA", str(path.parent / "other"))
    again = prepare(translation(path), SIZE, quiet)
    assert again.folder != whole.folder
    assert {file.name: file.read_bytes() for file in again.folder.iterdir()} == before


def test_cache_key(path, tmp_path):
    first = prepare(translation(path), SIZE, quiet)
    moved = tmp_path / "moved.tsv"
    moved.write_bytes(path.read_bytes())
    assert prepare(translation(moved), SIZE, no_more).folder == first.folder
    others = [
        prepare(translation(path), SIZE + 1, quiet),
        prepare(Translation(Text(train=str(path), source_column=1, target_column=0), "de", "en"), SIZE, quiet),
        prepare(translation(path, vocabulary=model_file(path, SIZE + 20)), SIZE + 20, quiet),
    ]
    path.with_name("other").write_text(
        "another text with other pieces\n" * 3 + path.read_text(encoding="utf-8")[5_000:]
    )
    other = model_file(path.with_name("other"), SIZE + 20, "other.model")
    others.append(prepare(translation(path, vocabulary=other), SIZE + 20, quiet))
    with open(path, "a", encoding="utf-8") as file:
        file.write("one more\tnoch eins\n")
    others.append(prepare(translation(path), SIZE, quiet))
    assert len({p.folder for p in (first, *others)}) == 6
    assert len({p.fingerprint for p in (first, *others)}) == 6
    assert others[-1].report["pairs"] == 301


def test_cache_folder(tmp_path, monkeypatch):
    assert pipeline.cache_folder() == tmp_path / "cache"
    monkeypatch.setattr(pipeline.platformdirs, "user_cache_dir", lambda name: f"/home/somebody/.cache/{name}")
    for nothing in (lambda: monkeypatch.setenv("T2T_DATA", ""), lambda: monkeypatch.delenv("T2T_DATA")):
        nothing()
        assert pipeline.cache_folder() == Path("/home/somebody/.cache/t2t")


# ------------------------------------------------------------------------------ Whole or not at all


@pytest.mark.parametrize("given", [False, True], ids=["trained", "given"])
def test_failure_half_way_leaves_nothing(path, cache, monkeypatch, given):
    monkeypatch.setattr(pipeline, "CHUNK", 50)
    vocabulary = model_file(path) if given else ""
    whole = path.read_bytes()
    path.write_bytes(whole + b"one column\n")
    with pytest.raises(UserError, match=r"pairs\.tsv, line 301: 1 tab-separated field"):
        prepare(translation(path, vocabulary=vocabulary), SIZE, quiet)
    assert list(cache.iterdir()) == []
    path.write_bytes(whole)
    assert prepare(translation(path, vocabulary=vocabulary), SIZE, quiet).report["kept"] == 300


def test_interruption_leaves_nothing(path, cache, monkeypatch):
    def interrupted(self, texts):
        raise KeyboardInterrupt

    monkeypatch.setattr(Vocabulary, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(translation(path), SIZE, quiet)
    assert list(cache.iterdir()) == []


def test_what_a_killed_process_left_is_not_in_the_way(path, cache):
    """In a container the second process often has the number of the first."""
    folder = prepare(translation(path), SIZE, quiet).folder
    folder.rename(folder.with_name(f"{folder.name}.{os.getpid()}"))
    (folder.with_name(f"{folder.name}.{os.getpid()}") / "report.json").unlink()
    assert prepare(translation(path), SIZE, quiet).report["kept"] == 300
    assert folder in cache.iterdir()


def test_another_process_was_quicker(path, monkeypatch):
    """It made the same folder while this one tokenised."""
    tokenise = pipeline._tokenise

    def slowly(beside, pairs, vocabulary):
        report = tokenise(beside, pairs, vocabulary)
        place = beside.with_suffix("")
        place.mkdir()
        for file in beside.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
        (place / "report.json").write_text('{"theirs": true}')
        return report

    monkeypatch.setattr(pipeline, "_tokenise", slowly)
    prepared = prepare(translation(path), SIZE, quiet)
    assert prepared.report["theirs"]
    assert len(list(prepared.folder.parent.iterdir())) == 1


@pytest.mark.parametrize("below", [(), ("deeper",)])
def test_cache_that_cannot_be_written(path, tmp_path, monkeypatch, below):
    (tmp_path / "file").write_text("a file, not a folder")
    monkeypatch.setenv("T2T_DATA", str(tmp_path.joinpath("file", *below)))
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}/file.*T2T_DATA"):
        prepare(translation(path), SIZE, quiet)


# ------------------------------------------------------------------------------ A vocabulary of the user's


def test_given_vocabulary_is_used(path, monkeypatch):
    file = model_file(path)
    monkeypatch.setattr(Vocabulary, "train", no_more)
    prepared = prepare(translation(path, vocabulary=file), SIZE, quiet)
    assert prepared.vocabulary.model == Path(file).read_bytes()
    Path(file).rename(path.with_name("moved"))
    again = prepare(translation(path, vocabulary=str(path.with_name("moved"))), SIZE, no_more)
    assert again.folder == prepared.folder


def test_given_vocabulary_of_another_size(path):
    file = model_file(path, SIZE + 1)
    with pytest.raises(UserError, match=rf"{file} has 201 pieces, but --model.vocab_size is 200"):
        prepare(translation(path, vocabulary=file), SIZE, quiet)


def test_given_vocabulary_is_missing(path):
    with pytest.raises(UserError, match=r"no vocabulary file .*nowhere"):
        prepare(translation(path, vocabulary=str(path.with_name("nowhere"))), SIZE, quiet)


def test_large_vocabularies_take_wider_tokens(path, monkeypatch):
    file = model_file(path)
    monkeypatch.setattr(Vocabulary, "__len__", lambda self: 70_000)
    monkeypatch.setattr(Vocabulary, "encode", lambda self, texts: [[69_999, 1] for _ in texts])
    prepared = prepare(translation(path, vocabulary=file), 70_000, quiet)
    assert set(prepared.side("target")[0].tolist()) == {69_999, 1}


# ------------------------------------------------------------------------------ Pairs without text


def test_empty_sides_are_dropped_and_counted(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[5:5] = ["\tnur Deutsch", "only English\t", "\t", "  \t \u3000 "]
    path.write_text("\n".join([*lines, "\t"]) + "\n", encoding="utf-8")
    prepared = prepare(translation(path), SIZE, quiet)
    assert [prepared.report[key] for key in ("pairs", "kept", "empty")] == [305, 300, 5]
    sides = [prepared.side(name) for name in ("source", "target")]
    text = [[prepared.vocabulary.decode(t[a:b].tolist()) for a, b in itertools.pairwise(o)] for t, o in sides]
    kept = [line.split("\t") for line in lines if all(part.strip() for part in line.split("\t"))]
    assert list(map(list, zip(*text, strict=True))) == kept


def test_nothing_but_empty_sides(path):
    file = model_file(path)
    path.write_text("one\t\n\tzwei\n", encoding="utf-8")
    with pytest.raises(UserError, match="no pair with text on both sides"):
        prepare(translation(path, vocabulary=file), SIZE, quiet)


# ------------------------------------------------------------------------------ Batches


def texts(batch, vocabulary):
    """The pairs in a batch: segment n of a source row with segment n of the same target row."""
    for row in range(len(batch.source.tokens)):
        numbers, others = (set(side.segments[row].tolist()) - {0} for side in batch)
        assert numbers == others
        for n in sorted(numbers):
            yield tuple(vocabulary.decode(side.tokens[row][side.segments[row] == n].tolist()) for side in batch)


def test_batches_decode_to_the_right_pairs(path):
    task = translation(path)
    prepared = prepare(task, SIZE, quiet)
    batches = TrainingBatches(prepared, CONFIG, seed=3)
    lengths = [max(map(len, prepared.vocabulary.encode(list(pair)))) for pair in task.pairs("train")]
    kept = [tuple(pair) for pair, n in zip(task.pairs("train"), lengths, strict=True) if n <= CONFIG.max_length]
    assert batches.epochs.left_out == 300 - len(kept) > 0
    for epoch in range(2):
        steps = range(epoch * len(batches.epochs), (epoch + 1) * len(batches.epochs))
        seen = collections.Counter(pair for step in steps for pair in texts(batches[step], prepared.vocabulary))
        assert seen == collections.Counter(kept)


def test_batches_have_few_shapes(path):
    prepared = prepare(translation(path), SIZE, quiet)
    batches = TrainingBatches(prepared, CONFIG, seed=0)
    shapes = set()
    for step in range(len(batches.epochs)):
        source, target = batches[step]
        assert len(source.tokens) == len(target.tokens)
        assert max(source.tokens.size, target.tokens.size) <= CONFIG.tokens
        shapes.add((source.tokens.shape, target.tokens.shape))
    assert len(shapes) == CONFIG.shapes


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(itertools.chain(*a), itertools.chain(*b), strict=True))


def test_reading_ahead_is_indexing(path):
    prepared = prepare(translation(path), SIZE, quiet)
    batches = TrainingBatches(prepared, CONFIG, seed=1)
    start, stop = 5, len(batches.epochs) + 9  # into the second epoch
    expected = [batches[step] for step in range(start, stop)]
    reader = read_ahead(TrainingBatches(prepared, CONFIG, seed=1), start, stop)
    assert reader.get_state()["next_index"] == start
    for step, batch in enumerate(expected, start):
        assert same(next(reader), batch)
        assert reader.get_state()["next_index"] == step + 1
    with pytest.raises(StopIteration):
        next(reader)


def test_reading_ahead_goes_on_from_a_state(path):
    prepared = prepare(translation(path), SIZE, quiet)
    batches = TrainingBatches(prepared, CONFIG, seed=1)
    first = read_ahead(batches, 0, 20)
    for _ in range(12):
        next(first)
    second = read_ahead(TrainingBatches(prepared, CONFIG, seed=1), 0, 20)
    second.set_state(first.get_state())
    rest = list(second)
    assert len(rest) == 8
    assert all(same(a, b) for a, b in zip(rest, first, strict=True))

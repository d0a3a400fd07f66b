"""The shared vocabulary: exactly as large as asked, lossless, the same every time."""

import collections
import functools
import io
import itertools
import re

import pytest
import sentencepiece

from t2t.batch import EOS, PAD, UNK
from t2t.data.corpora import Embedded
from t2t.data.vocabulary import Vocabulary, count_words
from t2t.errors import UserError


@functools.cache
def text(pairs=2_000):
    return list(itertools.chain.from_iterable(itertools.islice(Embedded("quickstart").pairs("train"), pairs)))


def train(texts, size):
    return Vocabulary.train(count_words(texts, collections.Counter()), size)


@functools.cache
def trained(size):
    return train(text(), size)


@pytest.mark.parametrize("size", [200, 513, 1_500])
def test_size_is_exactly_as_asked(size):
    assert len(trained(size)) == size


def test_special_ids():
    assert (PAD, EOS, UNK) == (0, 1, 2)
    assert trained(513).pieces([PAD, EOS, UNK]) == ["<pad>", "</s>", "<unk>"]
    ids = trained(513).encode(text())
    assert all(sentence[-1] == EOS and sentence.count(EOS) == 1 for sentence in ids)
    assert not any({PAD, UNK} & set(sentence) for sentence in ids)
    assert max(map(max, ids)) < 513


@pytest.mark.parametrize("size", [200, 1_500])
def test_round_trip(size):
    vocabulary = trained(size)
    assert len(text()) == 4_000
    assert [vocabulary.decode(ids) for ids in vocabulary.encode(text())] == text()


@pytest.mark.parametrize("odd", ["ﬁn", "x²", "A\u030angstro\u0308m", "Ångström", "①", "ＡＢＣ", "“„”", "a\u00a0b"])
def test_unicode_is_not_normalised(odd):
    vocabulary = train([*text(200), odd], 300)
    assert vocabulary.decode(vocabulary.encode([odd])[0]) == odd


def test_decoding_stops_at_the_first_end():
    vocabulary = trained(513)
    first, second = vocabulary.encode(["one", "two"])
    assert vocabulary.decode(first + second) == "one"
    assert vocabulary.decode(first[:-1]) == "one"
    assert vocabulary.decode([EOS]) == vocabulary.decode([]) == ""


def test_unknown_characters():
    ids = trained(513).encode(["猫"])[0]
    assert UNK in ids
    assert ids[-1] == EOS


def test_same_text_same_model():
    again = train(iter(text()), 513)
    assert again.model == trained(513).model
    assert again.fingerprint == trained(513).fingerprint
    assert len({trained(513).fingerprint, trained(200).fingerprint, train(text(500), 513).fingerprint}) == 3


def test_saved_and_loaded(tmp_path):
    (tmp_path / "model").write_bytes(trained(513).model)
    loaded = Vocabulary.load(tmp_path / "model")
    assert loaded.fingerprint == trained(513).fingerprint
    assert loaded.encode(text()[:50]) == trained(513).encode(text()[:50])


# ------------------------------------------------------------------------------ What is refused


@pytest.mark.parametrize("sentences", [text(100), ["a"], ["ab ab abc"]])
def test_too_large_names_the_most_that_is_possible(sentences):
    with pytest.raises(UserError, match=r"vocab_size 100000 .*at most \d+$") as error:
        train(sentences, 100_000)
    most = int(str(error.value).split()[-1])
    assert len(train(sentences, most)) == most
    with pytest.raises(UserError, match=f"at most {most}$"):
        train(sentences, most + 1)


def test_too_small_names_the_least_that_is_possible():
    with pytest.raises(UserError, match=r"vocab_size 10 .*at least \d+$") as error:
        train(text(100), 10)
    least = int(str(error.value).split()[-1])
    assert len(train(text(100), least)) == least
    with pytest.raises(UserError, match=f"at least {least}$"):
        train(text(100), least - 1)


@pytest.mark.parametrize("nothing", [[], [""], ["", "  "]])
def test_no_text(nothing):
    with pytest.raises(UserError, match="no text to make a vocabulary from"):
        train(nothing, 100)


def test_counted_words_give_the_vocabulary_of_the_sentences():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text()),
        model_writer=model,
        model_type="bpe",
        vocab_size=513,
        character_coverage=1.0,
        normalization_rule_name="identity",
        **dict(pad_id=PAD, eos_id=EOS, unk_id=UNK, bos_id=-1, minloglevel=2),
    )
    assert Vocabulary(model.getvalue(), "theirs").encode(text()) == trained(513).encode(text())


def test_the_rarest_characters_have_no_piece():
    texts = ["abcdefgh ijklmnop"] * 200_000 + ["猫"]
    vocabulary = train(texts, 30)
    assert UNK in vocabulary.encode(["猫"])[0]
    assert UNK not in vocabulary.encode(texts[:1])[0]


@pytest.mark.parametrize("content", [b"", b"plain text", bytes(range(256)) * 10])
def test_not_a_model(tmp_path, content):
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "model"))):
        Vocabulary.load(tmp_path / "model")


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "model"))):
        Vocabulary.load(tmp_path / "model")


def test_a_folder_is_no_model(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        Vocabulary.load(tmp_path)


@pytest.mark.parametrize("ids", [{}, dict(pad_id=0, eos_id=2, unk_id=1), dict(pad_id=-1, eos_id=1, unk_id=2)])
def test_other_special_ids_are_refused(ids):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text(100)), model_writer=model, vocab_size=200, minloglevel=2, **{"bos_id": -1, **ids}
    )
    with pytest.raises(UserError, match=r"theirs has .*--pad_id=0 --eos_id=1 --unk_id=2"):
        Vocabulary(model.getvalue(), "theirs")

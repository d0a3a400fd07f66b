"""Where pairs come from: what is read, and what is said when it cannot be."""

import gzip
import lzma
import re
from functools import partial

import pytest

from t2t.data.corpora import EMBEDDED, SPLITS, Embedded, Text, read_lines, zstd
from t2t.data.task import Pair, fingerprint
from t2t.errors import UserError

OPEN = {"": open, ".gz": gzip.open, ".xz": lzma.open, ".zst": zstd.open}
CHECKED = {zstd.CompressionParameter.checksum_flag: 1}  # as the zstd command does
PACK = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": partial(zstd.compress, options=CHECKED),
}
LINES = ["Grüße aus Köln", "", "a\tb", "  spaces stay  ", "no line break\x0b\x85\u2028 here", "last"]


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    return str(path)


def refused(read, *says):
    """`read()` is refused with a message that holds all of `says`."""
    with pytest.raises(UserError) as error:
        list(read())
    for said in says:
        assert str(said) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", OPEN)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines(tmp_path, suffix, end):
    path = tmp_path / f"text.en{suffix}"
    with OPEN[suffix](path, "wb") as file:
        file.write(end.join(LINES).encode())
    assert list(read_lines(path)) == LINES


def test_tsv(tmp_path):
    path = write(tmp_path / "pairs.tsv", "one\teins\t1", "two\tzwei\t2")
    assert list(Text(train=path).pairs("train")) == [Pair("one", "eins"), Pair("two", "zwei")]
    assert list(Text(dev=path, source_column=2, target_column=0).pairs("dev")) == [Pair("1", "one"), Pair("2", "two")]


def test_text_files(tmp_path):
    source, target = write(tmp_path / "en", "one", "two"), write(tmp_path / "de", "eins", "zwei")
    corpus = Text(test=f"{source},{target}")
    assert list(corpus.pairs("test")) == [Pair("one", "eins"), Pair("two", "zwei")]


@pytest.mark.parametrize("train", ["news-*.en,news-*.de", "parts", "parts/*.tsv*", "a.en,a.de"])
def test_a_folder_of_files(tmp_path, train):
    """By a pattern a side, by the folder, by a pattern for tab-separated files, and plainly."""
    for name, ending in (("news-1", ""), ("news-2", "s"), ("a", "")):
        write(tmp_path / f"{name}.en", f"one{ending}", "two")
        write(tmp_path / f"{name}.de", f"eins{ending}", "zwei")
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts" / "1.tsv", "one\teins", "two\tzwei")
    (tmp_path / "parts" / "2.tsv.gz").write_bytes(gzip.compress(b"ones\teinss\ntwo\tzwei\n"))
    write(tmp_path / "parts" / "README", "no pairs")
    corpus = Text(train=train, folder=str(tmp_path))
    expected = [Pair("one", "eins"), Pair("two", "zwei"), Pair("ones", "einss"), Pair("two", "zwei")]
    assert list(corpus.pairs("train")) == (expected[:2] if train == "a.en,a.de" else expected)
    assert len(corpus.inputs("train")) == {"n": 4, "p": 2, "a": 2}[train[0]]


def test_of_a_folder_only_what_ends_so_counts(tmp_path):
    for name in ("a.tsv", "b.tsv.gz.part", "c.tsv.bak", "d.tsv.txt"):
        (tmp_path / name).write_text("one\teins\n")
    assert [piece.source.name for piece in Text(train=str(tmp_path)).pieces("train")] == ["a.tsv"]


def test_a_file_that_is_there_is_no_pattern(tmp_path):
    """Brackets are characters of names, too."""
    where = tmp_path / "corpus [v2]"
    where.mkdir()
    for name in ("[en].tsv", "e.tsv"):
        (where / name).write_text(f"{name}\teins\n")
    assert [pair.source for pair in Text(train="[en].tsv", folder=str(where)).pairs("train")] == ["[en].tsv"]


def test_patterns_that_match_nothing_or_unevenly(tmp_path):
    write(tmp_path / "a.en", "one")
    refused(lambda: Text(train="b*.en,b*.de", folder=str(tmp_path)).pairs("train"), "no file matches", "b*.en")
    refused(lambda: Text(train="*.en,*.en,*.en", folder=str(tmp_path)).pairs("train"), "allowed: one tab-separated")
    write(tmp_path / "b.en", "one")
    refused(lambda: Text(train="*.en,a.en", folder=str(tmp_path)).pairs("train"), "2 file(s) and 1 file(s)")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "pairs.tsv", "one\teins")
    assert list(Text(train="~/pairs.tsv").pairs("train")) == [Pair("one", "eins")]


# ------------------------------------------------------------------------------ What is refused


def test_missing_file_names_the_nearest(tmp_path):
    write(tmp_path / "train.tsv", "one\teins")
    missing = Text(train=str(tmp_path / "trian.tsv"))
    for read in (lambda: missing.pairs("train"), lambda: fingerprint(missing.inputs("train"))):
        refused(read, tmp_path / "trian.tsv", "did you mean train.tsv?")


def test_missing_folder(tmp_path):
    refused(lambda: read_lines(tmp_path / "nowhere" / "x"), f"no folder {tmp_path / 'nowhere'}")
    refused(lambda: read_lines(tmp_path / "x"), f"{tmp_path} is empty")


@pytest.mark.parametrize("suffix", OPEN)
def test_folder_is_no_file(tmp_path, suffix):
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    refused(lambda: read_lines(folder), f"cannot read {folder}")
    refused(lambda: Text(train=f"{folder},{folder}").pairs("train"), f"no .tsv file in the folder {folder}")


def test_empty_files(tmp_path):
    empty = write(tmp_path / "empty")
    refused(lambda: Text(train=empty).pairs("train"), empty, "empty")
    refused(lambda: Text(train=f"{empty},{empty}").pairs("train"), empty, "empty")


@pytest.mark.parametrize(("sources", "targets"), [(3, 5), (5, 3), (0, 2), (2, 0), (4, 5), (5, 4)])
def test_unequal_line_counts(tmp_path, sources, targets):
    source, target = write(tmp_path / "en", *"abcde"[:sources]), write(tmp_path / "de", *"abcde"[:targets])
    corpus = Text(train=f"{source},{target}")
    refused(lambda: corpus.pairs("train"), f"{source} has {sources} lines", f"{target} has {targets}")


def test_too_few_columns(tmp_path):
    path = write(tmp_path / "pairs.tsv", "one\teins", "two\tzwei", "three")
    refused(lambda: Text(train=path).pairs("train"), f"{path}, line 3", "1 tab-separated field", "column 1")
    refused(lambda: Text(train=path, target_column=4).pairs("train"), f"{path}, line 1", "column 4")


@pytest.mark.parametrize("suffix", OPEN)
def test_not_utf8(tmp_path, suffix):
    path = tmp_path / f"latin1.tsv{suffix}"
    with OPEN[suffix](path, "wb") as file:
        file.write("one\teins\nfive\tfünf\n".encode("latin-1"))
    refused(lambda: Text(dev=str(path)).pairs("dev"), f"{path}, line 2", "not UTF-8", "byte 7")
    kept = list(Text(train=str(path)).pairs("train"))  # for preparing to count and drop
    assert kept == [Pair("one", "eins"), Pair("five", b"f\xfcnf".decode("utf-8", "surrogateescape"))]


@pytest.mark.parametrize("suffix", PACK)
def test_truncated(tmp_path, suffix):
    path = tmp_path / f"text{suffix}"
    path.write_bytes(PACK[suffix]("".join(f"{n}\n" for n in range(100_000)).encode())[:-100])
    refused(lambda: read_lines(path), path, "broken compression after line")


def damaged(path, start):
    """A compressed file at `path` with 40 bytes overwritten from `start`, a fraction of its length."""
    packed = bytearray(PACK[path.suffix]("".join(f"{n * n % 99991}\n" for n in range(20_000)).encode()))
    begin = max(10, int(start * len(packed)))  # ten bytes name the format: the data, or checksums, come after them
    packed[begin : begin + 40] = b"\xff" * 40
    path.write_bytes(packed)
    return path


@pytest.mark.parametrize("suffix", PACK)
def test_damaged_at_the_beginning(tmp_path, suffix):
    path = damaged(tmp_path / f"text{suffix}", 0)
    refused(lambda: read_lines(path), path, "broken compression after line 0")


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("start", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_damaged_in_the_middle(tmp_path, suffix, start):
    path = damaged(tmp_path / f"text{suffix}", start)
    refused(lambda: read_lines(path), path)  # what it unpacks to before the checksum may be called not UTF-8


@pytest.mark.parametrize("suffix", PACK)
def test_not_compressed_at_all(tmp_path, suffix):
    path = tmp_path / f"text{suffix}"
    write(path, "plain text")
    refused(lambda: read_lines(path), path, "broken compression after line 0")


@pytest.mark.parametrize("corpus", [Text(train="a"), Text(train="a,a")])
def test_split_without_a_file(corpus):
    for read in (corpus.pairs, corpus.inputs):
        refused(lambda read=read: read("dev"), "names no file for its dev split")


@pytest.mark.parametrize("corpus", [Text(), Embedded("quickstart")])
@pytest.mark.parametrize("split", ["tset", "source_column"])
def test_unknown_split(corpus, split):
    refused(lambda: corpus.pairs(split), f"no split {split!r}", "test")


def test_unknown_embedded_corpus():
    for read in (Embedded("quikstart").pairs, Embedded("quikstart").inputs):
        refused(lambda read=read: read("train"), "'quikstart'", "did you mean quickstart?")


# ------------------------------------------------------------------------------ Fingerprints


def test_fingerprint_follows_content_and_columns(tmp_path):
    path = write(tmp_path / "pairs.tsv", "one\teins\tun")
    first = fingerprint(Text(train=path).inputs("train"))
    assert first == fingerprint(Text(train=path, dev="other").inputs("train"))
    others = {
        fingerprint(Text(train=path, target_column=2).inputs("train")),
        fingerprint(Text(train=path, source_column=1).inputs("train")),
        fingerprint(Text(train=write(tmp_path / "pairs.tsv", "one\teins\tune")).inputs("train")),
    }
    assert len({first, *others}) == 4


def test_fingerprint_stays_when_the_file_moves(tmp_path):
    path = write(tmp_path / "pairs.tsv", "one\teins")
    first = fingerprint(Text(train=path).inputs("train"))
    (tmp_path / "pairs.tsv").rename(tmp_path / "moved.tsv")
    assert fingerprint(Text(test=str(tmp_path / "moved.tsv")).inputs("test")) == first


def test_fingerprint_of_text_files(tmp_path):
    one, two = write(tmp_path / "one", "one"), write(tmp_path / "two", "two")

    def now():
        return fingerprint(Text(train=f"{one},{two}").inputs("train"))

    first = now()
    assert fingerprint(Text(train=f"{two},{one}").inputs("train")) != first
    write(tmp_path / "two", "drei")
    assert now() != first


# ------------------------------------------------------------------------------ The corpus that comes with t2t


def test_quickstart_sizes():
    corpus = Embedded("quickstart")
    assert [sum(1 for _ in corpus.pairs(split)) for split in SPLITS] == [40_000, 1_000, 1_000]
    assert all(pair.source.strip() and pair.target.strip() for split in SPLITS for pair in corpus.pairs(split))
    assert len({fingerprint(corpus.inputs(split)) for split in SPLITS}) == 3


@pytest.mark.parametrize("side", ["source", "target"])
def test_quickstart_holds_nothing_out_twice(side):
    def bare(split):
        return {re.sub(r"[\W_]+", "", getattr(p, side)).casefold() for p in Embedded("quickstart").pairs(split)}

    train = bare("train")
    assert len(train) > 20_000
    assert not train & bare("dev")
    assert not train & bare("test")


def test_quickstart_reads_both_ways():
    there, back = Embedded("quickstart"), Embedded("quickstart", source_column=1, target_column=0)
    assert [(t, s) for s, t in back.pairs("dev")] == list(there.pairs("dev"))
    assert fingerprint(back.inputs("dev")) != fingerprint(there.inputs("dev"))


@pytest.mark.parametrize("name", sorted(p.name for p in EMBEDDED.iterdir()))
def test_embedded_corpora_name_their_licence(name):
    text = (EMBEDDED / name / "ATTRIBUTION.md").read_text()
    assert "licence" in text
    assert "CC BY" in text

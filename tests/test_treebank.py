"""Where trees come from: files in every form, the sections of the WSJ, gold mixed with automatic trees, the sample."""

import gzip
import json
import lzma
import re
import sys
from collections import Counter

import pytest

from t2t import experiment
from t2t.data.corpora import EMBEDDED
from t2t.data.parsing import Parsing
from t2t.data.task import fingerprint
from t2t.data.treebank import EmbeddedTrees, SemiSupervised, Treebank, Trees, Wsj, read_trees
from t2t.errors import UserError
from t2t.experiment import override
from t2t.trees import bracketed, clean, words

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def tree(word):
    return f"(TOP (NN {word}))"


def texts(treebank, split="train"):
    """The words of all trees of a split; each tree of these tests has one."""
    return [" ".join(words(each)) for each in treebank.trees(split)]


# ------------------------------------------------------------------------------ Files


@pytest.mark.parametrize(
    ("suffix", "opened"), {"": open, ".gz": gzip.open, ".xz": lzma.open, ".zst": zstd.open}.items()
)
def test_files_may_be_compressed(tmp_path, suffix, opened):
    path = tmp_path / f"train.mrg{suffix}"
    with opened(path, "wb") as file:
        file.write(f"{tree('a')}\n{tree('é')}\n".encode())
    assert texts(Trees(train=str(path))) == ["a", "é"]


def test_one_or_many_trees_a_line_and_one_or_many_lines_a_tree(tmp_path):
    path = tmp_path / "train.mrg"
    path.write_text(f"{tree('a')} {tree('b')}\n\n( (S\n    (NN c)\n    (NN d)))\n{tree('e')}")
    assert texts(Trees(train=str(path))) == ["a", "b", "c d", "e"]


def test_a_folder_and_a_pattern_stand_for_files_in_the_order_of_their_names(tmp_path):
    for name in ("b.mrg", "a.mrg", "c.txt"):
        (tmp_path / name).write_text(tree(name))
    (tmp_path / "d.mrg.gz").write_bytes(gzip.compress(tree("d").encode()))
    treebank = Trees(train=".", dev="?.mrg", test="c.txt", folder=str(tmp_path))
    assert texts(treebank) == ["a.mrg", "b.mrg", "d"]
    assert texts(treebank, "dev") == ["a.mrg", "b.mrg"]
    assert texts(treebank, "test") == ["c.txt"]
    assert [*treebank.inputs("dev")] == [str(tmp_path / "a.mrg"), str(tmp_path / "b.mrg")]


@pytest.mark.parametrize(
    ("broken", "line", "reason"),
    [
        ("(TOP (NN c)))", 3, "a closing bracket without an opening one"),
        ("(TOP\n(NP))", 4, "(NP) has neither a word nor children"),
        ("(TOP (NN c", 3, "the text ends inside the tree that begins in line 3"),
    ],
)
def test_a_broken_tree_is_named_with_file_line_and_reason(tmp_path, broken, line, reason):
    path = tmp_path / "train.mrg"
    path.write_text(f"{tree('a')}\n{tree('b')}\n{broken}")
    found = read_trees(path)
    assert [words(next(found)), words(next(found))] == [["a"], ["b"]]
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}, line {line}: {reason}')}$"):
        list(found)


def test_a_missing_file_and_a_missing_name_are_told(tmp_path):
    (tmp_path / "train.mrg").write_text(tree("a"))
    treebank = Trees(train="trian.mrg", folder=str(tmp_path))
    for ask in (texts, lambda treebank: treebank.inputs("train")):
        with pytest.raises(UserError, match=r"no file .*trian\.mrg; did you mean train\.mrg\?"):
            ask(treebank)
    with pytest.raises(UserError, match=r"names no file for its dev split \(--task.treebank.dev\)"):
        texts(treebank, "dev")


@pytest.mark.parametrize("treebank", [Trees(train="x"), Wsj(), EmbeddedTrees("craft"), SemiSupervised()])
def test_an_unknown_split_names_the_nearest(treebank):
    assert isinstance(treebank, Treebank)
    for ask in (lambda: list(treebank.trees("tset")), lambda: treebank.inputs("tset")):
        with pytest.raises(UserError, match=r"no split 'tset'; did you mean test\?"):
            ask()


def test_the_digest_is_that_of_the_content(tmp_path):
    path, copy = tmp_path / "train.mrg", tmp_path / "copy.mrg"
    digest = lambda path: fingerprint(Trees(train=str(path)).inputs("train"))  # noqa: E731
    for file in (path, copy):
        file.write_text(tree("a"))
    before = digest(path)
    assert digest(copy) == before
    path.write_text(tree("b"))
    assert digest(path) != before


# ------------------------------------------------------------------------------ The Wall Street Journal


@pytest.fixture
def wsj(tmp_path):
    """Sections 00 to 24 of two files each, of two trees each, as the LDC lays them out."""
    for section in range(25):
        folder = tmp_path / "wsj" / f"{section:02}"
        folder.mkdir(parents=True)
        for number in (2, 1):
            trees = [f"( (S \n    (NN {section:02}.{number}.{n}) ))\n" for n in range(2)]
            (folder / f"wsj_{section:02}{number:02}.mrg").write_text("\n" + "".join(trees))
        (folder / "readme.txt").write_text("no tree")
    return Wsj(str(tmp_path / "wsj"))


def names(sections):
    return [f"{section:02}.{number}.{n}" for section in sections for number in (1, 2) for n in range(2)]


@pytest.mark.parametrize(("split", "sections"), {"train": range(2, 22), "dev": [22], "test": [23]}.items())
def test_the_split_is_that_of_collins(wsj, split, sections):
    assert texts(wsj, split) == names(sections)
    files = [f"{n:02}/wsj_{n:02}{number:02}.mrg" for n in sections for number in (1, 2)]
    assert [*wsj.inputs(split)] == files


def test_the_digest_is_the_same_wherever_the_sections_lie(wsj, tmp_path):
    before = wsj.inputs("train")
    (tmp_path / "wsj").rename(tmp_path / "moved")
    moved = Wsj(str(tmp_path / "moved"))
    assert moved.inputs("train") == before
    (tmp_path / "moved" / "21" / "wsj_2102.mrg").write_text(tree("other"))
    assert fingerprint(moved.inputs("train")) != fingerprint(before)


@pytest.mark.parametrize(("section", "split"), [("07", "train"), ("22", "dev"), ("23", "test")])
def test_a_missing_section_is_named(wsj, tmp_path, section, split):
    (tmp_path / "wsj" / section).rename(tmp_path / "away")
    for ask in (wsj.files, wsj.inputs, lambda split: list(wsj.trees(split))):
        with pytest.raises(UserError, match=rf"no folder {tmp_path}/wsj/{section}.*sections 00 to 24.*LDC99T42"):
            ask(split)
    (tmp_path / "wsj" / section).mkdir()
    with pytest.raises(UserError, match=rf"no .mrg file in the folder {tmp_path}/wsj/{section}"):
        wsj.files(split)


def test_a_missing_wsj_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"no folder {tmp_path}/nowhere/02"):
        Wsj(str(tmp_path / "nowhere")).inputs("train")


# ------------------------------------------------------------------------------ Gold and automatic trees


def mixed(wsj, tmp_path, automatic, ratio):
    (tmp_path / "automatic.mrg").write_text("".join(f"{tree(f'auto{n}')}\n" for n in range(automatic)))
    return SemiSupervised(wsj, str(tmp_path / "automatic.mrg"), ratio)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 2.5, 425.0])
def test_gold_trees_stand_among_automatic_ones_as_often_as_the_ratio_says(wsj, tmp_path, ratio):
    gold = names(range(2, 22))  # 80 trees
    found = texts(mixed(wsj, tmp_path, 400, ratio))
    assert [text for text in found if text.startswith("auto")] == [f"auto{n}" for n in range(400)]
    given = [text for text in found if not text.startswith("auto")]
    assert given == [gold[n % 80] for n in range(len(given))]  # over and over, in their order
    assert len(given) == max(80, int(400 / ratio))
    before = [place - n for n, place in enumerate(p for p, text in enumerate(found) if text.startswith("auto"))]
    assert before == [int(n / ratio) for n in range(400)]  # how many gold trees stand before the nth automatic one


def test_dev_and_test_are_gold(wsj, tmp_path):
    treebank = mixed(wsj, tmp_path, 5, 1.0)
    for split in ("dev", "test"):
        assert texts(treebank, split) == texts(wsj, split)
        assert treebank.inputs(split) == wsj.inputs(split)


def test_the_digest_knows_both_treebanks_and_the_ratio(wsj, tmp_path):
    digest = lambda treebank: fingerprint(treebank.inputs("train"))  # noqa: E731
    found = [digest(mixed(wsj, tmp_path, 5, 1.0)), digest(mixed(wsj, tmp_path, 5, 2.0))]
    found.append(digest(mixed(wsj, tmp_path, 6, 1.0)))
    (tmp_path / "wsj" / "05" / "wsj_0501.mrg").write_text(tree("other"))
    found.append(digest(mixed(wsj, tmp_path, 6, 1.0)))
    assert len({*found}) == 4


@pytest.mark.parametrize("ratio", ["0", "-1", "many"])
def test_a_ratio_is_above_0(ratio):
    with pytest.raises(UserError, match="--ratio is a number, above 0"):
        override(SemiSupervised(), {"ratio": ratio})


# ------------------------------------------------------------------------------ What comes with t2t


@pytest.mark.parametrize(("split", "count"), [("train", 10_500), ("dev", 400), ("test", 400)])
def test_the_embedded_slice_is_as_its_attribution_says(split, count):
    trees = [*EmbeddedTrees("craft").trees(split)]
    assert len(trees) == count
    assert all(1 <= len(words(clean(each, Counter()))) <= 40 for each in trees)
    said = (EMBEDDED / "craft" / "ATTRIBUTION.md").read_text()
    assert "CRAFT" in said and "CC BY 3.0" in said and f"{count:,}" in said


def test_the_embedded_slice_is_small_and_all_there_is_is_named():
    files = {path.name: path.stat().st_size for path in (EMBEDDED / "craft").iterdir()}
    assert {*files} == {"ATTRIBUTION.md", "train.mrg.xz", "dev.mrg.xz", "test.mrg.xz"}
    assert sum(files.values()) < 500_000
    assert [*EmbeddedTrees("craft").inputs("dev")] == ["dev.mrg.xz"]


def test_an_unknown_slice_names_the_nearest():
    with pytest.raises(UserError, match=r"no embedded treebank 'carft'; did you mean craft\?"):
        EmbeddedTrees("carft").inputs("train")


# ------------------------------------------------------------------------------ What cleaning says

DIRTY = """( (S (NP-SBJ-1 (PRP It)) (VP (VBZ seems) (SBAR (-NONE- 0) (S (NP (-NONE- *-1)) (VP (VBG to) (VB work)))))))
(ROOT (NP=2 (NN so)))
(TOP (NP (-NONE- *)))
(TOP (X (NN fine)))
"""


@pytest.fixture
def dirty(tmp_path, monkeypatch):
    monkeypatch.setenv("T2T_DATA", str(tmp_path / "cache"))
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.mrg").write_text(DIRTY)
    return Trees(train="train.mrg", dev="dev.mrg", test="test.mrg", folder=str(tmp_path))


COUNTS = {
    "trees": 3,
    "traces": 3,
    "empty constituents": 3,
    "function tags": 2,
    "outer labels": 2,
    "trees without words": 1,
}


def test_pairs_are_words_and_clean_trees(dirty):
    task = Parsing(dirty)
    assert [tuple(pair) for pair in task.pairs("dev")] == [
        (
            "It seems to work",
            "(TOP (S (NP (PRP It)) (VP (VBZ seems) (SBAR (S (VP (VBG to) (VB work)))))))",
        ),
        ("so", "(TOP (NP (NN so)))"),
        ("fine", "(TOP (X (NN fine)))"),
    ]
    assert task.facts("dev") == COUNTS
    assert [bracketed(each) for each in dirty.trees("dev")][3] == "(TOP (X (NN fine)))"  # as they stand


def test_prepare_says_what_cleaning_did(dirty, t2t, monkeypatch):
    base = experiment.get("parse_quickstart")
    known = override(base, {"name": "dirty", "task.treebank": dirty, "model.vocab_size": 24})
    monkeypatch.setattr(experiment, "registered", lambda: {"dirty": known})
    code, out, _ = t2t("prepare", "dirty", "--json")
    report = json.loads(out)
    assert code == 0 and report["reading"] == COUNTS
    assert report["pairs"] == report["kept"] == 3 and not any(report["dropped"].values())
    assert report["overlap"]["dev"] == {"pairs": 3, "both": 3, "source": 3, "target": 3}
    assert report["inputs"] == dirty.inputs("train")
    # 17 + 4 + 4, EOS counted.
    assert report["lengths"]["target"]["tokens"] == 25 and report["unknown"]["target"] == 0
    line = "cleaned   3 trees, 3 traces, 3 empty constituents, 2 function tags, 2 outer labels, 1 trees without words"
    assert line in t2t("prepare", "dirty")[1]


def test_prepare_says_how_many_tokens_the_trees_need(dirty, t2t, monkeypatch):
    known = override(experiment.get("parse_quickstart"), {"name": "dirty", "task.treebank": dirty})
    monkeypatch.setattr(experiment, "registered", lambda: {"dirty": known})
    words = ["prepare", "dirty", "--model.vocab_size", "24", "--model.target_vocab_size"]
    code, out, err = t2t(*words, "9")
    needed = re.search(r"--model.target_vocab_size 9 is too few for the trees: at least (\d+)\n", err)
    assert (code, out) == (2, "") and needed
    assert t2t(*words, int(needed[1]) - 1)[0] == 2
    assert t2t(*words, needed[1])[0] == 0

"""Parsing from trees to trees: a toy grammar is learnt, evaluated, and parsed with from the command line."""

import json
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest
import toys

from t2t import checkpoint, evaluate, experiment, run, train
from t2t.data.parsing import Parsing
from t2t.data.treebank import Trees
from t2t.drawing import svg, text
from t2t.experiment import override
from t2t.metrics import brackets
from t2t.parse import BRACKETS, split_raw
from t2t.trees import parse, words


@pytest.fixture(scope="module")
def grammar(tmp_path_factory):
    """The experiment, with a cache of its own."""
    folder = tmp_path_factory.mktemp("grammar")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2T_DATA", str(folder / "cache"))
        yield toys.grammar(folder)


@pytest.fixture(autouse=True)
def registered(grammar, monkeypatch):
    known = {**experiment.registered(), "grammar": grammar}
    monkeypatch.setattr(experiment, "registered", lambda: known)


def vocabularies(where):
    return {path.name: path.read_bytes() for path in where.vocabulary.iterdir()}


@pytest.fixture(scope="module")
def parts(grammar, tmp_path_factory):
    """A run that was trained in two parts, and the files of its vocabularies after the first."""
    folder = tmp_path_factory.mktemp("runs") / "grammar"
    quiet = (lambda _: None, lambda *_: None)
    where = train.train(override(grammar, {"train_steps": 100}), folder, *quiet)
    first = vocabularies(where)
    return train.train(grammar, folder, *quiet), first


@pytest.fixture(scope="module")
def trained(parts):
    return parts[0]


@pytest.fixture(scope="module")
def evaluated(grammar, trained):
    """What evaluation says of dev, and its (source, output, reference) of each sentence."""
    params, steps = checkpoint.load_params(trained, grammar, 2)
    vocabulary = run.load(trained.folder)[2]
    return evaluate.evaluate(trained, grammar, vocabulary, params, steps, "dev", lambda _: None)


# ------------------------------------------------------------------------------ Training and evaluation


def test_it_learns_the_grammar(evaluated):
    """Held out are sentences; the rules are those of the training trees."""
    assert evaluated[0]["scores"]["f1"]["score"] > 75  # right-branching trees reach 27
    assert evaluated[0]["scores"]["tagging_accuracy"]["score"] > 75


def test_evaluation_writes_trees_and_their_scores(grammar, trained, evaluated):
    summary, rows = evaluated
    (found,) = run.evaluations(trained, "dev")
    assert str(found.folder) == summary["folder"]
    pairs = [*grammar.task.pairs("dev")]
    assert found.lines("sources") == [pair.source for pair in pairs]
    assert found.lines("references") == [pair.target for pair in pairs]
    outputs = found.lines("hypotheses")
    assert rows == [*zip(found.lines("sources"), outputs, found.lines("references"), strict=True)]
    assert [" ".join(words(parse(line))) for line in outputs] == found.lines("sources")
    expected = brackets.scores(outputs, found.lines("references"))
    assert summary["scores"] == {name: score._asdict() for name, score in expected.items()}
    assert found.summary["constraint"] == {"max_openings": 10, "lost": 0.5}
    assert found.summary["outputs"] == {"repaired": 0}


def test_a_run_that_goes_on_keeps_its_vocabularies(parts):
    where, first = parts
    assert {*first} == {"source.model", "target.json"}
    assert vocabularies(where) == first
    assert [part["after_step"] for part in run.parts(where)] == [0, 100]


@pytest.mark.parametrize("file", ["source.model", "target.json"])
@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (
            lambda text: text.replace(b"the", b"teh").replace(b'"(NP"', b'"(QP"').replace(b'")NP"', b'")QP"'),
            "vocabulary",
        ),
        (lambda text: text[:40], "is not a"),
        (None, "no vocabulary file"),
    ],
    ids=["changed", "cut", "gone"],
)
def test_a_run_refuses_other_vocabularies(t2t, trained, tmp_path, file, harm, complaint):
    shutil.copytree(trained.vocabulary, tmp_path / "run" / "vocabulary")
    shutil.copy(trained.record, tmp_path / "run")
    path = tmp_path / "run" / "vocabulary" / file
    path.write_bytes(harm(path.read_bytes())) if harm else path.unlink()
    code, out, err = t2t("parse", tmp_path / "run", stdin=b"the cat sees .\n")
    assert (code, out) == (2, "") and err.startswith("t2t: ") and err.count("\n") == 1
    assert complaint in err


def test_outputs_are_trees_whatever_was_decoded(grammar):
    outputs, facts = grammar.task.outputs(["a b", "a b", "a"], ["(NP DT NN )NP", "(NP DT )NP", "(NP"])
    assert outputs == ["(TOP (NP (DT a) (NN b)))", "(TOP (NP (DT a)) (XX b))", "(TOP (NP (XX a)))"]
    assert facts == {"repaired": 2}


def test_xx_leaves_the_tags_out(grammar, t2t):
    assert Parsing(Trees(), tags="XX").linearisation.tokens(parse("(TOP (DT a) (. b))")) == ["XX", "."]
    found = json.loads(t2t("prepare", "grammar", "--task.tags", "XX", "--json")[1])
    kept = json.loads(t2t("prepare", "grammar", "--json")[1])
    assert found["fingerprint"] != kept["fingerprint"] and found["lengths"] == kept["lengths"]
    tokens = (Path(found["folder"]) / "target.json").read_text()
    assert "XX" in tokens and "DT" not in tokens


# ------------------------------------------------------------------------------ t2t parse

# Three lines or more: one compiled search, of four rows, for all of these tests and for evaluation.
LINES = [
    "the cat sees a map .",
    "",
    "sun eats with the sea ?",
    "   ",
    "a cat of the map eats .",
    "the cat sees a map .",
]


def trees_of(t2t, run, *lines, how=()):
    code, out, err = t2t("parse", run.folder, *how, stdin="\n".join(lines).encode())
    assert code == 0
    return out.split("\n")[:-1], err


def test_a_tree_a_line_in_order(t2t, trained):
    found, err = trees_of(t2t, trained, *LINES)
    assert [" ".join(words(parse(line))) if line else "" for line in found] == [line.strip() for line in LINES]
    assert found[0] == found[5] and "repaired" not in err
    tree = "(TOP (S (NP (DT the) (NN cat)) (VP (VBZ sees) (NP (DT a) (NN map))) (. .)))"
    assert found[0] == tree


def test_brackets_in_words_are_written_as_treebanks_do(t2t, trained):
    found, _ = trees_of(t2t, trained, "the cat(s) sees ( .", "the cat .", "a")
    assert words(parse(found[0])) == ["the", "cat-LRB-s-RRB-", "sees", "-LRB-", "."]


def test_words_stand_between_spaces_of_any_kind(t2t, trained):
    found, _ = trees_of(t2t, trained, " the\tcat  sees\u00a0a\u3000map .\r", "the cat sees a map .", "a")
    assert found[0] == found[1]


def test_a_line_that_is_not_utf8_is_a_blank_one(t2t, trained):
    code, out, err = t2t("parse", trained.folder, stdin=b"the cat .\n\xff cat\na sun .\nthe sea .\n")
    lines = out.split("\n")
    assert code == 2 and len(lines) == 5 and lines[1] == "" and lines[4] == ""
    assert [words(parse(line))[1] for line in (lines[0], lines[2], lines[3])] == ["cat", "sun", "sea"]
    assert "line 2: not UTF-8" in err


def test_nothing_in_nothing_out(t2t, trained):
    assert t2t("parse", trained.folder)[:2] == (0, "")
    assert t2t("parse", trained.folder, stdin=b"\n\n")[:2] == (0, "\n\n")


def test_raw_text_is_split_into_words(t2t, trained):
    found, _ = trees_of(t2t, trained, "the cat sees a map.", "(the cat's map)?", "a", how=["--raw"])
    assert words(parse(found[0])) == ["the", "cat", "sees", "a", "map", "."]
    assert words(parse(found[1])) == ["-LRB-", "the", "cat", "'s", "map", "-RRB-", "?"]


def test_pretty_draws_the_tree_over_its_words(t2t, trained):
    code, out, _ = t2t("parse", trained.folder, "--pretty", stdin="\n".join([*LINES[:3], "a"]).encode())
    drawn = [each.split("\n") for each in out.split("\n\n")]
    assert code == 0 and drawn[0][0].split() == ["TOP"] and drawn[0][-1].split() == LINES[0].split()
    tree = text(parse("(TOP (S (NP (DT the) (NN cat)) (VP (VBZ sees) (NP (DT a) (NN map))) (. .)))"))
    assert out.startswith(f"{tree}\n\n")  # and for the blank line a blank one


def test_svg_draws_a_picture_a_line_and_escapes_words(t2t, trained, tmp_path):
    lines = ["the <b>&</b> .", "", "a & b", "sun"]
    found, _ = trees_of(t2t, trained, *lines, how=["--svg", tmp_path / "pictures"])
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "000001.svg",
        "000003.svg",
        "000004.svg",
    ]
    first = (tmp_path / "pictures" / "000001.svg").read_text(encoding="utf-8")
    assert "<b>" not in first and "&lt;b&gt;&amp;&lt;/b&gt;" in first
    said = [text.strip() for text in ET.fromstring(first).itertext() if text.strip()]
    assert Counter(lines[0].split()) <= Counter(said) and "TOP" in said
    assert len(found) == 4 and found[1] == ""


def test_what_cannot_be_written_is_named(t2t, trained, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = t2t("parse", trained.folder, "--svg", tmp_path / "file", stdin=b"a\nthe cat .\nsun\n")
    assert (code, out) == (2, "") and f"cannot write {tmp_path}/file: " in err


def test_without_the_constraint_outputs_are_repaired_and_counted(t2t, trained):
    """Room for no bracket: none of these can be the tree that the model has in mind."""
    how = ["--task.constrained", "false", "--decoding.extra_length", "0"]
    found, err = trees_of(t2t, trained, *LINES, how=how)
    assert [" ".join(words(parse(line))) if line else "" for line in found] == [line.strip() for line in LINES]
    assert "4 outputs were no trees over their sentences' words, and were repaired" in err


def test_an_id_that_stands_for_no_token_is_unknown(trained):
    """The table of targets may have more rows than there are tokens, and an unconstrained search may say any."""
    vocabulary = run.load(trained.folder)[2].target
    assert vocabulary.pieces([len(vocabulary.tokens), 5]) == ["<unk>", vocabulary.tokens[5]]


def test_a_long_line_is_parsed_in_pieces_joined_under_top(t2t, trained):
    """Of whole words, as many as the model takes."""
    long = "the cat sees a map . the sun eats a cat of the sea . sun sees"
    found, err = trees_of(t2t, trained, "a cat .", long, how=["--decoding.max_input", "8"])
    tree = parse(found[1])
    assert tree.label == "TOP" and words(tree) == long.split()
    assert not any(child.label == "TOP" for child in tree.children)
    count = len(vocabulary_of(trained).source.encode([long])[0])
    assert f"line 2: {count} tokens, parsed in 3 pieces, joined under TOP" in err and "line 1" not in err


def test_a_word_longer_than_the_model_takes_is_parsed_all_the_same(t2t, trained):
    lines = ["cat seasunmapseasunmapsea .", "a", "sun"]
    found, _ = trees_of(t2t, trained, *lines, how=["--decoding.max_input", "4"])
    assert [" ".join(words(parse(line))) for line in found] == lines


def test_a_tree_is_scored_as_cleaning_makes_it(t2t, trained, tmp_path):
    clean, raw = "(TOP (NP (DT the) (NN cat)))", "(NP-SBJ-1 (DT the) (NN cat) (NP (-NONE- *)))"
    (tmp_path / "words").write_text("the cat\nthe cat\n")
    (tmp_path / "trees").write_text(f"{clean}\n{raw}\n")
    code, out, _ = t2t("score", trained.folder, tmp_path / "words", tmp_path / "trees")
    first, second = map(float, out.split())
    assert code == 0 and first == pytest.approx(second, abs=1e-4) and first < 0


def vocabulary_of(where):
    return run.load(where.folder)[2]


MISTAKES = {
    "translate {run}": "this run parses: its outputs are trees, by `t2t parse`",
    "parse {run} --task.tags XX": "--task.tags cannot change in a trained run: its vocabulary has no others",
    "evaluate {run} --task.tags XX": "--task.tags cannot change in a trained run: its vocabulary has no others",
    "parse {run} --model.target_vocab_size 30": "--model.target_vocab_size cannot change in a trained run",
    "parse {run} --decoding.beam 0": "--decoding.beam is a whole number, at least 1, not 0",
    "parse {run} --task.max_openings 0": "--task.max_openings is a whole number, at least 1, not 0",
    "prepare grammar --model.target_vocab_size 0": "--model.target_vocab_size must be above 0: trees have a vocabulary",
    "train grammar --run {tmp}/new --model.target_vocab_size 5": "5 is too few for the trees: at least",
    "train grammar --run {tmp}/new --task.treebank.dev none.mrg": "no file",
    "train grammar --run {tmp}/new --task.treebank.train {tmp}/bad.mrg": "bad.mrg, line 2: (NP) has neither a word nor",
    "train grammar --run {run} --task.tags XX": "{run} holds another experiment: task.tags is keep there, XX here",
    "compare {run} {run}": "{run} is no run of translating: its scores are others",
    "score {run} {tmp}/words {tmp}/no.trees": "line 1: '(TOP (NP' is not a tree: the text ends inside",
    "score {run} {tmp}/words {tmp}/other.trees": "line 1: the tree is over ['a', 'cat'], not ['the', 'cat']",
}


@pytest.mark.parametrize(("command", "complaint"), MISTAKES.items())
def test_a_mistake_is_one_line_and_exit_code_2(t2t, trained, tmp_path, command, complaint):
    (tmp_path / "bad.mrg").write_text("(TOP (NN a))\n(TOP (NP))\n")
    (tmp_path / "words").write_text("the cat\n")
    (tmp_path / "no.trees").write_text("(TOP (NP\n")
    (tmp_path / "other.trees").write_text("(TOP (NP (DT a) (NN cat)))\n")
    places = {"tmp": tmp_path, "run": trained.folder}
    code, out, err = t2t(*command.format(**places).split(), stdin=b"the cat .\n")
    assert (code, out) == (2, "") and "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("t2t: ") and complaint.format(**places) in last


# ------------------------------------------------------------------------------ What NLTK does for us


def test_raw_text_is_split_as_the_penn_treebank_is():
    said = "It's \"so\" (they say), isn't it?"
    assert split_raw(said) == [
        "It",
        "'s",
        "``",
        "so",
        "''",
        "-LRB-",
        "they",
        "say",
        "-RRB-",
        ",",
        "is",
        "n't",
        "it",
        "?",
    ]
    assert split_raw("  ") == []
    assert "a(b)".translate(BRACKETS) == "a-LRB-b-RRB-"


def test_deep_trees_can_be_drawn():
    deep = parse("(TOP " + "(NP " * 100 + "(NN w)" + ")" * 101)
    assert text(deep).count("NP") == 100
    assert svg(deep).startswith("<svg")

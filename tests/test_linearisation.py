"""Trees as tokens and back: the form of Vinyals et al. 2015, its inverse, repair, and the vocabulary of trees."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import toys

from t2t.batch import EOS, PAD, UNK
from t2t.data.linearisation import Alphabet, Counted, Linearisation, TreeVocabulary, is_text, repair, restore
from t2t.data.treebank import EmbeddedTrees, read_trees
from t2t.errors import UserError
from t2t.trees import MAX_DEPTH, TOP, Tree, bracketed, clean, parse, walk, words

JOHN = "(TOP (S (NP (DT A) (NN dog)) (VP (VBZ has) (NP (DT a) (NN tail))) (. .)))"
KEEP, XX = Linearisation(), Linearisation("XX")


# ------------------------------------------------------------------------------ There


def test_tokens_are_those_of_vinyals():
    assert " ".join(KEEP.tokens(parse(JOHN))) == "(S (NP DT NN )NP (VP VBZ (NP DT NN )NP )VP . )S"


def test_all_tags_but_punctuation_become_xx():
    tree = parse("(TOP (S (`` a) (NP (PRP$ b) (-LRB- c) ($ d)) (, e) (: f) (VP (VB g)) ('' h) (. i)))")
    assert " ".join(XX.tokens(tree)) == "(S `` (NP XX XX XX )NP , : (VP XX )VP '' . )S"


def test_only_the_outermost_top_is_left_out():
    assert " ".join(KEEP.tokens(parse("(TOP (NN a) (TOP (TOP (NN b))))"))) == "NN (TOP (TOP NN )TOP )TOP"


# ------------------------------------------------------------------------------ And back


def assert_comes_back(tree):
    assert restore(KEEP.tokens(tree), words(tree)) == tree
    without = parse(re.sub(r"\(([^\s()]+) (?=[^\s()])", lambda leaf: f"({XX.tag(leaf[1])} ", bracketed(tree)))
    assert restore(XX.tokens(tree), words(tree)) == without


def test_random_trees_come_back():
    rng = np.random.default_rng(0)
    trees = [toys.random_tree(rng) for _ in range(1500)]
    for tree in trees:
        assert_comes_back(tree)
    # What must be among them: forests, bare leaves beside constituents, and unary chains.
    assert any(len(tree.children) > 2 for tree in trees)
    assert any({bool(child.word) for child in tree.children} == {True, False} for tree in trees)
    assert any(len(node.children) == 1 == len(node.children[0].children) for tree in trees for node, _ in walk(tree))


def deep(constituents):
    tree = Tree("NN", word="w")
    for _ in range(constituents):
        tree = Tree("NP", (tree,))
    return Tree(TOP, (tree,))


def test_the_deepest_tree_that_can_be_read_comes_back():
    assert_comes_back(parse(bracketed(deep(MAX_DEPTH - 2))))


def test_trees_too_deep_to_be_read_again_are_not_made():
    tokens = ["(NP"] * 500 + ["NN"] + [")NP"] * 500
    with pytest.raises(ValueError, match="cannot stand here"):
        restore(tokens, ["w"])
    repaired = repair(tokens, ["w"])
    assert parse(bracketed(repaired)) == repaired == deep(MAX_DEPTH - 2)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_all_trees_of_the_embedded_slice_come_back(split):
    for tree in EmbeddedTrees("craft").trees(split):
        cleaned = clean(tree, Counter())
        assert restore(KEEP.tokens(cleaned), words(cleaned)) == cleaned


@pytest.mark.skipif("T2T_TREEBANKS" not in os.environ, reason="T2T_TREEBANKS names no folder of .mrg.xz files")
def test_all_trees_of_whole_treebanks_come_back():
    files = sorted(Path(os.environ["T2T_TREEBANKS"]).rglob("*.mrg.xz"))
    assert files
    for tree in (tree for path in files for tree in read_trees(path)):
        if cleaned := clean(tree, Counter()):
            assert_comes_back(cleaned)


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ("(NP DT NN )NP", "a"),  # a leaf too many
        ("(NP DT )NP", "a b"),  # too few
        ("(NP DT )NP (NP )NP", "a"),  # an empty constituent
        ("(S (NP )NP DT )S", "a"),
        ("(NP DT", "a"),  # never closed
        ("DT )NP", "a"),  # never opened
        ("(NP DT )NP )NP", "a"),
        ("(NP DT )VP", "a"),  # closed by another name
        ("(S (NP DT )S )NP", "a"),
        ("", "a"),
        ("", ""),  # no words
        ("(NP )NP", ""),
        ("DT", ""),
    ],
)
def test_what_is_no_tree_is_refused(tokens, sentence):
    with pytest.raises(ValueError):
        restore(tokens.split(), sentence.split())


# ------------------------------------------------------------------------------ Repair


@pytest.mark.parametrize(
    ("tokens", "sentence", "tree"),
    [
        ("(S (NP DT )S", "a", "(TOP (S (NP (DT a))))"),  # closes S and all inside it
        ("(S (NP DT )S )NP NN", "a b", "(TOP (S (NP (DT a))) (NN b))"),
        ("(S (S DT )S NN )S", "a b", "(TOP (S (S (DT a)) (NN b)))"),  # the innermost of its label
        ("(NP DT )VP NN )NP", "a b", "(TOP (NP (DT a) (NN b)))"),  # closes nothing: there is none
        (")TOP DT", "a", "(TOP (DT a))"),
        ("(NP DT NN NN )NP", "a", "(TOP (NP (DT a)))"),  # leaves too many
        ("(S (NP DT", "a b c", "(TOP (S (NP (DT a)) (XX b) (XX c)))"),  # leaves missing, S open
        ("(S (NP DT )NP )S", "a b c", "(TOP (S (NP (DT a))) (XX b) (XX c))"),  # nothing open
        ("(S (NP )NP (VP (VP )VP )VP DT )S (X", "a", "(TOP (S (DT a)))"),  # the empty vanish
        ("", "a b", "(TOP (XX a) (XX b))"),
    ],
)
def test_repair_follows_as_far_as_tokens_make_sense(tokens, sentence, tree):
    assert bracketed(repair(tokens.split(), sentence.split())) == tree


def test_repair_makes_a_tree_over_the_words_of_any_tokens():
    rng, good = np.random.default_rng(1), 0
    for _ in range(6000):
        tokens = rng.choice(["(S", ")S", "(NP", ")NP", "NN", "DT"], rng.integers(0, 9)).tolist()
        sentence = [f"w{i}" for i in range(rng.integers(1, 5))]
        found = repair(tokens, sentence)
        assert words(found) == sentence and found.label == TOP
        assert all(node.word or node.children for node, _ in walk(found))
        assert parse(bracketed(found)) == found
        try:
            assert restore(tokens, sentence) == found
            good += 1
        except ValueError:
            pass
    assert good > 50


def test_repair_leaves_trees_as_they_are():
    rng = np.random.default_rng(2)
    for tree in (toys.random_tree(rng) for _ in range(300)):
        assert repair(KEEP.tokens(tree), words(tree)) == tree


# ------------------------------------------------------------------------------ Numbers

TREES = [JOHN, JOHN, "(TOP (S (NP (PRP It)) (VP (VBZ works))))"]


def vocabulary(size=20, linearisation=KEEP):
    return TreeVocabulary.of(Counted(Counter(), {}).add(TREES, linearisation), size, linearisation)


def test_ids_go_from_the_most_frequent_to_the_rarest_after_the_special_ones():
    found = vocabulary()
    assert len(found) == 20
    # How often: 5 NPs, 3 each of S, VP and VBZ, 4 of DT and NN; names decide between equals.
    order = ["(NP", ")NP", "DT", "NN", "(S", "(VP", ")S", ")VP", "VBZ", ".", "PRP"]
    assert found.tokens == ["<pad>", "<eos>", "<unk>", *order]


@pytest.mark.parametrize("linearisation", [KEEP, XX])
def test_trees_come_back_from_their_ids(linearisation):
    found = vocabulary(linearisation=linearisation)
    for text, ids in zip(TREES, found.encode(TREES), strict=True):
        assert ids[-1] == EOS and not {EOS, PAD, UNK} & set(ids[:-1])
        assert found.decode(ids).split() == linearisation.tokens(parse(text))


def test_a_blank_line_is_the_end_alone():
    assert vocabulary().encode(["", "  "]) == [[EOS], [EOS]]


def test_unknown_labels_and_tags_have_the_unknown_id():
    (ids,) = vocabulary().encode(["(TOP (S (FRAG (JJ a)) (NN b)))"])
    (nn,) = vocabulary().encode(["(TOP (NN b))"])
    s = vocabulary().tokens.index
    assert ids == [s("(S"), UNK, UNK, UNK, nn[0], s(")S"), EOS]


def test_decoding_ends_at_eos_and_leaves_out_what_is_no_token():
    assert vocabulary().decode([5, PAD, UNK, 19, 6, EOS, 5]) == "DT NN"
    assert vocabulary().decode([5, 6]) == "DT NN"


def test_text_that_is_no_tree_is_named():
    with pytest.raises(UserError, match=r"not a tree: '\(TOP': the text ends inside"):
        vocabulary().encode(["(TOP"])


def test_a_size_too_small_says_how_many_are_needed():
    assert len(vocabulary(14)) == 14
    with pytest.raises(UserError, match=r"--model.target_vocab_size 13 is too few for the trees: at least 14$"):
        vocabulary(13)


def test_no_trees_make_no_vocabulary():
    with pytest.raises(UserError, match="no trees"):
        TreeVocabulary.of(Counted(Counter(), {}), 20, KEEP)


@pytest.mark.parametrize("linearisation", [KEEP, XX])
def test_a_vocabulary_comes_back_from_its_file(linearisation):
    found = vocabulary(linearisation=linearisation)
    again = TreeVocabulary.loads(found.model, "target.json")
    assert again.alphabet == found.alphabet and again.model == found.model
    assert again.encode(TREES) == found.encode(TREES)


def test_the_fingerprint_tells_vocabularies_apart():
    found = [vocabulary(), vocabulary(21), vocabulary(linearisation=XX)]
    changed = found[0].alphabet._replace(tokens=tuple(reversed(found[0].alphabet.tokens)))
    assert len({each.fingerprint for each in [*found, TreeVocabulary(changed)]}) == 4
    assert vocabulary().fingerprint == found[0].fingerprint


DAMAGES = ({"size": "x"}, {"tags": "none"}, {"tokens": "abc"}, {"marks": {",": ["no tag"]}}, {"marks": {",": []}})
GOOD = {"size": 20, "tags": "keep", "tokens": ["(S", ")S", "NN"], "marks": {"-": ["NN"]}}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b"[1]",
        b"null",
        *(json.dumps({k: v for k, v in GOOD.items() if k != gone}).encode() for gone in GOOD),
        *(json.dumps({**GOOD, **harm}).encode() for harm in DAMAGES),
        *(json.dumps({**GOOD, "tokens": bad}).encode() for bad in (["(S", "NN"], [")S", "NN"], ["NN", "NN"], [""])),
    ],
)
def test_a_damaged_file_is_named(text):
    with pytest.raises(UserError, match=r"^here/target.json is not a vocabulary of trees$"):
        TreeVocabulary.loads(text, "here/target.json")


# ------------------------------------------------------------------------------ Which tags a word may have


def tags_of(vocabulary, word):
    return vocabulary.pieces([*vocabulary.tag_sets[vocabulary.tag_set(word)]])


MARKED = "(TOP (S (NP (NN a)) (: -) (NP (NN b) (HYPH -) (NN c)) (, ,) (-LRB- -LRB-) (. .)))"


@pytest.mark.parametrize(
    ("word", "tags"),
    [
        ("-", {":", "HYPH"}),
        (",", {","}),
        ("-LRB-", {"-LRB-"}),
        ("a", {"NN", "HYPH", "-LRB-"}),
        ("unseen", {"NN", "HYPH", "-LRB-"}),
        ("3", {"NN", "HYPH", "-LRB-"}),
        ("*", {"NN", "HYPH", "-LRB-", ":", ",", "."}),
    ],
)
def test_marks_have_the_tags_they_had_and_words_no_tag_of_punctuation(word, tags):
    vocabulary = TreeVocabulary.of(Counted(Counter(), {}).add([MARKED], KEEP), 30, KEEP)
    again = TreeVocabulary.loads(vocabulary.model, "here")
    for each in (vocabulary, again):
        assert set(tags_of(each, word)) == tags


def test_without_tags_punctuation_still_is_what_it_was():
    no_tags = Linearisation("XX")
    vocabulary = TreeVocabulary.of(Counted(Counter(), {}).add([MARKED], no_tags), 30, no_tags)
    assert [tags_of(vocabulary, word) for word in ("a", ",", "-LRB-")] == [["XX"], [","], ["XX"]]
    assert sorted(tags_of(vocabulary, "-")) == [":", "XX"]


def test_a_tag_that_a_mark_hardly_ever_had_is_a_slip():
    trees = ["(TOP (NP (NN a) (. .)))"] * 100 + ["(TOP (NP (NN a) (NN .)))"]
    vocabulary = TreeVocabulary.of(Counted(Counter(), {}).add(trees, KEEP), 30, KEEP)
    assert tags_of(vocabulary, ".") == ["."]


def test_a_word_always_may_have_some_tag():
    only = TreeVocabulary(Alphabet(8, (".",), KEEP))
    assert tags_of(only, "word") == ["."]


def test_marks_are_no_part_of_what_weights_depend_on():
    counted = Counted(Counter(), {}).add([MARKED], KEEP)
    with_marks, without = (TreeVocabulary.of(each, 30, KEEP) for each in (counted, counted._replace(marks={})))
    assert with_marks.fingerprint == without.fingerprint and with_marks.model != without.model


@pytest.mark.parametrize(
    ("word", "text"),
    [("a", True), ("3", True), ("x-y", True), ("é", True), ("-", False), ("-RSB-", False), ("''", False)],
)
def test_what_is_a_mark(word, text):
    assert is_text(word) is text

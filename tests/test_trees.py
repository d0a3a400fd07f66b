"""Bracketed text to trees and back, what is refused, and what cleaning takes away."""

import re
from collections import Counter

import pytest

from t2t.trees import MAX_DEPTH, BrokenTree, Tree, bracketed, clean, parse, plain, read, words

IT_WORKS = "(TOP (S (NP (PRP It)) (VP (VBZ works)) (. .)))"


def test_a_tree_is_read_and_written_as_it_was():
    tree = parse(IT_WORKS)
    assert words(tree) == ["It", "works", "."]
    assert tree == Tree(
        "TOP",
        (
            Tree(
                "S",
                (
                    Tree("NP", (Tree("PRP", word="It"),)),
                    Tree("VP", (Tree("VBZ", word="works"),)),
                    Tree(".", word="."),
                ),
            ),
        ),
    )
    assert bracketed(tree) == IT_WORKS


def test_one_or_many_trees_a_line_and_one_or_many_lines_a_tree():
    spread = ["", "( (S (NP (PRP It))", "     (VP (VBZ works)) (. .)) )  (X (Y z))", "(A (B c))", ""]
    found = [bracketed(tree) for tree in read(spread)]
    assert found == ["( (S (NP (PRP It)) (VP (VBZ works)) (. .)))", "(X (Y z))", "(A (B c))"]


@pytest.mark.parametrize(
    "text, line, reason",
    [
        ("(TOP (NN a)))", 1, "a closing bracket without an opening one"),
        ("(A (B c))\n(TOP\n (NN a)\n", 4, "the text ends inside the tree that begins in line 2"),
        ("(TOP\n(NN a b))", 2, "the tag NN has 2 words: a b"),
        ("(TOP (NP))", 1, "(NP) has neither a word nor children"),
        ("(TOP ())", 1, "() has neither a word nor children"),
        ("(TOP ((NN a)))", 1, "a constituent without a label; only the outermost may lack it"),
        ("\nfoo (TOP (NN a))", 2, "'foo' stands outside of a tree"),
        ("(TOP (NP (NN a) b))", 1, "the word 'b' has no tag of its own"),
        ("(TOP (NP a (NN b)))", 1, "the word 'a' has no tag of its own"),
        ("(A " * MAX_DEPTH, 1, f"more than {MAX_DEPTH - 1} constituents inside one another"),
        ("(A " * (MAX_DEPTH - 1) + "(B c)", 1, f"more than {MAX_DEPTH - 1} constituents inside one another"),
    ],
)
def test_broken_text_is_refused_with_line_and_reason(text, line, reason):
    with pytest.raises(BrokenTree, match=re.escape(reason)) as caught:
        list(read(text.split("\n")))
    assert (caught.value.line, caught.value.reason) == (line, reason)


def test_a_tree_as_deep_as_allowed_goes_through_everything():
    (deep,) = read(["(A " * (MAX_DEPTH - 2) + "(B c)" + ")" * (MAX_DEPTH - 2)])
    cleaned = clean(deep, Counter())
    assert words(cleaned) == ["c"] and cleaned.label == "TOP"
    assert parse(bracketed(cleaned)) == cleaned


def test_one_tree_is_asked_for():
    for text in ("", "(A (B c)) (A (B c))"):
        with pytest.raises(BrokenTree, match=r"\d trees where one belongs"):
            parse(text)


def test_cleaning_takes_away_what_the_field_does_and_counts_it():
    counts = Counter()
    said = "(NP-SBJ-1 (NP=2 (-NONE- *)) (PRP It)) (SBAR (-NONE- 0) (S (-NONE- *T*-1))) (VP (VBZ works)) (-LRB- -LRB-)"
    raw = f"( (S {said}) )"
    assert bracketed(clean(parse(raw), counts)) == "(TOP (S (NP (PRP It)) (VP (VBZ works)) (-LRB- -LRB-)))"
    assert counts == {"traces": 3, "empty constituents": 3, "function tags": 1, "outer labels": 1}


@pytest.mark.parametrize(
    "raw, cleaned, wrapped",
    [
        ("(TOP (X (Y z)))", "(TOP (X (Y z)))", 0),
        ("(ROOT (X (Y z)))", "(TOP (X (Y z)))", 1),
        ("((X (Y z)))", "(TOP (X (Y z)))", 1),
        ("(X (Y z))", "(TOP (X (Y z)))", 1),
        ("(NN z)", "(TOP (NN z))", 1),
        ("(TOP z)", "(TOP (TOP z))", 1),
    ],
)
def test_there_is_one_outer_label(raw, cleaned, wrapped):
    counts = Counter()
    assert bracketed(clean(parse(raw), counts)) == cleaned
    assert counts["outer labels"] == wrapped


def test_nothing_is_left_of_a_tree_without_words():
    assert clean(parse("(TOP (S (-NONE- *)))"), Counter()) is None


@pytest.mark.parametrize(
    "label, short",
    [("NP-SBJ-1", "NP"), ("NP=2", "NP"), ("NP", "NP"), ("-LRB-", "-LRB-"), ("ADVP|PRT", "ADVP|PRT"), ("S-1=2", "S")],
)
def test_plain_labels(label, short):
    assert plain(label) == short


def test_a_constituent_that_is_called_as_a_trace_is_none():
    counts = Counter()
    assert bracketed(clean(parse("(TOP (-NONE- (NN a) (NN b)))"), counts)) == "(TOP (-NONE- (NN a) (NN b)))"
    assert not counts["traces"]

"""Bracket scores against the C program EVALB, digit for digit, against plain Python, and the verb `brackets`.

The comparisons run with figures that EVALB printed, and with EVALB itself where T2T_EVALB names its binary; then also
on the trees of the file that T2T_TREEBANK names, if it does.
"""

import importlib.metadata
import json
import lzma
import os
import random
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from t2t import trees
from t2t.data.corpora import read_lines
from t2t.metrics import brackets

NAMES = ["f1", "recall", "precision", "complete_match", "crossing", "tagging_accuracy"]
DELETED = ["TOP", "-NONE-", ",", ":", "``", "''", "."]
PARAMETERS = [*(f"DELETE_LABEL {label}" for label in DELETED), "DELETE_LABEL_FOR_LENGTH -NONE-", "EQ_LABEL ADVP PRT"]
LABELS = ["S", "NP", "NP-SBJ", "NP=2", "VP", "PP-LOC-1", "ADVP", "PRT", "SBAR", "-NONE-", "X=TOP", "TOP-1", ":"]
KEPT = ["NN", "NN", "DT", "VB", "JJ", "HYPH", "SYM", "-LRB-", "ADVP", "PRT", "NP-1"]
TAGS = [*KEPT, *DELETED]
WORDS = ["cell", "the", "-LRB-", "=", "don't", "β", "3.5", "*T*-1", "NP", "see"]


def pick(rng, choices):
    return choices[int(rng.random() * len(choices))]  # random() alone is promised to stay as it is


PRINTED = """
   1    9    0  100.00 100.00     7      7    7      0      5     5   100.00
   2   30    0  100.00 100.00    25     25   25      0     25    25   100.00
   3   22    0  100.00 100.00    19     19   19      0     14    13    92.86
   4    7    0  100.00 100.00     5      5    5      0      6     6   100.00
   5    5    2    0.00   0.00     0      0    0      0      0     0     0.00
   6    6    0   85.71  85.71     6      7    7      0      3     3   100.00
   7    5    0  100.00 100.00     3      3    3      0      4     4   100.00
   8    2    0  100.00  50.00     1      1    2      0      2     2   100.00
   9   22    0   95.24  95.24    20     21   21      0     14    14   100.00
  10   14    0   85.71  85.71    12     14   14      0     10    10   100.00
  11   24    0   72.22  68.42    13     18   19      1     14    14   100.00
  12   10    0   80.00  80.00     8     10   10      0      7     7   100.00
  13   18    0  100.00  94.12    16     16   17      0     14    13    92.86
  14   20    0   87.50  87.50    14     16   16      0     14    14   100.00
  15   13    0   91.67  84.62    11     12   13      1     11    11   100.00
  16   28    0  100.00 100.00    26     26   26      0     22    22   100.00
  17   19    0   94.44  94.44    17     18   18      0     16    16   100.00
  18   13    0  100.00  83.33    10     10   12      0      9     9   100.00
  19    6    0  100.00  80.00     4      4    5      0      4     4   100.00
  20   29    0   88.46  79.31    23     26   29      0     22    22   100.00
  21    1    0    0.00   0.00     0      1    2      0      1     0     0.00
  22    2    0    0.00   0.00     0      0    2      0      1     1   100.00
  23   10    0  100.00 100.00     7      7    7      0      7     7   100.00
  24   13    0  100.00 100.00    15     15   15      0      7     7   100.00
  25    5    0   60.00  60.00     3      5    5      0      2     2   100.00
  26    8    0  100.00 100.00     7      7    7      0      4     4   100.00
  27    0    1    0.00   0.00     0      0    0      0      0     0     0.00
  28   42    0  100.00 100.00    34     34   34      0     34    34   100.00
  29   17    0  100.00 100.00    17     17   17      0     10    10   100.00
  30   16    0   82.35 100.00    14     17   14      0     10    10   100.00
  31   41    0   91.30  77.78    21     23   27      1     27    27   100.00
  32   26    0  100.00 100.00    14     14   14      0     12    12   100.00
  33    6    0  100.00 100.00     1      1    1      0      3     3   100.00
  34   17    0   71.43  71.43    10     14   14      0     11    11   100.00
  35    1    1    0.00   0.00     0      0    0      0      0     0     0.00
  36   28    0  100.00 100.00    21     21   21      0     21    21   100.00
  37   44    0   97.14  94.44    34     35   36      1     29    29   100.00
  38   29    0  100.00  96.00    24     24   25      0     18    18   100.00
  39   13    0   92.31  92.31    12     13   13      0     11    11   100.00
  40   38    0  100.00 100.00    40     40   40      0     27    27   100.00
  41   22    0   93.33  82.35    14     15   17      0     14    14   100.00
  42   12    0  100.00 100.00    14     14   14      0      8     8   100.00
  43    6    1    0.00   0.00     0      0    0      0      0     0     0.00
  44    0    1    0.00   0.00     0      0    0      0      0     0     0.00
  45   16    0  100.00 100.00    11     11   11      0     11    11   100.00
  46    6    0   25.00  16.67     1      4    6      0      4     4   100.00
  47    5    0    0.00   0.00     0      2    4      0      1     1   100.00
  48   13    0  100.00 100.00    14     14   14      0     10    10   100.00
  49    7    0  100.00 100.00     4      4    4      0      4     4   100.00
  50    2    1    0.00   0.00     0      0    0      0      0     0     0.00
  51   16    0  100.00 100.00    15     15   15      0      9     9   100.00
  52   22    0   93.33  93.33    14     15   15      0     16    16   100.00
  53   18    0  100.00  94.74    18     18   19      0     10    10   100.00
  54   43    0   87.88  85.29    29     33   34      2     31    31   100.00
  55    5    0  100.00 100.00     3      3    3      0      5     5   100.00
  56    6    0  100.00 100.00     2      2    2      0      4     4   100.00
  57    8    0  100.00  66.67     6      6    9      0      4     4   100.00
  58   20    0  100.00 100.00    11     11   11      0     10    10   100.00
  59   34    0   90.48  95.00    19     21   20      0     19    19   100.00
  60   12    1    0.00   0.00     0      0    0      0      0     0     0.00
============================================================================
                 93.87  90.66    689   734   760      6    611   608    99.51
=== Summary ===
-- All --
Number of sentence        =     60
Number of Error sentence  =      6
Number of Skip  sentence  =      1
Number of Valid sentence  =     53
Bracketing Recall         =  93.87
Bracketing Precision      =  90.66
Bracketing FMeasure       =  92.24
Complete match            =  43.40
Average crossing          =   0.11
No crossing               =  90.57
2 or less crossing        = 100.00
Tagging accuracy          =  99.51
-- len<=40 --
Number of sentence        =     56
Number of Error sentence  =      6
Number of Skip  sentence  =      1
Number of Valid sentence  =     49
Bracketing Recall         =  93.76
Bracketing Precision      =  90.78
Bracketing FMeasure       =  92.25
Complete match            =  44.90
Average crossing          =   0.04
No crossing               =  95.92
2 or less crossing        = 100.00
Tagging accuracy          =  99.39
"""  # by EVALB from `made(1, 60)`, its first three lines left out

# ------------------------------------------------------------------------------ Trees, and what errors make of them


def grown(rng, size):
    """A random constituent over `size` words: [label, child, child...], a leaf being [tag, word]."""
    if size == 1 and rng.random() < 0.7:
        return [pick(rng, TAGS), pick(rng, WORDS)]
    cuts = sorted({1 + int(rng.random() * size) for _ in range(3)} | {size})
    sizes = [end - start for start, end in zip([0, *cuts], cuts, strict=False)]
    return [pick(rng, LABELS), *(grown(rng, each) for each in sizes)]


def nested(tree):
    """A Tree as lists."""
    return [tree.label, tree.word] if tree.word else [tree.label, *map(nested, tree.children)]


def written(node):
    return f"({node[0]} {node[1] if is_leaf(node) else ' '.join(map(written, node[1:]))})"


def is_leaf(node):
    return isinstance(node[1], str)


def inside(node):
    """A node and all below it."""
    yield node
    for child in () if is_leaf(node) else node[1:]:
        yield from inside(child)


def relabel(rng, node):
    node[0] = pick(rng, LABELS)


def insert(rng, node):
    start = 1 + int(rng.random() * (len(node) - 1))
    end = start + 1 + int(rng.random() * (len(node) - start))
    node[start:end] = [[pick(rng, [node[0], *LABELS]), *node[start:end]]]


def drop(rng, node):
    i = 1 + int(rng.random() * (len(node) - 1))
    if not is_leaf(node[i]):
        node[i : i + 1] = node[i][1:]


def move(rng, node):
    """The last child of a child becomes its right neighbour, so that brackets cross."""
    i = 1 + int(rng.random() * (len(node) - 1))
    if not is_leaf(node[i]) and len(node[i]) > 2:
        node.insert(i + 1, node[i].pop())


def bridge(rng, node):
    """Somewhere a child's last child and right neighbour become a constituent, which crosses what that child was."""
    inner = [each for each in inside(node) if not is_leaf(each)]
    places = [(each, i) for each in inner for i in range(1, len(each) - 1) if len(each[i]) > 2]  # a leaf has only 2
    if places:
        parent, i = pick(rng, places)
        parent[i + 1] = [pick(rng, LABELS), parent[i].pop(), parent[i + 1]]


def swap(rng, node):
    i = 1 + int(rng.random() * (len(node) - 1))
    node[i], node[-1] = node[-1], node[i]


def lose(rng, node):
    if len(node) > 2:
        del node[1 + int(rng.random() * (len(node) - 1))]


def retag(rng, leaf):
    leaf[0] = pick(rng, KEPT)


def retag_as_any(rng, leaf):
    leaf[0] = pick(rng, TAGS)


def reword(rng, leaf):
    leaf[1] = pick(rng, WORDS)


OF_LEAVES = (retag, retag_as_any, reword)
HARMLESS = [relabel, insert, drop, move, bridge, bridge]  # to the words
CHANGES = [*HARMLESS, *HARMLESS, retag, retag, retag, retag_as_any, swap, lose, reword]


def perturbed(rng, line, most):
    """The line of a tree after up to `most` changes; now and then blank, or other words."""
    if rng.random() < 0.03:
        return pick(rng, ["", "  "])
    node = nested(trees.parse(line))
    changes = CHANGES if rng.random() < 0.3 else HARMLESS
    for _ in range(int(rng.random() * (most + 1))):
        change = pick(rng, changes)
        if places := [each for each in inside(node) if is_leaf(each) == (change in OF_LEAVES)]:
            change(rng, pick(rng, places))
    return written(node)


def made(seed, count):
    """Gold trees, of up to 60 words each, and trees that differ from them."""
    rng = random.Random(seed)
    gold = [f"(TOP {written(grown(rng, 1 + int(rng.random() * pick(rng, [8, 25, 60]))))})" for _ in range(count)]
    test = [perturbed(rng, line, pick(rng, [2, 8, 30])) for line in gold]
    return ["" if rng.random() < 0.02 else line for line in gold], test


# ------------------------------------------------------------------------------ Digit for digit


def row(number, length, sentence):
    """EVALB's line for a sentence."""
    s = sentence
    status = 1 if s.errors else 2 if s.skipped else 0
    return (
        f"{number:4d}  {length:3d}    {status}  {s.recall:6.2f} {s.precision:6.2f}   {s.matched:3d}    {s.gold:3d}  "
        f"{s.test:3d}    {s.crossing_brackets:3d}   {s.words:4d}  {s.correct_tags:4d}   {s.tagging_accuracy:6.2f}"
    )


def section(total):
    """EVALB's lines for all sentences or the short ones."""
    counts = {"Number of sentence": total.sentences, "Number of Error sentence": total.errors}
    counts |= {"Number of Skip  sentence": total.skipped, "Number of Valid sentence": total.valid}
    values = {
        "Bracketing Recall": total.recall,
        "Bracketing Precision": total.precision,
        "Bracketing FMeasure": total.f1,
        "Complete match": total.complete_match,
        "Average crossing": total.crossing,
        "No crossing": total.no_crossing,
        "2 or less crossing": total.two_crossing,
        "Tagging accuracy": total.tagging_accuracy,
    }
    whole = [f"{name:<25} = {count:6d}" for name, count in counts.items()]
    return [*whole, *(f"{name:<25} = {value:6.2f}" for name, value in values.items())]


def printed(gold, test):
    """What EVALB prints from its first sentence on, spaces and lines apart, of figures of ours."""
    found = brackets.statistics(brackets.read(test), brackets.read(gold))
    sentences = [brackets.Counts(*counts.tolist()) for counts in found.counts]
    rows = [row(i, *each) for i, each in enumerate(zip(found.lengths.tolist(), sentences, strict=True), 1)]
    t = found.total()
    line = (
        f"                {t.recall:6.2f} {t.precision:6.2f} {t.matched:6d} {t.gold:5d} {t.test:5d}  "
        f"{t.crossing_brackets:5d}  {t.words:5d} {t.correct_tags:5d}   {t.tagging_accuracy:6.2f}"
    )
    parts = [*rows, "=" * 76, line, "=== Summary ===", "-- All --", *section(t)]
    return [" ".join(each.split()) for each in [*parts, "-- len<=40 --", *section(found.short().total())]]


def evalb(folder, gold, test):
    """The same as EVALB prints it."""
    for name, lines in {"gold": gold, "test": test, "prm": PARAMETERS}.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = [os.environ["T2T_EVALB"], "-e", str(10**6), "-p", *(folder / name for name in ("prm", "gold", "test"))]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [" ".join(line.split()) for line in said.splitlines()[3:] if line]


with_evalb = pytest.mark.skipif("T2T_EVALB" not in os.environ, reason="T2T_EVALB names no binary of EVALB")
with_treebank = pytest.mark.skipif("T2T_TREEBANK" not in os.environ, reason="T2T_TREEBANK names no file of trees")


@with_evalb
@pytest.mark.parametrize("seed", range(5))
def test_evalb_prints_our_figures(tmp_path, seed):
    gold, test = made(seed, 400)
    assert printed(gold, test) == evalb(tmp_path, gold, test)


@with_evalb
@with_treebank
@pytest.mark.parametrize("cleaned", [True, False])
@pytest.mark.parametrize("most", [2, 10])
def test_evalb_prints_our_figures_of_a_treebank(tmp_path, most, cleaned):
    found = trees.read(read_lines(Path(os.environ["T2T_TREEBANK"])))
    if cleaned:
        found = filter(None, (trees.clean(tree, Counter()) for tree in found))
    # EVALB's arrays end at 200 words, 200 brackets and 5,000 bytes; it writes on behind them.
    gold = [line for line in map(trees.bracketed, found) if line.count("(") < 180 and len(line.encode()) < 4000]
    rng = random.Random(most)
    test = [perturbed(rng, line, most) for line in gold]
    assert printed(gold, test) == evalb(tmp_path, gold, test)


def test_our_figures_are_those_that_evalb_printed():
    gold, test = made(1, 60)
    assert printed(gold, test) == [" ".join(line.split()) for line in PRINTED.splitlines() if line]


# ------------------------------------------------------------------------------ One rule after the other


def counts(gold, test):
    """What is counted of one sentence."""
    return brackets.statistics(brackets.read([test]), brackets.read([gold])).total()


@pytest.mark.parametrize(
    "gold, test, matched, of_gold, of_test",
    [
        ("(TOP (S (NP (PRP It)) (VP (VBZ is))))", "(TOP (S (NP (PRP It)) (VP (VBZ is))))", 3, 3, 3),
        ("(S (NP-SBJ-1 (PRP It)))", "(TOP (S=2 (NP (PRP It))))", 2, 2, 2),  # function tags, and the outer label
        ("(S (NP (PRP It)))", "(TOP-1 (S (VP (PRP It))))", 1, 2, 2),
        ("(S (ADVP (RP up)))", "(S (PRT-2 (RP up)))", 2, 2, 2),
        ("(A (A (A (B b))))", "(A (A (B b)))", 2, 3, 2),  # one bracket matches one
        ("(A (PRT (ADVP (B b))))", "(A (ADVP (B b)))", 2, 3, 2),
        ("(S (NP (-NONE- *)) (VP (VBZ is)) (X (. .)))", "(S (VP (VBZ is) (. .)))", 2, 2, 2),  # of nothing that counts
        ("(S (: (NN a)) (-NONE- (NN b)) (-LRB- (NN c)))", "(S (X (NN a)) (= (NN b) ) (-- (NN c)))", 3, 3, 4),
        ("( (S (NN a)))", "(TOP (S (NN a)))", 1, 2, 1),  # no label is a label
        ("(NN a)", "(NN a)", 0, 0, 0),
    ],
)
def test_which_brackets_match(gold, test, matched, of_gold, of_test):
    found = counts(gold, test)
    assert (found.matched, found.gold, found.test, found.valid) == (matched, of_gold, of_test, 1)
    assert found.complete == (matched == of_gold == of_test)


@pytest.mark.parametrize(
    "gold, test, crossing",
    [
        ("(S (X (A a) (B b)) (C c))", "(S (A a) (Y (B b) (C c)))", 1),
        ("(S (A a) (Y (B b) (C c)))", "(S (X (X (A a) (B b))) (C c))", 2),  # brackets of the test tree
        ("(S (A a) (Y (B b) (C c)))", "(S (X (X (X (A a) (B b)))) (C c))", 3),
        ("(S (X (X (A a) (B b))) (C c))", "(S (A a) (Y (B b) (C c)))", 1),
        ("(S (X (A a) (B b)) (, ,) (C c))", "(S (X (A a) (Y (B b) (, ,))) (C c))", 0),
        ("(S (-NONE- (A a) (B b)) (C c))", "(S (A a) (: (B b) (C c)))", 0),
        ("(S (A a) (X (B b) (C c)) (D d))", "(S (X (A a) (X (B b) (C c))) (Y (D d)))", 0),
        ("(S (X (A a) (B b)) (X (C c) (D d)))", "(S (A a) (Z (Y (B b) (C c)) (D d)))", 2),
    ],
)
def test_which_brackets_cross(gold, test, crossing):
    found = counts(gold, test)
    assert found.crossing_brackets == crossing == found.crossing
    assert (found.uncrossed, found.little_crossed) == (crossing == 0, crossing <= 2)


@pytest.mark.parametrize(
    "gold, test, words, correct",
    [
        ("(S (NN a) (VB b) (. .))", "(S (NN a) (NN b) (, .))", 2, 1),
        ("(S (PRT a) (NP-1 b) (-LRB- c))", "(S (ADVP a) (NP b) (-LRB- c))", 3, 2),  # tags are not cut
        ("(S (TOP a) (-NONE- b) (`` c) ('' d) (: e) (X f))", "(X f)", 1, 1),
    ],
)
def test_which_tags_are_correct(gold, test, words, correct):
    found = counts(gold, test)
    assert (found.words, found.correct_tags, found.tagging_accuracy) == (words, correct, 100 * correct / words)


A, B, DOT = "(S (X (NN a)))", "(S (X (NN b)))", "(S (. .))"


@pytest.mark.parametrize(
    "gold, test, errors, skipped",
    [
        (A, A, 0, 0),
        (A, B, 1, 0),
        (A, "(S (NN a) (NN a))", 1, 0),
        (A, "(S (X (. a)))", 0, 1),  # its one word is taken for punctuation
        ("(S (NN a) (. .))", "(S (NN a) (NN .))", 1, 0),
        (A, "", 0, 1),
        (A, " \t", 0, 1),
        ("", A, 1, 0),
        ("", "", 0, 1),
        (DOT, DOT, 0, 1),
        (DOT, A, 1, 0),
    ],
)
def test_errors_and_skipped_sentences_count_nowhere_else(gold, test, errors, skipped):
    found = counts(gold, test)
    assert (found.sentences, found.errors, found.skipped) == (1, errors, skipped)
    assert found.valid == (found.words > 0) == (not errors and not skipped)
    both = brackets.statistics(brackets.read([A, test]), brackets.read([A, gold])).total()
    assert both.recall == both.precision == both.f1 == both.complete_match == both.tagging_accuracy == 100


def flat(length, more=""):
    return f"(S {'(NN a)' * (length - 1)} (. .) {more})"


def test_short_sentences_have_40_words_with_punctuation_and_without_traces():
    gold = [flat(40, "(NP (-NONE- *))"), flat(41), A, A]
    found = brackets.statistics(brackets.read([flat(40), flat(41), "", B]), brackets.read(gold))
    assert found.lengths.tolist() == [40, 41, 1, 1]
    short = found.short().total()
    assert (short.sentences, short.skipped, short.errors, short.words) == (3, 1, 1, 39)
    assert found.total().words == 79 and found.errors() == [4]


# ------------------------------------------------------------------------------ Scores


def test_scores_are_what_is_printed_with_signatures_and_intervals():
    gold, test = made(1, 60)
    found = brackets.scores(test, gold)
    assert list(found) == [*NAMES, *(f"{name}_40" for name in NAMES)]
    statistics = brackets.statistics(brackets.read(test), brackets.read(gold))
    version = importlib.metadata.version("t2t")
    for end, length, each in (("", "all", statistics), ("_40", "40", statistics.short())):
        n = each.total()
        counted = f"sentences:{n.sentences}|skipped:{n.skipped}|errors:{n.errors}"
        for name in NAMES:
            score = found[name + end]
            assert score.score == round(getattr(n, name), 4)
            assert score.low < score.score < score.high, name
            assert score.signature == f"evalb|prm:COLLINS|len:{length}|{counted}|version:{version}"
    assert found["f1"].score != found["f1_40"].score
    assert brackets.scores(test, gold) == found


def test_the_same_trees_have_every_score_in_full():
    gold = [line for line in made(2, 40)[0] if counts(line, line).gold]
    for name, found in brackets.scores(gold, gold).items():
        full = 0 if name.startswith("crossing") else 100
        assert (found.score, found.low, found.high) == (full, full, full), name


def test_where_nothing_matches_the_f_measure_is_0():
    for gold, test in ((A, "(Y (NN a))"), (A, ""), ("(NN a)", "(NN a)"), (flat(50), flat(50))):
        found = brackets.scores([test], [gold])["f1_40"]
        assert (found.score, found.low, found.high) == (0, 0, 0)


def test_a_broken_line_is_named():
    with pytest.raises(trees.BrokenTree, match="has 2 words") as caught:
        brackets.scores([A, "", "(S (X (NN a b)))"], [A, A, A])
    assert caught.value.line == 3
    with pytest.raises(trees.BrokenTree, match="2 trees where one belongs"):
        brackets.read([f"{A} {A}"])


# ------------------------------------------------------------------------------ t2t brackets


@pytest.fixture
def files(tmp_path):
    """Gold trees, compressed, and trees to score."""
    gold, test = made(1, 60)
    (tmp_path / "gold.xz").write_bytes(lzma.compress("".join(f"{line}\n" for line in gold).encode()))
    (tmp_path / "test").write_text("".join(f"{line}\n" for line in test), encoding="utf-8")
    return tmp_path


def test_brackets_of_two_files(t2t, files):
    gold, test = made(1, 60)
    code, out, err = t2t("brackets", files / "gold.xz", files / "test", "--json")
    found = json.loads(out)
    assert code == 0
    expected = brackets.scores(test, gold)
    every = brackets.statistics(brackets.read(test), brackets.read(gold))
    for section, end, statistics in ((found, "", every), (found.pop("length_40"), "_40", every.short())):
        n, f1 = statistics.total(), expected[f"f1{end}"]
        assert section == {
            **{name: expected[name + end].score for name in NAMES},
            **{"low": f1.low, "high": f1.high, "signature": f1.signature},
            **{"sentences": n.sentences, "skipped": n.skipped, "errors": n.errors},
        }
    wrong = f"{files / 'test'} has other words than {files / 'gold.xz'} in line {', '.join(map(str, every.errors()))}"
    assert err == f"errors, which no score counts: {wrong}\n"


def test_brackets_prints_what_evalb_prints(t2t, files):
    code, out, _ = t2t("brackets", files / "gold.xz", files / "test")
    head, *lines = out.splitlines()
    *rows, all_lengths, short = lines
    assert code == 0 and head.split() == ["all", "len<=40"]
    printed = [line.split("=")[1].strip() for line in PRINTED.splitlines() if " = " in line]
    assert [row.split()[-2:] for row in rows] == [list(each) for each in zip(printed[:12], printed[12:], strict=True)]
    assert "|len:all|" in all_lengths and "|len:40|" in short


def test_brackets_has_nothing_to_say_of_trees_of_the_same_words(t2t, tmp_path):
    (tmp_path / "gold").write_text(f"{A}\n{A}\n")
    (tmp_path / "test").write_text(f"{A}\n\n")
    code, out, err = t2t("brackets", tmp_path / "gold", tmp_path / "test", "--json")
    assert (code, err) == (0, "") and json.loads(out)["skipped"] == 1


def test_an_outermost_bracket_that_evalb_counts_is_named(t2t, tmp_path):
    (tmp_path / "gold").write_text("(ROOT (S (NN a) (NN b)))\n(TOP (S (NN a) (NN b)))\n")
    (tmp_path / "test").write_text("( (S (NN a) (NN b)))\n(TOP (NP (NN a) (NN b)))\n")
    code, out, err = t2t("brackets", tmp_path / "gold", tmp_path / "test", "--json")
    assert code == 0 and json.loads(out)["f1"] == pytest.approx(100 / 3, abs=1e-3)
    assert "/test: a bracket ( ...) around a tree is counted" in err and "/gold: a bracket (ROOT ...) around" in err


def test_no_more_than_ten_errors_are_named(t2t, tmp_path):
    for count, named in ((11, "2, 3, 4, 5, 6, 7, 8, 9, 10, 11"), (12, "2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 1 more")):
        (tmp_path / "gold").write_text(f"{A}\n" * count)
        (tmp_path / "test").write_text(f"{A}\n" + f"{B}\n" * (count - 1))
        assert t2t("brackets", tmp_path / "gold", tmp_path / "test")[2].endswith(f"/gold in line {named}\n")


MISTAKES = {
    "{tmp}/gold.xz {tmp}/two": "{tmp}/gold.xz has 60 lines, but {tmp}/two has 2: they must match line by line",
    "{tmp}/empty {tmp}/empty": "{tmp}/empty and {tmp}/empty are empty",
    "{tmp}/two {tmp}/broken": "{tmp}/broken, line 2: the text ends inside the tree that begins in line 1",
    "{tmp}/broken {tmp}/two": "{tmp}/broken, line 2: the text ends inside the tree that begins in line 1",
    "{tmp}/two {tmp}/forest": "{tmp}/forest, line 1: 2 trees where one belongs",
    "{tmp}/two {tmp}/tset": "no file {tmp}/tset; did you mean test?",
    "{tmp}/two {tmp}/latin": "{tmp}/latin, line 2: not UTF-8",
    "{tmp}/two": "required: TEST",
}


@pytest.mark.parametrize(("words", "complaint"), MISTAKES.items())
def test_mistakes_with_files(t2t, files, words, complaint):
    contents = {"two": f"{A}\n{A}\n", "empty": "", "broken": f"{A}\n(S (NN a)\n", "forest": f"{A} {A}\n{A}\n"}
    for name, content in contents.items():
        (files / name).write_text(content)
    (files / "latin").write_bytes(b"(NN a)\n(NN \xe4)\n")
    code, out, err = t2t("brackets", *words.format(tmp=files).split())
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("t2t: ") and complaint.format(tmp=files) in err

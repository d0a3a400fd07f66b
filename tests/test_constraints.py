"""Whatever the weights, the search's outputs are trees; against a plain reading of the rules, and brute force."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toys

from t2t import beam_search, decode
from t2t.batch import EOS
from t2t.constraints import TreeConstraint, constraint_of
from t2t.data.corpora import Text
from t2t.data.linearisation import DEPTH, Alphabet, Linearisation, TreeVocabulary, restore
from t2t.data.parsing import Parsing
from t2t.data.translation import Translation
from t2t.data.treebank import Trees
from t2t.data.vocabulary import Vocabularies
from t2t.decode import DecodingConfig
from t2t.trees import words

# Opening and closing tokens in no order, and two rows of the table that belong to no token.
TOKENS = (")NP", "NN", "(S", "(NP", "DT", ")S", "(VP", ")VP", ".")
VOCABULARY = TreeVocabulary(Alphabet(len(TOKENS) + 5, TOKENS, Linearisation()))
CONFIG = toys.config(num_layers=1, target_vocab_size=len(VOCABULARY))
MODEL = CONFIG.build()
LENGTHS = [*range(1, 13), 3, 1]
ROWS, MOST = 16, 16 + 40  # one shape, and so one compiled search for each width of the beam
OPENINGS = 3
ALPHA = 0.6


@functools.cache
def initial(config):
    return toys.params(config)


@functools.cache
def params(seed, config=CONFIG, scale=1.5):
    """Weights at random, and large: what the model likes best is nearly never a tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + scale * rng.normal(size=x.shape).astype(np.float32), initial(config))


def sources(seed, lengths):
    """A sentence of as many tokens as words for each of `lengths`, EOS at its end."""
    rng = np.random.default_rng(seed)
    return [[*rng.integers(3, 17, n).tolist(), EOS] for n in lengths]


def constraint(lengths, openings=OPENINGS, vocabulary=VOCABULARY, lost=0.0):
    # A mark that was never seen may have any tag. These weights would hardly ever open anything if they had to mean it.
    return TreeConstraint(vocabulary, [["*"] * length for length in lengths], openings, lost)


def search(how, sentences, extra_length, seed):
    """The hypotheses for each sentence; None leaves a row empty. `how`: the beam, or "greedy"."""
    limits, words = np.zeros((2, ROWS), np.int32)
    for row, sentence in enumerate(sentences):
        if sentence is not None:
            limits[row], words[row] = len(sentence) + extra_length, len(sentence) - 1
    source = decode.fill([sentence or [] for sentence in sentences], ROWS, 16)
    automaton = constraint(words.tolist()).batch([*range(ROWS)], ROWS, 16)
    if how == "greedy":
        found = decode.greedy(MODEL, params(seed), source, limits, ALPHA, MOST, automaton)
    else:
        found = decode.beam_search(MODEL, params(seed), source, limits, how, ALPHA, MOST, automaton)
    return [decode._hypotheses(*row) for row in zip(*jax.device_get(found), strict=True)]


@functools.cache
def parsed(how, extra_length, seed=0):
    return search(how, sources(seed, LENGTHS), extra_length, seed)[: len(LENGTHS)]


def assert_same(ours, theirs):
    assert [each.tokens for each in ours] == [each.tokens for each in theirs]
    np.testing.assert_allclose([each.score for each in ours], [each.score for each in theirs], rtol=1e-3)


# ------------------------------------------------------------------------------ Properties


def test_going_on_with_few_rows_changes_nothing(monkeypatch):
    """16 rows, then the last 4: the automaton of these alone."""
    whole = search(3, sources(0, LENGTHS), 3, 0)
    monkeypatch.setattr(beam_search, "LEAST", 4)
    few = search(3, sources(0, LENGTHS), 3, 0)
    for ours, theirs in zip(few, whole, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("extra_length", [0, 1, 3, 40])
@pytest.mark.parametrize("how", ["greedy", 1, 4, 21])
def test_every_hypothesis_is_a_tree_over_the_words(how, extra_length, seed):
    for length, best in zip(LENGTHS, parsed(how, extra_length, seed), strict=True):
        sentence = [f"w{n}" for n in range(length)]
        assert 1 <= len(best) <= (1 if how == "greedy" else how)
        assert len({tuple(hypothesis.tokens) for hypothesis in best}) == len(best)
        for hypothesis in best:
            tokens = VOCABULARY.decode(hypothesis.tokens).split()
            assert len(tokens) == len(hypothesis.tokens) <= length + extra_length
            assert words(restore(tokens, sentence)) == sentence
            assert longest_opening(tokens) <= OPENINGS


def longest_opening(tokens):
    return max((len([*run]) for opens, run in itertools.groupby(tokens, lambda t: t[0] == "(") if opens), default=0)


def test_bounds_are_reached():
    """Or they would not be the bounds: constituents take two positions to spare, openings stand in a row."""
    texts = {n: [VOCABULARY.decode(e.tokens).split() for best in parsed(21, n) for e in best] for n in (0, 1, 3, 40)}
    assert {n: any("(" in " ".join(tokens) for tokens in found) for n, found in texts.items()} == {
        0: False,
        1: False,
        3: True,
        40: True,
    }
    assert max(map(longest_opening, texts[40])) == OPENINGS
    full = [len(best) == 21 for best in parsed(21, 40)]
    assert all(full)
    assert len(parsed(21, 1)[0]) == 3  # one word, no room for brackets: a tree for each tag


@pytest.mark.parametrize("extra_length", [0, 1, 3, 40])
@pytest.mark.parametrize("how", ["greedy", 4, 21])
def test_scores_are_sorted_and_those_of_teacher_forcing(how, extra_length):
    found = parsed(how, extra_length)
    every = [(source, each) for source, best in zip(sources(0, LENGTHS), found, strict=True) for each in best]
    rows = [(source, [*each.tokens, EOS]) for source, each in every]
    log_probs = decode.forced_scores(MODEL, params(0), toys.batch_of(rows, rows=300, length=MOST))
    forced = [
        float(total) / reference.length_penalty(len(each.tokens) + 1, ALPHA)
        for total, (_, each) in zip(log_probs, every, strict=False)
    ]
    np.testing.assert_allclose([each.score for _, each in every], forced, rtol=1e-3)
    for best in found:
        scores = [each.score for each in best]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("extra_length", [0, 3, 40])
def test_one_beam_is_greedy_under_the_constraint(extra_length, seed):
    for ours, theirs in zip(parsed(1, extra_length, seed), parsed("greedy", extra_length, seed), strict=True):
        assert_same(ours, theirs)


def test_decoding_gives_each_sentence_the_constraint_of_its_own_words():
    """Whatever their order, and in batches."""
    config = DecodingConfig(beam=4, alpha=ALPHA, extra_length=40, rows=ROWS)
    order = [5, 0, 9, 13, 2, 7, 1, 12, 3, 11]
    chosen = [sources(0, LENGTHS)[i] for i in order]
    decoding = decode.decode(MODEL, params(0), chosen, config, constraint=constraint(LENGTHS[i] for i in order))
    found = dict(decoding)
    for place, i in enumerate(order):
        assert_same(found[place], parsed(4, 40)[i])


# ------------------------------------------------------------------------------ Empty rows


@pytest.mark.parametrize("how", ["greedy", 4])
def test_empty_rows_and_sentences_without_words_do_no_harm_to_the_others(how):
    sentences = sources(0, LENGTHS)
    for i in (0, 3, 4, 13):
        sentences[i] = None
    for i in (2, 7, 12):
        sentences[i] = [EOS]
    for sentence, ours, alone in zip(sentences, search(how, sentences, 3, 0), parsed(how, 3), strict=False):
        if sentence is None:
            assert not any(each.tokens for each in ours)
        elif sentence == [EOS]:
            assert [each.tokens for each in ours] == [[]] and np.isfinite(ours[0].score)
        else:
            assert_same(ours, alone)


# ------------------------------------------------------------------------------ Brute force

SMALL = TreeVocabulary(Alphabet(9, ("(A", ")B", "x", ")A", "(B"), Linearisation()))


def all_trees(sentence, limit, openings):
    """Every sequence of at most `limit` tokens, EOS counted, that is a tree: all are tried, nothing is looked ahead."""
    found = []
    for length in range(limit):
        for tokens in itertools.product(SMALL.alphabet.tokens, repeat=length):
            if tokens.count("x") == sentence and longest_opening(tokens) <= openings and is_tree(tokens):
                found.append(tuple(SMALL.tokens.index(token) for token in tokens))
    return found


def is_tree(tokens):
    """Brackets that match by name and hold a leaf each: taken away from the inside, what is left is leaves."""
    text = " ".join(tokens)
    before = None
    while text != before:
        before = text
        for label in "AB":
            for inside in ("x", "x x"):
                text = text.replace(f"({label} {inside} ){label}", "x").replace("x x", "x")
    return text == "x"


BRUTE = [(1, 6, 3), (1, 8, 2), (1, 8, 1), (2, 7, 3), (2, 7, 1), (1, 2, 3), (2, 3, 3), (1, 3, 3), (2, 4, 2)]
brute_cases = pytest.mark.parametrize(("sentence", "limit", "openings"), BRUTE)


def following(trees, prefix):
    """What stands after `prefix` in any of the trees; EOS where one ends."""
    return {(*tree, EOS)[len(prefix)] for tree in trees if tree[: len(prefix)] == prefix}


@brute_cases
def test_the_automaton_allows_what_begins_a_tree_and_nothing_else(sentence, limit, openings):
    trees = all_trees(sentence, limit, openings)
    prefixes = [*dict.fromkeys(tree[:n] for tree in trees for n in range(len(tree) + 1))]
    automaton = constraint([sentence], openings, SMALL).batch([0], 1, 16)
    assert trees
    # The hypotheses of one sentence, shorter ones waiting until the others are as long.
    at, states = automaton.start(len(prefixes)), {}
    for t in range(limit):
        allowed = np.asarray(automaton.allowed(at, np.array([limit - t])))
        for i, prefix in enumerate(prefixes):
            if len(prefix) == t:
                states[prefix] = set(np.flatnonzero(allowed[0, i]).tolist())
        at = automaton.advance(at, jnp.array([[prefix[t] if t < len(prefix) else 0 for prefix in prefixes]]))
    assert states == {prefix: following(trees, prefix) for prefix in prefixes}


def meant(tree, trees, probabilities, lost):
    """Whether each constituent began where tokens that may stand there had the probability `lost` together."""
    return all(
        sum(probabilities[t, token] for token in following(trees, tree[:t])) >= lost
        for t, opening in enumerate(tree)
        if SMALL.tokens[opening][0] == "("
    )


@pytest.mark.parametrize("lost", [0.0, 0.25])
@brute_cases
def test_a_beam_that_holds_everything_finds_exactly_the_best(sentence, limit, openings, lost):
    trees = all_trees(sentence, limit, openings)
    config = toys.config(num_layers=1, target_vocab_size=len(SMALL))
    weights, source = params(limit, config, 0.4), [3, 7, 5][:sentence]
    batch = toys.batch_of([([*source, EOS], [*tree, EOS]) for tree in trees], rows=300)
    logits = config.build().apply(weights, batch.source, batch.target)
    probabilities = np.asarray(jax.nn.softmax(logits))
    kept = [i for i, tree in enumerate(trees) if meant(tree, trees, probabilities[i], lost)]
    assert len(kept) == len(trees) if lost == 0 else kept
    forced = np.asarray(decode.forced_scores(config.build(), weights, batch))
    scores = {trees[i]: float(forced[i]) / reference.length_penalty(len(trees[i]) + 1, ALPHA) for i in kept}
    wide, automaton = 300, constraint([sentence], openings, SMALL, lost).batch([0], 1, 16)
    assert len(trees) < wide
    filled = decode.fill([[*source, EOS]], 1, 16)
    search = decode.beam_search(config.build(), weights, filled, np.array([limit]), wide, ALPHA, 8, automaton)
    (found,) = [decode._hypotheses(*row) for row in zip(*jax.device_get(search), strict=True)]
    assert [tuple(each.tokens) for each in found] == sorted(scores, key=scores.__getitem__, reverse=True)
    np.testing.assert_allclose([each.score for each in found], [*sorted(scores.values(), reverse=True)], atol=1e-3)


# ------------------------------------------------------------------------------ Bounds, and when there is none


def test_no_more_constituents_stand_inside_one_another_than_a_file_may_have():
    automaton = constraint([1], 1000, SMALL).batch([0], 1, 16)
    opening, plenty = SMALL.tokens.index("(A"), np.array([2000])
    allowed = jax.jit(lambda automaton, at: automaton.allowed(at, plenty)[0, 0, opening])
    advance = jax.jit(lambda automaton, at: automaton.advance(at, jnp.array([[opening]])))
    at, depth = automaton.start(1), 0
    while allowed(automaton, at):
        at, depth = advance(automaton, at), depth + 1
    assert depth == DEPTH


def test_ids_that_are_no_token_of_a_tree_are_never_allowed():
    automaton = constraint([2]).batch([0], 1, 16)
    allowed = np.asarray(automaton.allowed(automaton.start(1), np.array([50])))[0, 0]
    assert {VOCABULARY.tokens[i] for i in np.flatnonzero(allowed)} == {"(S", "(NP", "(VP", "NN", "DT", "."}


def test_a_batch_takes_the_words_of_its_sentences():
    automaton = constraint([5, 6, 7, 8], 4).batch([3, 1], 4, 16)
    assert automaton.words.tolist() == [8, 6, 0, 0] and int(automaton.max_openings) == 4


def test_only_parsing_that_wants_it_is_constrained():
    both = Vocabularies(None, VOCABULARY)  # type: ignore[arg-type]
    task = Parsing(Trees(), max_openings=7)
    found = constraint_of(task, both, ["a b c", "d"])
    assert found is not None and (found.sentences, found.max_openings) == ([["a", "b", "c"], ["d"]], 7)
    assert found.knobs == {"max_openings": 7, "lost": 0.5}
    assert constraint_of(Parsing(Trees(), constrained=False), both, ["a"]) is None
    assert constraint_of(Translation(Text(), "en", "de"), both, ["a"]) is None


def test_each_word_has_a_tag_that_it_may_have():
    marks = {"-": (".", "NN"), ",": (".",)}
    vocabulary = TreeVocabulary(VOCABULARY.alphabet._replace(marks=marks))
    sentence = ["a", ",", "b", "-", "c", "*", ",", "d"]
    automaton = TreeConstraint(vocabulary, [sentence], OPENINGS).batch([0], 1, 16)
    source = decode.fill(sources(0, [len(sentence)]), 1, 16)
    limits, seen = np.array([40], np.int32), set()
    for seed in range(4):
        found = decode.beam_search(MODEL, params(seed), source, limits, 21, ALPHA, MOST, automaton)
        for best in decode._hypotheses(*(x[0] for x in jax.device_get(found))):
            tags = [token for token in vocabulary.pieces(best.tokens) if token[0] not in "()"]
            assert all(
                vocabulary.tokens.index(tag) in vocabulary.tag_sets[vocabulary.tag_set(word)]
                for word, tag in zip(sentence, tags, strict=True)
            )
            seen.add(tuple(tags))
    assert len(seen) > 1 and all(tags[1] == tags[6] == "." for tags in seen)

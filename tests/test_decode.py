"""Beam search against brute force and a plain Python reading; the cache against teacher forcing; sampling."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toys

from t2t import beam_search, decode
from t2t.batch import EOS, PAD
from t2t.data.batching import fill
from t2t.decode import DecodingConfig, Hypothesis, SamplingConfig
from t2t.models.convolutional import ConvolutionalConfig
from t2t.models.language_model import LanguageModelConfig
from t2t.models.recurrent import RecurrentConfig
from t2t.models.transformer import Transformer

TINY = toys.config(vocab_size=5)
MODEL, PARAMS = TINY.build(), toys.params(TINY, scale=1.0)
SOURCES = [[3, 4, 2, 1], [4, 1], [2, 2, 3, 3, 4, 1]]


def without_cache(apply, params, source, prefix):
    """log p(next | prefix) [V] without a cache: the whole prefix is fed again."""
    batch = toys.batch_of([(list(source), [*prefix, 0])], rows=1)
    segments = np.zeros((1, 8), np.int32)
    segments[:, : len(prefix) + 1] = 1
    target = batch.target._replace(segments=segments)
    logits = apply(params, batch.source, target)[0, len(prefix)]
    return np.asarray(jax.nn.log_softmax(logits), np.float64)


@functools.cache
def next_log_probs(source, prefix):
    return without_cache(jitted, PARAMS, source, prefix)


jitted = jax.jit(MODEL.apply)


def beams(sources, limits, beam, alpha, max_length, early=False):
    source = fill(sources, len(sources), 8)
    how = (beam, alpha, max_length)
    found = decode.beam_search(MODEL, PARAMS, source, jnp.array(limits), *how, early_stopping=early)
    return [decode._hypotheses(*row) for row in zip(*jax.device_get(found), strict=True)]


def as_hypotheses(scored):
    return [Hypothesis([t for t in tokens if t != EOS], score) for tokens, score in scored]


def assert_same(ours, theirs):
    assert [h.tokens for h in ours] == [h.tokens for h in theirs]
    np.testing.assert_allclose([h.score for h in ours], [h.score for h in theirs], atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_that_holds_everything_is_brute_force(alpha):
    limits = [4, 3, 4]
    for source, limit, ours in zip(SOURCES, limits, beams(SOURCES, limits, 128, alpha, 4), strict=True):
        following = functools.partial(next_log_probs, tuple(source))
        theirs = as_hypotheses(reference.exhaustive_search(following, 5, EOS, alpha, limit, 128))
        assert len(theirs) == (3**limit - 1) // 2
        assert_same(ours, theirs)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("beam", [1, 2, 3])
def test_beam_search_is_the_plain_one(beam, alpha, early):
    limits = [6, 3, 7]
    for source, limit, ours in zip(SOURCES, limits, beams(SOURCES, limits, beam, alpha, 7, early), strict=True):
        following = functools.partial(next_log_probs, tuple(source))
        theirs = reference.beam_search(following, beam, EOS, alpha, limit, early)
        assert_same(ours, as_hypotheses(theirs))


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_one_beam_is_greedy(alpha):
    source = fill(SOURCES, 3, 8)
    greedy = decode.greedy(MODEL, PARAMS, source, jnp.array([6, 6, 6]), alpha, 6)
    for row, (source, ours) in enumerate(zip(SOURCES, beams(SOURCES, [6, 6, 6], 1, alpha, 6), strict=True)):
        expected = reference.greedy(functools.partial(next_log_probs, tuple(source)), EOS, 6)
        assert greedy.tokens[row, 0][: len(expected)].tolist() == list(expected)
        assert ours[0].tokens == [t for t in expected if t != EOS]
        np.testing.assert_allclose(greedy.scores[row, 0], ours[0].score, atol=1e-4)


@pytest.mark.parametrize("positions", ["sinusoid", "learned"])
def test_step_by_step_equals_teacher_forcing(positions):
    config = toys.config(positions=positions, max_length=12)
    model, params = config.build(), toys.params(config)
    batch = toys.batch_of([([5, 9, 3, 1], [7, 8, 9, 1]), ([4, 1], [11, 12, 13, 8, 6, 5, 4, 1])], rows=2)
    whole = model.apply(params, batch.source, batch.target)
    memory = model.apply(params, batch.source, method=Transformer.encode)
    cache = model.apply(params, batch.source, memory, 2, 9, method=Transformer.start)
    before = jnp.zeros((2, 2), jnp.int32)
    for t in range(8):
        logits, cache = model.apply(params, cache, before, method=Transformer.step)
        real = batch.target.segments[:, t] == 1
        for beam in range(2):
            np.testing.assert_allclose(logits[real, beam], whole[real, t], atol=1e-4)
        before = jnp.tile(batch.target.tokens[:, t : t + 1], (1, 2))


def test_the_cache_is_as_its_letters_say():
    config = toys.config()
    model, params = config.build(), toys.params(config)
    source = fill([[3, 1], [4, 5, 1]], 2, 7)
    memory = model.apply(params, source, method=Transformer.encode)
    cache = model.apply(params, source, memory, 6, 9, method=Transformer.start)
    sizes = dict(B=2, K=6, T=6 * 9, S=7, H=3, k=4, v=5, V=17, D=8)
    assert cache.keys() == model.cache_axes.keys()
    assert len(cache.pop("layers")) == 2
    for name, axes in model.cache_axes.items() - {("layers", "")}:
        layers = jax.tree.leaves(cache[name])
        assert len(layers) == (2 if "H" in axes else 1)
        assert {x.shape for x in layers} == {tuple(sizes[a] for a in axes)}


def test_reorder_takes_each_beam_from_its_parent():
    model = SimpleNamespace(cache_axes={"index": "", "keys": "NBKT", "memory": "BS"})
    cache = {
        "index": jnp.array(3),
        "keys": jnp.arange(2 * 2 * 3 * 1).reshape(2, 2, 3, 1),
        "memory": jnp.arange(4).reshape(2, 2),
    }
    parent = jnp.array([[2, 2, 0], [1, 0, 1]])
    moved = beam_search.reorder(model, cache, parent)
    for n in range(2):
        for b in range(2):
            for k in range(3):
                assert moved["keys"][n, b, k, 0] == cache["keys"][n, b, parent[b, k], 0]
    assert moved["memory"] is cache["memory"]


@pytest.mark.parametrize(
    ("length", "alpha", "penalty"), [(1, 0.6, 1.0), (7, 0.6, 2**0.6), (25, 1.0, 5.0), (9, 0.0, 1.0)]
)
def test_length_penalty(length, alpha, penalty):
    np.testing.assert_allclose(decode.length_penalty(length, alpha), penalty, rtol=1e-6)


def test_forced_scores_are_the_sum_of_next_log_probs():
    pairs = [(source, [3, 4, 2, 1][i:]) for i, source in enumerate(SOURCES)]
    ours = decode.forced_scores(MODEL, PARAMS, toys.batch_of(pairs))
    for value, (source, target) in zip(ours, pairs, strict=False):
        steps = [next_log_probs(tuple(source), tuple(target[:t]))[token] for t, token in enumerate(target)]
        np.testing.assert_allclose(value, sum(steps), atol=1e-4)
    assert ours[3] == 0  # an empty row


def test_many_sentences_come_back_under_their_own_numbers():
    rng = np.random.default_rng(0)
    sources = [[*rng.integers(2, 5, n), 1] for n in rng.integers(0, 20, 30)]
    config = DecodingConfig(beam=2, rows=8, extra_length=3)
    together = dict(decode.decode(MODEL, PARAMS, sources, config))
    assert sorted(together) == list(range(30))
    for i, source in enumerate(sources):
        (_, alone), *_ = decode.decode(MODEL, PARAMS, [source] * 8, config)  # in programs that are there already
        assert_same(together[i], alone)
    assert all(len(h.tokens) <= len(sources[i]) + 3 for i, best in together.items() for h in best)


ARCHITECTURES = {
    "transformer": toys.config(vocab_size=9),
    "all that is new": toys.config(vocab_size=9, norm="pre", positions="rope", attention_span=3),
    "language model": LanguageModelConfig(
        vocab_size=9, num_layers=2, d_model=8, d_ff=20, num_heads=3, d_k=4, d_v=5, dtype="float32"
    ),
    "recurrent": RecurrentConfig(vocab_size=9, num_layers=2, d_model=8, dtype="float32"),
    "convolutional": ConvolutionalConfig(
        vocab_size=9, num_layers=2, d_model=8, d_hidden=10, max_length=32, dtype="float32"
    ),
}


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_sentences_that_wait_for_a_row_come_out_as_without_waiting(config, monkeypatch):
    """Rows of a search are given away as their sentences are done, and keep nothing of these."""
    model, params = config.build(), toys.drawn(config)
    rng = np.random.default_rng(0)
    sources = [[*rng.integers(2, 9, n), 1] for n in rng.integers(0, 15, 29)]
    entered, enter = [], beam_search._entered
    monkeypatch.setattr(beam_search, "_entered", lambda *given: entered.append(0) or enter(*given))
    found = {}
    for rows in (8, 32):
        entered.clear()
        how = DecodingConfig(beam=3, rows=rows, extra_length=9)
        found[rows] = dict(decode.decode(model, params, sources, how, wanted=2))
        assert len(entered) == (11 if rows == 8 else 0)  # 21 wait, and two enter at a time
    assert found[8].keys() == found[32].keys() == {*range(29)}
    for i, best in found[32].items():
        assert_same(found[8][i], best)
    assert len({len(best[0].tokens) for best in found[8].values()}) > 3  # they are not done all at once


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_with_few_shapes_as_on_a_gpu_a_search_finds_the_same(config, monkeypatch):
    """Sources of 2 to 32 tokens have one length there, and rows that are done are not left out before all are."""
    model, params = config.build(), toys.drawn(config)
    rng = np.random.default_rng(1)
    sources = [[*rng.integers(2, 9, n), 1] for n in rng.integers(1, 32, 40)]
    how = DecodingConfig(beam=3, rows=64, extra_length=0)
    many = dict(decode.decode(model, params, sources, how))
    monkeypatch.setattr(beam_search, "sizes_pay", lambda: False)
    monkeypatch.delattr(beam_search, "_rows_left")
    assert {part.length for part in decode._parts(sources, 64, searched=True)} == {64}
    few = dict(decode.decode(model, params, sources, how))
    assert few.keys() == many.keys() == {*range(40)}
    for i, best in many.items():
        assert_same(few[i], best)


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_any_architecture_is_searched_as_by_the_plain_search(config):
    """Which knows no cache: for every hypothesis it feeds all of its tokens again."""
    model, params = config.build(), toys.drawn(config)
    apply = jax.jit(model.apply)
    found = decode.beam_search(model, params, fill(SOURCES, 3, 8), jnp.array([5, 3, 5]), 3, 0.6, 5)
    for row, (source, limit) in enumerate(zip(SOURCES, [5, 3, 5], strict=True)):
        following = functools.partial(without_cache, apply, params, tuple(source))
        ours = decode._hypotheses(found.tokens[row], found.scores[row])
        assert_same(ours, as_hypotheses(reference.beam_search(following, 3, EOS, 0.6, limit)))


# ------------------------------------------------------------------------------ Sampling


def draws(count, **how):
    sampling = SamplingConfig(**how)
    found = decode.decode(MODEL, PARAMS, [SOURCES[0]] * count, DecodingConfig(rows=512, extra_length=0), sampling)
    return [best[0].tokens for _, best in sorted(found)]


def test_samples_follow_the_model():
    firsts = [tokens[0] if tokens else EOS for tokens in draws(4000)]
    probs = np.exp(next_log_probs(tuple(SOURCES[0]), ()))
    probs[PAD] = 0
    probs /= probs.sum()
    seen = np.bincount(firsts, minlength=5) / 4000
    np.testing.assert_allclose(seen, probs, atol=4 * 0.5 / np.sqrt(4000))  # four standard errors at most


def test_a_draw_depends_on_seed_and_number_not_on_the_batch():
    assert draws(40) == draws(40)
    assert draws(40)[:10] == draws(10)
    assert draws(40, seed=1) != draws(40)


def test_one_choice_left_is_greedy():
    ((_, best),) = decode.decode(MODEL, PARAMS, [SOURCES[0]], DecodingConfig(beam=1, extra_length=0))
    for how in (dict(top_k=1), dict(nucleus=1e-6), dict(temperature=1e-4)):
        assert draws(5, **how) == [best[0].tokens] * 5


def test_restrict_keeps_the_top_k_and_the_nucleus():
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]]))
    kept = lambda top_k, nucleus: (decode.restrict(logits, top_k, nucleus)[0] > decode.NEVER).tolist()  # noqa: E731
    assert kept(0, 1.0) == [True, True, True, True]
    assert kept(2, 1.0) == [False, True, False, True]
    assert kept(0, 0.6) == [False, True, False, True]
    assert kept(0, 0.75) == [False, True, True, True]
    assert kept(1, 0.9) == [False, True, False, False]


# ------------------------------------------------------------------------------ Few rows left


@pytest.mark.parametrize("beam", [1, 3])
def test_a_search_that_goes_on_with_few_rows_finds_the_same(beam, monkeypatch):
    """Rows of very different limits, some of them empty, so that arrays of 16, 8 and 4 rows are gone through."""
    rng = np.random.default_rng(0)
    sources = [[*rng.integers(2, 5, rng.integers(1, 7)).tolist(), EOS] for _ in range(16)]
    limits = np.where(rng.random(16) < 0.1, 0, rng.integers(1, 5, 16))
    limits[rng.permutation(16)[:3]] = rng.integers(8, 24, 3)
    sizes = []

    def search(least):
        beam_search._advancing("cpu").clear_cache()
        monkeypatch.setattr(beam_search, "LEAST", least)
        step = Transformer.step

        def noted(self, cache, tokens):
            sizes.append(len(tokens))
            return step(self, cache, tokens)

        with monkeypatch.context() as patch:
            patch.setattr(Transformer, "step", noted)
            return beams(sources, limits.tolist(), beam, 0.6, 24)

    for ours, theirs in zip(search(4), search(1000), strict=True):
        assert_same(ours, theirs)
    assert set(sizes) == {16, 8, 4}
    beam_search._advancing("cpu").clear_cache()


def test_a_cache_that_is_moved_together_and_grows_finds_the_same(monkeypatch):
    params, limits = toys.params(TINY), np.array([24, 17, 9])
    moved, sizes = beam_search._moved_together, []

    def noted(model, cache, places):
        sizes.append((cache["seen"].shape[2], places))
        return moved(model, cache, places)

    monkeypatch.setattr(beam_search, "_moved_together", noted)
    found = []
    for first in (2, 24):
        monkeypatch.setattr(beam_search, "FIRST", first)
        found.append(decode.beam_search(MODEL, params, fill(SOURCES, 3, 8), limits, 3, 2.0, 24))
    few, whole = found
    assert (np.asarray(few.tokens) != 0).sum(-1).max() == 24
    assert {(a < b) - (a > b) for a, b in sizes} >= {0, 1}  # moved in the same room, and into a larger one
    np.testing.assert_array_equal(few.tokens, whole.tokens)
    np.testing.assert_allclose(few.scores, whole.scores, rtol=1e-5)


def test_moving_together_keeps_what_is_seen_in_its_order():
    seen = np.zeros((2, 2, 6), bool)
    seen[0, 0, [0, 3]] = seen[0, 1, [0, 5]] = seen[1, :, 4] = True
    cache = {"index": jnp.array(6), "seen": jnp.array(seen), "keys": (jnp.arange(24.0).reshape(2, 2, 6),), "x": 7}

    class Model:
        cache_axes = {"index": "", "seen": "BKT", "keys": "BkT", "x": ""}

    for places in (4, 8):
        moved = beam_search._moved_together(Model, cache, places)
        assert moved["index"] == 3
        (keys,) = moved["keys"]
        assert moved["seen"].shape == (2, 2, places) and keys.shape == (2, 2, places)
        for row in range(2):
            for beam in range(2):
                kept = keys[row][:, moved["seen"][row, beam]]
                np.testing.assert_array_equal(kept, cache["keys"][0][row][:, seen[row, beam]])


class Markov:
    """Logits of the next token [V] from the last alone: a table [V V]. Its cache has room for any number of tokens."""

    cache_axes = {"table": "", "source": "BS"}

    def apply(self, table, *arguments, method):
        return getattr(self, method)(table, *arguments)

    def encode(self, table, source):
        return source.tokens

    def start(self, table, source, memory, beams, room):
        return {"table": table, "source": memory}

    def step(self, table, cache, tokens):
        return cache["table"][tokens], cache


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_a_search_for_fewer_finds_the_best_of_all_in_fewer_steps(alpha):
    table = jax.random.normal(jax.random.key(0), (9, 9)).at[:, EOS].add(1.0)
    model, source, limits = Markov(), fill([[2, 1]], 1, 8), jnp.full(1, 40)
    every = decode.beam_search(model, table, source, limits, 4, alpha, 40)
    steps = {}
    for wanted in (1, 2, 4):
        found = decode.beam_search(model, table, source, limits, 4, alpha, 40, wanted=wanted)
        np.testing.assert_array_equal(found.tokens, every.tokens[:, :wanted])
        np.testing.assert_allclose(found.scores, every.scores[:, :wanted], rtol=1e-6)
        state = beam_search._begin(model, table, source, limits, 4, 16, 40, None)
        advance = beam_search._advancing("cpu")
        ending = beam_search.Ending.of(4, wanted, early_stopping=False)
        steps[wanted] = int(advance(model, table, state, limits, jnp.float32(alpha), None, 0, ending)[0].length.item())
    assert steps[1] < steps[2] <= steps[4] < 40


def test_early_stopping_is_done_with_the_fourth_of_four_that_ended():
    """Where no hypothesis is much worse for going on, the full search looks further and finds better ones."""
    table = jax.random.normal(jax.random.key(0), (9, 9)).at[:, EOS].add(1.0)
    model, source, limits = Markov(), fill([[2, 1]], 1, 8), jnp.full(1, 40)
    longest, scores = {}, {}
    for early in (False, True):
        found = decode.beam_search(model, table, source, limits, 4, 2.0, 40, early_stopping=early)
        longest[early], scores[early] = int((found.tokens != 0).sum(-1).max()), found.scores
    assert longest[True] < longest[False]
    assert (scores[True] < scores[False]).any() and (scores[True] <= scores[False]).all()


@pytest.mark.parametrize("sentences", [1, 5, 16, 23, 24, 32, 33, 150, 1000])
def test_a_search_has_few_empty_rows_and_forgets_no_sentence(sentences):
    parts = list(decode._parts([[5, 1]] * sentences, 128, searched=True))
    assert sorted(i for part in parts for i in part.sentences) == [*range(sentences)]
    assert all(len(part.sentences) >= 0.75 * part.rows for part in parts if part.rows > beam_search.LEAST)
    assert all(part.rows <= 128 and part.rows & (part.rows - 1) == 0 for part in parts)


@pytest.mark.parametrize("size", [5, 63, 64, 1000, 1001])
def test_the_largest_are_found_in_two_stages(size):
    x = jax.random.normal(jax.random.key(size), (3, 2, size))
    for ours, plain in zip(beam_search._top_k(x, 5), jax.lax.top_k(x, 5), strict=True):
        np.testing.assert_array_equal(ours, plain)

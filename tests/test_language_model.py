"""The decoder-only model: against a NumPy reading, its cache against teacher forcing, what must change nothing; and
texts drawn from it, from the command line too.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toys

from t2t import decode
from t2t.batch import EOS, PAD, Batch, Sequences
from t2t.data.batching import fill
from t2t.errors import UserError
from t2t.models.language_model import LanguageModelConfig


def config(**changes) -> LanguageModelConfig:
    """A model of two layers in which no two sizes are equal."""
    sizes = dict(vocab_size=17, num_layers=2, d_model=8, d_ff=20, num_heads=3, d_k=4, d_v=5, dtype="float32")
    return LanguageModelConfig(**{**sizes, **changes})


CONFIG = config()
MODEL, PARAMS = CONFIG.build(), toys.params(CONFIG)
PAIRS = [([5, 9, 3, 1], [7, 8, 6, 11, 1]), ([4, 12, 1], [3, 1]), ([], [9, 2, 13, 1])]


@jax.jit
def logits(source, target, params=PARAMS):
    return MODEL.apply(params, source, target)


def apart(pairs=PAIRS, length=8) -> Batch:
    """A pair a row."""
    return toys.batch_of(pairs, rows=len(pairs), length=length)


def real(logits, target):
    """Without those of padding."""
    return np.where(target.segments[..., None], logits, 0)


def packed(pairs=PAIRS, length=12) -> Batch:
    """All pairs in one row."""
    sides = []
    for side in zip(*pairs, strict=True):
        made = np.zeros((3, 1, length), np.int32)
        begin = 0
        for number, tokens in enumerate(side, 1):
            place = slice(begin, begin := begin + len(tokens))
            made[:, 0, place] = tokens, [number] * len(tokens), range(len(tokens))
        sides.append(Sequences(*made))
    return Batch(*sides)


# ------------------------------------------------------------------------------ The whole forward


@pytest.mark.parametrize("positions", ["sinusoid", "learned"])
def test_logits_are_those_of_the_numpy_reading(positions):
    ours = config(positions=positions, max_length=16)
    params = toys.params(ours)
    found = ours.build().apply(params, *apart())
    model = toys.as_reference(params, ours)
    for row, (source, target) in enumerate(PAIRS):
        expected = reference.language_model(model, source, target)
        np.testing.assert_allclose(found[row, : len(target)], expected, atol=1e-4)


def test_sentences_packed_into_a_row_do_not_see_each_other():
    alone, together, begin = logits(*apart()), logits(*packed()), 0
    for row, (_, target) in enumerate(PAIRS):
        np.testing.assert_allclose(together[0, begin : begin + len(target)], alone[row, : len(target)], atol=1e-5)
        begin += len(target)


def test_later_tokens_change_nothing_before_them_and_every_earlier_one_matters():
    source, target = PAIRS[0]
    before = logits(*apart())
    for t in range(len(target)):
        after = logits(*apart([(source, [*target[:t], 14, *target[t + 1 :]]), *PAIRS[1:]]))
        np.testing.assert_array_equal(before[0, : t + 1], after[0, : t + 1])
        assert (np.abs(before - after)[0, t + 1 : len(target)].max(-1) > 1e-6).all()
    for s in range(len(source)):
        after = logits(*apart([([*source[:s], 14, *source[s + 1 :]], target), *PAIRS[1:]]))
        assert (np.abs(before - after)[0, : len(target)].max(-1) > 1e-6).all()


def test_padding_changes_nothing():
    source, target = apart()
    garbage = [side._replace(tokens=np.where(side.segments, side.tokens, 13)) for side in (source, target)]
    np.testing.assert_array_equal(real(logits(*garbage), target), real(logits(source, target), target))
    tight = Batch(fill([PAIRS[0][0]], 1, 4), fill([PAIRS[0][1]], 1, 5))
    np.testing.assert_allclose(logits(*tight)[0], logits(source, target)[0, :5], atol=1e-5)


def test_no_source_at_all_is_as_empty_sources():
    """As arrays without columns, which is how texts without sources are batched."""
    texts = [target for _, target in PAIRS]
    empty = apart([([], text) for text in texts])
    without = fill([[] for _ in texts], len(texts), 0), empty.target
    assert without[0].tokens.shape == (3, 0)
    found, expected = (real(logits(*batch), empty.target) for batch in (without, empty))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_source_is_a_beginning_of_the_target_that_is_given():
    """The last rows of a text's logits are those of its end, given its beginning: so prompts are what was learnt."""
    text = [5, 9, 3, 6, 7, 8, 1]
    whole = logits(*apart([([], text)]))[0, :7]
    for cut in range(1, 7):
        rest = logits(*apart([(text[:cut], text[cut:])]))[0, : 7 - cut]
        np.testing.assert_allclose(rest, whole[cut:], atol=1e-5)


def test_two_vocabularies_are_refused_and_learned_positions_are_halved():
    with pytest.raises(UserError, match="target_vocab_size must be 0 in a language model, not 5"):
        config(target_vocab_size=5)
    assert config(positions="learned", max_length=9).longest == 4 and CONFIG.longest is None


# ------------------------------------------------------------------------------ Decoding


@pytest.mark.parametrize("positions", ["sinusoid", "learned"])
def test_step_by_step_equals_teacher_forcing(positions):
    ours = config(positions=positions, max_length=16)
    model, params, (source, target) = ours.build(), toys.params(ours), apart()
    whole = model.apply(params, source, target)
    memory = model.apply(params, source, method="encode")
    cache = model.apply(params, source, memory, 2, 6, method="start")
    step, before = jax.jit(functools.partial(model.apply, method="step")), jnp.zeros((3, 2), jnp.int32)
    for t in range(5):
        found, cache = step(params, cache, before)
        there = target.segments[:, t] == 1
        for beam in range(2):
            np.testing.assert_allclose(found[there, beam], whole[there, t], atol=1e-4)
        before = jnp.tile(target.tokens[:, t : t + 1], (1, 2))


def test_the_cache_is_as_its_letters_say():
    source = fill([[3, 1], [4, 5, 1]], 2, 7)
    memory = MODEL.apply(PARAMS, source, method="encode")
    cache = MODEL.apply(PARAMS, source, memory, 6, 9, method="start")
    sizes = dict(B=2, K=6, T=6 * 9, S=7, H=3, k=4, v=5)
    assert cache.keys() == MODEL.cache_axes.keys()
    for name, axes in MODEL.cache_axes.items() - {("layers", "")}:
        layers = jax.tree.leaves(cache[name])
        assert len(layers) == (2 if "H" in axes else 1)
        assert {x.shape for x in layers} == {tuple(sizes[a] for a in axes)}


TINY = config(vocab_size=5)
TINY_MODEL, TINY_PARAMS = TINY.build(), toys.params(TINY, scale=1.0)
SOURCES = [[3, 4, 2, 1], [4, 1], [2, 2, 3, 3, 4, 1]]
tiny_logits = jax.jit(TINY_MODEL.apply)


@functools.cache
def next_log_probs(source, prefix):
    """log p(next | prefix) [V] without a cache: the whole prefix is fed again."""
    batch = toys.batch_of([(list(source), [*prefix, 2])], rows=1, length=16)
    found = tiny_logits(TINY_PARAMS, *batch)[0, len(prefix)]
    return np.asarray(jax.nn.log_softmax(found), np.float64)


@pytest.mark.parametrize("beam", [1, 3])
def test_beam_search_is_the_plain_one(beam):
    """Outputs longer than what the cache has room for at first."""
    source = fill(SOURCES, 3, 8)
    found = decode.beam_search(TINY_MODEL, TINY_PARAMS, source, jnp.array([6, 3, 7]), beam, 0.6, 7)
    for limit, sentence, tokens, scores in zip([6, 3, 7], SOURCES, *jax.device_get(found), strict=True):
        ours = decode._hypotheses(tokens, scores)
        following = functools.partial(next_log_probs, tuple(sentence))
        theirs = reference.beam_search(following, beam, EOS, 0.6, limit)
        assert [h.tokens for h in ours] == [[t for t in tokens if t != EOS] for tokens, _ in theirs]
        np.testing.assert_allclose([h.score for h in ours], [score for _, score in theirs], atol=1e-4)


def draws(count, source, **how):
    sampling, config = decode.SamplingConfig(**how), decode.DecodingConfig(rows=512, extra_length=3)
    found = decode.decode(TINY_MODEL, TINY_PARAMS, [source] * count, config, sampling)
    return [best[0].tokens for _, best in sorted(found)]


@pytest.mark.parametrize("prompt", [(), (3, 4, 2)])
def test_samples_follow_the_model(prompt):
    """The first two tokens of 4,000 draws after a prompt, or after nothing, within four standard errors."""
    drawn = draws(4000, list(prompt))
    for prefix in ([], [3]):
        expected = np.exp(next_log_probs(prompt, tuple(prefix)))
        expected[PAD] = 0
        expected /= expected.sum()
        after = [[*d, EOS][len(prefix)] for d in drawn if d[: len(prefix)] == prefix]
        assert len(after) > 200
        seen = np.bincount(after, minlength=5) / len(after)
        np.testing.assert_allclose(seen, expected, atol=4 * 0.5 / np.sqrt(len(after)))

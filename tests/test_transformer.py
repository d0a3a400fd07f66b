"""Invariants of the model: what must change nothing, what must not be there, and what can be asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toys

from t2t.batch import Batch, Sequences
from t2t.data.batching import fill
from t2t.models import transformer
from t2t.models.attention import Mask, attend
from t2t.models.dropout import rows_from
from t2t.models.transformer import MultiHeadAttention, TransformerConfig, shift_right
from t2t.sharding import unboxed

CONFIG = toys.config()
MODEL, PARAMS = CONFIG.build(), toys.params(CONFIG)
APPLY = jax.jit(MODEL.apply, static_argnames=("train", "mutable"))
SOURCE, TARGET = [5, 9, 3, 1], [7, 8, 6, 11, 1]
OTHER_SOURCE, OTHER_TARGET = [4, 12, 1], [3, 1]


def logits(batch, params=PARAMS, **how):
    return APPLY(params, batch.source, batch.target, **how)


def side_by_side(first, second, length=12):
    """Two sentences in one row, as segments 1 and 2."""
    tokens, segments, positions = np.zeros((3, 1, length), np.int32)
    a, b = len(first), len(first) + len(second)
    tokens[0, :a], tokens[0, a:b] = first, second
    segments[0, :a], segments[0, a:b] = 1, 2
    positions[0, :a], positions[0, a:b] = range(a), range(b - a)
    return Sequences(tokens, segments, positions)


def test_later_target_tokens_change_nothing_before_them():
    before = logits(toys.batch_of([(SOURCE, TARGET)], 1))
    for t in range(len(TARGET)):
        changed = [*TARGET]
        changed[t] = 14
        after = logits(toys.batch_of([(SOURCE, changed)], 1))
        np.testing.assert_array_equal(before[0, : t + 1], after[0, : t + 1])
        assert t + 1 == len(TARGET) or not np.allclose(before[0, t + 1], after[0, t + 1])


def test_every_source_token_matters_to_every_target_position():
    before = logits(toys.batch_of([(SOURCE, TARGET)], 1))
    for s in range(len(SOURCE)):
        changed = [*SOURCE]
        changed[s] = 14
        after = logits(toys.batch_of([(changed, TARGET)], 1))
        assert (np.abs(before - after)[0, : len(TARGET)].max(-1) > 1e-6).all()


def test_padding_changes_nothing():
    tight = Batch(fill([SOURCE], 1, 4), fill([TARGET], 1, 5))
    wide = toys.batch_of([(SOURCE, TARGET), (OTHER_SOURCE, OTHER_TARGET)], rows=3, length=20)
    np.testing.assert_allclose(logits(wide)[0, :5], logits(tight)[0], atol=1e-5)
    garbage = wide.source._replace(tokens=np.where(wide.source.segments, wide.source.tokens, 13))
    np.testing.assert_array_equal(logits(wide._replace(source=garbage))[0, :5], logits(wide)[0, :5])


def test_sentences_packed_into_a_row_do_not_see_each_other():
    packed = Batch(side_by_side(SOURCE, OTHER_SOURCE), side_by_side(TARGET, OTHER_TARGET))
    apart = toys.batch_of([(SOURCE, TARGET), (OTHER_SOURCE, OTHER_TARGET)], rows=2)
    ours, alone = logits(packed), logits(apart)
    np.testing.assert_allclose(ours[0, :5], alone[0, :5], atol=1e-5)
    np.testing.assert_allclose(ours[0, 5:7], alone[1, :2], atol=1e-5)


def test_the_shift_respects_segments():
    assert shift_right(side_by_side(TARGET, OTHER_TARGET, 8)).tolist() == [[0, 7, 8, 6, 11, 0, 3, 0]]


def test_the_embedding_of_padding_is_never_looked_up():
    table = PARAMS["params"]["embedding"]["table"]
    gradient = jax.grad(lambda p: logits(toys.batch_of([(SOURCE, TARGET)], 2), p)[0, :5, 1:].sum())(PARAMS)
    assert not gradient["params"]["embedding"]["table"][0].any()
    assert gradient["params"]["embedding"]["table"][5].any()
    assert table[0].any()  # it stands in the softmax all the same


def test_an_empty_row_gives_numbers():
    assert np.isfinite(logits(toys.batch_of([(SOURCE, TARGET)], rows=4))).all()


# ------------------------------------------------------------------------------ Dropout


def test_dropout_is_off_unless_training_and_new_for_every_key():
    batch = toys.batch_of([(SOURCE, TARGET)])
    apply = lambda key: logits(batch, train=True, rngs={"dropout": jax.random.key(key)})  # noqa: E731
    np.testing.assert_array_equal(apply(0), apply(0))
    assert not np.allclose(apply(0), apply(1))
    np.testing.assert_array_equal(logits(batch), logits(batch, train=False))


def test_dropout_stands_on_sublayers_and_on_embeddings_and_nowhere_else():
    """3 of each decoder layer, 2 of each encoder layer, 1 a stack: counted in the program, layers unrolled."""
    batch = toys.batch_of([(SOURCE, TARGET)])
    program = jax.make_jaxpr(lambda p, k: logits(batch, p, train=True, rngs={"dropout": k}))(PARAMS, jax.random.key(0))
    shapes = dropout_shapes(program.jaxpr)
    assert shapes == {(4, 8, 8): 2 + 2 + 3}  # the loop over layers holds each layer's body once


def dropout_shapes(jaxpr):
    """How many masks of each shape a program draws: each begins by comparing hashed bits with the rate."""
    found = {}
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    for shape, count in dropout_shapes(inner).items():
                        found[shape] = found.get(shape, 0) + count
        if equation.primitive.name == "ge" and equation.invars[0].aval.dtype == np.uint32:
            shape = equation.outvars[0].aval.shape
            found[shape] = found.get(shape, 0) + 1
    return found


ATTENTION_ONLY = toys.config(p_drop=0.0, p_attention=0.5).build()


@jax.jit
def attention_dropout(batch, key, first_row=0):
    with rows_from(first_row):
        rngs = {"dropout": jax.random.key(key)}
        return ATTENTION_ONLY.apply(PARAMS, batch.source, batch.target, train=True, rngs=rngs)


def test_dropout_on_attention_is_off_unless_training_and_new_for_every_key():
    batch = toys.batch_of([(SOURCE, TARGET)])
    np.testing.assert_array_equal(jax.jit(ATTENTION_ONLY.apply)(PARAMS, batch.source, batch.target), logits(batch))
    np.testing.assert_array_equal(attention_dropout(batch, 0), attention_dropout(batch, 0))
    assert not np.allclose(attention_dropout(batch, 0), logits(batch))
    assert not np.allclose(attention_dropout(batch, 0), attention_dropout(batch, 1))


def test_dropout_on_attention_stands_on_the_weights_and_nowhere_else():
    """Of queries by keys in each head: once in an encoder layer, twice in a decoder layer."""
    batch = Batch(fill([SOURCE], 4, 6), fill([TARGET], 4, 8))
    program = jax.make_jaxpr(lambda key: attention_dropout(batch, key))(0)
    assert dropout_shapes(program.jaxpr) == {(4, 3, 6, 6): 1, (4, 3, 8, 8): 1, (4, 3, 8, 6): 1}


def test_dropout_on_attention_keeps_the_mean():
    """Attention is linear in its weights: the mean over masks is attention without one, within five standard errors."""
    attention = MultiHeadAttention(ATTENTION_ONLY.config)
    x, keys, values = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(1, 4, 8), (1, 6, 3, 4), (1, 6, 3, 5)])
    )
    everywhere = Mask(jnp.ones((1, 4), jnp.int32), jnp.ones((1, 6), jnp.int32))

    @jax.jit
    def draw(keys_of_masks):
        params = attention.init(jax.random.key(3), x, keys, values, everywhere, method=all_made)
        call = lambda **how: attention.apply(params, x, keys, values, everywhere, **how)  # noqa: E731
        return call(), jax.vmap(lambda key: call(train=True, rngs={"dropout": key}))(keys_of_masks)

    expected, drawn = draw(jax.random.split(jax.random.key(4), 4000))
    assert drawn.std(0).min() > 0.01
    assert (np.abs(drawn.mean(0) - expected) < 5 * drawn.std(0) / np.sqrt(4000)).all()


def all_made(attention, x, keys, values, mask):
    """With all of its weights made, of which keys and values need those of their own."""
    attention.keys_and_values(x)
    return attention(x, keys, values, mask)


def test_dropout_on_attention_is_that_of_the_row_in_the_whole_batch():
    whole = toys.batch_of([(SOURCE, TARGET), (OTHER_SOURCE, OTHER_TARGET)] * 2)
    half = jax.tree.map(lambda x: x[2:], whole)
    expected = attention_dropout(whole, 0)[2:]
    np.testing.assert_allclose(attention_dropout(half, 0, first_row=2), expected, atol=1e-5)
    assert not np.allclose(attention_dropout(half, 0), expected, atol=1e-2)


# ------------------------------------------------------------------------------ What can be asked for


def test_attention_weights_leave_on_request():
    batch = toys.batch_of([(SOURCE, TARGET)], rows=2)
    same, kept = logits(batch, mutable=("intermediates",))
    np.testing.assert_array_equal(same, logits(batch))
    kept = kept["intermediates"]
    encoder, self_, cross = (
        kept[stack][kind]["weights"][0]
        for stack, kind in (
            ("encoder", "self_attention"),
            ("decoder", "self_attention"),
            ("decoder", "cross_attention"),
        )
    )
    for weights in (encoder, self_, cross):
        assert weights.shape == (2, 2, 3, 8, 8)  # N B H T S
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert not encoder[:, 0, :, :4, 4:].any() and not cross[:, 0, :, :5, 4:].any()
    assert not np.triu(self_[0, 0, 0, :5, :5], 1).any()


@pytest.mark.parametrize("changes", [dict(attention="blocked"), dict(attention="fused"), dict(attention_span=9)])
def test_attention_weights_leave_whatever_the_kernel(changes):
    """Of long rows too, where a kernel has no array of them."""
    config, dense = toys.config(**changes), toys.config()
    params, batch = (
        toys.params(dense),
        toys.batch_of([([5, 9, 3] * 33 + [1], [7, 8, 6] * 33 + [1])], rows=1, length=100),
    )
    weights = {}
    for each in (config, dense):
        kept = each.build().apply(params, *batch, mutable=["intermediates"])[1]["intermediates"]
        weights[each] = [kept[stack]["self_attention"]["weights"][0] for stack in ("encoder", "decoder")]
    window = reference.neighbourhood(100, 9, causal=False) if config.attention_span else np.ones((100, 100), bool)
    for found, expected in zip(weights[config], weights[dense], strict=True):
        assert found.shape == expected.shape == (2, 1, 3, 100, 100)
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    encoder = np.where(window, weights[dense][0][0], 0)  # of the first layer, which all see the same embeddings
    np.testing.assert_allclose(weights[config][0][0], encoder / encoder.sum(-1, keepdims=True), atol=1e-5)


def test_attention_weights_cost_nothing_when_nobody_asks(monkeypatch):
    """The program is that of weights which nothing sees, before a compiler drops what nobody uses."""
    batch = toys.batch_of([(SOURCE, TARGET)], rows=2)
    program = lambda: str(jax.make_jaxpr(MODEL.apply)(PARAMS, batch.source, batch.target))  # noqa: E731
    usual = program()
    monkeypatch.setattr(transformer, "attend", lambda kernel, q, k, v, mask, _: attend(kernel, q, k, v, mask))
    assert usual == program()


def test_bfloat16_is_near_float32():
    batch = toys.batch_of([(SOURCE, TARGET)])
    half = jax.jit(toys.config(dtype="bfloat16").build().apply)(PARAMS, batch.source, batch.target)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, logits(batch), atol=0.06)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(PARAMS))


@pytest.mark.parametrize("unroll", [1, 2])
def test_unrolling_changes_nothing(unroll):
    batch = toys.batch_of([(SOURCE, TARGET)])
    ours = jax.jit(toys.config(unroll=unroll).build().apply)(PARAMS, batch.source, batch.target)
    np.testing.assert_allclose(ours, logits(batch), atol=1e-5)


def test_padding_may_stand_beyond_the_learned_positions():
    config = toys.config(positions="learned", max_length=5)
    params = toys.params(config)
    tight, wide = Batch(fill([SOURCE], 1, 4), fill([TARGET], 1, 5)), toys.batch_of([(SOURCE, TARGET)], 1)
    apply = jax.jit(config.build().apply)
    expected = apply(params, tight.source, tight.target)
    np.testing.assert_allclose(apply(params, wide.source, wide.target)[:, :5], expected, atol=1e-5)
    assert config.longest == 5 and CONFIG.longest is None


def test_two_vocabularies_have_a_table_each():
    config = toys.config(target_vocab_size=23)
    batch, params = toys.batch_of([(SOURCE, TARGET)], 2), toys.params(config)
    assert params["params"]["embedding"]["table"].shape == (17, 8)
    assert params["params"]["target_embedding"]["table"].shape == (23, 8)
    spread = lambda p: config.build().apply(p, batch.source, batch.target)[0, :5].std()  # noqa: E731
    gradient = jax.jit(jax.grad(spread))(params)["params"]
    used = np.flatnonzero(gradient["embedding"]["table"].any(-1)).tolist()
    assert used == sorted({*SOURCE}) and gradient["target_embedding"]["table"].any(-1).all()


def test_weights_begin_as_the_paper_says():
    batch = toys.batch_of([(SOURCE, TARGET)])
    config = TransformerConfig(vocab_size=1000, num_layers=2, d_model=64, d_ff=128, num_heads=4, d_k=16, d_v=16)
    params = unboxed(jax.jit(config.build().init)(jax.random.key(0), batch.source, batch.target))["params"]
    np.testing.assert_allclose(params["embedding"]["table"].std(), 64**-0.5, rtol=0.02)
    query = params["decoder"]["self_attention"]["query"]["weight"]  # [N D H k]: fans 64 in, 64 out
    assert query.shape == (2, 64, 4, 16)
    np.testing.assert_allclose(np.abs(query).max(), np.sqrt(6 / 128), rtol=0.01)
    inner = params["encoder"]["feed_forward"]["inner"]["weight"]  # fans 64 in, 128 out
    np.testing.assert_allclose(np.abs(inner).max(), np.sqrt(6 / 192), rtol=0.01)
    assert not np.array_equal(query[0], query[1])

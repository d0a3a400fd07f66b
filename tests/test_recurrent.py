"""The recurrent network: against a plain NumPy reading and PyTorch's cell; what must change nothing; that it learns."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from test_house import parameters, shapes
from test_transformer import OTHER_SOURCE, OTHER_TARGET, SOURCE, TARGET, dropout_shapes, side_by_side

from t2t import beam_search, cost, decode, train
from t2t.batch import EOS, Batch
from t2t.data.batching import fill
from t2t.errors import UserError
from t2t.experiment import Experiment, get, override
from t2t.models.recurrent import Recurrent, RecurrentConfig, cell
from t2t.report import attention
from t2t.sharding import check_layout, make_mesh, on, place, shardings, unboxed


def recurrent(**changes):
    """A layer above the first; half of the width is no other size."""
    sizes = dict(vocab_size=17, num_layers=2, d_model=10, p_drop=0.1, dtype="float32")
    return RecurrentConfig(**{**sizes, **changes})


def drawn(config, scale=0.4):
    """Weights of the right shapes, all of them drawn alike."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32), unboxed(shapes(config)))


CONFIG = recurrent()
MODEL, PARAMS = CONFIG.build(), drawn(CONFIG)
UPPER = CONFIG.num_layers - 1
APART = toys.batch_of([(SOURCE, TARGET), (OTHER_SOURCE, OTHER_TARGET)], rows=3, length=9)


@jax.jit
def logits(batch, params=PARAMS):
    return MODEL.apply(params, batch.source, batch.target)


# ------------------------------------------------------------------------------ A plain reading, a sentence at a time


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def read_cell(weights, x, state, context=None):
    """Gers et al. 2000, gate by gate; the forget gate's bias is one more than its parameter."""
    h, c = state
    z = []
    for gate in range(4):
        total = weights["input"]["bias"][gate] + x @ weights["input"]["weight"][:, gate]
        total = total + h @ weights["recurrent"][:, gate]
        z.append(total if context is None else total + context @ weights["context"][:, gate])
    c = sigmoid(z[1] + 1) * c + sigmoid(z[0]) * np.tanh(z[2])
    return sigmoid(z[3]) * np.tanh(c), c


def read_layer(weights, xs, contexts=None):
    """A layer over a sentence: xs, and contexts if it takes any, [T D] -> [T F]."""
    units = weights["recurrent"].shape[0]
    state, out = (np.zeros(units), np.zeros(units)), []
    for t, x in enumerate(xs):
        state = read_cell(weights, x, state, None if contexts is None else contexts[t])
        out.append(state[0])
    return np.array(out)


def read_encoder(weights, xs):
    backward = read_layer(weights["backward"], xs[::-1])[::-1]
    x = np.concatenate([read_layer(weights["forward"], xs), backward], axis=1)
    for i in range(UPPER):
        x = x + read_layer(weights[f"layers_{i}"], x)
    return x


def read_attention(weights, h, memory):
    scores = [weights["energy"] @ np.tanh(h @ weights["query"] + m @ weights["key"]["weight"]) for m in memory]
    exponentials = np.exp(np.array(scores) - max(scores))
    return exponentials @ memory / exponentials.sum()


def read_decoder(weights, ys, memory):
    units = weights["first"]["recurrent"].shape[0]
    state, out, contexts = (np.zeros(units), np.zeros(units)), [], []
    for y in ys:
        contexts.append(read_attention(weights["cross_attention"], state[0], memory))
        state = read_cell(weights["first"], y, state, contexts[-1])
        out.append(state[0])
    y = np.array(out)
    for i in range(UPPER):
        y = y + read_layer(weights[f"layers_{i}"], y, contexts)
    return y


def read_logits(params, source, target):
    """Token lists -> logits [T V]."""
    weights = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["params"]
    table = weights["embedding"]["table"]
    memory = read_encoder(weights["encoder"], table[source] * math.sqrt(10))
    before = np.concatenate([np.zeros((1, 10)), table[target[:-1]] * math.sqrt(10)])
    return read_decoder(weights["decoder"], before, memory) @ table.T


def test_logits_are_those_of_the_plain_reading():
    found = logits(APART)
    for row, (source, target) in enumerate([(SOURCE, TARGET), (OTHER_SOURCE, OTHER_TARGET)]):
        np.testing.assert_allclose(found[row, : len(target)], read_logits(PARAMS, source, target), atol=1e-5)


def random_cell(rng):
    shapes = {"weight": (5, 4, 3), "bias": (4, 3), "recurrent": (3, 4, 3)}
    drawn = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    weights = {"input": {name: drawn[name] for name in ("weight", "bias")}, "recurrent": drawn["recurrent"]}
    return weights, rng.normal(size=(2, 5)), (rng.normal(size=(2, 3)), rng.normal(size=(2, 3)))


def our_cell(weights, x, state):
    gates = np.einsum("BD,DGF->BGF", x, weights["input"]["weight"]) + weights["input"]["bias"]
    return cell(gates + np.einsum("BD,DGF->BGF", state[0], weights["recurrent"]), state[1])


def test_the_cell_is_that_of_the_plain_reading():
    weights, x, state = random_cell(np.random.default_rng(0))
    for ours, plain in zip(our_cell(weights, x, state), read_cell(weights, x, state), strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-6)


def test_the_cell_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    weights, x, state = random_cell(np.random.default_rng(1))
    theirs = torch.nn.LSTMCell(5, 3).double()
    rows = lambda each: torch.tensor(each.reshape(len(each), -1).T.copy())  # noqa: E731 - gates in the same order
    bias = weights["input"]["bias"] + np.array([[0.0], [1], [0], [0]])
    with torch.no_grad():
        theirs.weight_ih.copy_(rows(weights["input"]["weight"]))
        theirs.weight_hh.copy_(rows(weights["recurrent"]))
        theirs.bias_ih.copy_(torch.tensor(bias.reshape(-1)))
        theirs.bias_hh.zero_()
        expected = theirs(torch.tensor(x), tuple(map(torch.tensor, state)))
    for ours, found in zip(our_cell(weights, x, state), expected, strict=True):
        np.testing.assert_allclose(ours, found.numpy(), atol=1e-6)


# ------------------------------------------------------------------------------ What changes nothing, and what does


def test_a_changed_target_token_changes_all_that_follows_and_nothing_before():
    before = logits(APART)
    for t in range(len(TARGET) - 1):
        tokens = np.array(APART.target.tokens)
        tokens[0, t] = 14
        after = logits(APART._replace(target=APART.target._replace(tokens=tokens)))
        np.testing.assert_array_equal(before[0, : t + 1], after[0, : t + 1])
        np.testing.assert_array_equal(before[1:], after[1:])
        assert (np.abs(before - after)[0, t + 1 : len(TARGET)].max(-1) > 1e-6).all()


def test_every_source_token_matters_to_every_target_position():
    before = logits(APART)
    for s in range(len(SOURCE)):
        tokens = np.array(APART.source.tokens)
        tokens[0, s] = 14
        after = logits(APART._replace(source=APART.source._replace(tokens=tokens)))
        assert (np.abs(before - after)[0, : len(TARGET)].max(-1) > 1e-6).all()


def test_padding_changes_nothing():
    tight = Batch(fill([SOURCE], 1, 4), fill([TARGET], 1, 5))
    found = logits(APART)
    np.testing.assert_allclose(found[0, :5], logits(tight)[0], atol=1e-5)
    garbage = [side._replace(tokens=np.where(side.segments, side.tokens, 13)) for side in APART]
    np.testing.assert_array_equal(logits(Batch(*garbage))[0, :5], found[0, :5])
    assert np.isfinite(found).all()  # of the empty row too


def test_sentences_packed_into_a_row_do_not_see_each_other():
    """Nor does what training learns from them differ."""
    packed = Batch(side_by_side(SOURCE, OTHER_SOURCE, 9), side_by_side(TARGET, OTHER_TARGET, 9))
    packed = jax.tree.map(lambda x: np.pad(x, [(0, 2), (0, 0)]), packed)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def spread(params, batch):
        found = logits(batch, params)
        real = (batch.target.segments != 0)[..., None]
        return (jnp.square(found) * real).sum(), found

    (_, together), gradient = spread(PARAMS, packed)
    (_, alone), expected = spread(PARAMS, APART)
    np.testing.assert_allclose(together[0, :5], alone[0, :5], atol=1e-5)
    np.testing.assert_allclose(together[0, 5:7], alone[1, :2], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), gradient, expected)


def test_unrolling_changes_nothing():
    found = jax.jit(recurrent(unroll=3).build().apply)(PARAMS, APART.source, APART.target)
    np.testing.assert_allclose(found, logits(APART), atol=1e-5)


def test_bfloat16_is_near_float32():
    half = recurrent(dtype="bfloat16").build()
    found = jax.jit(half.apply)(PARAMS, APART.source, APART.target)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, logits(APART), atol=0.02)
    memory = jax.ShapeDtypeStruct((3, 9, 10), jnp.bfloat16)
    cache = jax.eval_shape(lambda m: half.apply(PARAMS, APART.source, m, 2, 9, method="start"), memory)
    tokens = jnp.zeros((3, 2), jnp.int32)
    _, after = jax.eval_shape(lambda cache: half.apply(PARAMS, cache, tokens, method="step"), cache)
    assert after == cache  # shapes and types


def test_dropout_stands_on_embeddings_and_layers_and_nowhere_else():
    """Once for each stack's embedding and for each of its two layers."""

    def dropped(key):
        return MODEL.apply(PARAMS, APART.source, APART.target, train=True, rngs={"dropout": jax.random.key(key)})

    assert dropout_shapes(jax.make_jaxpr(dropped)(0).jaxpr) == {(3, 9, 10): 2 * (1 + 2)}
    dropped = jax.jit(dropped)
    np.testing.assert_array_equal(dropped(0), dropped(0))
    assert not np.allclose(dropped(0), dropped(1)) and not np.allclose(dropped(0), logits(APART))


def test_two_vocabularies_have_a_table_each():
    config = recurrent(target_vocab_size=23)
    params = drawn(config)
    assert params["params"]["embedding"]["table"].shape == (17, 10)
    assert params["params"]["target_embedding"]["table"].shape == (23, 10)
    assert jax.eval_shape(config.build().apply, params, APART.source, APART.target).shape == (3, 9, 23)


def test_an_odd_width_is_refused():
    with pytest.raises(UserError, match=r"d_model must be even, half for each direction, not 7"):
        recurrent(d_model=7)


# ------------------------------------------------------------------------------ Decoding


def begun(source, beams, room):
    memory = MODEL.apply(PARAMS, source, method="encode")
    return MODEL.apply(PARAMS, source, memory, beams, room, method="start")


def test_step_by_step_equals_teacher_forcing():
    whole = logits(APART)
    cache = jax.jit(begun, static_argnums=(1, 2))(APART.source, 2, 9)
    step = jax.jit(lambda cache, tokens: MODEL.apply(PARAMS, cache, tokens, method="step"))
    before = jnp.zeros((3, 2), jnp.int32)
    for t in range(len(TARGET)):
        found, cache = step(cache, before)
        real = APART.target.segments[:, t] == 1
        for beam in range(2):
            np.testing.assert_allclose(found[real, beam], whole[real, t], atol=1e-5)
        before = jnp.tile(APART.target.tokens[:, t : t + 1], (1, 2))


def test_the_cache_is_as_its_letters_say_and_does_not_grow():
    source = fill([[3, 1], [4, 5, 1]], 2, 7)
    sizes = dict(B=2, K=6, S=7, D=10, F=10)
    for room in (1, 9):
        cache = jax.eval_shape(functools.partial(begun, beams=6, room=room), source)
        assert cache.keys() == MODEL.cache_axes.keys()
        for name, axes in MODEL.cache_axes.items():
            arrays = jax.tree.leaves(cache[name])
            assert len(arrays) == (2 if "K" in axes else 1)
            assert {x.shape for x in arrays} == {tuple(sizes[a] for a in axes)}


def test_a_search_that_goes_on_with_few_rows_finds_the_same(monkeypatch):
    """Rows of very different limits, so that arrays of 32, 16 and 8 rows are gone through; then each alone."""
    rng = np.random.default_rng(0)
    config = recurrent(vocab_size=6)
    model, params = config.build(), drawn(config, scale=1.0)
    sources = [[*rng.integers(2, 6, rng.integers(1, 7)).tolist(), EOS] for _ in range(32)]
    limits = rng.integers(1, 5, 32)
    limits[rng.permutation(32)[:7]] = rng.integers(9, 16, 7)
    sizes, step = set(), Recurrent.step

    def noted(self, cache, tokens):
        sizes.add(len(tokens))
        return step(self, cache, tokens)

    def search(least):
        monkeypatch.setattr(beam_search, "LEAST", least)
        beam_search._advancing("cpu").clear_cache()
        return decode.beam_search(model, params, fill(sources, 32, 8), limits, 3, 0.6, 16)

    monkeypatch.setattr(Recurrent, "step", noted)
    few = search(8)
    assert sizes == {32, 16, 8}
    whole = search(1000)
    np.testing.assert_array_equal(few.tokens, whole.tokens)
    np.testing.assert_allclose(few.scores, whole.scores, atol=1e-4)
    assert len({tuple(row) for row in np.asarray(few.tokens[:, 0]).tolist()}) > 5
    beam_search._advancing("cpu").clear_cache()


def test_the_scores_of_a_search_are_those_of_teacher_forcing():
    found = decode.beam_search(MODEL, PARAMS, APART.source, np.array([8, 8, 0]), 2, 0.0, 8)
    for beam in range(2):
        target = [[t for t in row if t] for row in np.asarray(found.tokens[:2, beam]).tolist()]
        forced = decode.forced_scores(MODEL, PARAMS, Batch(APART.source, fill(target, 3, 9)))
        np.testing.assert_allclose(found.scores[:2, beam], forced[:2], atol=1e-4)


def test_attention_weights_leave_on_request():
    found, kept = jax.jit(lambda b: MODEL.apply(PARAMS, *b, mutable=["intermediates"]))(APART)
    np.testing.assert_allclose(found, logits(APART), atol=1e-6)
    (weights,) = kept["intermediates"]["decoder"]["cross_attention"]["weights"]
    assert weights.shape == (1, 3, 1, 9, 9)  # N B H T S
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert not weights[:, 0, :, :5, 4:].any() and (weights[:, 0, :, :5, :4] > 0).all()
    assert attention.sizes(TOY, jax.eval_shape(TOY.model.build().init, jax.random.key(0), *APART)) == {"cross": (1, 1)}


# ------------------------------------------------------------------------------ Experiments, devices, costs

TOY = Experiment("toy", "nothing", get("quickstart").task, model=recurrent(vocab_size=16, num_layers=1, d_model=16))
TOY = override(TOY, {"optimizer.warmup_steps": 60, "optimizer.scale": 0.5, "mesh.data": 1, "model.p_drop": 0.0})


def closed_formula(c):
    """Cells with a bias, in the decoder with a context; attention without one; one embedding."""
    d, half = c.d_model, c.d_model // 2
    first = 2 * 4 * half * (d + half + 1)
    further = 4 * d * (d + d + 1)
    decoder = 2 * d * d + d + c.num_layers * (further + 4 * d * d)
    return c.vocab_size * d + first + (c.num_layers - 1) * further + decoder


@pytest.mark.parametrize(
    ("name", "beside", "count"),
    [("baseline_recurrent", "quickstart", 913_536), ("multi30k_recurrent", "multi30k_ende", 2_082_944)],
)
def test_parameters_are_as_many_as_those_of_the_transformer_beside(name, beside, count):
    each = get(name)
    assert parameters(each.model) == closed_formula(each.model) == count
    assert each.base == beside and abs(count / parameters(get(beside).model) - 1) < 0.01


def test_parameters_at_the_sizes_of_gnmt():
    assert parameters(RecurrentConfig()) == closed_formula(RecurrentConfig()) == 200_606_720


def batch_of_reversals(rng, rows=32, length=8):
    """Five or six tokens of ten in, the same backwards out."""
    sources = [rng.integers(3, 13, rng.integers(5, 7)).tolist() for _ in range(rows)]
    return toys.batch_of([([*s, EOS], [*s[::-1], EOS]) for s in sources], rows, length)


def begin(experiment):
    return jax.jit(lambda key: unboxed(train.init_state(experiment, key)))(jax.random.key(0))


def test_devices_change_nothing():
    """On a mesh of 2 x 2 x 2, dropout on: parameters are split, loss and gradient are what one device has."""
    toy = override(TOY, {"model.p_drop": 0.1})
    batch = batch_of_reversals(np.random.default_rng(0), rows=8)
    state = begin(toy)
    alone, sums = jax.jit(functools.partial(train._gradient, toy))(state, batch)
    spread = override(toy, {"mesh.data": 2, "mesh.fsdp": 2, "mesh.model": 2})
    mesh, boxed = make_mesh(spread.mesh), train.abstract_state(spread)
    check_layout(mesh, boxed.params)
    state = jax.device_put(state, shardings(mesh, boxed))
    first = state.params["params"]["decoder"]["first"]
    assert first["recurrent"].addressable_shards[0].data.shape == (8, 4, 8)  # D over fsdp, F over model, gates whole
    assert first["input"]["bias"].addressable_shards[0].data.shape == (4, 8)
    with on(mesh):
        found, again = jax.jit(functools.partial(train._gradient, spread))(state, place(mesh, batch))
    np.testing.assert_allclose(again["loss"], sums["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, alone)
    assert all(np.abs(x).max() > 1e-5 for x in jax.tree.leaves(alone))


def test_flops_are_those_of_xla():
    """Without a loop over time, whose body XLA would count once."""
    small = {"batching.max_length": 2, "batching.tokens": 128, "model.d_model": 64, "model.vocab_size": 500}
    toy = override(TOY, {**small, "model.p_drop": 0.1})
    found = cost.cost(toy, None)
    assert found["parameters"] == parameters(toy.model)
    xla = cost.compiled(override(toy, {"model.unroll": 2}))
    assert found["flops_per_step"] == pytest.approx(xla["xla_flops"], rel=0.05)


def test_learns_to_reverse():
    """300 steps, then all but one in a hundred tokens are right, by teacher forcing and by search."""
    toy = override(TOY, {"model.d_model": 48})
    rng = np.random.default_rng(0)
    state = begin(toy)
    step = jax.jit(functools.partial(train.train_step, toy), donate_argnums=0)
    for _ in range(300):
        state, sums = step(state, batch_of_reversals(rng, 64))
    assert sums["correct"] / sums["tokens"] > 0.99
    tests = [rng.integers(3, 13, 6).tolist() for _ in range(16)]
    config = decode.DecodingConfig(beam=2, extra_length=2, rows=16)
    found = dict(decode.decode(toy.model.build(), state.params, [[*s, EOS] for s in tests], config))
    assert sum(found[i][0].tokens == s[::-1] for i, s in enumerate(tests)) >= 15

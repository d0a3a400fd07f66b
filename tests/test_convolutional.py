"""ConvS2S: an independent reading in NumPy, what must change nothing, its cache, its layout, and that it learns."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toys
from jax.sharding import PartitionSpec as P
from test_transformer import OTHER_SOURCE, OTHER_TARGET, SOURCE, TARGET, dropout_shapes, side_by_side

from t2t import beam_search, checkpoint, cost, decode, evaluate, run, train
from t2t.batch import EOS, Batch, Sequences
from t2t.data.batching import fill
from t2t.data.pipeline import TrainingBatches
from t2t.data.prepare import Sizes, prepare
from t2t.decode import DecodingConfig
from t2t.errors import UserError
from t2t.experiment import differences, get, override
from t2t.models import Architecture
from t2t.models.convolutional import Affine, Convolutional, ConvolutionalConfig
from t2t.models.dropout import rows_from
from t2t.sharding import gather, make_mesh, on, place, unboxed


def config(**changes) -> ConvolutionalConfig:
    """As `toys.config`: no two sizes are equal, but for the gate's two halves."""
    sizes = dict(vocab_size=17, num_layers=2, d_model=8, d_hidden=6, kernel_width=3, max_length=24, dtype="float32")
    return ConvolutionalConfig(**{**sizes, **changes})


def params_of(config, scale=0.3):
    """Weights of the right shapes, none of them zero or one."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        return jnp.float32((path[-1].key == "norm") + scale * rng.normal(size=x.shape))

    return jax.tree_util.tree_map_with_path(draw, shapes(config))


def shapes(config):
    row = Sequences(*[jax.ShapeDtypeStruct((1, 8), np.int32)] * 3)
    return unboxed(jax.eval_shape(config.build().init, jax.random.key(0), row, row))


CONFIG = config()
MODEL, PARAMS = CONFIG.build(), params_of(CONFIG)


@functools.partial(jax.jit, static_argnames="config")
def apply(batch, params, config):
    return config.build().apply(params, batch.source, batch.target)


def logits(batch, params=PARAMS, config=CONFIG):
    return apply(batch, params, config)


PAIRS = [(SOURCE, TARGET), (OTHER_SOURCE, OTHER_TARGET)]


# ------------------------------------------------------------------------------ An independent reading

# Gehring et al. 2017 a sentence and a position at a time, in float64; in weights, the last axes are the outputs.


def affine(weights, x):
    """x, an array of as many axes as there are inputs -> W x + b, the weight of each output normalised."""
    direction, norm, bias = (reference.float64(weights[name]) for name in ("direction", "norm", "bias"))
    found = np.zeros_like(bias)
    for output in np.ndindex(bias.shape):
        v = direction[(slice(None),) * x.ndim + output]
        found[output] = norm[output] / math.sqrt((v * v).sum()) * (v * x).sum() + bias[output]
    return found


def convolution(weights, x, before):
    """x [T, d] -> [T, d]: at position t over t - before and on, zeros beyond the ends; then the gate."""
    length, d = x.shape
    width, found = weights["kernel"]["direction"].shape[0], np.zeros_like(x)
    for t in range(length):
        window = np.zeros((width, d))
        for w in range(width):
            if 0 <= t - before + w < length:
                window[w] = x[t - before + w]
        a, b = affine(weights["kernel"], window)
        found[t] = a / (1 + np.exp(-b))
    return found


def each(weights, x):
    return np.array([affine(weights, row) for row in x])


def embed(table, tokens):
    words = reference.float64(table["table"])
    x = np.array([words[t] if t else np.zeros_like(words[0]) for t in tokens])
    return x + reference.float64(table["positions"])[: len(tokens)]


def layer_of(stack, i):
    return jax.tree.map(lambda x: x[i], stack)


def numpy_logits(params, source, target):
    """Token ids without padding -> logits [T, V]."""
    p = jax.tree.map(np.asarray, params)["params"]
    layers, width, *_ = p["encoder"]["convolution"]["kernel"]["direction"].shape
    e = embed(p["embedding"], source)
    x = each(p["source_input"], e)
    for i in range(layers):
        x = (x + convolution(layer_of(p["encoder"]["convolution"], i), x, width // 2)) / math.sqrt(2)
    z = each(p["source_output"], x)
    values = (z + e) / math.sqrt(2)

    words = p.get("target_embedding", p["embedding"])
    g = embed(words, [0, *target][:-1])
    y = each(p["target_input"], g)
    for i in range(layers):
        layer = layer_of(p["decoder"], i)
        h = convolution(layer["convolution"], y, width - 1)
        d = (each(layer["cross_attention"]["query"], h) + g) / math.sqrt(2)
        weights = np.exp(reference.log_softmax(d @ z.T))
        c = len(source) * math.sqrt(1 / len(source)) * (weights @ values)
        h = (h + each(layer["cross_attention"]["output"], c)) / math.sqrt(2)
        y = (y + h) / math.sqrt(2)
    return each(p["target_output"], y) @ reference.float64(words["table"]).T


@pytest.mark.parametrize(
    "changes",
    [{}, {"kernel_width": 4, "num_layers": 3, "target_vocab_size": 23}, {"kernel_width": 1, "num_layers": 1}],
    ids=["two layers", "even width, two vocabularies", "width one"],
)
def test_logits_are_those_of_an_independent_reading(changes):
    c = config(**changes)
    params = params_of(c)
    ours = logits(toys.batch_of(PAIRS), params, c)
    for row, (source, target) in enumerate(PAIRS):
        theirs = numpy_logits(params, source, target)
        assert theirs.std() > 0.1
        np.testing.assert_allclose(ours[row, : len(target)], theirs, atol=1e-5)


# ------------------------------------------------------------------------------ What must change nothing


def test_later_target_tokens_change_nothing_before_them():
    before = logits(toys.batch_of([(SOURCE, TARGET)]))
    for t in range(len(TARGET)):
        changed = [*TARGET]
        changed[t] = 14
        after = logits(toys.batch_of([(SOURCE, changed)]))
        np.testing.assert_array_equal(before[0, : t + 1], after[0, : t + 1])
        assert t + 1 == len(TARGET) or not np.allclose(before[0, t + 1], after[0, t + 1])


def test_a_target_token_reaches_as_far_as_the_kernels_do():
    """Two layers of width 3 see five inputs: a token is seen by the five positions after it, and no further."""
    target = [7, 8, 6, 11, 9, 4, 3, 1]
    before, after = (logits(toys.batch_of([(SOURCE, t)]))[0] for t in (target, [14, *target[1:]]))
    seen = np.abs(before - after).max(-1) > 1e-7
    assert seen.tolist() == [False] + [True] * 5 + [False] * 2


def test_every_source_token_matters_to_every_target_position():
    before = logits(toys.batch_of([(SOURCE, TARGET)]))
    for s in range(len(SOURCE)):
        changed = [*SOURCE]
        changed[s] = 14
        after = logits(toys.batch_of([(changed, TARGET)]))
        assert (np.abs(before - after)[0, : len(TARGET)].max(-1) > 1e-6).all()


def test_padding_changes_nothing():
    tight = Batch(fill([SOURCE], 1, 4), fill([TARGET], 1, 5))
    wide = toys.batch_of(PAIRS, rows=3, length=20)
    np.testing.assert_allclose(logits(wide)[0, :5], logits(tight)[0], atol=1e-5)
    garbage = wide.source._replace(tokens=np.where(wide.source.segments, wide.source.tokens, 13))
    np.testing.assert_array_equal(logits(wide._replace(source=garbage))[0, :5], logits(wide)[0, :5])
    assert np.isfinite(logits(wide)).all()  # the empty row too


def test_sentences_packed_into_a_row_do_not_see_each_other():
    """Side by side without a gap, where a kernel that knew no sentences would see both."""
    packed = Batch(side_by_side(SOURCE, OTHER_SOURCE), side_by_side(TARGET, OTHER_TARGET))
    ours, alone = logits(packed), logits(toys.batch_of(PAIRS))
    np.testing.assert_allclose(ours[0, :5], alone[0, :5], atol=1e-5)
    np.testing.assert_allclose(ours[0, 5:7], alone[1, :2], atol=1e-5)


def test_the_length_of_a_direction_changes_nothing():
    """Weight normalisation: only where a direction points counts."""
    longer = jax.tree_util.tree_map_with_path(lambda path, x: 3 * x if path[-1].key == "direction" else x, PARAMS)
    batch = toys.batch_of(PAIRS)
    np.testing.assert_allclose(logits(batch, longer), logits(batch), atol=1e-5)


def test_bfloat16_is_near_float32():
    batch = toys.batch_of(PAIRS)
    half = logits(batch, config=config(dtype="bfloat16"))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, logits(batch), atol=0.015)
    assert {x.dtype for x in jax.tree.leaves(shapes(config(dtype="bfloat16")))} == {np.dtype(np.float32)}


def test_unrolling_changes_nothing():
    batch = toys.batch_of(PAIRS)
    np.testing.assert_allclose(logits(batch, config=config(unroll=2)), logits(batch), atol=1e-5)


def test_attention_weights_leave_on_request():
    batch = toys.batch_of(PAIRS)
    _, kept = jax.jit(lambda *x: MODEL.apply(PARAMS, *x, mutable=["intermediates"]))(*batch)
    (weights,) = kept["intermediates"]["decoder"]["cross_attention"]["weights"]
    assert weights.shape == (2, 4, 1, 8, 8)  # N B H T S
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert not weights[:, 0, 0, :5, 4:].any() and (weights[:, 0, 0, :5, :4] > 0).all()


# ------------------------------------------------------------------------------ Dropout and first weights


@jax.jit
def dropped(batch, key, first_row):
    with rows_from(first_row):
        return MODEL.apply(PARAMS, batch.source, batch.target, train=True, rngs={"dropout": jax.random.key(key)})


def test_dropout_stands_on_embeddings_inputs_of_convolutions_and_the_output():
    """As the masks in the program: the loop over layers holds each layer's body once."""
    batch = Batch(fill([SOURCE], 4, 7), fill([TARGET], 4, 9))
    program = jax.make_jaxpr(lambda key: dropped(batch, key, 0))(0)
    assert dropout_shapes(program.jaxpr) == {(4, 7, 8): 1, (4, 9, 8): 2, (4, 7, 6): 1, (4, 9, 6): 1}


def test_dropout_is_off_unless_training_and_belongs_to_the_row():
    batch = toys.batch_of(PAIRS * 2)
    np.testing.assert_array_equal(dropped(batch, 0, 0), dropped(batch, 0, 0))
    assert not np.allclose(dropped(batch, 0, 0), dropped(batch, 1, 0))
    assert not np.allclose(dropped(batch, 0, 0), logits(batch))
    second_half = jax.tree.map(lambda x: np.roll(x, -2, axis=0), batch)
    np.testing.assert_allclose(dropped(second_half, 0, 2)[:2], dropped(batch, 0, 0)[2:], atol=1e-5)


def test_weights_begin_as_the_paper_says():
    batch = toys.batch_of(PAIRS)
    c = config(vocab_size=1000, d_model=64, d_hidden=128, p_drop=0.2)
    params = unboxed(jax.jit(c.build().init)(jax.random.key(0), *batch))["params"]
    np.testing.assert_allclose(params["embedding"]["table"].std(), 0.1, rtol=0.02)
    kernel = params["encoder"]["convolution"]["kernel"]
    np.testing.assert_allclose(kernel["direction"].std(), math.sqrt(4 * 0.8 / (3 * 128)), rtol=0.02)
    np.testing.assert_allclose(params["target_input"]["direction"].std(), math.sqrt(0.8 / 64), rtol=0.02)
    np.testing.assert_allclose(params["target_output"]["direction"].std(), math.sqrt(1 / 128), rtol=0.02)
    assert not np.array_equal(kernel["direction"][0], kernel["direction"][1])
    long = np.sqrt(np.square(kernel["direction"]).sum((1, 2)))  # [N G F]
    np.testing.assert_allclose(long.mean(), kernel["norm"].mean(), rtol=0.01)
    assert np.ptp(kernel["norm"]) == 0 and not any(x.any() for x in leaves_named(params, "bias"))


def leaves_named(tree, name):
    return [x for path, x in jax.tree_util.tree_leaves_with_path(tree) if path[-1].key == name]


def test_an_affine_map_begins_by_keeping_the_variance():
    x = jax.random.normal(jax.random.key(0), (4, 100, 256))
    made = lambda gain: Affine("BTD,DF->BTF", dict(D=256, F=128), "float32", gain)  # noqa: E731
    for gain in (1.0, 4.0):
        y, _ = made(gain).init_with_output(jax.random.key(1), x)
        np.testing.assert_allclose(y.var(), gain, rtol=0.05)


# ------------------------------------------------------------------------------ Decoding


@functools.partial(jax.jit, static_argnums=1)
def begin(source, beams):
    return MODEL.apply(PARAMS, source, MODEL.apply(PARAMS, source, method="encode"), beams, 9, method="start")


def test_step_by_step_equals_teacher_forcing_and_beams_change_places():
    """Two hypotheses a sentence, of other words, which change places after every other token."""
    source, first, second = [5, 9, 3, 1], [7, 8, 9, 6, 4, 13, 12, 1], [11, 12, 13, 8, 6, 5, 4, 1]
    whole = logits(toys.batch_of([(source, first), (source, second), ([4, 1], first), ([4, 1], second)]))
    expected = np.asarray(whole).reshape(2, 2, 8, 17)
    sources = fill([source, [4, 1]], 2, 8)
    cache = begin(sources, 2)
    step = jax.jit(functools.partial(MODEL.apply, PARAMS, method="step"))
    order, before = np.array([0, 1]), np.zeros((2, 2), np.int32)
    for t in range(8):
        found, cache = step(cache, before)
        np.testing.assert_allclose(found, expected[:, order, t], atol=1e-5)
        if t % 2:
            order = order[::-1]
            cache = beam_search.reorder(MODEL, cache, jnp.array([[1, 0], [1, 0]]))
        before = np.tile(np.array([first, second])[order, t], (2, 1))


def test_the_cache_is_as_its_letters_say():
    source = fill([[3, 1], [4, 5, 1]], 2, 7)
    cache = begin(source, 5)
    sizes = dict(B=2, K=5, S=7, D=8, C=6, W=3 - 1)
    assert cache.keys() == MODEL.cache_axes.keys()
    assert len(cache.pop("layers")) == len(cache["inputs"]) == 2
    for name, axes in MODEL.cache_axes.items() - {("layers", "")}:
        assert {x.shape for x in jax.tree.leaves(cache[name])} == {tuple(sizes[a] for a in axes)}


TINY = config(vocab_size=5)
TINY_PARAMS = params_of(TINY, scale=1.0)
SOURCES = [[3, 4, 2, 1], [4, 1], [2, 2, 3, 3, 4, 1]]


@functools.cache
def numpy_next(source, prefix):
    return reference.log_softmax(numpy_logits(TINY_PARAMS, list(source), [*prefix, 0])[-1])


def beams(sources, limits, beam, max_length):
    source = fill(sources, len(sources), 8)
    found = decode.beam_search(TINY.build(), TINY_PARAMS, source, jnp.array(limits), beam, 0.6, max_length)
    return [decode._hypotheses(*row) for row in zip(*jax.device_get(found), strict=True)]


def assert_same(ours, theirs):
    assert [h.tokens for h in ours] == [h.tokens for h in theirs]
    np.testing.assert_allclose([h.score for h in ours], [h.score for h in theirs], atol=1e-4)


def test_beam_search_is_the_plain_one_over_the_independent_reading():
    limits = [6, 3, 7]
    for source, limit, ours in zip(SOURCES, limits, beams(SOURCES, limits, 3, 12), strict=True):
        theirs = reference.beam_search(functools.partial(numpy_next, tuple(source)), 3, EOS, 0.6, limit)
        assert_same(ours, [decode.Hypothesis([t for t in tokens if t != EOS], score) for tokens, score in theirs])


def test_a_search_that_goes_on_with_few_rows_finds_the_same(monkeypatch):
    """Rows of very different limits, some of them empty, so that arrays of 16, 8 and 4 rows are gone through."""
    rng = np.random.default_rng(0)
    sources = [[*rng.integers(2, 5, rng.integers(1, 7)).tolist(), EOS] for _ in range(16)]
    limits = np.where(rng.random(16) < 0.1, 0, rng.integers(1, 4, 16))
    limits[rng.permutation(16)[:3]] = 8, 13, 20
    sizes, step = [], Convolutional.step

    def noted(self, cache, tokens):
        sizes.append(len(tokens))
        return step(self, cache, tokens)

    def search(least):
        beam_search._advancing("cpu").clear_cache()
        monkeypatch.setattr(beam_search, "LEAST", least)
        return beams(sources, limits.tolist(), 3, 20)

    monkeypatch.setattr(Convolutional, "step", noted)
    for ours, theirs in zip(search(4), search(1000), strict=True):
        assert_same(ours, theirs)
    assert set(sizes) == {16, 8, 4}
    beam_search._advancing("cpu").clear_cache()


def test_greedy_is_the_plain_one():
    found = decode.decode(TINY.build(), TINY_PARAMS, SOURCES, DecodingConfig(beam=1, extra_length=2), longest=24)
    for i, (best, *_) in found:
        limit = len(SOURCES[i]) + 2
        expected = reference.greedy(functools.partial(numpy_next, tuple(SOURCES[i])), EOS, limit)
        assert best.tokens == [t for t in expected if t != EOS]


# ------------------------------------------------------------------------------ Sizes and costs


def closed_formula(c):
    """One table of words and one of positions; a norm and a bias an output."""
    affine = lambda into, out: into * out + 2 * out  # noqa: E731
    ends = 2 * (affine(c.d_model, c.d_hidden) + affine(c.d_hidden, c.d_model))
    attention = affine(c.d_hidden, c.d_model) + affine(c.d_model, c.d_hidden)
    convolution = affine(c.kernel_width * c.d_hidden, 2 * c.d_hidden)
    return (c.vocab_size + c.max_length) * c.d_model + ends + c.num_layers * (2 * convolution + attention)


def parameters(model):
    return sum(x.size for x in jax.tree.leaves(shapes(model)))


@pytest.mark.parametrize(
    ("name", "count", "beside"),
    [("baseline_convolutional", 921_984, "quickstart"), ("multi30k_convolutional", 2_071_152, "multi30k_ende")],
)
def test_parameters_are_those_of_the_transformer_beside_it(name, count, beside):
    model = get(name).model
    assert parameters(model) == closed_formula(model) == count
    assert count == pytest.approx(parameters(get(beside).model), rel=0.01)
    changed = differences(get(name), get(beside))
    assert {path.split(".")[0] for path in changed} == {"name", "reports", "base", "model"}
    assert not changed.keys() & {"model.vocab_size", "model.num_layers", "model.d_model", "model.p_drop", "model.dtype"}
    assert isinstance(model, Architecture) and model.longest == 128


def test_flops_are_those_of_xla():
    """Without a loop over layers, whose body XLA would count once."""
    sizes = {"model.kernel_width": 5, "model.d_hidden": 96, "model.p_drop": 0.3, "model.vocab_size": 300}
    experiment = override(get("baseline_convolutional"), {"mesh.data": 1, "batching.tokens": 256, **sizes})
    found = cost.cost(experiment, None)
    xla = cost.compiled(override(experiment, {"model.unroll": experiment.model.num_layers}))
    assert found["flops_per_step"] == pytest.approx(xla["xla_flops"], rel=0.05)
    assert found["parameters"] == parameters(experiment.model)


# ------------------------------------------------------------------------------ Over devices, and training

LAYOUT = {
    "embedding/table": P("model", "fsdp"),
    "embedding/positions": P(None, "fsdp"),
    "kernel/direction": P(None, None, "fsdp", None, "model"),
    "kernel/norm": P(None, None, "model"),
    "kernel/bias": P(None, None, "model"),
    "query/direction": P(None, "model", "fsdp"),
    "query/norm": P(None, "fsdp"),
    "query/bias": P(None, "fsdp"),
    "cross_attention/output/direction": P(None, "fsdp", "model"),
    "cross_attention/output/norm": P(None, "model"),
    "cross_attention/output/bias": P(None, "model"),
    "_input/direction": P("fsdp", "model"),
    "_input/norm": P("model"),
    "_input/bias": P("model"),
    "_output/direction": P("model", "fsdp"),
    "_output/norm": P("fsdp"),
    "_output/bias": P("fsdp"),
}


def reversal(toy, **changes):
    """The toy with a convolutional model."""
    sizes = dict(vocab_size=40, d_model=32, d_hidden=24, max_length=80, p_drop=0.1)
    return override(dataclasses.replace(toy, model=config(**sizes)), changes)


def spread(toy, data, fsdp, model, **changes):
    return reversal(toy, **{"mesh.data": data, "mesh.fsdp": fsdp, "mesh.model": model, **changes})


def trained(experiment, folder):
    where = train.train(experiment, folder, lambda _: None, lambda *_: None)
    return where, checkpoint.load_params(where, experiment)[0]


@pytest.fixture(scope="module")
def born(toy):
    """An experiment on two by two by two devices, its mesh, and its first state there."""
    experiment = spread(toy, 2, 2, 2)
    mesh = make_mesh(experiment.mesh)
    return experiment, mesh, train.new_state(experiment, mesh)


def test_parameters_are_born_where_their_letters_say(born):
    _, mesh, state = born
    found = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        ending = next(e for e in LAYOUT if name.endswith(e))
        assert leaf.sharding.is_equivalent_to(jax.NamedSharding(mesh, LAYOUT[ending]), leaf.ndim), name
        found.add(ending)
    assert found == set(LAYOUT)


@pytest.fixture
def compiled_anew():
    """Nothing comes from the cache of compiled programs."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def test_devices_change_nothing(born, compiled_anew, capfd):
    """Dropout is on. The tolerance is that of sums taken in another order, over three steps of Adam.

    XLA warns where it finds no way from one layout to the next, and first gathers the array everywhere.
    """
    experiment, mesh, ours = born
    prepared = prepare(experiment.task, Sizes(experiment.model.vocab_size), lambda _: None)
    batches = TrainingBatches(prepared, experiment.batching, experiment.seed)
    theirs = jax.device_get(ours)
    spread_out, alone = (jax.jit(functools.partial(train.train_step, experiment)) for _ in range(2))
    for i in range(3):
        with on(mesh):
            ours, _ = spread_out(ours, place(mesh, batches[i]))
        theirs, _ = alone(theirs, batches[i])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), gather(ours.params), theirs.params)
    assert sum("model" in x.sharding.spec for x in jax.tree.leaves(ours.params)) > 10
    assert "rematerialization" not in capfd.readouterr().err


def test_a_mesh_that_does_not_divide_it_is_refused(toy, tmp_path):
    with pytest.raises(UserError, match=r"--mesh\.model 8 does not divide an axis of 20 of .*decoder/convolution"):
        trained(spread(toy, 1, 1, 8, **{"model.d_hidden": 20}), tmp_path / "run")


def test_it_learns_to_reverse(toy, tmp_path):
    """As the Transformer must."""
    experiment = reversal(
        toy, train_steps=300, log_every=100, evaluate_every=300, checkpoint_every=50, **{"optimizer.scale": 0.6}
    )
    where, _ = trained(experiment, tmp_path / "run")
    _, kept, vocabulary = run.load(where.folder)
    assert kept == experiment
    params, steps = checkpoint.load_params(where, experiment, 2)
    found, _ = evaluate.evaluate(where, experiment, vocabulary, params, steps, "test", lambda _: None)
    assert found["perplexity"] < 1.3
    assert found["scores"]["sacrebleu"]["score"] > 80


def test_sentences_longer_than_the_learned_positions_are_refused(toy, tmp_path):
    with pytest.raises(UserError, match=r"--batching\.max_length lets sentences of \d+ tokens in; the model takes 4"):
        trained(reversal(toy, **{"model.max_length": 4}), tmp_path / "run")
